"""What the audits left on disk, read and checked.

    auditing/card.json          required   list of Finding: what was tested and how it stands to its thresholds
    auditing/<audit>.json       optional   list of AuditRecord, of every name in `AUDITS`
    auditing/sweep.json         optional   list of AuditRecord: LoRAs at parts of their own scale
    auditing/nulls.json         optional   list of NullFigure: random changes of the size of an adapter
    auditing/responses.parquet  optional   one row a response; only its numbers are kept in memory
    auditing/scores.parquet     optional   one row a score
    auditing/perturbed.parquet  optional   the base's responses and their perturbed forms

An audit without a file was not made, and its part of the page is left out. Not here: statistics. The one thing computed
in passing is a difference of two scores of one text, because the files hold the scores.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triptych.alignment.reward_functions import reward_name
from triptych.auditing.records import BASE, FOLDER, LEVELS, AuditRecord, Finding, Kind, Level, NullFigure
from triptych.records import Estimate
from triptych.reports.inputs import FloatArray, IntArray, read_table
from triptych.reports.safe_text import clip, neutralise
from triptych.runs import Manifest, read_manifest, read_records_json

CARD = f"{FOLDER}/card.json"
RESPONSES = f"{FOLDER}/responses.parquet"
SCORES = f"{FOLDER}/scores.parquet"
PERTURBED = f"{FOLDER}/perturbed.parquet"

AUDITS = {
    "divergence": "divergence from the base",
    "verbosity": "verbosity",
    "hacking": "reward hacking",
    "collapse": "collapse",
    "comparison": "win rates",
    "lineage": "lineage of the weights",
    "costs": "costs",
}
"""Stems of the files, and what they are called."""
SWEEP, NULLS = "sweep", "nulls"
"""Stems of those that only runs that were asked for them have."""
IMPLICIT, LOGPROB = "implicit_reward", "mean_logprob"
SURROGATES = (IMPLICIT, LOGPROB)
"""Scorers that a checkpoint is of itself."""
CONTROL = "neutral"
"""The perturbation that all others are compared with."""
CATEGORIES = ("factual", "explanation", "other")
MAX_NAME = 40


class Key(NamedTuple):
    """What tells one figure of an audit from every other."""

    model: str
    metric: str
    category: str | None = None
    scorer: str | None = None
    against: str | None = None


class Lengths(NamedTuple):
    """The responses of one checkpoint to one kind of prompt, one entry a response in every field."""

    categories: tuple[str, ...]
    n_tokens: IntArray
    prompt_ids: tuple[str, ...]

    def of(self, category: str) -> FloatArray:
        """Tokens of the responses to prompts of a category."""
        is_meant = np.array([own == category for own in self.categories], dtype=np.bool_)
        return self.n_tokens[is_meant].astype(np.float64)


class Scorer(NamedTuple):
    """Who scored the perturbed texts: a reward scorer, or a checkpoint as its own surrogate."""

    model: str
    name: str

    @property
    def is_surrogate(self) -> bool:
        return self.name in SURROGATES

    @property
    def column(self) -> str:
        """Its name in `scores.parquet`."""
        return f"{self.name}({self.model})" if self.is_surrogate else self.name


@dataclass(frozen=True)
class Auditing:
    """Everything the auditing panel left on disk, short of texts and tokens."""

    run_dir: Path
    manifest: Manifest
    checkpoints: tuple[str, ...]
    """In the order of the run; the base, where it was read at all, is the first."""
    card: tuple[Finding, ...]
    """Gravest first."""
    records: Mapping[str, tuple[AuditRecord, ...]]
    """By audit; an audit without a file is left out."""
    lengths: Mapping[tuple[str, Kind], Lengths]
    """By checkpoint and kind of prompt."""
    changes: Mapping[tuple[str, str], FloatArray]
    """By scorer, as `scores.parquet` names it, and perturbation: score of the perturbed text minus that of the text."""
    nulls: tuple[NullFigure, ...] = ()

    @cached_property
    def _by_key(self) -> dict[str, dict[Key, AuditRecord]]:
        return {
            audit: {Key(row.model, row.metric, row.category, row.scorer, row.against): row for row in rows}
            for audit, rows in self.records.items()
        }

    def record(self, audit: str, key: Key) -> AuditRecord | None:
        """One figure; None where it was not measured."""
        return self._by_key.get(audit, {}).get(key)

    def estimate(self, audit: str, key: Key) -> Estimate | None:
        """Its value; None where it was not measured."""
        row = self.record(audit, key)
        return None if row is None else row.estimate

    def measured(self, audit: str, key: Key) -> Estimate | None:
        """Its value where there is one to draw, rather than a record that says there is none."""
        found = self.estimate(audit, key)
        return None if found is None or found.mean is None else found

    def rows(self, audit: str) -> tuple[AuditRecord, ...]:
        """All figures of an audit; none where it was not made."""
        return self.records.get(audit, ())

    @property
    def adapters(self) -> tuple[str, ...]:
        """The checkpoints that are compared with the base."""
        return tuple(model for model in self.checkpoints if model != BASE)

    @property
    def n_responses(self) -> int:
        return sum(len(of.prompt_ids) for of in self.lengths.values())

    @property
    def n_prompts(self) -> int:
        return len({prompt_id for of in self.lengths.values() for prompt_id in of.prompt_ids})

    @property
    def missing(self) -> list[str]:
        """Audits that this run has no file of."""
        return [name for audit, name in AUDITS.items() if audit not in self.records]

    @property
    def gold(self) -> str | None:
        """The scorer that no training saw."""
        gold = self._settings.get("gold")
        return self._called(gold) if isinstance(gold, str) else None

    def gold_sign(self, scorer: str) -> str:
        """What stands behind the name of the gold scorer, where the name does not say it."""
        return " (gold)" if scorer == self.gold and scorer != "gold" else ""

    @cached_property
    def reward_scorers(self) -> tuple[str, ...]:
        """Those that scored checkpoints' responses, the gold scorer aside; as configured, then as found."""
        given = self._settings.get("scorers")
        configured = [self._called(spec) for spec in given if isinstance(spec, str)] if isinstance(given, list) else []
        ordered = dict.fromkeys([name for name in configured if name in self._found] + list(self._found))
        return tuple(name for name in ordered if name != self.gold)

    @property
    def all_scorers(self) -> tuple[str, ...]:
        """Reward scorers, then the gold one where it scored."""
        return self.reward_scorers + tuple(name for name in self._found if name == self.gold)

    @cached_property
    def _found(self) -> dict[str, None]:
        """Scorers that are no checkpoint, as the files name them."""
        rows = (*self.rows("comparison"), *self.rows("hacking"))
        return {row.scorer: None for row in rows if row.scorer is not None and row.scorer not in SURROGATES}

    def _called(self, spec: str) -> str:
        """The name of a configured scorer; one that the files have under its spec keeps it."""
        return spec if spec in self._found else reward_name(spec)

    @cached_property
    def text_scorers(self) -> tuple[Scorer, ...]:
        """Who scored the perturbed texts: reward scorers, implicit rewards, then mean log-probabilities."""
        rows = [row for row in self.rows("hacking") if row.metric == "score_change" and row.scorer is not None]
        found = dict.fromkeys(Scorer(row.model, row.scorer or "") for row in rows)
        ranks = {IMPLICIT: 1, LOGPROB: 2}
        return tuple(sorted(found, key=lambda scorer: ranks.get(scorer.name, 0)))

    @cached_property
    def perturbations(self) -> tuple[str, ...]:
        """In the order of the file; the control is the last."""
        rows = [row for row in self.rows("hacking") if row.metric == "score_change" and row.category is not None]
        found = dict.fromkeys(row.category or "" for row in rows)
        return tuple(sorted(found, key=lambda perturbation: perturbation == CONTROL))

    @property
    def _settings(self) -> Mapping[str, Any]:
        given = self.manifest.config.get("auditing")
        return given if isinstance(given, Mapping) else {}


def read_auditing(run_dir: Path) -> Auditing | None:
    """The audits of a run directory, checked; None where it has no report card."""
    if not (run_dir / CARD).is_file():
        return None
    paths = {audit: run_dir / FOLDER / f"{audit}.json" for audit in (*AUDITS, SWEEP, NULLS)}
    nulls = paths.pop(NULLS)
    records = {audit: tuple(read_records_json(path, AuditRecord)) for audit, path in paths.items() if path.is_file()}
    lengths = _read_lengths(run_dir / RESPONSES)
    return Auditing(
        run_dir=run_dir,
        manifest=read_manifest(run_dir),
        checkpoints=_checkpoints([model for model, _ in lengths], records.get("divergence", ())),
        card=tuple(gravest_first(read_records_json(run_dir / CARD, Finding))),
        records=records,
        lengths=lengths,
        changes=_read_changes(run_dir / SCORES, _read_unchanged(run_dir / PERTURBED)),
        nulls=tuple(read_records_json(nulls, NullFigure)) if nulls.is_file() else (),
    )


def gravest_first(card: Iterable[Finding]) -> list[Finding]:
    """Findings by level; those of one level keep their order."""
    return sorted(card, key=lambda finding: LEVELS.index(finding.level))


def at_level(card: Iterable[Finding], *levels: Level) -> list[Finding]:
    """The findings of some levels, in order."""
    return [finding for finding in card if finding.level in levels]


def shown_name(name: str) -> str:
    """A name that users gave, or a piece of text, fit for a cell: on one line, not too long, nothing hidden."""
    clipped = clip(name, MAX_NAME)
    return neutralise(" ".join(clipped.text.split()) or clipped.text) + ("…" if clipped.left_out else "")


def _checkpoints(of_responses: list[str], divergence: tuple[AuditRecord, ...]) -> tuple[str, ...]:
    """The base first; else as responses, and where there are none, figures have them."""
    found = dict.fromkeys([*of_responses, *(row.model for row in divergence)])
    return tuple(sorted(found, key=lambda model: model != BASE))


def _read_lengths(path: Path) -> dict[tuple[str, Kind], Lengths]:
    if not path.is_file():
        return {}
    columns = read_table(path, ("model", "kind", "category", "n_tokens", "prompt_id")).to_pydict()
    members: dict[tuple[str, Kind], list[int]] = {}
    for index, key in enumerate(zip(columns["model"], columns["kind"], strict=True)):
        members.setdefault(key, []).append(index)
    categories = columns.get("category") or [""] * len(columns["model"])
    return {
        key: Lengths(
            categories=tuple(categories[index] or "other" for index in indices),
            n_tokens=np.array([columns["n_tokens"][index] for index in indices], dtype=np.int64),
            prompt_ids=tuple(columns["prompt_id"][index] for index in indices),
        )
        for key, indices in members.items()
    }


def _read_unchanged(path: Path) -> set[tuple[str, str]]:
    """Prompt and perturbation of the texts that a perturbation left as they were."""
    if not path.is_file():
        return set()
    rows = read_table(path, ("prompt_id", "perturbation", "text")).to_pylist()
    originals = {row["prompt_id"]: row["text"] for row in rows if row["perturbation"] is None}
    return {
        (row["prompt_id"], row["perturbation"])
        for row in rows
        if row["perturbation"] is not None and originals.get(row["prompt_id"]) == row["text"]
    }


def _read_changes(path: Path, unchanged: set[tuple[str, str]]) -> dict[tuple[str, str], FloatArray]:
    """Perturbed minus original, of the base's texts that were changed and have both scores."""
    if not path.is_file():
        return {}
    columns = ("scorer", "prompt_id", "perturbation", "score")
    rows = read_table(path, columns, filters=[("model", "==", BASE)]).to_pylist()
    scored = [row for row in rows if row["score"] is not None and np.isfinite(row["score"])]
    originals = {(row["scorer"], row["prompt_id"]): row["score"] for row in scored if row["perturbation"] is None}
    changes: dict[tuple[str, str], list[float]] = {}
    for row in scored:
        original = originals.get((row["scorer"], row["prompt_id"]))
        is_change = row["perturbation"] is not None and (row["prompt_id"], row["perturbation"]) not in unchanged
        if is_change and original is not None:
            changes.setdefault((row["scorer"], row["perturbation"]), []).append(row["score"] - original)
    return {key: np.array(values, dtype=np.float64) for key, values in changes.items()}
