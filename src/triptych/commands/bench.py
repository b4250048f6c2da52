"""`triptych bench`: this project and its peers on the same work, in one run."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.options import GLOBALS
from triptych.commands.outcome import Outcome

Out = Annotated[Path, typer.Option(help="The JSON file to write.")]
Model = Annotated[str, typer.Option(help="The base: a hub id, a local folder, or starter.")]
Dtype = Annotated[str, typer.Option(help="auto (bf16 where the processor has it), float32 or bfloat16.")]
Limit = Annotated[int | None, typer.Option(help="The first so many rows of the data.", show_default="all")]
Steps = Annotated[int, typer.Option(help="Measured steps; one more warms up.")]
Rounds = Annotated[int, typer.Option(help="How often each contender runs, taking turns.")]

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="This project and its peers on the same work.")


@bench.command("decode")
def bench_decode(
    out: Out,
) -> Outcome:
    """Decoding throughput beside that of peers, measured in one run; prints the ratios.

    \b
    Example:
      triptych bench decode --out runs/bench/decode.json
    """
    from triptych.bench.decode import run

    return Outcome(figures=run(out), lines=(str(out),))


@bench.command("dpo")
def bench_dpo(
    out: Out,
    model: Model = "starter",
    pairs: Annotated[
        str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")
    ] = "starter",
    limit: Limit = None,
    steps: Steps = 3,
    batch_size: Annotated[int, typer.Option(help="Pairs of a step.")] = 4,
    max_length: Annotated[int, typer.Option(help="Tokens of a prompt with its answer.")] = 512,
    rounds: Rounds = 1,
    dtype: Dtype = "auto",
) -> Outcome:
    """Steps of DPO beside TRL's: speed, peak memory and losses, measured in one run on the CPU; prints the ratios.

    Needs TRL: pip install 'triptych[bench]'.

    \b
    Examples:
      triptych bench dpo --out runs/bench/dpo.json
      triptych bench dpo --pairs pairs.jsonl --steps 10 --rounds 3 --out runs/bench/dpo.json
    """
    from triptych.bench.alignment_work import DpoWork
    from triptych.bench.dpo import run
    from triptych.config import parse_config

    given = {"model": model, "dtype": dtype, "pairs": pairs, "limit": limit, "steps": steps, "rounds": rounds}
    given |= {"batch_size": batch_size, "max_length": max_length}
    work = parse_config(DpoWork, given, where="triptych bench dpo")
    return Outcome(figures=run(out, work, show_progress=not GLOBALS.get().quiet), lines=(str(out),))


@bench.command("grpo")
def bench_grpo(
    out: Out,
    model: Model = "starter",
    prompts: Annotated[
        str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")
    ] = "starter",
    limit: Limit = None,
    steps: Steps = 3,
    prompts_per_step: Annotated[int, typer.Option(help="Prompts of a step.")] = 4,
    group_size: Annotated[int, typer.Option(help="Completions of a prompt.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of every completion.")] = 64,
    rounds: Rounds = 1,
    dtype: Dtype = "auto",
) -> Outcome:
    """Steps of GRPO beside TRL's: speed and peak memory, measured in one run on the CPU; prints the ratios.

    Needs TRL: pip install 'triptych[bench]'.

    \b
    Examples:
      triptych bench grpo --out runs/bench/grpo.json
      triptych bench grpo --prompts prompts.jsonl --steps 10 --rounds 3 --out runs/bench/grpo.json
    """
    from triptych.bench.alignment_work import GrpoWork
    from triptych.bench.grpo import run
    from triptych.config import parse_config

    given = {"model": model, "dtype": dtype, "prompts": prompts, "limit": limit, "steps": steps, "rounds": rounds}
    given |= {"prompts_per_step": prompts_per_step, "group_size": group_size, "max_new_tokens": max_new_tokens}
    work = parse_config(GrpoWork, given, where="triptych bench grpo")
    return Outcome(figures=run(out, work, show_progress=not GLOBALS.get().quiet), lines=(str(out),))


@bench.command("audit")
def bench_audit(
    out: Out,
    model: Model = "starter",
    pairs: Annotated[
        str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")
    ] = "starter",
    prompts: Annotated[str, typer.Option(help="What is answered: pairs (their prompts), or as --pairs.")] = "starter",
    limit: Annotated[int, typer.Option(help="Prompts, and as many pairs.")] = 48,
    peer_prompts: Annotated[int, typer.Option(help="The first so many of them, for the plain loop.")] = 6,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a response at most.")] = 128,
    dtype: Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), float32 or bfloat16.")] = "auto",
) -> Outcome:
    """What an audit costs: three adapters beside one, and beside a plain loop of transformers; prints the ratios.

    The adapters are random ones, made for it. Every audit and the loop run in a process of their own.

    \b
    Examples:
      triptych bench audit --out runs/bench/audit.json
      triptych bench audit --model ./base --pairs pairs.jsonl --prompts pairs --limit 100 --out runs/bench/audit.json
    """
    from triptych.bench.audit import run
    from triptych.bench.audit_peer import AuditWork
    from triptych.config import parse_config

    given = {"model": model, "dtype": dtype, "pairs": pairs, "prompts": prompts, "limit": limit}
    given |= {"peer_prompts": peer_prompts, "max_new_tokens": max_new_tokens}
    work = parse_config(AuditWork, given, where="triptych bench audit")
    return Outcome(figures=run(out, work, show_progress=not GLOBALS.get().quiet), lines=(str(out),))
