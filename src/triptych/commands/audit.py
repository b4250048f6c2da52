"""`triptych audit`: what alignment did to a model, base against every adapter."""

import os
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
    nulls: Annotated[
        int, typer.Option(metavar="K", help="Random LoRAs as large as each audited one, to stand beside its findings.")
    ] = 0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Measure every LoRA at λ = 0, 0.25, … 1.25 of its own scale, too.")
    ] = False,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the card as JUnit XML, which CI servers show.", show_default=False),
    ] = None,
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
    if junit is not None:
        _require_writable(junit, out)
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
        "nulls": nulls,
        "sweep": sweep,
    }
    if limit is not None:
        given |= {"perplexity_prompts": limit, "verbosity_prompts": limit}
    auditing = apply_overrides(given, overrides or [])
    written = {"model": model, "seed": seed, "split": split, "dtype": dtype, "auditing": auditing}
    config = parse_config(StudyConfig, written, where="triptych audit")
    show_progress = not GLOBALS.get().quiet
    done = run_study(config, out, command=command_line(), fresh=fresh, show_progress=show_progress)
    outcome = run_outcome(done.run_dir, done.report, did_work=done.did_work)
    return _with_card(outcome, out, wanted, junit)


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


def _require_writable(junit: Path, out: Path) -> None:
    """Raises `OutputError` where the file could not be written in the end; the run's own folder is made by the run."""
    from triptych.errors import OutputError

    if junit.is_dir():
        raise OutputError(f"--junit {junit} is a folder: name a file in it")
    if junit.parent.absolute() != out.absolute() and not junit.parent.is_dir():
        raise OutputError(f"--junit {junit}: there is no folder {junit.parent}: make it, or choose another file")
    if junit.parent.is_dir() and not os.access(junit.parent, os.W_OK):
        raise OutputError(f"--junit {junit}: no permission to write into {junit.parent}: choose another file")


def _with_card(outcome: Outcome, out: Path, wanted: int | None, junit: Path | None) -> Outcome:
    """The card above the report's path; as JUnit XML, too, where that is asked for."""
    from triptych.auditing.card import lines
    from triptych.auditing.junit import junit_xml
    from triptych.auditing.records import LEVELS, Finding
    from triptych.auditing.study import CARD
    from triptych.runs import atomic_write_bytes, read_records_json

    findings = read_records_json(out / CARD, Finding)
    if junit is not None:
        atomic_write_bytes(junit, junit_xml(findings, outcome.figures["seconds"]))
    fails = wanted is not None and any(LEVELS.index(one.level) <= wanted for one in findings)
    return outcome._replace(lines=(*lines(findings), *outcome.lines[-1:]), is_failure=fails)
