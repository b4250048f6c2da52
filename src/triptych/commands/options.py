"""Options that every command understands."""

import sys
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Globals:
    """What the options before (or after) a command's name say."""

    debug: bool = False
    """Show the traceback of an error."""
    json: bool = False
    """End stdout with one JSON object."""
    quiet: bool = False
    """No progress, no notes."""


NO_GLOBALS = Globals()

GLOBALS: ContextVar[Globals] = ContextVar("GLOBALS", default=NO_GLOBALS)
"""Those of the command line that is running."""


def command_line() -> list[str]:
    """How this process was called, for the manifest."""
    return ["triptych", *sys.argv[1:]]
