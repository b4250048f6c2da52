"""Options that every command understands."""

import sys
from dataclasses import dataclass

import typer


@dataclass(frozen=True)
class Globals:
    """What the options before (or after) a command's name say."""

    debug: bool = False
    """Show the traceback of an error."""
    json: bool = False
    """End stdout with one JSON object."""
    quiet: bool = False
    """No progress, no notes."""


def globals_of(context: typer.Context) -> Globals:
    """The global options of a call."""
    found = context.find_object(Globals)
    return Globals() if found is None else found


def command_line() -> list[str]:
    """How this process was called, for the manifest."""
    return ["triptych", *sys.argv[1:]]
