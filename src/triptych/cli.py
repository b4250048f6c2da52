"""The command line: parse, call, print the path. Nothing else.

Exit codes: 0 done; 1 the work failed, or an audit found what `--fail-on` names; 2 bad usage or bad input; 130 stopped
by the user. An error is one sentence on stderr, and a traceback only with `--debug`. Not here: what commands do
(`triptych.commands`).
"""

import errno
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, NoReturn, cast

import typer

from triptych import __version__
from triptych.commands.align import align
from triptych.commands.audit import audit
from triptych.commands.bench import bench
from triptych.commands.decode import decode
from triptych.commands.doctor import doctor
from triptych.commands.explore import explore
from triptych.commands.interpret import interpret
from triptych.commands.options import GLOBALS, Globals
from triptych.commands.outcome import Outcome
from triptych.commands.report import report
from triptych.commands.study import study
from triptych.errors import InputError, TriptychError

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130

GLOBAL_FLAGS = ("--debug", "--json", "--quiet")

# The base of typer's usage errors: their module differs from version to version, and this chain does not.
USAGE_ERROR: type = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="triptych",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Decode, align and interpret small models, and say what changed and whether to trust it.",
    epilog="--debug, --json and --quiet may also stand after the command.",
)
for command in (study, decode, audit, report, explore, doctor):
    app.command()(command)
app.add_typer(align, name="align")
app.add_typer(interpret, name="interpret")
app.add_typer(bench, name="bench")


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object of the figures.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    GLOBALS.set(Globals(debug, as_json, quiet))


def main() -> NoReturn:
    """The entry point of `triptych` and `python -m triptych`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs a command line (without the program's name); the exit code."""
    if "--version" in arguments[:1]:
        print(__version__)
        return DONE
    flags = [argument for argument in arguments if argument in GLOBAL_FLAGS]
    rest = [argument for argument in arguments if argument not in GLOBAL_FLAGS]
    wanted = Globals(debug="--debug" in flags, json="--json" in flags, quiet="--quiet" in flags)
    with _notes_on_stderr(wanted):
        try:
            outcome = app([*flags, *rest], prog_name="triptych", standalone_mode=False)
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - whatever it is, the user gets one sentence
            return _tell(error, wanted)
    if isinstance(outcome, Outcome):
        _print(outcome, wanted)
        if outcome.problems:
            return BAD_INPUT
        return FAILED if outcome.is_failure else DONE
    # typer makes an exit code of Ctrl-C, or an Abort, from version to version.
    if outcome == STOPPED:
        return _tell(KeyboardInterrupt(), wanted)
    # `--help` prints for itself.
    return outcome if isinstance(outcome, int) else DONE


class _Failure(NamedTuple):
    """How an error ends the command."""

    exit_code: int
    sentence: str


def failure_of(error: BaseException) -> _Failure:
    """Exit code and sentence of an error."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _Failure(STOPPED, "stopped; run the same command again to go on")
    if isinstance(error, USAGE_ERROR):
        return _Failure(BAD_INPUT, cast(Any, error).format_message())
    if isinstance(error, TriptychError):
        return _Failure(BAD_INPUT if isinstance(error, InputError) else FAILED, str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return _Failure(BAD_INPUT, f"disk full{where}: free some space and run the same command again to go on")
    if isinstance(error, MemoryError):
        return _Failure(FAILED, "out of memory; free some and run the same command again to go on")
    kind, text = type(error).__name__, str(error)
    return _Failure(FAILED, f"unexpected {kind}: {text or 'no message'} (run again with --debug to see where)")


def _tell(error: BaseException, wanted: Globals) -> int:
    if wanted.debug:
        traceback.print_exception(error)
    exit_code, sentence = failure_of(error)
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    if wanted.json:
        print(json.dumps({"error": sentence, "exit_code": exit_code}))
    return exit_code


def _print(outcome: Outcome, wanted: Globals) -> None:
    for line in outcome.lines:
        print(line)
    for problem in outcome.problems:
        print(f"error: {' '.join(problem.split())}", file=sys.stderr)
    if wanted.json:
        print(json.dumps(outcome.figures, ensure_ascii=False))


@contextmanager
def _notes_on_stderr(wanted: Globals) -> Iterator[None]:
    """Shows what the package logs: notes as they are, warnings as such; with `--quiet` warnings alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Note())
    logger = logging.getLogger("triptych")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if wanted.quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Note(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"
