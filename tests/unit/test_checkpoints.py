from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.alignment.loop import Weights
from triptych.checkpoints import Checkpoint, Checkpoints
from triptych.errors import ConfigError


def checkpoint(step: int) -> Checkpoint:
    weights = {"a": torch.full((2, 3), float(step)), "b": torch.arange(4).bfloat16()}
    return Checkpoint(step, weights, {"a:step": torch.tensor(float(step))}, {"tokens": step, "task": {"x": [1.5]}})


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    assert checkpoints.latest() is None
    checkpoints.save(checkpoint(3))
    found, expected = checkpoints.latest(), checkpoint(3)
    assert found is not None
    assert (found.step, found.extra) == (expected.step, expected.extra)
    for tensors, others in ((found.weights, expected.weights), (found.optimizer, expected.optimizer)):
        assert set(tensors) == set(others)
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype
            assert torch.equal(tensor, others[name])


def test_the_newest_are_kept_and_one_that_is_held(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key", keep=2)
    for step in range(5):
        checkpoints.save(checkpoint(step), hold=1)
    assert checkpoints.steps() == [1, 3, 4]
    checkpoints.save(checkpoint(5), hold=3)
    assert checkpoints.steps() == [3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000003",
        "step-000004",
        "step-000005",
    ]


def test_a_step_that_is_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(checkpoint(3))
    checkpoints.save(checkpoint(3)._replace(extra={"again": True}))
    found = checkpoints.latest()
    assert found is not None
    assert found.extra == {"again": True}


def test_one_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(checkpoint(1))
    (tmp_path / "checkpoints" / ".partial-step-000002").mkdir()
    assert checkpoints.steps() == [1]
    checkpoints.save(checkpoint(2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


def test_another_recipe_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "key").save(checkpoint(1))
    with pytest.raises(ConfigError, match="belongs to another recipe"):
        Checkpoints(tmp_path, "other").latest()


def test_all_may_be_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    for step in (1, 2):
        checkpoints.save(checkpoint(step))
        (tmp_path / "checkpoints" / f"step-{step:06d}" / "weights.safetensors").write_bytes(b"")
    assert checkpoints.latest() is None
    assert len(caplog.messages) == 2


def test_discarding(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "key", keep=9)
    for step in range(4):
        checkpoints.save(checkpoint(step))
    assert checkpoints.steps() == [0, 1, 2, 3]
    checkpoints.discard()
    assert checkpoints.steps() == []
    assert not (tmp_path / "checkpoints").exists()
    checkpoints.discard()


def test_weights_are_copied_in_and_out() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    weights = Weights({"a": parameter})
    read = weights.read()
    with torch.no_grad():
        parameter.zero_()
    assert read["a"].tolist() == [1.0, 1.0]
    weights.write(read)
    assert parameter.tolist() == [1.0, 1.0]
    other: Any = {"b": torch.ones(2)}
    with pytest.raises(ConfigError, match="the checkpoint has other trainable weights than the recipe"):
        weights.write(other)
