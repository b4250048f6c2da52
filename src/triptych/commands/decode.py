"""`triptych decode`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.commands.options import GLOBALS, command_line
from triptych.commands.outcome import Outcome, run_outcome

DEFAULT_STRATEGIES = ("greedy", "beam:width=4", "top_k:k=50,temperature=1.0", "top_p:p=0.9,temperature=1.0")


def decode(
    model: Annotated[str, typer.Option(help="A hub id, a local folder, or starter.")],
    prompts: Annotated[str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="SPEC",
            help="NAME:key=value,key=[value,value]; may be given again. By default the four of the paper.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a completion at most.")] = 128,
    limit: Annotated[int | None, typer.Option(help="The first so many prompts.", show_default="all")] = None,
    samples: Annotated[int, typer.Option(help="Completions of a prompt by every sampler.")] = 1,
    seed: Annotated[int, typer.Option(help="The seed of every draw.")] = 0,
    template: Annotated[str, typer.Option(help="How the model sees a prompt: paper, alpaca, chat or plain.")] = "paper",
    reward_model: Annotated[
        str | None, typer.Option(help="Score the completions: a hub id or a local folder.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the run directory holds.")] = False,
) -> Outcome:
    """The decoding panel alone: completions, their measures, a report.

    \b
    Examples:
      triptych decode --model starter --prompts starter --limit 8 --out runs/look
      triptych decode --model ./my-model --prompts prompts.jsonl --out runs/sweep \\
          --strategy greedy --strategy "top_p:p=0.9,temperature=[0.2,0.5,0.8,1.0,1.2]"
      triptych decode --model starter --prompts starter --samples 10 --strategy min_p:p=0.05 --out runs/varied
    """
    from triptych.config import parse_config
    from triptych.study import StudyConfig, run_study

    specs = list(strategies or DEFAULT_STRATEGIES)
    decoding: dict[str, Any] = {
        "prompts": prompts,
        "shuffle": False,
        "limit": limit,
        "template": template,
        "max_new_tokens": max_new_tokens,
        "strategies": specs,
        "within": _further_samples(specs, samples),
        "reward_model": reward_model,
    }
    config = parse_config(StudyConfig, {"model": model, "seed": seed, "decoding": decoding}, where="triptych decode")
    show_progress = not GLOBALS.get().quiet
    done = run_study(config, out, command=command_line(), fresh=fresh, show_progress=show_progress)
    return run_outcome(done.run_dir, done.report, did_work=done.did_work)


def _further_samples(specs: list[str], samples: int) -> dict[str, Any] | None:
    """Samples of every sampler; a search has but one."""
    from triptych.decoding.plan import expand
    from triptych.decoding.strategies import Sampler
    from triptych.errors import ConfigError

    samplers = [strategy.label for strategy in expand(specs) if isinstance(strategy, Sampler)]
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; it must be at least 1")
    return {"strategies": samplers, "samples": samples} if samples > 1 and samplers else None
