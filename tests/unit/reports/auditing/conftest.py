"""A small synthetic `auditing/` folder, with text that tries to break a page. Its figures are made up, not computed."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.auditing.records import (
    PERTURBED_SCHEMA,
    RESPONSES_SCHEMA,
    SCORES_SCHEMA,
    AuditRecord,
    Evidence,
    Finding,
    Level,
)
from triptych.records import Estimate
from triptych.runs import Manifest

HOSTILE_NAME = "\u202e<img src=x onerror=alert(4)>" + "z" * 300
HOSTILE_TEXTS = (
    "<script>alert(1)</script> & \"quoted\" 'text'",
    "\u202egnp.exe\u202c {{ 7 * 7 }} ]]> <!-- -->",
    "x" * 1_000_000,
    "before\x00after\x1b[31m </details></main>",
)
WORDS = re.findall(
    r"\w+",
    "the river carries small stones slowly under an old bridge while people in the city watch the light on its water "
    "and talk about work music letters gardens and what the morning may bring to them",
)
CATEGORIES = ("factual", "explanation", "other")
PERTURBATIONS = (
    "filler",
    "keywords",
    "reorder",
    "safety_prefix",
    "repetition",
    "flattery",
    "formatting",
    "neutral",
)
RANGES = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127")
LENGTHS = {"base": 60.0, "dpo": 75.0, "grpo": 12.0}
"""About how many tokens a checkpoint writes; others 60."""
DRIFT = {"dpo": 0.02, "grpo": 0.35}
METHOD = "95% cluster bootstrap-t, 2000 resamples"


class MakeAudit(Protocol):
    def __call__(
        self,
        run_dir: Path,
        *,
        checkpoints: tuple[str, ...] = ("base", "dpo", "grpo"),
        scorers: tuple[str, ...] = ("reward_model", "checks"),
        gold: str | None = "gold",
        n_prompts: int = 12,
        hostile: bool = False,
        empty: bool = False,
        categories: tuple[str, ...] = CATEGORIES,
        without: tuple[str, ...] = (),
    ) -> Path: ...


class Maker:
    """Writes the files of one run."""

    def __init__(
        self,
        checkpoints: tuple[str, ...],
        scorers: tuple[str, ...],
        gold: str | None,
        n_prompts: int,
        categories: tuple[str, ...],
        *,
        hostile: bool,
        empty: bool,
    ) -> None:
        self.rng = np.random.default_rng(0)
        self.checkpoints, self.scorers, self.gold, self.n_prompts = checkpoints, scorers, gold, n_prompts
        self.adapters = [model for model in checkpoints if model != "base"]
        self.categories, self.hostile, self.empty = categories, hostile, empty

    def estimate(self, mean: float | None, half: float | None = None) -> Estimate:
        n = self.n_prompts
        if mean is None:
            none = "no estimate: nothing was scored"
            return Estimate(mean=None, low=None, high=None, n=0, n_clusters=0, n_unscored=n, method=none)
        if n == 1:
            return Estimate(mean=mean, low=None, high=None, n=1, n_clusters=1, method="no interval: one prompt")
        reach = 0.08 * abs(mean) + 1e-3 if half is None else half
        return Estimate(mean=mean, low=mean - reach, high=mean + reach, n=n, n_clusters=n, method=METHOD)

    def exact(self, mean: float, why: str) -> Estimate:
        return Estimate(mean=mean, low=None, high=None, n=1, n_clusters=1, method=f"no interval: {why}")

    def both(self, model: str, metric: str, mean: float | None, base: float, **more: Any) -> Iterator[AuditRecord]:
        """The value, and its difference from the base's."""
        yield AuditRecord(model=model, metric=metric, estimate=self.estimate(mean), **more)
        if model != "base":
            change = None if mean is None else mean - base
            yield AuditRecord(model=model, metric=metric, against="base", estimate=self.estimate(change, 0.02), **more)

    # --- Texts ---

    def prompt_ids(self) -> list[str]:
        ids = [f"p{prompt:03d}" for prompt in range(self.n_prompts)]
        return [f'"><b id={i}>' if self.hostile and place % 3 == 0 else i for place, i in enumerate(ids)]

    def text(self, n_words: int) -> str:
        words = [WORDS[int(place)] for place in self.rng.integers(0, len(WORDS), n_words)]
        sentences = [" ".join(words[place : place + 9]) for place in range(0, n_words, 9)]
        return " ".join(f"{sentence}." for sentence in sentences)

    def responses(self) -> list[dict[str, Any]]:
        rows = []
        for model in self.checkpoints:
            for kind in ("plain", "limited", "greedy"):
                for place, prompt_id in enumerate(self.prompt_ids()):
                    if kind == "greedy" and place % 3:
                        continue  # of prompts that have an answer to be right
                    mean = LENGTHS.get(model, 60.0) * (0.7 + 0.4 * (place % 3))
                    n = 0 if self.empty or (model == "grpo" and place % 2) else int(self.rng.poisson(mean))
                    text = self.text(int(0.8 * n)) if n else ""
                    instruction = f"Question {place}: what makes a {WORDS[place % len(WORDS)]} so?"
                    if self.hostile:
                        instruction = HOSTILE_TEXTS[place % len(HOSTILE_TEXTS)]
                        text = HOSTILE_TEXTS[(place + 1) % len(HOSTILE_TEXTS)] + text
                    rows.append(
                        {
                            "model": model,
                            "prompt_id": prompt_id,
                            "kind": kind,
                            "instruction": instruction,
                            "input": "",
                            "category": self.categories[place % len(self.categories)],
                            "prompt": f"{instruction}\nAnswer:\n",
                            "text": text,
                            "token_ids": [1] * (n + 1),
                            "logprobs": [-1.0] * (n + 1),
                            "n_tokens": n,
                            "n_words": len(text.split()),
                            "is_truncated": n > 100,
                            "seed": place,
                        }
                    )
        return rows

    def perturbed(self, responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for row in responses:
            if row["model"] == "base" and row["kind"] == "plain":
                text, key = row["text"], {"prompt_id": row["prompt_id"]}
                rows.append({**key, "perturbation": None, "text": text})
                forms = {
                    "filler": f"Well, as you may know, {text}",
                    "reorder": ". ".join(reversed(text.split(". "))),
                    "safety_prefix": f"I am a helpful AI. {text}",
                }
                rows += [{**key, "perturbation": p, "text": forms.get(p, f"{text} And so on.")} for p in PERTURBATIONS]
        return rows

    def surrogates(self) -> list[tuple[str, str]]:
        """Model and name."""
        return [
            (model, name)
            for model in self.checkpoints
            for name in ("implicit_reward", "mean_logprob")
            if not (model == "base" and name == "implicit_reward")
        ]

    def effect(self, scorer: str, perturbation: str) -> float:
        gains = {"safety_prefix": 1.1, "keywords": 0.4, "flattery": 0.5, "filler": -0.3, "neutral": -0.05}
        scale = {"implicit_reward": 3.0, "mean_logprob": 0.1, "checks": 0.05}.get(scorer, 1.0)
        return scale * gains.get(perturbation, 0.0)

    def scores(self) -> list[dict[str, Any]]:
        columns = {name: name for name in (*self.scorers, *([self.gold] if self.gold else []))}
        columns |= {f"{name}({model})": name for model, name in self.surrogates()}
        rows: list[dict[str, Any]] = []
        for column, scorer in columns.items():
            for place, prompt_id in enumerate(self.prompt_ids()):
                original = float(self.rng.normal(-1.0, 1.0))
                key = {"scorer": column, "model": "base", "prompt_id": prompt_id}
                rows.append({**key, "perturbation": None, "score": original if place != 2 else None})
                for p in PERTURBATIONS:
                    score = original + self.effect(scorer, p) + float(self.rng.normal(0, 0.3))
                    rows.append({**key, "perturbation": p, "score": score})
                if column == scorer:
                    for model in self.adapters:
                        rows.append({**key, "model": model, "perturbation": None, "score": original + 0.5})
        return rows

    # --- Figures ---

    def divergence(self) -> Iterator[AuditRecord]:
        yield AuditRecord(model="base", metric="perplexity", estimate=self.estimate(10.23))
        yield AuditRecord(model="base", metric="nll", estimate=self.estimate(2.325))
        for model in self.adapters:
            kl = DRIFT.get(model, 0.05)
            values = {"perplexity": 10.23 * (1 + kl), "nll": 2.325 + kl, "kl_chosen": 0.8 * kl, "kl_own": kl}
            values |= {"k1_own": 1.02 * kl, "k3_own": 0.98 * kl}
            for metric, mean in values.items():
                yield AuditRecord(model=model, metric=metric, estimate=self.estimate(mean))
            for metric, mean in {"perplexity_ratio": 1 + kl, "nll": kl}.items():
                yield AuditRecord(model=model, metric=metric, against="base", estimate=self.estimate(mean))
            for place, name in enumerate(RANGES):
                for text, factor in (("own", 1.0), ("chosen", 0.8)):
                    mean = factor * kl * (3.0 / (1 + place) + 0.2)
                    metric = f"kl_{text}_by_position"
                    yield AuditRecord(model=model, metric=metric, category=name, estimate=self.estimate(mean))
            tokens = (" the", "\n", "<|im_end|>", " I", *(HOSTILE_TEXTS[:3] if self.hostile else ()))
            for place, token in enumerate(tokens):
                share = self.exact(0.3 / (1 + place), "a share of a sum")
                for metric, estimate in {
                    "kl_own_by_token": self.estimate(kl * (9 - place)),
                    "kl_own_share_by_token": share,
                    "log_ratio_by_token": self.estimate(0.4 - 0.2 * place),
                }.items():
                    yield AuditRecord(model=model, metric=metric, category=token, estimate=estimate)

    def verbosity(self) -> Iterator[AuditRecord]:
        base = LENGTHS["base"]
        for model in self.checkpoints:
            mean = 0.0 if self.empty else LENGTHS.get(model, 60.0)
            shapes = {"mean": 1.0, "median": 0.9, "std": 0.6}
            for unit, scale in (("tokens", 1.0), ("words", 0.8)):
                for category in (None, *dict.fromkeys(self.categories)):
                    for name, factor in shapes.items():
                        metric, at = f"{unit}_{name}", scale * factor
                        yield from self.both(model, metric, at * mean, at * base, category=category)
                    skew = None if self.empty else 0.19
                    yield from self.both(model, f"{unit}_skew", skew, 0.2, category=category)
            for metric, value in {"compliance_rate": 0.736, "absolute_deviation_mean": 14.0}.items():
                yield from self.both(model, metric, value, value)
            for metric in ("deviation_mean", "deviation_std"):
                yield from self.both(model, metric, None if self.empty else 17.56, 17.0)
            if model != "base":
                ratio = self.estimate(mean / base)
                yield AuditRecord(model=model, metric="words_ratio", against="base", estimate=ratio)
        for category in (None, *CATEGORIES):
            yield AuditRecord(model="classifier", metric="agreement", category=category, estimate=self.estimate(0.9))
        yield AuditRecord(model="classifier", metric="kappa", estimate=self.estimate(0.84))

    def hacking(self) -> Iterator[AuditRecord]:
        rewards = (*self.scorers, *([self.gold] if self.gold else []))
        readers = [(name, name) for name in rewards] + self.surrogates()
        for place, (model, scorer) in enumerate(readers):
            key: dict[str, Any] = {"model": model, "scorer": scorer}
            yield AuditRecord(metric="score", estimate=self.estimate(-1.2), **key)
            yield AuditRecord(metric="score_std", estimate=self.estimate(0.9), **key)
            for p in PERTURBATIONS:
                effect = self.effect(scorer, p)
                half = 0.05 + 0.1 * abs(effect) + 0.02 * place
                is_seen = abs(effect) > half and self.n_prompts > 1
                family = {"category": p, **key}
                change = self.estimate(effect, half)
                for metric, estimate in {"score_change": change, "score_change_in_sd": change}.items():
                    yield AuditRecord(metric=metric, estimate=estimate, p=4e-4 if is_seen else 0.412, **family)
                yield AuditRecord(metric="score_change_std", estimate=self.estimate(0.3), **family)
                yield AuditRecord(
                    metric="share_positive", estimate=self.estimate(0.5 + 0.3 * np.tanh(effect)), **family
                )
                if p != "neutral":
                    yield AuditRecord(metric="change_over_control", estimate=self.estimate(effect + 0.05), **family)
        for p in PERTURBATIONS:
            yield AuditRecord(model="texts", metric="words_added", category=p, estimate=self.estimate(5.0))
        for scorer in rewards:
            for model in self.checkpoints:
                values = {
                    "normal_score": -3.471,
                    "hacked_score": -2.357,
                    "hack_delta": 1.114,
                    "length_correlation": 0.42,
                }
                for metric, mean in values.items():
                    yield AuditRecord(model=model, scorer=scorer, metric=metric, estimate=self.estimate(mean))

    def collapse(self) -> Iterator[AuditRecord]:
        shown = dict.fromkeys(
            ("distinct_1", "distinct_2", "distinct_3", "matched_distinct_2", "self_bleu", "repetition"), 0.4
        )
        shown |= {"empty_rate": 0.01, "truncated_rate": 0.2, "accuracy": 0.3, "checks": 0.6, "entropy": 2.1}
        for model in self.checkpoints:
            for metric, base in shown.items():
                mean = 0.93 if metric == "empty_rate" and model == "grpo" else base
                yield from self.both(model, metric, None if self.empty and metric == "entropy" else mean, base)

    def comparison(self) -> Iterator[AuditRecord]:
        for model in self.checkpoints:
            if model != "base":
                yield AuditRecord(model=model, metric="sqrt_kl", estimate=self.estimate(DRIFT.get(model, 0.05) ** 0.5))
            for scorer in (*self.scorers, *([self.gold] if self.gold else [])):
                gain = 3 * DRIFT.get(model, 0.0) * (-1 if scorer == self.gold else 1)
                yield from self.both(model, "score", -1.0 + gain, -1.0, scorer=scorer)
                if model != "base":
                    rates = {"score_change_in_sd": gain, "win_rate": 0.5 + gain / 4, "win_rate_length_controlled": 0.5}
                    for metric, rate in rates.items():
                        estimate = self.estimate(rate, 0.06)
                        yield AuditRecord(model=model, metric=metric, scorer=scorer, against="base", estimate=estimate)

    def lineage(self) -> Iterator[AuditRecord]:
        for model in self.adapters:
            values = {"relative_change": 0.0012, "unchanged_share": 0.91}
            for metric, value in {**values, **({"seen_in_training": 0.0} if model == "dpo" else {})}.items():
                why = self.exact(value, "a property of the weights")
                yield AuditRecord(model=model, metric=metric, estimate=why)

    def costs(self) -> Iterator[AuditRecord]:
        of_model = {"load_seconds": 1.5, "generation_seconds": 61.0, "generated_tokens": 15_120.0}
        values = dict.fromkeys(self.checkpoints, of_model) | {name: {"scoring_seconds": 2.5} for name in self.scorers}
        for model, own in {**values, "all": {"peak_bytes": 1.6e9}}.items():
            for metric, value in own.items():
                yield AuditRecord(model=model, metric=metric, estimate=self.exact(value, "measured once"))

    def card(self) -> Iterator[Finding]:
        ids = self.prompt_ids()

        def finding(level: Level, model: str, metric: str, mean: float | None, sentence: str, **more: Any) -> Finding:
            given: dict[str, Any] = {"rule": metric, "audit": "collapse", "warn": 0.1, "severe": 0.5, **more}
            estimate = self.estimate(mean, 0.04)
            return Finding(level=level, model=model, metric=metric, estimate=estimate, sentence=sentence, **given)

        # Not in order: the page must sort them.
        for model in self.checkpoints:
            sentence = f"Of the responses of {model}, 1 % are empty."
            yield finding("ok", model, "empty_rate", 0.01, sentence)
            yield finding("ok", model, "entropy", None, "The entropy was not measured.", severe=-0.5)
        for model in self.adapters:
            sentence = f"{model} writes 25 % more tokens than the base."
            evidence = tuple(Evidence(model=model, prompt_id=i, note="95 tokens") for i in ids[:8])
            more: dict[str, Any] = {"audit": "verbosity", "against": "base", "evidence": evidence}
            yield finding("warn", model, "tokens_mean", 15.0, sentence, **more)
            yield finding("undecided", model, "kl_own", 0.02, f"{model} is near the base.", audit="divergence")
        for model in self.adapters[-1:]:
            evidence = tuple(Evidence(model=model, prompt_id=i, kind="limited", note="0 tokens") for i in ids[1:4])
            text = HOSTILE_TEXTS[0] if self.hostile else f"93 % of the responses of {model} are empty."
            yield finding("severe", model, "empty_rate", 0.93, text, evidence=evidence)
        for scorer in self.scorers[:1]:
            evidence = tuple(
                Evidence(model="base", prompt_id=i, perturbation="safety_prefix", note="+1.1") for i in ids[:2]
            )
            sentence = f"{scorer} rates a text higher behind the words “I am a helpful AI”."
            family: dict[str, Any] = {"audit": "hacking", "category": "safety_prefix", "scorer": scorer, "p": 4e-4}
            yield finding("severe", scorer, "score_change", 1.1, sentence, evidence=evidence, **family)

    def config(self) -> dict[str, Any]:
        return {"model": "some/model", "auditing": {"scorers": list(self.scorers), "gold": self.gold}}


def manifest(config: dict[str, Any]) -> Manifest:
    return Manifest(
        run_id="2025-01-01T000000-abcdef01",
        created="2025-01-01T00:00:00.000+00:00",
        command=("triptych", "study"),
        config=config,
        config_hash="0123456789abcdef",
        seed=0,
        python="3.11.7",
        packages={"triptych": "0.1.0"},
        git=None,
        device="CPU: a processor, 2 cores",
        stages={},
    )


@pytest.fixture(scope="session")
def make_audit() -> MakeAudit:
    """Writes a run directory with an `auditing/` folder; `without` names files that are left out, by stem."""

    def write(
        run_dir: Path,
        *,
        checkpoints: tuple[str, ...] = ("base", "dpo", "grpo"),
        scorers: tuple[str, ...] = ("reward_model", "checks"),
        gold: str | None = "gold",
        n_prompts: int = 12,
        hostile: bool = False,
        empty: bool = False,
        categories: tuple[str, ...] = CATEGORIES,
        without: tuple[str, ...] = (),
    ) -> Path:
        folder = run_dir / "auditing"
        folder.mkdir(parents=True)
        make = Maker(checkpoints, scorers, gold, n_prompts, categories, hostile=hostile, empty=empty)
        (run_dir / "manifest.json").write_text(manifest(make.config()).model_dump_json())
        responses = make.responses()
        tables: dict[str, tuple[list[dict[str, Any]], pa.Schema]] = {
            "responses": (responses, RESPONSES_SCHEMA),
            "perturbed": (make.perturbed(responses), PERTURBED_SCHEMA),
            "scores": (make.scores(), SCORES_SCHEMA),
        }
        for name, (rows, schema) in tables.items():
            if name not in without:
                pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{name}.parquet")
        records: dict[str, Callable[[], Iterator[AuditRecord]]] = {
            "divergence": make.divergence,
            "verbosity": make.verbosity,
            "hacking": make.hacking,
            "collapse": make.collapse,
            "comparison": make.comparison,
            "lineage": make.lineage,
            "costs": make.costs,
            "card": make.card,
        }
        for name, found in records.items():
            if name not in without:
                plain = [record.model_dump(mode="json") for record in found()]
                (folder / f"{name}.json").write_text(json.dumps(plain, ensure_ascii=False), "utf-8")
        return run_dir

    return write
