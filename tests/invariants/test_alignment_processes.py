"""Two processes take the very steps of one: weights and figures agree to fp32 rounding.

Each is a run of the command line under `torch.distributed.run` (Gloo, on the CPU), beside one in this process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from triptych.config import apply_overrides, parse_config
from triptych.models.tiny import save_tiny
from triptych.runs import read_metrics
from triptych.study import StudyConfig, run_study

REWARDS = """
def spread(prompts, completions):
    return [float(sum(map(ord, completion)) % 17) for completion in completions]
"""

# Odd numbers everywhere, so that shares differ in size. AdamW divides gradients by their own size, the noise of a tiny one
# too: a large epsilon keeps that out of the comparison.
COMMON = ["lora.rank=2", "lora.alpha=8", "optimiser.epsilon=1e-3", "optimiser.learning_rate=0.01"]
COMMON += ["optimiser.schedule=linear", "eval_every=2"]
METHODS = {
    "reward": ["batch_size=5", "max_steps=4", "epochs=3"],
    "dpo": ["batch_size=5", "max_steps=4", "epochs=3"],
    "grpo": ["steps=4", "iterations=2", "prompts_per_step=3", "group_size=3", "max_new_tokens=6"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    (folder / "rewards.py").write_text(REWARDS)
    pairs = [
        {"id": f"r{i}", "prompt": f"Q{i * i}?", "chosen": "yes " * (i % 3 + 1), "rejected": f"no {i}"}
        for i in range(15)
    ]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps({'prompt': f'say {i}'})}\n" for i in range(9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        yield folder


def arguments(folder: Path, method: str) -> list[str]:
    data = ["--pairs", str(folder / "pairs.jsonl")]
    if method == "grpo":
        data += ["--prompts", str(folder / "prompts.jsonl"), "--reward", f"{folder / 'rewards.py'}:spread"]
    options = [word for option in (*COMMON, *METHODS[method]) for word in ("--set", option)]
    return ["align", method, "--model", str(folder / "model"), "--dtype", "float32", *data, *options]


def run_alone(folder: Path, method: str, out: Path) -> None:
    data: dict[str, Any] = {}
    if method == "grpo":
        data = {"prompts": str(folder / "prompts.jsonl"), "rewards": [f"{folder / 'rewards.py'}:spread"]}
    changed = apply_overrides(data, [*COMMON, *METHODS[method]])
    panel = {"pairs": str(folder / "pairs.jsonl"), method: changed}
    written = {"model": str(folder / "model"), "dtype": "float32", "alignment": panel}
    run_study(parse_config(StudyConfig, written, where="test"), out, command=["test"], show_progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(folder: Path, method: str) -> None:
    alone, both = folder / f"alone-{method}", folder / f"both-{method}"
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "triptych",
    ]
    done = subprocess.run(
        [*launched, *arguments(folder, method), "--out", str(both)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_alone(folder, method, alone)
    found, expected = (load_file(run / "alignment" / method / "adapter_model.safetensors") for run in (both, alone))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        # Rollouts of other company: the engine's own log-probabilities differ in their last digits, too.
        tolerance = 2e-4 if method == "grpo" else 1e-5
        assert (found[name] - tensor).abs().max() < tolerance * tensor.abs().max(), name
    for panel in (method, f"{method}.eval"):
        ours, theirs = (read_metrics(run, panel) for run in (both, alone))
        assert len(ours) == len(theirs) > 1
        for mine, other in zip(ours, theirs, strict=True):
            assert set(mine) == set(other)
            for name in set(mine) - {"seconds", "panel"}:
                expected_value = None if other[name] is None else pytest.approx(other[name], rel=1e-4, abs=1e-5)
                assert mine[name] == expected_value, (panel, mine["step"], name)
    state = json.loads((both / "alignment" / method / "trainer_state.json").read_text())
    assert (state["step"], state["outcome"]) == (4, "finished")
    # One process writes: no line stands twice.
    lines = (both / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((alone / "metrics.jsonl").read_text().splitlines())
