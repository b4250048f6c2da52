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


@bench.command("usae")
def bench_usae(
    out: Out,
    activations: Annotated[
        str | None,
        typer.Option(help="An activation store, or a .safetensors file with `activations`.", show_default="made ones"),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to train on; a tenth as many more are held out.")] = 20_000,
    epochs: Annotated[int, typer.Option(help="Measured epochs; a training of one more warms up.")] = 6,
    latents: Annotated[int, typer.Option(help="Of the dictionary.")] = 2048,
    k: Annotated[int, typer.Option(help="Latents that fire on a row.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = 256,
    rounds: Rounds = 3,
    two_models: Annotated[bool, typer.Option(help="Measure universal dictionaries over two models, too.")] = True,
    images: Annotated[str, typer.Option(help="For extraction: a hub id, a .parquet file, a folder, or starter.")] = (
        "starter"
    ),
    n_images: Annotated[int, typer.Option(help="So many of them; 0 leaves extraction out.")] = 64,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SPEC of a vision model to extract with.", show_default="random ResNet-18 and ViT-B/16"),
    ] = None,
) -> Outcome:
    """Dictionary training beside overcomplete's, and extraction beside a plain loop of transformers; prints the ratios.

    Contenders run in turn on the CPU, each in a process of its own, on the same standardised activations. Needs
    overcomplete: pip install --no-deps overcomplete einops.

    \b
    Examples:
      triptych bench usae --out runs/bench/usae.json
      triptych bench usae --activations runs/vision/dictionaries/activations/train/vit --out runs/bench/usae.json
      triptych bench usae --model vit=google/vit-base-patch16-224 --n-images 256 --out runs/bench/usae.json
    """
    from triptych.bench.usae import run
    from triptych.bench.usae_contenders import UsaeWork
    from triptych.config import parse_config

    given = {"activations": activations, "rows": rows, "epochs": epochs, "latents": latents, "k": k, "rounds": rounds}
    given |= {"batch_size": batch_size, "two_models": two_models, "images": images, "n_images": n_images}
    named = {"models": _named_models(model or [])}
    work = parse_config(UsaeWork, given | named, where="triptych bench usae")
    return Outcome(figures=run(out, work, show_progress=not GLOBALS.get().quiet), lines=(str(out),))


def _named_models(given: list[str]) -> dict[str, str]:
    """NAME=SPEC, each name once."""
    from triptych.errors import ConfigError

    named: dict[str, str] = {}
    for one in given:
        name, _, spec = one.partition("=")
        if not name or not spec or name in named:
            raise ConfigError(f"--model {one}: expected NAME=SPEC, each name once, as in vit=./vit")
        named[name] = spec
    return named
