"""A small synthetic run on disk, with text that tries to break a page."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.reports import build_report

HOSTILE = (
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(2)>",
    "\u202egnp.exe\u202c",
    "{{ 7 * 7 }} {% raw %} & \"quoted\" 'text'",
    "x" * 1_000_000,
    "before\x00after\x1b[31m",
    "$\\frac{1}{2}$ ]]> <!-- -->",
)
WORDS = re.findall(
    r"\w+",
    "the a river city water light people small large because slowly under north old new answer question music paper "
    "tree stone history work often city green seven morning letter table garden window children simple careful",
)
EOS, BROKEN, EMOJI = 90, 91, 92
PIECES: dict[int, str] = {
    **{index: f" {word}" for index, word in enumerate(WORDS)},
    80: "<script>alert(3)</script>",
    81: "\u202e",
    82: "\x00",
    83: "\n",
    EOS: "<|im_end|>",
    BROKEN: "\udcff",  # a byte that never makes a character
    EMOJI: "\udcf0\udc9f",  # U+1F600 in two tokens
    EMOJI + 1: "\udc98\udc80",
}
STOP = ("eos", "length", "repeat", "marker")


class MakeRun(Protocol):
    def __call__(
        self,
        run_dir: Path,
        *,
        n_prompts: int = 4,
        samples: int = 2,
        temperatures: tuple[float, ...] = (0.2, 0.8),
        scored: bool = True,
        hostile: bool = True,
        without: tuple[str, ...] = (),
    ) -> Path: ...


def arms(temperatures: tuple[float, ...]) -> list[tuple[str, dict[str, Any], float | None]]:
    swept: list[tuple[str, dict[str, Any]]] = [("top_k", {"k": 50}), ("top_p", {"p": 0.9})]
    fixed: list[tuple[str, dict[str, Any], float | None]] = [
        ("greedy", {}, None),
        ("beam", {"width": 4, "length_penalty": 0.0}, None),
    ]
    return fixed + [(name, {**params, "temperature": t}, t) for name, params in swept for t in temperatures]


def estimate(mean: float | None, half: float, n: int, n_clusters: int) -> dict[str, Any]:
    if mean is None:
        none = "no estimate: nothing was scored"
        return {"mean": None, "low": None, "high": None, "n": 0, "n_clusters": 0, "n_unscored": n, "method": none}
    one = n_clusters == 1
    return {
        "mean": mean,
        "low": None if one else mean - half,
        "high": None if one else mean + half,
        "n": n,
        "n_clusters": n_clusters,
        "n_unscored": 0,
        "method": "no interval: one prompt" if one else "95% cluster bootstrap-t, 2000 resamples",
    }


def generations(
    n_prompts: int, samples: int, temperatures: tuple[float, ...], *, hostile: bool
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for prompt in range(n_prompts):
        for arm_index, (strategy, params, temperature) in enumerate(arms(temperatures)):
            for sample in range(samples if temperature is not None else 1):
                heat = temperature or 0.1
                length = int(rng.integers(6, 60))
                ids = [*rng.integers(0, len(WORDS), length).tolist(), EOS]
                if hostile:
                    ids[2:6] = [80, EMOJI, EMOJI + 1, 81 + (arm_index % 2)]
                    ids[6:6] = [BROKEN, 83, 999]
                logprobs = (-rng.exponential(0.3 + 1.1 * heat, len(ids)) - 0.02).astype(np.float32)
                stop = STOP[int(rng.choice(4, p=[0.6, 0.25, 0.1, 0.05]))]
                text = " ".join(WORDS[i] for i in ids if i < len(WORDS))
                instruction = f"Question {prompt}: what makes a {WORDS[prompt % len(WORDS)]} {WORDS[-prompt % 30]}?"
                if hostile:
                    instruction = HOSTILE[prompt % len(HOSTILE)]
                    text = HOSTILE[(prompt + arm_index) % len(HOSTILE)] + text
                rows.append(
                    {
                        "prompt_id": f"p{prompt:03d}",
                        "prompt": f"{instruction}\nAnswer:\n",
                        "instruction": instruction,
                        "input": "",
                        "strategy": strategy,
                        "params": json.dumps(params, sort_keys=True, separators=(",", ":")),
                        "temperature": temperature,
                        "sample": sample,
                        "text": text,
                        "raw_text": text,
                        "token_ids": ids,
                        "logprobs": logprobs.tolist(),
                        "sampler_logprobs": None if strategy == "beam" else (logprobs * 0.7).tolist(),
                        "mean_logprob": float(logprobs.mean()),
                        "n_tokens": len(ids),
                        "stop_reason": stop,
                        "score": float(logprobs.sum()) if strategy == "beam" else None,
                        "seed": 0,
                        "category": ("factual", "explanation", "other")[prompt % 3],
                    }
                )
    return rows


def measures(
    rows: list[dict[str, Any]], n_prompts: int, temperatures: tuple[float, ...], *, scored: bool
) -> list[dict[str, Any]]:
    found = []
    for index, (strategy, params, temperature) in enumerate(arms(temperatures)):
        mine = [row for row in rows if row["strategy"] == strategy and row["temperature"] == temperature]
        heat = temperature or 0.1
        lean = 0.04 if strategy == "top_p" else 0.0
        values: dict[tuple[str, str], tuple[float | None, float]] = {
            ("mean_logprob", "arm"): (float(np.mean([row["mean_logprob"] for row in mine])), 0.05),
            ("tokens", "arm"): (float(np.mean([row["n_tokens"] for row in mine])), 2.0),
            ("words", "arm"): (0.8 * float(np.mean([row["n_tokens"] for row in mine])), 1.7),
            ("seq_rep_3", "arm"): (0.2 - 0.15 * min(heat, 1), 0.02),
            ("max_ngram_count", "arm"): (2.5 - heat, 0.1),
            ("self_bleu", "across"): (0.4 - 0.1 * heat, 0.02),
            ("distinct_1_at_20", "across"): (0.3 + 0.2 * heat + lean, 0.02),
            ("reward", "arm"): (-1.0 - heat**2 + 5 * lean if scored else None, 0.15),
        }
        for reason in STOP:
            share = float(np.mean([row["stop_reason"] == reason for row in mine]))
            values["stop_" + reason, "arm"] = (share, 0.03)
        for n in (1, 2, 3):
            across = 1 - (0.78 - 0.2 * heat - lean) ** n
            values[f"distinct_{n}", "across"] = (across, 0.012)
            values[f"ead_{n}", "across"] = (across + 0.1, 0.012)
            if temperature is not None:
                values[f"distinct_{n}", "within"] = (min(0.99, across + 0.15), 0.02)
        if strategy != "beam":
            values["sampler_mean_logprob", "arm"] = (-0.2 - 0.6 * heat, 0.04)
        found += [
            {
                "strategy": strategy,
                "params": {key: value for key, value in params.items() if key != "temperature" or index % 2},
                "temperature": temperature,
                "metric": metric,
                "scope": scope,
                "estimate": estimate(mean, half, len(mine), n_prompts),
            }
            for (metric, scope), (mean, half) in values.items()
        ]
    return found


def claims(n_prompts: int) -> list[dict[str, Any]]:
    def claim(text: str, mean: float | None, verdict: str) -> dict[str, Any]:
        return {
            "claim": text,
            "where": "Discussion, paragraph 3",
            "quantity": "slope of mean log-probability over temperature, top-p minus top-k (nats per token)",
            "estimate": estimate(mean, 0.1, 40, n_prompts),
            "verdict": verdict,
            "explanation": "The interval of the difference of slopes " + ("excludes" if mean else "includes") + " 0.",
        }

    return [
        claim("Top-P plunges faster compared to Top-K that eases down relatively more gently.", -0.42, "agrees"),
        claim("The larger value of N climbs the fastest as the temperature is increased.", 0.31, "disagrees"),
        claim("Beam search spreads out more, shifting the center a bit.", 0.01, "undecided"),
        claim("Top-P Sampling consistently achieves a higher reward score than Top-K Sampling.", None, "not tested"),
    ]


def frontier(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_arm: dict[str, dict[str, Any]] = {}
    for entry in found:
        key = json.dumps([entry["strategy"], entry["params"], entry["temperature"]], sort_keys=True)
        by_arm.setdefault(key, {**entry})[entry["metric"]] = entry["estimate"]
    swept = [entry for entry in by_arm.values() if entry["temperature"] is not None]
    return [
        {
            "strategy": entry["strategy"],
            "params": entry["params"],
            "temperature": entry["temperature"],
            "quality": entry["mean_logprob"],
            "quality_name": "mean log-probability (nats per token)",
            "diversity": entry["ead_1"],
            "diversity_name": "EAD-1 across prompts",
            "on_frontier": index % 2 == 0,
            "budget": len(swept) // 2,
        }
        for index, entry in enumerate(swept)
    ]


SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("prompt_id", "prompt", "instruction", "input", "strategy", "params")],
        ("temperature", pa.float64()),
        ("sample", pa.int64()),
        ("text", pa.string()),
        ("raw_text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("sampler_logprobs", pa.list_(pa.float32())),
        ("mean_logprob", pa.float64()),
        ("n_tokens", pa.int64()),
        ("stop_reason", pa.string()),
        ("score", pa.float64()),
        ("seed", pa.int64()),
        ("category", pa.string()),
    ]
)
SCORE_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("prompt_id", "strategy", "params")],
        ("temperature", pa.float64()),
        ("sample", pa.int64()),
        ("reward_model", pa.string()),
        ("score", pa.float64()),
    ]
)
MANIFEST = {
    "run_id": "2025-01-01T000000-abcdef01",
    "created": "2025-01-01T00:00:00.000+00:00",
    "command": ["triptych", "study", "--recipe", "smoke", "--out", "runs/<b>smoke</b>"],
    "config": {
        "model": "HuggingFaceTB/smollm2-135M-SFT-Only",
        "decoding": {
            "prompts": "starter",
            "max_new_tokens": 128,
            "stopping": {"block": 3, "threshold": 4},
        },
    },
    "config_hash": "0123456789abcdef",
    "seed": 0,
    "python": "3.11.7",
    "packages": {"triptych": "0.1.0", "torch": "2.6.0", "transformers": "5.0.0"},
    "git": {"commit": "0" * 40, "dirty": False},
    "device": "CPU: a processor, 2 cores",
    "stages": {
        "decoding": {"status": "done", "started": "2025-01-01T00:00:01.000+00:00", "seconds": 123.4, "error": None},
        "report": {"status": "running", "started": "2025-01-01T00:02:05.000+00:00", "seconds": 0.0, "error": None},
    },
}
COSTS = {
    "seconds": 812.4,
    "tokens": 312_000,
    "useful_tokens": 300_112,
    "tokens_per_second": 384.0,
    "peak_memory_bytes": 1_610_000_000,
    "rows": 2772,
    "prefill_tokens": 15_120,
    "engine_path": "fused",
    "dtype": "bfloat16",
    "device": "cpu",
}


def scores(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("prompt_id", "strategy", "params", "temperature", "sample")
    return [
        {**{key: row[key] for key in keys}, "reward_model": "some/reward-model", "score": -1.0 - 0.1 * (index % 7)}
        for index, row in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Writes a run directory; by default a small one full of hostile text."""

    def write(
        run_dir: Path,
        *,
        n_prompts: int = 4,
        samples: int = 2,
        temperatures: tuple[float, ...] = (0.2, 0.8),
        scored: bool = True,
        hostile: bool = True,
        without: tuple[str, ...] = (),
    ) -> Path:
        folder = run_dir / "decoding"
        folder.mkdir(parents=True)
        rows = generations(n_prompts, samples, temperatures, hostile=hostile)
        found = measures(rows, n_prompts, temperatures, scored=scored)
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "generations.parquet")
        (run_dir / "manifest.json").write_text(json.dumps(MANIFEST))
        (folder / "diversity.json").write_text(json.dumps(found))
        optional: dict[str, Callable[[], Any]] = {
            "claims": lambda: claims(n_prompts),
            "frontier": lambda: frontier(found),
            "costs": lambda: COSTS,
            "pieces": lambda: PIECES,
        }
        for name, content in optional.items():
            if name not in without:
                (folder / f"{name}.json").write_text(json.dumps(content()))
        if scored and "scores" not in without:
            pq.write_table(pa.Table.from_pylist(scores(rows), SCORE_SCHEMA), folder / "scores.parquet")
        return run_dir

    return write


@pytest.fixture(scope="session")
def built(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hostile, scored run with its report; shared, because figures are slow to draw. Read only."""
    run_dir = make_run(tmp_path_factory.mktemp("scored") / "run")
    build_report(run_dir)
    return run_dir


@pytest.fixture(scope="session")
def built_bare(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prompt, no reward, and none of the optional files, with its report. Read only."""
    optional = ("claims", "frontier", "costs", "pieces", "scores")
    run_dir = make_run(tmp_path_factory.mktemp("bare") / "run", n_prompts=1, scored=False, without=optional)
    build_report(run_dir)
    return run_dir
