from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from triptych import tracking
from triptych.errors import ConfigError
from triptych.runs import RunDirectory, read_metrics
from triptych.tracking import tracked
from triptych.workers import Journal


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run", command=["test"], config={}, seed=0) as run:
        yield run


def test_without_a_tracker_a_run_is_itself(run: RunDirectory) -> None:
    with tracked(run, None) as journal:
        assert isinstance(journal, Journal)
        with journal.stage("align.dpo"):
            journal.metric("dpo", 1, loss=0.5, gold=None)
            journal.log("event", value=1)
        assert journal.is_done("align.dpo")
        assert journal.path == run.path
    assert read_metrics(run.path, "dpo") == [{"panel": "dpo", "step": 1, "loss": 0.5, "gold": None}]
    assert not (run.path / "tracking").exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra triptych[tracking]")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_numbers_that_there_are(run: RunDirectory) -> None:
    with tracked(run, "tensorboard") as journal:
        journal.metric("dpo", 1, loss=0.5, gold=None)
        journal.metric("dpo", 2, loss=0.25, gold=None)
    EventAccumulator = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator

    (folder,) = {path.parent for path in (run.path / "tracking").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("dpo/loss")] == [(1, 0.5), (2, 0.25)]
    assert "dpo/gold" not in events.Tags()["scalars"]
    # Its own files have them all the same.
    assert len(read_metrics(run.path, "dpo")) == 2


def test_an_unknown_tracker(run: RunDirectory) -> None:
    with (
        pytest.raises(ConfigError, match="tracker 'tensorbord' is unknown; did you mean 'tensorboard'"),
        tracked(run, "tensorbord"),
    ):
        pass


def test_a_tracker_that_is_not_installed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r"tracker 'wandb' is not installed: pip install 'triptych\[tracking\]'"),
        tracked(run, "wandb"),
    ):
        pass
