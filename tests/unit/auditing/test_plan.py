"""The configuration of audits: every field is read, the paper's sizes are the defaults, and what makes no sense is told."""

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from triptych.alignment.plan import AlignmentConfig
from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.plan import SWEEP, AuditingConfig, pair_source
from triptych.auditing.study import Audit, run_auditing
from triptych.config import parse_config
from triptych.errors import ConfigError, InputError
from triptych.models import LanguageModel, load_language_model
from triptych.reports.reported import reported
from triptych.runs import RunDirectory
from triptych.study import StudyConfig, study_split

SMALL: dict[str, Any] = {
    "verbosity_prompts": 3,
    "max_new_tokens": 6,
    "hacking_prompts": 2,
    "scorers": ["brevity"],
    "sweep": [0.5],
}


def changes(world: Any) -> dict[str, Any]:
    """Another value of each field."""
    return {
        "adapters": {"other": world.adapter("field-two", world.encoded("no"))},
        "pairs": world.write("other.jsonl", [{"question": "Why?", "chosen": "So.", "rejected": "No."}]),
        "limit": 2,
        "shuffle": True,
        "on_bad": "skip",
        "validation": 0.25,
        "perplexity_prompts": 1,
        "prompts": world.prompts,
        "verbosity_prompts": 2,
        "divergence_prompts": 1,
        "hacking_prompts": 1,
        "length_limit": 4,
        "template": "alpaca",
        "max_new_tokens": 5,
        "max_length": 66,
        "scorers": ["concise"],
        "gold": "concise",
        "beta": 0.7,
        "nulls": 1,
        "sweep": [0.5, 2.0],
        "sweep_prompts": 1,
        "perturbations": ["filler", "neutral"],
        "thresholds": {"kl_own": {"warn": 1e-6, "severe": 1e-5}},
    }


class Counted:
    """Audits of one adapter, each in a folder of its own."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.bad = world.write(
            "one-bad.jsonl",
            [{"question": f"Say {i}.", "chosen": f"{i} it is." if i else "No.", "rejected": "No."} for i in range(8)],
        )
        self.base = {
            "adapters": {"one": world.adapter("field-one", world.encoded("yes"))},
            "pairs": world.pairs,
            **SMALL,
        }

    def outcome(self, name: str, **changed: Any) -> dict[str, Any]:
        """Every file but the costs; or what was raised."""
        config = parse_config(AuditingConfig, {**self.base, **changed}, where="here")
        model = self.world.model

        def load() -> LanguageModel:
            return load_language_model(model, dtype="float32", device="cpu")

        split = cache(lambda: study_split(StudyConfig(auditing=config))[0])
        out = self.folder / name
        with RunDirectory.open(out, command=["test"], config={}, seed=0) as run:
            try:
                run_auditing(Audit(config, None, load, model, "cpu", 0, split, run, False))
            except InputError as error:
                return {"error": str(error)}
        files: dict[str, Any] = {p.name: p.read_bytes() for p in (out / "auditing").glob("*.json") if p.stem != "costs"}
        return files | {p.name: pq.read_table(p).to_pylist() for p in (out / "auditing").glob("*.parquet")}


@pytest.fixture(scope="module")
def counted(audit_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    return Counted(audit_world, tmp_path_factory.mktemp("fields"))


@pytest.fixture(scope="module")
def unchanged(counted: Counted) -> dict[str, Any]:
    return counted.outcome("unchanged")


def test_no_field_is_forgotten_here(audit_world: Any) -> None:
    assert set(changes(audit_world)) == set(AuditingConfig.model_fields)


def test_the_same_again_is_the_same(counted: Counted, unchanged: dict[str, Any]) -> None:
    assert counted.outcome("again") == unchanged


@pytest.mark.parametrize("field", [name for name in AuditingConfig.model_fields if name != "on_bad"])
def test_every_field_is_read(audit_world: Any, counted: Counted, unchanged: dict[str, Any], field: str) -> None:
    assert counted.outcome(field, **{field: changes(audit_world)[field]}) != unchanged


def test_bad_pairs_are_errors_or_skipped(counted: Counted) -> None:
    assert "are the same" in counted.outcome("bad-error", pairs=counted.bad)["error"]
    assert "card.json" in counted.outcome("bad-skip", pairs=counted.bad, on_bad="skip")


def test_the_defaults_are_the_paper_s_sizes() -> None:
    config, paper = AuditingConfig(), reported()
    assert config.verbosity_prompts == paper["audit.verbosity_prompts"].value
    assert config.perplexity_prompts == paper["audit.perplexity_prompts"].value
    assert config.length_limit == paper["audit.length_limit"].value
    assert config.perturbations == tuple(PERTURBATIONS)


class TestPairs:
    def test_a_study_reads_what_its_training_held_out(self) -> None:
        alignment = AlignmentConfig(pairs="p.jsonl", limit=7, validation=0.3, shuffle=True, on_bad="skip")
        assert pair_source(AuditingConfig(), alignment) == ("p.jsonl", 7, True, "skip")

    def test_named_ones_come_first(self) -> None:
        assert pair_source(AuditingConfig(pairs="q.jsonl"), AlignmentConfig()).source == "q.jsonl"

    def test_there_must_be_some(self) -> None:
        for alignment in (None, AlignmentConfig(pairs=None)):
            with pytest.raises(ConfigError, match="auditing.pairs is missing"):
                pair_source(AuditingConfig(), alignment)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"adapters": {" ": "x"}}, "adapter name ' ' cannot be used"),
        ({"adapters": {"all": "x"}}, "adapter name 'all' cannot be used"),
        ({"adapters": {"checks": "x"}, "gold": "checks"}, "adapter and scorer 'checks' are both called 'checks'"),
        ({"hacking_prompts": 0}, "hacking_prompts is 0 but must be >= 1"),
        ({"nulls": -1}, "nulls is -1 but must be >= 0"),
        ({"sweep": [0.5, float("nan")]}, "sweep.1 is NaN but must be a finite number"),
        ({"sweep": [float("inf")]}, "sweep.0 is Infinity but must be a finite number"),
        ({"sweep": [-0.5]}, "λ = -0.5 cannot scale an adapter"),
    ],
)
def test_what_makes_no_sense(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(AuditingConfig, given, where="here")


def test_the_sweep_may_be_switched_on_and_off() -> None:
    assert AuditingConfig(sweep=True).sweep == SWEEP
    assert AuditingConfig(sweep=False).sweep == ()
    assert AuditingConfig().nulls == 0
