"""Progress on stderr: a bar where a person watches, a plain line now and then where a file does.

    with progress(400, "tokens", "decoding") as bar:
        bar.advance(32)
        bar.update(total=380)
        with bar.task(10, "prompts", "scoring") as scoring:
            scoring.advance()

Not here: results, which belong on stdout and in the run directory.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Protocol, final

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
"""Of a plain log: rare enough to stay readable, often enough to show that the work goes on."""

Clock = Callable[[], float]


@contextmanager
def progress(total: float | None, unit: str, description: str, *, enabled: bool = True) -> Iterator["Meter"]:
    """Shows how far a task of `total` units is (None: not known), its rate in units a second, and the time left.

    `unit` is a plural (`tokens`). Not enabled, it shows nothing and costs next to nothing.
    """
    with _display(enabled) as display, _running(Meter(display, total, unit, description)) as meter:
        yield meter


@final
class Meter:
    """One task: what is done of it, and since when."""

    def __init__(
        self, display: "Display", total: float | None, unit: str, description: str, clock: Clock = time.monotonic
    ) -> None:
        self.total = total
        self.unit = unit
        self.description = description
        self.completed = 0.0
        self._display = display
        self._clock = clock
        self._started = clock()
        display.show(self)

    @property
    def seconds(self) -> float:
        """Since the task began."""
        return self._clock() - self._started

    @property
    def rate(self) -> float | None:
        """Mean units a second; None before anything is done."""
        return self.completed / self.seconds if self.completed and self.seconds > 0 else None

    def advance(self, amount: float = 1) -> None:
        self.completed += amount
        self._display.show(self)

    def update(self, *, total: float | None = None, description: str | None = None) -> None:
        """Changes what is given, and leaves the rest."""
        self.total = self.total if total is None else total
        self.description = self.description if description is None else description
        self._display.show(self)

    def task(self, total: float | None, unit: str, description: str) -> AbstractContextManager["Meter"]:
        """A further task, shown below this one until its block ends."""
        return _running(Meter(self._display, total, unit, description, self._clock))

    def finish(self) -> None:
        """Called by the block's end."""
        self._display.finish(self)


class Display(Protocol):
    """Where meters are shown."""

    def show(self, meter: Meter) -> None: ...

    def finish(self, meter: Meter) -> None: ...


@final
class Bars:
    """One bar a task on a terminal, redrawn four times a second."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._tasks: dict[Meter, TaskID] = {}

    def show(self, meter: Meter) -> None:
        if meter not in self._tasks:
            self._tasks[meter] = self._bars.add_task(meter.description, total=meter.total, meter=meter)
        self._bars.update(
            self._tasks[meter], completed=meter.completed, total=meter.total, description=meter.description
        )

    def finish(self, meter: Meter) -> None:
        # The first task's bar stays as the record of the whole; those of inner tasks make room.
        if len(self._tasks) > 1:
            self._bars.remove_task(self._tasks.pop(meter))


@final
class Lines:
    """A line a task at most every ten seconds, and one at its end if it took as long; the first task always has one."""

    def __init__(self, emit: Callable[[str], object], clock: Clock = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._shown: dict[Meter, float] = {}

    def show(self, meter: Meter) -> None:
        now = self._clock()
        if now - self._shown.setdefault(meter, now) >= SECONDS_BETWEEN_LINES:
            self._shown[meter] = now
            self._emit(status_line(meter))

    def finish(self, meter: Meter) -> None:
        del self._shown[meter]
        if not self._shown or meter.seconds >= SECONDS_BETWEEN_LINES:
            self._emit(status_line(meter))


@final
class Nothing:
    """Shows nothing."""

    def show(self, meter: Meter) -> None:
        pass

    def finish(self, meter: Meter) -> None:
        pass


def status_line(meter: Meter) -> str:
    """`decoding: 200/400 tokens (50 %), 20 tokens/s, 0:00:10 gone, 0:00:10 left`; unknown parts are left out."""
    share = f" ({meter.completed / meter.total:.0%})" if meter.total else ""
    parts = [f"{_count(meter)}{share}", _rate(meter), f"{_duration(meter.seconds)} gone", _time_left(meter)]
    return f"{meter.description}: {', '.join(part for part in parts if part)}"


@contextmanager
def _running(meter: Meter) -> Iterator[Meter]:
    try:
        yield meter
    finally:
        meter.finish()


@contextmanager
def _display(enabled: bool) -> Iterator[Display]:
    console = Console(stderr=True)
    if not enabled:
        yield Nothing()
    elif not sys.stderr.isatty() or console.is_dumb_terminal:
        yield Lines(_to_stderr)
    else:
        with _rich_bars(console) as bars:
            yield Bars(bars)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _rich_bars(console: Console) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        _MeterColumn(),
        console=console,
        refresh_per_second=4,
        # Prints are kept above the bars; but what goes to a file must not be sent to stderr instead.
        redirect_stdout=sys.stdout.isatty(),
    )


@final
class _MeterColumn(ProgressColumn):
    """Count, rate, time gone and left, as in a plain line."""

    def render(self, task: RichTask) -> Text:
        meter: Meter = task.fields["meter"]
        parts = [_count(meter), _rate(meter), _duration(meter.seconds), _time_left(meter)]
        return Text("  ".join(part for part in parts if part), no_wrap=True)


def _count(meter: Meter) -> str:
    total = "" if meter.total is None else f"/{meter.total:,.0f}"
    return f"{meter.completed:,.0f}{total} {meter.unit}"


def _rate(meter: Meter) -> str:
    if meter.rate is None:
        return ""
    return f"{meter.rate:,.0f} {meter.unit}/s" if meter.rate >= 100 else f"{meter.rate:.3g} {meter.unit}/s"


def _time_left(meter: Meter) -> str:
    if meter.rate is None or meter.total is None or meter.completed >= meter.total:
        return ""
    return f"{_duration((meter.total - meter.completed) / meter.rate)} left"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
