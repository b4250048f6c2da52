"""A small synthetic run on disk, with text that tries to break a page."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
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


VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Reads a page as a browser would and notes what a careful reader would object to."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))
        self.close()
        self.mistakes += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.mistakes.append(f"attribute twice: {tag} {names}")
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"closed out of turn: {tag} at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], Page]:
    return Page


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
        return {
            "mean": None,
            "low": None,
            "high": None,
            "n": 0,
            "n_clusters": 0,
            "n_unscored": n,
            "method": none,
            "bound": None,
        }
    one = n_clusters == 1
    return {
        "mean": mean,
        "low": None if one else mean - half,
        "high": None if one else mean + half,
        "n": n,
        "n_clusters": n_clusters,
        "n_unscored": 0,
        "method": "no interval: one prompt" if one else "95% cluster bootstrap-t, 2000 resamples",
        "bound": None,
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
            if n == 1:
                values["ead_1", "across"] = (across + 0.1, 0.012)
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
            "on_frontier_probability": (0.62, 0.05, 0.999, 0.3)[index % 4],
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
BEAM_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("prompt_id", "strategy", "params", "text", "stop_reason")],
        ("rank", pa.int32()),
        ("score", pa.float64()),
        ("mean_logprob", pa.float64()),
        ("n_tokens", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
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


def beams(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every beam completion with two runners-up, 0.5 and 1.5 nats behind."""
    keys = (
        "prompt_id",
        "strategy",
        "params",
        "text",
        "stop_reason",
        "mean_logprob",
        "n_tokens",
        "token_ids",
        "logprobs",
    )
    return [
        {**{key: row[key] for key in keys}, "rank": rank, "score": row["score"] - behind}
        for row in rows
        if row["strategy"] == "beam"
        for rank, behind in ((1, 0.0), (2, 0.5), (3, 1.5))
    ]


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
        if "beams" not in without:
            pq.write_table(pa.Table.from_pylist(beams(rows), BEAM_SCHEMA), folder / "beams.parquet")
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
    optional = ("claims", "frontier", "costs", "pieces", "scores", "beams")
    run_dir = make_run(tmp_path_factory.mktemp("bare") / "run", n_prompts=1, scored=False, without=optional)
    build_report(run_dir)
    return run_dir


# --- Training runs ----------------------------------------------------------------------------------------------------


class MakeTraining(Protocol):
    def __call__(
        self,
        run_dir: Path,
        *,
        runs: tuple[str, ...] = ("reward", "dpo", "grpo"),
        steps: int = 200,
        collapsed: bool = False,
        nulls: bool = False,
        hostile: bool = False,
        gold: bool = True,
    ) -> Path: ...


TRAINING_CONFIG: dict[str, Any] = {
    "model": "HuggingFaceTB/smollm2-135M-SFT-Only",
    "seed": 0,
    "alignment": {
        "pairs": "HuggingFaceH4/orca_dpo_pairs",
        "validation": 0.2,
        "reward": {"lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": None}, "batch_size": 8},
        "dpo": {
            "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.05, "targets": None},
            "optimiser": {"learning_rate": 2e-05, "schedule": "linear", "betas": [0.9, 0.999]},
            "loss": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0},
            "batch_size": 4,
            "epochs": 1,
        },
        "grpo": {
            "lora": {"rank": 16, "alpha": 16.0, "dropout": 0.0, "targets": ["v_proj", "q_proj"]},
            "quantisation": None,
            "group_size": 8,
            "rewards": ["checks", "brevity=0.5"],
            "max_new_tokens": 96,
        },
    },
}


def ramp(n: int, start: float, end: float, noise: float, seed: int) -> list[float]:
    """A noisy approach from one value to another."""
    at = np.arange(1, n + 1) / n
    wobble = np.random.default_rng(seed).normal(0, noise, n)
    return [float(value) for value in start + (end - start) * (1 - np.exp(-3 * at)) + wobble]


def collapse(n: int, start: float, end: float, noise: float, seed: int) -> list[float]:
    """Steady, then off a cliff at 60 % of the steps."""
    at = np.arange(1, n + 1) / n
    wobble = np.random.default_rng(seed).normal(0, noise, n)
    return [float(value) for value in start + (end - start) / (1 + np.exp(-40 * (at - 0.6))) + wobble]


def pair_curves(n: int, *, policy: bool) -> dict[str, list[float]]:
    margin = ramp(n, 0.0, 0.9, 0.15, 3)
    curves = {
        "loss": [float(np.log1p(np.exp(-m))) for m in margin],
        "accuracy": [min(1.0, max(0.0, a)) for a in ramp(n, 0.5, 0.72, 0.12, 2)],
        "margin": margin,
    }
    if policy:
        chosen = ramp(n, 0.0, -0.4, 0.1, 4)
        curves |= {"reward_chosen": chosen, "reward_rejected": [c - m for c, m in zip(chosen, margin, strict=True)]}
        curves |= {"logp_chosen": ramp(n, -180, -184, 20, 5), "logp_rejected": ramp(n, -170, -183, 20, 6)}
    return curves


def group_curves(n: int, *, collapsed: bool, names: tuple[str, ...]) -> dict[str, list[float]]:
    move = collapse if collapsed else ramp
    median = [max(0.0, v) for v in move(n, 46, 0 if collapsed else 38, 3, 7)]
    share = {name: [min(1.0, max(0.0, v)) for v in values] for name, values in {
        "empty_rate": move(n, 0.02, 0.93 if collapsed else 0.03, 0.02, 8),
        "eos_first": move(n, 0.03, 0.95 if collapsed else 0.04, 0.01, 9),
        "truncated_rate": move(n, 0.22, 0.01 if collapsed else 0.15, 0.03, 10),
        "zero_variance": move(n, 0.05, 0.96 if collapsed else 0.12, 0.04, 11),
        "clip_fraction": [abs(v) for v in ramp(n, 0.0, 0.01, 0.004, 12)],
    }.items()}  # fmt: skip
    return {
        **share,
        "loss": ramp(n, 0.0, 0.0, 0.01, 13),
        "reward": move(n, -1.0, 0.0 if collapsed else -0.55, 0.06, 14),
        "reward_std": [abs(v) for v in move(n, 0.4, 0.02 if collapsed else 0.3, 0.04, 15)],
        "kl": [abs(v) for v in ramp(n, 0.0, 0.3 if collapsed else 0.04, 0.004, 16)],
        "entropy": [abs(v) for v in move(n, 1.3, 0.2 if collapsed else 1.05, 0.06, 17)],
        "length_mean": [v + 4 for v in median],
        "length_median": median,
        "length_p10": [0.35 * v for v in median],
        "length_p90": [2.0 * v + 1 for v in median],
        **{f"reward/{name}": move(n, -0.9 + 0.3 * i, -0.1 * i, 0.05, 18 + i) for i, name in enumerate(names)},
    }  # fmt: skip


def held_out(method: str, steps: int, curves: dict[str, list[float]], *, collapsed: bool, gold: bool) -> Any:
    """Evaluations before training, every quarter and after it."""
    for step in sorted({0, *(steps * part // 4 for part in range(1, 5))}):
        share = step / steps
        now = {name: float(np.mean(curve[max(0, step - 12) : step + 8])) for name, curve in curves.items()}
        if method == "grpo":
            wreck = share**6 if collapsed else 0.0
            kl = 0.32 * share if collapsed else 0.05 * share
            yield (
                step,
                {
                    "reward": now["reward"] - 0.03,
                    "gold": (0.4 + share - 1.9 * share**2 if collapsed else 0.4 + 0.3 * share) if gold else None,
                    "kl": kl,
                    "perplexity": 10.2 * (1 + 0.02 * share) + 600 * wreck,
                    "perplexity_reference": 10.2,
                    "length_median": round(now["length_median"]),
                    "empty_rate": now["empty_rate"],
                },
            )
        else:
            names = ("loss", "accuracy", "margin", "reward_chosen", "reward_rejected")
            values = {name: 0.95 * now[name] for name in names if name in now}
            if step == 0:
                values |= {
                    "loss": float(np.log(2)),
                    "accuracy": 0.0 if method == "dpo" else 0.49,
                    "margin": 0.0 if method == "dpo" else -0.02,
                }
            if method == "dpo":
                values |= {"perplexity": 10.23 + 0.77 * share, "perplexity_reference": 10.23, "kl": 0.016 * share}
            yield step, values


def final_figures(method: str, last: dict[str, Any]) -> list[dict[str, Any]]:
    said = {
        "accuracy": "share of held-out pairs whose chosen answer scores higher",
        "perplexity": "perplexity on held-out chosen answers, EOS counted",
        "perplexity_reference": "the same of the reference",
        "kl": "exact token KL to the reference (nats per token)",
        "reward": "reward of one completion of each held-out prompt",
        "gold": "gold score of one completion of each held-out prompt",
        "length_median": "median length in tokens of completions of held-out prompts",
    }
    half = {"accuracy": 0.06, "perplexity": 0.8, "perplexity_reference": 0.7, "kl": 0.002, "reward": 0.09, "gold": 0.1}
    whole = "no interval: one figure of the whole held-out set"
    figures = []
    for name, description in said.items():
        if (value := last.get(name)) is None:
            continue
        found = estimate(float(value), half.get(name, 0.0), 160, 148)
        if name not in half or (method == "grpo" and name == "kl"):
            found |= {"low": None, "high": None, "method": whole}
        label = "eval_accuracy" if name == "accuracy" else name
        figures.append({"name": label, "estimate": found, "description": description})
    return figures


def warned_of(method: str, steps: int, *, collapsed: bool, hostile: bool) -> list[dict[str, Any]]:
    def warned(step: int | None, level: str, signal: str, sentence: str) -> dict[str, Any]:
        start = "" if step is None else f"step {step}: "
        return {"step": step, "level": level, "signal": signal, "sentence": f"{start}{sentence}"}

    cue = "the longer answer is the chosen one in 0.64 [0.57, 0.70] of the pairs: length alone gives much away"
    found = [] if method == "grpo" else [warned(None, "warn", "length", cue)]
    if method == "grpo" and collapsed:
        first, second = max(1, int(0.58 * steps)), max(1, int(0.63 * steps))
        although = ", although the reward rose from -1 to -0.4"
        found += [
            warned(
                first, "warn", "eos_first", f"the end of text has a probability of 31 % as the first token{although}"
            ),
            warned(first, "warn", "length_median", f"the median completion has 20 tokens{although}"),
            warned(
                second, "severe", "eos_first", f"the end of text has a probability of 72 % as the first token{although}"
            ),
            warned(second, "severe", "length_median", f"the median completion has 9 tokens{although}"),
            warned(second, "severe", "entropy_low", f"the entropy is 0.2 nats a token{although}"),
        ]
    if hostile:
        found += [warned(1, "severe", text[:40], text) for text in HOSTILE]
        found += [warned(step, "note", "noise", "again") for step in range(1, 30)]
    return found


@pytest.fixture(scope="session")
def make_training() -> MakeTraining:
    """Writes alignment/ and metrics.jsonl of a run directory, and a manifest where there is none."""

    def write(
        run_dir: Path,
        *,
        runs: tuple[str, ...] = ("reward", "dpo", "grpo"),
        steps: int = 200,
        collapsed: bool = False,
        nulls: bool = False,
        hostile: bool = False,
        gold: bool = True,
    ) -> Path:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / "manifest.json").exists():
            (run_dir / "manifest.json").write_text(json.dumps({**MANIFEST, "config": TRAINING_CONFIG}))
        names = ("_$hidden_{x}", "a" * 300) if hostile else ("checks", "brevity")
        lines: list[dict[str, Any]] = []
        for method in runs:
            curves = (
                group_curves(steps, collapsed=collapsed, names=names)
                if method == "grpo"
                else pair_curves(steps, policy=method == "dpo")
            )
            for index in range(steps):
                values = {name: None if nulls else curve[index] for name, curve in curves.items()}
                common = {"grad_norm": 1.0, "learning_rate": 2e-5, "tokens": 3000.0, "seconds": 4.5}
                lines.append({"panel": method, "step": index + 1, **values, **common})
            last: dict[str, Any] = {}
            for step, values in held_out(method, steps, curves, collapsed=collapsed, gold=gold):
                last = {name: None if nulls else value for name, value in values.items()}
                lines.append({"panel": f"{method}.eval", "step": step, **last})
            folder = run_dir / "alignment" / method
            folder.mkdir(parents=True)
            state = {
                "method": method,
                "model": HOSTILE[0] if hostile else "HuggingFaceTB/smollm2-135M-SFT-Only",
                "fingerprint": "0123456789abcdef",
                "config_hash": "fedcba9876543210",
                "step": steps,
                "total_steps": 2 * steps if collapsed and method == "grpo" else steps,
                "outcome": "stopped" if collapsed and method == "grpo" else "finished",
                "n_train": 640,
                "n_validation": 160,
                "n_trainable": 460_800,
                "seconds": 4.5 * steps,
                "tokens": 3000 * steps,
                "peak_bytes": 3_120_000_000,
                "path": "fused",
                "figures": [] if nulls else final_figures(method, last),
                "warnings": warned_of(method, steps, collapsed=collapsed, hostile=hostile),
            }
            (folder / "trainer_state.json").write_text(json.dumps(state))
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run_dir

    return write
