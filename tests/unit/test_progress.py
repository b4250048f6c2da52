import io
import sys

import pytest
from rich.console import Console

from triptych.progress import Bars, Lines, Meter, Nothing, _rich_bars, progress, status_line


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestStatusLine:
    def test_by_hand(self) -> None:
        clock = Clock()
        meter = Meter(Nothing(), 400, "tokens", "decoding", clock)
        meter.advance(100)
        clock.now += 5
        # 100 of 400 in 5 s: 20 a second, 300 to go in 15 s.
        assert status_line(meter) == "decoding: 100/400 tokens (25%), 20 tokens/s, 0:00:05 gone, 0:00:15 left"

    def test_what_is_not_known_is_left_out(self) -> None:
        clock = Clock()
        meter = Meter(Nothing(), None, "pairs", "scoring", clock)
        assert status_line(meter) == "scoring: 0 pairs, 0:00:00 gone"
        clock.now += 3600
        meter.advance(1_234_567)
        # 1,234,567 in an hour are 342.9 a second.
        assert status_line(meter) == "scoring: 1,234,567 pairs, 343 pairs/s, 1:00:00 gone"

    def test_no_time_is_left_at_the_end(self) -> None:
        clock = Clock()
        meter = Meter(Nothing(), 2, "prompts", "judging", clock)
        meter.advance(2)
        clock.now += 4
        assert status_line(meter) == "judging: 2/2 prompts (100%), 0.5 prompts/s, 0:00:04 gone"

    def test_a_total_of_none_units_has_no_share(self) -> None:
        assert status_line(Meter(Nothing(), 0, "prompts", "x", Clock())) == "x: 0/0 prompts, 0:00:00 gone"

    def test_update_changes_what_is_given(self) -> None:
        meter = Meter(Nothing(), 10, "tokens", "a", Clock())
        meter.update(total=20)
        assert (meter.total, meter.description) == (20, "a")
        meter.update(description="b")
        assert (meter.total, meter.description) == (20, "b")


class TestLines:
    def test_a_line_at_most_every_ten_seconds_and_one_at_the_end(self) -> None:
        clock = Clock()
        told: list[str] = []
        lines = Lines(told.append, clock)
        meter = Meter(lines, 100, "tokens", "decoding", clock)
        for _ in range(25):
            clock.now += 1
            meter.advance(4)
        meter.finish()
        # After 10 and 20 seconds, and after 25 when it is done.
        assert [line.split(",")[0] for line in told] == [
            "decoding: 40/100 tokens (40%)",
            "decoding: 80/100 tokens (80%)",
            "decoding: 100/100 tokens (100%)",
        ]

    def test_short_inner_tasks_are_silent(self) -> None:
        clock = Clock()
        told: list[str] = []
        lines = Lines(told.append, clock)
        meter = Meter(lines, 2, "stages", "study", clock)
        with meter.task(3, "prompts", "short") as short:
            clock.now += 1
            short.advance(3)
        with meter.task(3, "prompts", "long") as long:
            clock.now += 30
            long.advance(3)
        meter.finish()
        assert [line.partition(":")[0] for line in told] == ["long", "long", "study"]


class TestBars:
    def test_count_rate_and_several_tasks(self) -> None:
        stream = io.StringIO()
        clock = Clock()
        with _rich_bars(Console(file=stream, force_terminal=True, width=120)) as rich_bars:
            meter = Meter(Bars(rich_bars), 400, "tokens", "decoding [1]", clock)
            clock.now += 2
            meter.advance(100)
            meter.update(total=200)
            with meter.task(10, "prompts", "scoring") as inner:
                inner.advance()
                rich_bars.refresh()
                assert len(rich_bars.tasks) == 2
            assert len(rich_bars.tasks) == 1
            rich_bars.refresh()
            meter.finish()
        shown = stream.getvalue()
        # Square brackets are no markup here.
        assert "decoding [1]" in shown
        assert "100/200 tokens  50 tokens/s  0:00:02  0:00:02 left" in shown
        assert "50%" in shown
        assert "scoring" in shown


class TestProgress:
    def test_a_log_file_gets_plain_lines_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress(3, "prompts", "scoring") as bar:
            bar.advance(3)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("scoring: 3/3 prompts (100%)")
        assert "\x1b" not in err

    def test_a_terminal_gets_a_bar_on_stderr(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with progress(3, "prompts", "scoring") as bar:
            bar.advance(3)
            sys.stdout.write("a result\n")
        out, err = capsys.readouterr()
        assert out == "a result\n"
        assert "3/3 prompts" in err
        assert "\x1b[" in err

    def test_a_dumb_terminal_gets_plain_lines(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with progress(3, "prompts", "scoring"):
            pass
        assert "\x1b" not in capsys.readouterr().err

    def test_disabled_it_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress(3, "prompts", "scoring", enabled=False) as bar, bar.task(1, "x", "y") as inner:
            bar.advance()
            inner.update(total=2)
        assert capsys.readouterr() == ("", "")

    def test_it_ends_where_the_work_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(RuntimeError), progress(3, "prompts", "scoring") as bar:
            bar.advance()
            raise RuntimeError
        assert "1/3 prompts" in capsys.readouterr().err
