"""Tiny models, pairs, prompts and rewards on disk, and training runs on them that take no time."""

import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from triptych.alignment.plan import AlignmentConfig
from triptych.alignment.setup import Panel
from triptych.alignment.study import train_policies, train_reward
from triptych.models import LanguageModel, load_language_model
from triptych.models.tiny import save_tiny, tiny_llama
from triptych.runs import RunDirectory, read_metrics
from triptych.study import StudyConfig, study_split
from triptych.workers import Workers

REWARDS = """
def spread(prompts, completions):
    return [float(sum(map(ord, completion)) % 17) for completion in completions]


def length(prompts, completions):
    return [float(len(completion)) for completion in completions]
"""

SMALL: dict[str, dict[str, Any]] = {
    "reward": {"batch_size": 3, "max_steps": 3, "optimiser": {"learning_rate": 1e-2}},
    "dpo": {"batch_size": 3, "max_steps": 3, "optimiser": {"learning_rate": 1e-2}},
    "grpo": {
        "steps": 3,
        "prompts_per_step": 2,
        "group_size": 3,
        "max_new_tokens": 6,
        "optimiser": {"learning_rate": 1e-2, "schedule": "linear"},
        "watch": {"action": "warn"},
    },
}


class World:
    """A folder with all that a training run needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = str(save_tiny(folder / "model"))
        self.other_model = str(save_tiny(folder / "other", tiny_llama(7)))
        self.rewards = f"{folder / 'rewards.py'}"
        (folder / "rewards.py").write_text(REWARDS)
        self.pairs = self.write(
            "pairs.jsonl",
            [
                {"id": f"r{i}", "prompt": f"Q{i * i}?", "chosen": "yes " * (i % 3 + 1), "rejected": f"no {i}"}
                for i in range(12)
            ],
        )
        self.prompts = self.write(
            "prompts.jsonl",
            [{"prompt": f"say {i}"} | ({"answers": ["a", "e"]} if i % 2 else {}) for i in range(14)],
        )
        self.other_prompts = self.write("other.jsonl", [{"prompt": f"tell {i}"} for i in range(14)])
        self._numbers = itertools.count()

    def write(self, name: str, rows: list[dict[str, Any]]) -> str:
        (self.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(self.folder / name)

    def train(
        self,
        method: str,
        *,
        out: str | None = None,
        model: str | None = None,
        panel: dict[str, Any] | None = None,
        dtype: str = "float32",
        small: bool = True,
        **options: Any,
    ) -> Path:
        """Trains in a run directory of its own; the folder of what was trained."""
        base = self.model if model is None else model
        common: dict[str, Any] = {"lora": {"rank": 2}}
        if method == "grpo":
            common |= {"prompts": self.prompts, "rewards": [f"{self.rewards}:spread"]}
        chosen = {**common, **(SMALL[method] if small else {}), **options}
        config = AlignmentConfig.model_validate({"pairs": self.pairs, method: chosen, **(panel or {})})

        def load(dtype: str = dtype, quantisation: str | None = None) -> LanguageModel:
            return load_language_model(base, dtype=dtype, device="cpu", quantisation=quantisation)

        split = cache(lambda: study_split(StudyConfig(alignment=config))[0])
        folder = self.folder / (out or f"run-{next(self._numbers)}")
        with RunDirectory.open(folder, command=["test"], config={}, seed=0) as run:
            shared = Panel(config, load, base, dtype, "cpu", 0, split, run, Workers("cpu"), False)
            train_reward(shared)
            train_policies(shared)
        return folder / "alignment" / method

    def metrics(self, trained: Path) -> dict[str, list[dict[str, Any]]]:
        """By panel, without seconds."""
        return {
            panel: [
                {key: value for key, value in line.items() if key != "seconds"}
                for line in read_metrics(trained.parents[1], panel)
            ]
            for panel in (trained.name, f"{trained.name}.eval")
        }

    def state(self, trained: Path) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((trained / "trainer_state.json").read_text())
        return loaded


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        yield World(folder)
