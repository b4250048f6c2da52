"""What the paper reports, as data: every number with the table, figure or section it stands in.

For the decoding panel the paper prints settings, figures and sentences, but no numbers: there is nothing here to
compare a decoding result with, and the report says so.
"""

from functools import cache
from importlib.resources import files

from triptych.records import Record

Scalar = bool | int | float | str


class Citation(Record):
    """The report whose figures and tables this project reproduces."""

    title: str
    authors: tuple[str, ...]

    def __str__(self) -> str:
        *first, last = self.authors
        return f"“{self.title}” by {', '.join(first)} and {last}" if first else f"“{self.title}” by {last}"


class ReportedValue(Record):
    """One number or setting of the paper, as printed."""

    key: str
    """Dotted name, such as `dpo.perplexity_aligned`."""
    value: Scalar | tuple[Scalar, ...]
    unit: str | None = None
    source: str
    """Where it stands: a table, a figure or a section."""


class Reported(Record):
    """All that the paper reports."""

    citation: Citation
    values: tuple[ReportedValue, ...]

    def __getitem__(self, key: str) -> ReportedValue:
        """The value of one key; `KeyError` where the paper gives none."""
        return self._by_key()[key]

    def number(self, key: str) -> float:
        """The value of one key that is a number."""
        value = self[key].value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"reported.json: {key} = {value!r} is no number")
        return value

    def _by_key(self) -> dict[str, ReportedValue]:
        return {value.key: value for value in self.values}


@cache
def reported() -> Reported:
    """The paper's numbers, read once from the package's own data."""
    return Reported.model_validate_json(files("triptych.reports").joinpath("reported.json").read_text("utf-8"))
