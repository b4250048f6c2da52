"""One process; several are what `tests/invariants/test_alignment_processes.py` runs."""

from pathlib import Path

import pytest
import torch

from triptych.runs import RunDirectory
from triptych.workers import Journal, SilentJournal, Workers


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_alone() -> None:
    workers = Workers("cpu")
    assert (workers.count, workers.rank, workers.is_main) == (1, 0, True)
    assert workers.share([4, 5, 6]) == [4, 5, 6]
    assert workers.gather([1.0, 2.0]) == [1.0, 2.0]
    assert workers.sum_of([1.0, 2.0]) == [1.0, 2.0]
    tensor = torch.tensor([1.5])
    workers.sum([tensor])
    assert tensor.tolist() == [1.5]
    workers.wait()


@pytest.mark.parametrize(("rank", "mine"), [(0, [0, 3, 6]), (1, [1, 4]), (2, [2, 5])])
def test_shares_are_dealt_in_turn(rank: int, mine: list[int]) -> None:
    workers = Workers("cpu")
    workers.count, workers.rank = 3, rank
    assert workers.share(range(7)) == mine
    assert workers.is_main == (rank == 0)


def test_a_worker_that_does_not_write_sees_what_is_done(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, command=["test"], config={}, seed=0) as run:
        assert isinstance(run, Journal)
        with run.stage("align.dpo"):
            pass
        silent = SilentJournal(tmp_path)
        assert isinstance(silent, Journal)
        assert (silent.is_done("align.dpo"), silent.is_done("align.grpo")) == (True, False)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with silent.stage("align.grpo"):
            silent.log("event")
            silent.metric("dpo", 1, loss=0.5)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
