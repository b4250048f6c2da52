"""`triptych audit`: what alignment did to a model, base against every adapter."""

from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.commands.options import GLOBALS, command_line
from triptych.commands.outcome import Outcome, run_outcome

DATA = "A hub id, a .jsonl, .json, .csv or .parquet file, or starter."


def audit(
    model: Annotated[str, typer.Option(help="The base: a hub id, a local folder, or starter.")],
    pairs: Annotated[str, typer.Option(help=f"Pairs whose chosen answers are read. {DATA}")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME=DIR",
            help="A PEFT adapter, a run that holds one, or a whole model of the same tokenizer; may be given again.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[str, typer.Option(help=f"What is answered: pairs (their prompts), or: {DATA}")] = "pairs",
    scorers: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="SPEC",
            help="A reward that is audited too: model:DIR, checks, FILE.py:FUNCTION, …; may be given again.",
            show_default=False,
        ),
    ] = None,
    gold: Annotated[
        str | None, typer.Option(metavar="SPEC", help="A scorer that nothing was trained on.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Prompts and pairs at most.", show_default="500 and 200, as in the paper")
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Read only the share that `triptych align` holds out.", show_default="all pairs"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="The split.json of the run that trained: nothing it trained on is read.", show_default="none"
        ),
    ] = None,
    length_limit: Annotated[int, typer.Option(help="The limit of words that is asked for.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a response at most.")] = 128,
    template: Annotated[
        str, typer.Option(help="auto (the model's chat template, else alpaca), chat, alpaca, paper or plain.")
    ] = "auto",
    fail_on: Annotated[
        str | None,
        typer.Option(help="Exit with code 1 where the card has a finding of this level: severe, warn or note."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of every draw.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), float32 or bfloat16.")] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A.B=C", help="Any other key, such as thresholds.length.warn=1.5 or hacking_prompts=100."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the run directory holds.")] = False,
) -> Outcome:
    """What changed between a base and its adapters, with intervals, and a report card that names the failures.

    Perplexity and exact KL, verbosity, reward hacking, forgetting, collapse, win rates. Run again with the same --out,
    it goes on where it was interrupted.

    \b
    Examples:
      triptych audit --model starter --adapter dpo=runs/dpo --pairs starter --out runs/audit
      triptych audit --model ./base --adapter mine=runs/dpo --pairs p.jsonl --split runs/dpo/split.json --out runs/mine
      triptych audit --model ./base --adapter theirs=./lora --adapter merged=./whole --pairs pairs.jsonl \\
          --scorer model:runs/reward --gold checks --fail-on severe --out runs/audit
    """
    from triptych.config import apply_overrides, parse_config
    from triptych.study import StudyConfig, run_study

    wanted = _level(fail_on)
    given: dict[str, Any] = {
        "adapters": _named(adapters or []),
        "pairs": pairs,
        "prompts": prompts,
        "scorers": scorers or [],
        "gold": gold,
        "validation": validation,
        "length_limit": length_limit,
        "max_new_tokens": max_new_tokens,
        "template": template,
    }
    if limit is not None:
        given |= {"perplexity_prompts": limit, "verbosity_prompts": limit}
    auditing = apply_overrides(given, overrides or [])
    written = {"model": model, "seed": seed, "split": split, "dtype": dtype, "auditing": auditing}
    config = parse_config(StudyConfig, written, where="triptych audit")
    show_progress = not GLOBALS.get().quiet
    done = run_study(config, out, command=command_line(), fresh=fresh, show_progress=show_progress)
    outcome = run_outcome(done.run_dir, done.report, did_work=done.did_work)
    return _with_card(outcome, out, wanted)


def _named(adapters: list[str]) -> dict[str, str]:
    from triptych.errors import ConfigError

    named: dict[str, str] = {}
    for item in adapters:
        name, equals, folder = item.partition("=")
        if not equals or not name.strip() or not folder.strip():
            raise ConfigError(f"--adapter '{item}' is not of the form NAME=DIR")
        if name in named:
            raise ConfigError(f"--adapter '{name}' is given twice; choose another name")
        named[name] = folder
    return named


def _level(fail_on: str | None) -> int | None:
    """Place of the level among all, from the gravest; None for none."""
    from triptych.auditing.records import LEVELS
    from triptych.errors import ConfigError, suggestion

    if fail_on is None:
        return None
    known = [level for level in LEVELS if level != "ok"]
    if fail_on not in known:
        raise ConfigError(f"--fail-on '{fail_on}' is unknown{suggestion(fail_on, known)}")
    return known.index(fail_on)


def _with_card(outcome: Outcome, out: Path, wanted: int | None) -> Outcome:
    """The card above the report's path."""
    from triptych.auditing.card import lines
    from triptych.auditing.records import LEVELS, Finding
    from triptych.auditing.study import CARD
    from triptych.runs import read_records_json

    findings = read_records_json(out / CARD, Finding)
    fails = wanted is not None and any(LEVELS.index(one.level) <= wanted for one in findings)
    return outcome._replace(lines=(*lines(findings), *outcome.lines[-1:]), is_failure=fails)
