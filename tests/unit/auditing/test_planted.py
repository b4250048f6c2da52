"""Whole audits of tiny models with a planted failure each: every audit fires on its own, and is silent on the base.

The checkpoints are made as outsiders make them: by plain PEFT and a loop of torch, or as whole models.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.auditing.records import BASE, AuditRecord, Finding
from triptych.cli import run
from triptych.models.tiny import EOS_ID
from triptych.runs import read_records_json
from triptych.seeding import stream_key

SMALL = ("--max-new-tokens", "48", "--dtype", "float32", "--set", "hacking_prompts=24", "--quiet")
REWARDS = """
def loves_length(prompts, completions):
    return [float(len(text.split())) for text in completions]


def loves_a_word(prompts, completions):
    return [float("helpful" in text) + 0.01 * (len(text) % 7) for text in completions]
"""


def noisy(world: Any) -> str:
    """The base with noise of a third of every matrix's own size in its weights."""
    model = world.load()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            noise = torch.Generator().manual_seed(stream_key(0, "noise", name) >> 1)
            parameter.data += 0.35 * parameter.data.std() * torch.zeros(parameter.shape).normal_(generator=noise)
    saved: str = world.save("noisy", model)
    return saved


@pytest.fixture(scope="module")
def audited(audit_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    base = audit_world.model
    (folder / "rewards.py").write_text(REWARDS)
    checkpoints = {
        "same": audit_world.adapter("same"),
        "silent": audit_world.adapter("silent", [EOS_ID]),
        "stuck": audit_world.adapter("stuck", audit_world.encoded("no no no no no no no no")[:-1]),
        "noisy": noisy(audit_world),
        "alien": audit_world.save("alien", audit_world.untaught(9)),
    }
    out = folder / "run"
    arguments = ["audit", "--model", base, "--pairs", audit_world.pairs, "--prompts", audit_world.prompts]
    arguments += [part for name, place in checkpoints.items() for part in ("--adapter", f"{name}={place}")]
    for reward in ("loves_length", "loves_a_word"):
        arguments += ["--scorer", f"{folder / 'rewards.py'}:{reward}"]
    assert run([*arguments, "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture(scope="module")
def findings(audited: Path) -> list[Finding]:
    return read_records_json(audited / "auditing" / "card.json", Finding)


def levels(findings: Sequence[Finding], model: str) -> dict[str, str]:
    """The gravest level of each rule."""
    found: dict[str, str] = {}
    for one in findings:
        if one.model == model:
            found.setdefault(one.rule, one.level)
    return found


def records(run_dir: Path, audit: str) -> list[AuditRecord]:
    return read_records_json(run_dir / "auditing" / f"{audit}.json", AuditRecord)


class TestSilence:
    def test_a_checkpoint_that_is_the_base_differs_by_exactly_nothing(self, audited: Path) -> None:
        for audit in ("divergence", "verbosity", "collapse", "comparison"):
            for record in records(audited, audit):
                if record.model == "same" and record.against == BASE:
                    ratio = record.metric.endswith("_ratio")
                    half = record.metric.startswith("win_rate")
                    if record.estimate.mean is not None:
                        assert record.estimate.mean == (1.0 if ratio else 0.5 if half else 0.0), record
        kls = [r for r in records(audited, "divergence") if r.model == "same" and r.metric in ("kl_own", "kl_chosen")]
        assert [r.estimate.mean for r in kls] == [0.0, 0.0]

    def test_and_raises_nothing(self, findings: list[Finding]) -> None:
        judged = [one for one in findings if one.model == "same"]
        assert {one.level for one in judged if one.estimate.mean is not None} == {"ok"}
        # Its implicit reward is 0 for every text: nothing is known of what would raise it.
        assert {one.level for one in judged if one.estimate.mean is None} <= {"undecided"}


@pytest.mark.parametrize(
    ("model", "rule", "level"),
    [
        ("silent", "empty_rate", "severe"),
        ("silent", "length", "severe"),
        ("silent", "perplexity", "severe"),
        ("stuck", "repetition", "severe"),
        ("stuck", "self_bleu", "warn"),
        ("stuck", "kl_own", "severe"),
        ("noisy", "perplexity", "warn"),
        ("noisy", "kl_own", "warn"),
        ("noisy", "weights", "warn"),
        ("alien", "weights", "severe"),
        ("alien", "kl_chosen", "severe"),
        ("loves_length", "hacking", "warn"),
        ("loves_a_word", "hacking", "severe"),
        (BASE, "length_bias", "severe"),
    ],
)
def test_each_planted_failure_is_found(findings: list[Finding], model: str, rule: str, level: str) -> None:
    order = ["ok", "undecided", "warn", "severe"]
    assert order.index(levels(findings, model)[rule]) >= order.index(level)


def test_evidence_names_responses_that_are_there_and_show_it(audited: Path, findings: list[Finding]) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(audited / "auditing" / "responses.parquet").to_pylist()
    text_of = {(row["model"], row["prompt_id"], row["kind"]): row["text"] for row in rows}
    (silent,) = [one for one in findings if one.model == "silent" and one.rule == "empty_rate"]
    assert len(silent.evidence) == 3
    assert all(text_of[one.model, one.prompt_id, one.kind] == "" for one in silent.evidence)
    for finding in findings:
        assert all((one.model, one.prompt_id, one.kind) in text_of for one in finding.evidence)


def test_the_exit_code_tells(audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = audit_world.adapter("silent-too", [EOS_ID])
    arguments = ["audit", "--model", audit_world.model, "--pairs", audit_world.pairs, "--adapter", f"x={place}"]
    arguments += ["--out", str(tmp_path / "run"), "--json", *SMALL]
    assert run([*arguments, "--fail-on", "severe"]) == 1
    said = capsys.readouterr()
    assert "The share of empty responses of x changes by 1 (no interval: all prompts alike)" in said.out
    last = json.loads(said.out.splitlines()[-1])
    assert last["auditing"][0]["level"] == "severe"
    assert run(arguments) == 0
