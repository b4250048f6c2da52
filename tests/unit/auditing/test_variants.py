"""Whole audits with null adapters and a sweep: rows apart, the card beside the nulls, ends of the sweep, bad input."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch

from triptych.auditing.reader import Reader
from triptych.auditing.records import BASE, AuditRecord, Finding, NullFigure
from triptych.auditing.sweep import category, scale
from triptych.cli import run
from triptych.decoding import Ancestral, decode
from triptych.models import load_language_model
from triptych.parts import PartStore
from triptych.records import Prompt
from triptych.reports.auditing_inputs import read_auditing
from triptych.runs import read_records_json

SMALL = ("--limit", "6", "--max-new-tokens", "16", "--dtype", "float32", "--set", "hacking_prompts=3", "--quiet")
AUDITS = ("divergence", "verbosity", "collapse", "hacking", "comparison", "lineage")
FACTORS = ("λ=0", "λ=0.25", "λ=0.5", "λ=0.75", "λ=1", "λ=1.25")


def arguments(world: Any, out: Path, *more: str) -> list[str]:
    given = ["audit", "--model", world.model, "--pairs", world.pairs, "--prompts", world.prompts, "--out", str(out)]
    return [*given, "--scorer", "concise", *SMALL, *more]


@pytest.fixture(scope="module")
def adapters(audit_world: Any) -> list[str]:
    """One that always says yes, and a whole model, which has no LoRA."""
    taught, whole = audit_world.adapter("variants-yes", audit_world.encoded("yes")), audit_world.model
    return ["--adapter", f"yes={taught}", "--adapter", f"whole={whole}"]


@pytest.fixture(scope="module")
def plain(audit_world: Any, adapters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    assert run(arguments(audit_world, out, *adapters)) == 0
    return out


MORE = ("--nulls", "2", "--sweep", "--set", "sweep_prompts=4")


@pytest.fixture(scope="module")
def varied(audit_world: Any, adapters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("varied") / "run"
    assert run(arguments(audit_world, out, *adapters, *MORE, "--junit", str(out / "card.xml"))) == 0
    return out


def records(run_dir: Path, name: str) -> list[AuditRecord]:
    return read_records_json(run_dir / "auditing" / f"{name}.json", AuditRecord)


class TestRowsApart:
    def test_what_was_audited_before_stays_to_the_byte(self, plain: Path, varied: Path) -> None:
        for name in AUDITS:
            before, after = ((path / "auditing" / f"{name}.json").read_bytes() for path in (plain, varied))
            assert before == after, name
        for name in ("responses", "tokens", "scores", "perturbed"):
            before, after = (pq.read_table(path / "auditing" / f"{name}.parquet") for path in (plain, varied))
            assert before.equals(after), name
        cards = [read_records_json(path / "auditing" / "card.json", Finding) for path in (plain, varied)]
        assert [one.model_copy(update={"nulls": None, "no_nulls": None}) for one in cards[1]] == cards[0]

    def test_nulls_are_no_checkpoints_of_the_report(self, varied: Path) -> None:
        audited = read_auditing(varied)
        assert audited is not None
        assert audited.checkpoints == (BASE, "yes", "whole")
        assert '["null"' not in (varied / "report.html").read_text()
        assert (varied / "figures" / "figure_sweep.svg").is_file()
        assert {"audit_sweep.csv", "audit_nulls.csv"} <= {path.name for path in (varied / "tables").iterdir()}

    def test_every_null_answers_every_prompt(self, varied: Path) -> None:
        rows = pq.read_table(varied / "auditing" / "nulls" / "responses.parquet").to_pylist()
        own = pq.read_table(varied / "auditing" / "responses.parquet").to_pylist()
        prompts = {(row["prompt_id"], row["kind"]) for row in own}
        models = {row["model"] for row in rows}
        assert len(models) == 2
        assert all({(r["prompt_id"], r["kind"]) for r in rows if r["model"] == model} == prompts for model in models)

    def test_nothing_is_left_of_the_work(self, varied: Path) -> None:
        assert not (varied / "auditing" / "parts").exists()


class TestBesideNulls:
    def test_what_was_taught_is_beyond_what_is_random(self, varied: Path) -> None:
        card = read_records_json(varied / "auditing" / "card.json", Finding)
        (kl,) = [one for one in card if (one.model, one.rule) == ("yes", "kl_own")]
        assert kl.nulls is not None
        assert (kl.nulls.n, kl.nulls.beyond) == (2, 2)
        figures = read_records_json(varied / "auditing" / "nulls.json", NullFigure)
        values = [one.estimate.mean for one in figures if one.rule == "kl_own"]
        assert len(values) == 2
        assert kl.nulls.mean == pytest.approx(sum(value or 0.0 for value in values) / 2)
        assert {one.model for one in figures} == {"yes"}

    def test_a_whole_model_says_why_it_has_none(self, varied: Path) -> None:
        card = read_records_json(varied / "auditing" / "card.json", Finding)
        assert all(one.nulls is None and "whole model" in (one.no_nulls or "") for one in card if one.model == "whole")

    def test_the_card_as_junit(self, varied: Path) -> None:
        root = ElementTree.parse(varied / "card.xml").getroot()  # noqa: S314 - our own
        card = read_records_json(varied / "auditing" / "card.json", Finding)
        assert len(list(root.iter("testcase"))) == len(card)


class TestSweep:
    def test_the_ends_are_the_base_and_the_adapter(self, varied: Path) -> None:
        """On the prompts that all have: the four first ones, of which the parquet files have everything."""
        swept = [one for one in records(varied, "sweep") if one.model == "yes"]
        assert dict.fromkeys(one.category for one in swept) == dict.fromkeys(FACTORS)
        rows = pq.read_table(varied / "auditing" / "responses.parquet").to_pylist()
        tokens = pq.read_table(varied / "auditing" / "tokens.parquet").to_pylist()
        prompts = [row["prompt_id"] for row in rows if row["model"] == BASE and row["kind"] == "plain"][:4]
        for factor, model in ((0.0, BASE), (1.0, "yes")):
            found = {one.metric: one.estimate for one in swept if one.category == category(factor)}
            plain = [r for r in rows if r["model"] == model and r["kind"] == "plain" and r["prompt_id"] in prompts]
            lengths = [row["n_tokens"] for row in plain]
            assert found["tokens_mean"].mean == sum(lengths) / 4
            own = [t["kl"] for t in tokens if t["model"] == model and t["text"] == "own" and t["prompt_id"] in prompts]
            assert found["kl_own"].mean == pytest.approx(sum(own) / len(own) if own else 0.0)
            assert found["tokens_mean"].n == 4
        zero = {one.metric: one.estimate.mean for one in swept if one.category == "λ=0"}
        assert (zero["kl_own"], zero["kl_chosen"]) == (0.0, 0.0)

    def test_divergence_grows_with_the_scale(self, varied: Path) -> None:
        kls = [one.estimate.mean or 0.0 for one in records(varied, "sweep") if one.metric == "kl_chosen"]
        assert kls == sorted(kls)
        assert kls[0] == 0.0 < kls[1]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_scaling_by_0_is_the_base_and_by_1_the_adapter(self, audit_world: Any, dtype: str) -> None:
        """To the bit, by the machinery that the other factors use."""
        place = audit_world.adapter("variants-scaled", audit_world.encoded("no"))
        prompts = [Prompt(id=f"p{i}", instruction=q, prompt=q) for i, q in enumerate(audit_world.questions[:3])]

        def behaviour(adapter: str | None, factor: float | None) -> tuple[list[Any], torch.Tensor]:
            lm = load_language_model(audit_world.model, dtype=dtype, device="cpu", adapter=adapter)
            if factor is not None:
                scale(lm, factor=factor, name="x")
            from triptych.alignment.packing import Group, pack

            packed = pack([Group((1, 20, 30), ((40, 50, 2), (60, 2)))])
            written = decode(lm, prompts, [Ancestral(temperature=1.0)], max_new_tokens=12)
            return [(one.token_ids, one.logprobs) for one in written], Reader(lm).states(packed)

        for plain, scaled in (
            (behaviour(None, None), behaviour(place, 0.0)),
            (behaviour(place, None), behaviour(place, 1.0)),
        ):
            assert plain[0] == scaled[0]
            assert torch.equal(plain[1], scaled[1])
        assert behaviour(place, 0.5)[0] != behaviour(None, None)[0]


def test_a_killed_audit_goes_on_with_its_nulls(
    audit_world: Any, adapters: list[str], varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    given = arguments(audit_world, out, *adapters, *MORE)
    save, kept = PartStore.save, [0]

    def save_and_fail(store: PartStore, unit: str, table: Any) -> None:
        save(store, unit, table)
        kept[0] += 1
        if json.loads(unit)[1].startswith('["null"') and json.loads(unit)[0] == "chosen":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "save", save_and_fail)
        assert run(given) != 0
    assert len(list((out / "auditing" / "parts").glob("*/*.parquet"))) == kept[0] > 0
    assert run(given) == 0
    for name in ("nulls", "sweep", "card"):
        found, expected = ((place / "auditing" / f"{name}.json").read_bytes() for place in (out, varied))
        assert found == expected, name


class TestBadInput:
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--nulls", "-1"), "nulls is -1 but must be >= 0"),
            (("--nulls", "3"), "nulls needs a LoRA among the audited adapters (no adapter is audited)"),
            (("--sweep",), "sweep needs a LoRA among the audited adapters"),
            (("--set", "sweep=[0.5, -1.0]"), "λ = -1 cannot scale an adapter"),
            (("--junit", "nowhere/card.xml"), "there is no folder nowhere"),
            (("--junit", "."), "--junit . is a folder"),
        ],
    )
    def test_one_sentence_and_nothing_left(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
    ) -> None:
        out = tmp_path / "run"
        assert run(arguments(audit_world, out, *more)) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
        assert not out.exists()

    def test_whole_models_alone_have_no_nulls(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        assert run(arguments(audit_world, out, "--adapter", f"w={audit_world.model}", "--nulls", "2")) == 2
        assert "'w': it is a whole model" in capsys.readouterr().err
        assert not out.exists()
