"""A training run that was killed and resumed ends where an undisturbed one does, bit for bit: weights and figures.

Dropout is on, and rollouts feed two steps, so that whatever hangs on the past and not on the seed would show.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from triptych import checkpoints
from triptych.alignment.optimisation import Optimiser
from triptych.alignment.plan import AlignmentConfig
from triptych.alignment.setup import Panel
from triptych.alignment.study import train_policies, train_reward
from triptych.errors import ConfigError, OutputError
from triptych.models import LanguageModel, load_language_model
from triptych.models.tiny import save_tiny
from triptych.runs import RunDirectory, read_metrics
from triptych.study import StudyConfig, study_split
from triptych.workers import Workers

REWARDS = """
import os, time


def spread(prompts, completions):
    time.sleep(float(os.environ.get("SLEEP", "0")))
    return [float(sum(map(ord, completion)) % 17) for completion in completions]
"""

LORA = {"rank": 2, "dropout": 0.3}
METHODS: dict[str, dict[str, Any]] = {
    "reward": {"batch_size": 3, "max_steps": 6, "epochs": 3},
    "dpo": {"batch_size": 3, "max_steps": 6, "epochs": 3, "optimiser": {"learning_rate": 1e-2}},
    "grpo": {
        "steps": 6,
        "iterations": 2,
        "prompts_per_step": 2,
        "group_size": 3,
        "max_new_tokens": 6,
        "optimiser": {"learning_rate": 1e-2, "schedule": "linear"},
        "watch": {"action": "warn", "baseline_steps": 1, "window": 2},
    },
}


class World(NamedTuple):
    folder: Path

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def config(self, method: str, **options: Any) -> AlignmentConfig:
        common: dict[str, Any] = {"lora": LORA, "checkpoint_every": 2, "eval_every": 3}
        if method == "grpo":
            common |= {
                "prompts": str(self.folder / "prompts.jsonl"),
                "rewards": [f"{self.folder / 'rewards.py'}:spread"],
            }
        chosen = {**common, **METHODS[method], **options}
        return AlignmentConfig.model_validate({"pairs": str(self.folder / "pairs.jsonl"), method: chosen})

    def train(self, method: str, out: str = "run", **options: Any) -> Path:
        """Trains or goes on; the folder of what was trained."""

        def load(dtype: str = "float32", quantisation: str | None = None) -> LanguageModel:
            return load_language_model(self.model, dtype=dtype, device="cpu")

        config = self.config(method, **options)
        split = cache(lambda: study_split(StudyConfig(alignment=config))[0])
        with RunDirectory.open(self.folder / out, command=["test"], config={}, seed=0) as run:
            panel = Panel(config, load, self.model, "float32", "cpu", 0, split, run, Workers("cpu"), False)
            train_reward(panel)
            train_policies(panel)
        return self.trained(method, out)

    def trained(self, method: str, out: str = "run") -> Path:
        return self.folder / out / "alignment" / method

    def metrics(self, method: str, out: str = "run") -> list[dict[str, Any]]:
        lines = [*read_metrics(self.folder / out, method), *read_metrics(self.folder / out, f"{method}.eval")]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    def require_same(self, method: str, out: str, other: str) -> None:
        found, expected = (self.trained(method, one) for one in (out, other))
        assert (found / "adapter_model.safetensors").read_bytes() == (
            expected / "adapter_model.safetensors"
        ).read_bytes()
        assert self.metrics(method, out) == self.metrics(method, other)
        # Only a finished run has a state, and it has no checkpoints any more.
        assert json.loads((found / "trainer_state.json").read_text())["outcome"] == "finished"
        assert not (found / "checkpoints").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    (folder / "rewards.py").write_text(REWARDS)
    pairs = [
        {"id": f"r{i}", "prompt": f"Q{i * i}?", "chosen": "yes " * (i % 3 + 1), "rejected": f"no {i}"}
        for i in range(10)
    ]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps({'prompt': f'say {i}'})}\n" for i in range(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        yield World(folder)


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Callable[[str], str]:
    done: set[str] = set()

    def out(method: str) -> str:
        if method not in done:
            world.train(method, f"undisturbed-{method}")
            done.add(method)
        return f"undisturbed-{method}"

    return out


class Killed(BaseException):
    """As little to be caught as a signal."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[World, str, str, int], list[int]]:
    """Trains until the given step is about to be taken; the checkpoints that are left."""
    step = Optimiser.step

    def kill(world: World, method: str, out: str, at: int) -> list[int]:
        def dies(self: Optimiser, number: int, total: int) -> tuple[float, float]:
            if number == at:
                raise Killed
            return step(self, number, total)

        with monkeypatch.context() as patch:
            patch.setattr(Optimiser, "step", dies)
            with pytest.raises(Killed):
                world.train(method, out)
        return checkpoints.Checkpoints(world.trained(method, out), "").steps()

    return kill


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_resumed_run_is_an_undisturbed_one(
    world: World, undisturbed: Callable[[str], str], killed_at: Callable[..., list[int]], method: str, at: int
) -> None:
    out = f"killed-{method}-{at}"
    # Checkpoints after every second step (rollouts feed two); the first is held, for rollbacks.
    assert killed_at(world, method, out, at) == {1: [0], 3: [0, 2], 4: [0, 2, 4], 5: [0, 2, 4]}[at]
    assert not (world.trained(method, out) / "trainer_state.json").exists()
    world.train(method, out)
    world.require_same(method, out, undisturbed(method))


def test_killed_twice(world: World, undisturbed: Callable[[str], str], killed_at: Callable[..., list[int]]) -> None:
    killed_at(world, "grpo", "twice", 2)
    killed_at(world, "grpo", "twice", 5)
    world.train("grpo", "twice")
    world.require_same("grpo", "twice", undisturbed("grpo"))
    log = [json.loads(line) for line in (world.folder / "twice" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["event"] == "resumed"] == [2, 4]


def test_a_finished_run_is_not_trained_again(world: World, undisturbed: Callable[[str], str]) -> None:
    folder = world.trained("dpo", undisturbed("dpo"))
    before = (folder / "trainer_state.json").stat().st_mtime_ns
    world.train("dpo", undisturbed("dpo"))
    assert (folder / "trainer_state.json").stat().st_mtime_ns == before


# --- Damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path / "optimizer.safetensors", 100)


def lose(path: Path) -> None:
    (path / "weights.safetensors").unlink()


def tear(path: Path) -> None:
    os.truncate(path / "state.json", 20)


@pytest.mark.parametrize("damage", [flip, truncate, lose, tear])
def test_the_checkpoint_before_a_damaged_one(
    world: World,
    undisturbed: Callable[[str], str],
    killed_at: Callable[..., list[int]],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    out = f"damaged-{damage.__name__}"
    assert killed_at(world, "dpo", out, 5) == [0, 2, 4]
    damage(world.trained("dpo", out) / "checkpoints" / "step-000004")
    world.train("dpo", out)
    assert any("step-000004 is damaged" in message and "before it is used" in message for message in caplog.messages)
    world.require_same("dpo", out, undisturbed("dpo"))


def test_another_recipe_may_not_go_on_with_it(world: World, killed_at: Callable[..., list[int]]) -> None:
    killed_at(world, "dpo", "other", 3)
    with pytest.raises(
        ConfigError, match=r"step-000002 belongs to another recipe, base or data set; pass another --out"
    ):
        world.train("dpo", "other", optimiser={"learning_rate": 1e-3})


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "rust"],
)
def test_a_full_disk_spares_the_checkpoint_before(
    world: World, undisturbed: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    out = f"full-{type(problem).__name__}"

    def full(tensors: Any, path: Path) -> None:
        if "step-000004" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"torn")
            raise problem
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(OutputError, match=r"disk full while writing .*optimizer.safetensors: free some space"):
            world.train("dpo", out)
    left = world.trained("dpo", out) / "checkpoints"
    assert sorted(path.name for path in left.iterdir()) == ["step-000000", "step-000002"]
    world.train("dpo", out)
    world.require_same("dpo", out, undisturbed("dpo"))


# --- A real signal -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9(world: World) -> None:
    options = ["steps=4", "checkpoint_every=1", "lora.dropout=0.3", "lora.rank=2", "iterations=1"]

    def command(out: str) -> list[str]:
        return [
            *(sys.executable, "-m", "triptych", "align", "grpo", "--model", world.model, "--dtype", "float32"),
            *("--prompts", str(world.folder / "prompts.jsonl"), "--reward", f"{world.folder / 'rewards.py'}:spread"),
            *("--prompts-per-step", "2", "--group-size", "3", "--max-new-tokens", "6", "--learning-rate", "0.01"),
            *("--out", str(world.folder / out), *(word for option in options for word in ("--set", option))),
        ]

    process = subprocess.Popen(
        command("signal"), env={**os.environ, "SLEEP": "1.5"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        newest = world.trained("grpo", "signal") / "checkpoints" / "step-000002"
        deadline = time.monotonic() + 240
        while not newest.exists():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (world.trained("grpo", "signal") / "trainer_state.json").exists()
    for out in ("signal", "no-signal"):
        subprocess.run(command(out), check=True, capture_output=True)
    world.require_same("grpo", "signal", "no-signal")
