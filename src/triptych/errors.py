"""The exception hierarchy: everything Triptych raises on purpose.

Every error names the object, the value and the remedy in one sentence, and also subclasses the standard-library
type a caller would expect, so that `except ValueError` keeps working. The command line turns an
[`InputError`][triptych.errors.InputError] into exit code 2 and a [`WorkError`][triptych.errors.WorkError] into exit
code 1; anything else is a bug.

    TriptychError
    ├── InputError            the user can mend it: exit code 2
    │   ├── ConfigError       (ValueError)          a parameter, key or strategy out of range or unknown
    │   ├── DataError         (ValueError)          a prompt or pair file that cannot be read as such
    │   ├── ModelError        (ValueError)          a model folder or hub id that cannot be loaded
    │   ├── MissingInputError (FileNotFoundError)   a path that is not there
    │   └── OutputError       (OSError)             an output folder that cannot be written
    └── WorkError             (RuntimeError)        the work itself failed: exit code 1, with how to go on
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TriptychError(Exception):
    """Base of every error raised on purpose."""


class InputError(TriptychError):
    """Bad usage or bad input: the message says what to change. Exit code 2."""


class ConfigError(InputError, ValueError):
    """A parameter, configuration key or strategy that is unknown or out of range."""


class DataError(InputError, ValueError):
    """A data file that exists but cannot be read as prompts or pairs."""


class ModelError(InputError, ValueError):
    """A model source that cannot be loaded."""


class MissingInputError(InputError, FileNotFoundError):
    """An input path that does not exist."""


class OutputError(InputError, OSError):
    """An output folder or file that cannot be written."""


class WorkError(TriptychError, RuntimeError):
    """The work failed half-way; what is finished is kept and the message says how to go on. Exit code 1."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'beta'?` where a known name is close to `name`, else the list of known names."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
