"""`triptych audit` on a tiny model: what it writes, bad input, one prompt, resuming."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from triptych.auditing.records import (
    PERTURBED_SCHEMA,
    RESPONSES_SCHEMA,
    SCORES_SCHEMA,
    TOKENS_SCHEMA,
    AuditRecord,
    Finding,
)
from triptych.cli import run
from triptych.runs import read_manifest, read_records_json

SMALL = ("--limit", "6", "--max-new-tokens", "16", "--dtype", "float32", "--set", "hacking_prompts=3")
AUDITS = ("divergence", "verbosity", "collapse", "hacking", "comparison", "lineage", "costs")
TABLES = {
    "responses": RESPONSES_SCHEMA,
    "perturbed": PERTURBED_SCHEMA,
    "scores": SCORES_SCHEMA,
    "tokens": TOKENS_SCHEMA,
}


def arguments(world: Any, out: Path, *more: str) -> list[str]:
    given = ["audit", "--model", world.model, "--pairs", world.pairs, "--out", str(out), *SMALL, "--quiet"]
    return [*given, *more]


@pytest.fixture(scope="module")
def adapters(audit_world: Any) -> list[str]:
    """As options."""
    places = {"one": audit_world.adapter("one", audit_world.encoded("yes")), "two": audit_world.adapter("two")}
    return [part for name, place in places.items() for part in ("--adapter", f"{name}={place}")]


@pytest.fixture(scope="module")
def audited(audit_world: Any, adapters: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "run"
    more = ("--scorer", "concise", "--gold", "checks", "--prompts", audit_world.prompts)
    assert run(arguments(audit_world, out, *adapters, *more)) == 0
    return out


class TestWhatItWrites:
    def test_every_file_of_the_contract(self, audited: Path) -> None:
        folder = audited / "auditing"
        expected = {f"{name}.json" for name in (*AUDITS, "card")} | {f"{name}.parquet" for name in TABLES}
        assert {path.name for path in folder.iterdir()} == expected
        for name, schema in TABLES.items():
            assert pq.read_schema(folder / f"{name}.parquet").equals(schema), name
        for name in AUDITS:
            assert read_records_json(folder / f"{name}.json", AuditRecord), name
        assert read_records_json(folder / "card.json", Finding)
        assert (audited / "report.html").is_file()
        for name in ("figure_08", "figure_09", "figure_10"):
            assert (audited / "figures" / f"{name}.svg").is_file()
        for name in ("table_03", "table_04"):
            assert (audited / "tables" / f"{name}.csv").is_file()

    def test_every_checkpoint_answers_every_prompt_under_the_same_noise(self, audited: Path) -> None:
        rows = pq.read_table(audited / "auditing" / "responses.parquet").to_pylist()
        keys = {(row["model"], row["prompt_id"], row["kind"]) for row in rows}
        assert len(keys) == len(rows)
        of = {m: {k[1:] for k in keys if k[0] == m} for m in ("base", "one", "two")}
        assert of["base"] == of["one"] == of["two"]
        # Two of six prompts are factual and have an answer.
        assert sorted(kind for _, kind in of["base"]) == ["greedy"] * 2 + ["limited"] * 6 + ["plain"] * 6
        texts = {(row["model"], row["prompt_id"], row["kind"]): row["token_ids"] for row in rows}
        # Checkpoint two is an adapter that changes nothing.
        assert all(texts["two", *key] == texts["base", *key] for key in of["base"])
        assert all("at most 50 words" in row["prompt"] for row in rows if row["kind"] == "limited")

    def test_stages_and_figures_for_programs(
        self, audit_world: Any, audited: Path, adapters: Sequence[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        stages = read_manifest(audited).stages
        assert {"audit.models", "audit.scoring", "audit.measuring", "report"} <= set(stages)
        more = ("--scorer", "concise", "--gold", "checks", "--prompts", audit_world.prompts, "--json")
        assert run(arguments(audit_world, audited, *adapters, *more)) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["did_work"] is False
        assert {"level", "rule", "sentence", "estimate"} <= set(last["auditing"][0])

    def test_costs_are_by_checkpoint(self, audited: Path) -> None:
        costs = read_records_json(audited / "auditing" / "costs.json", AuditRecord)
        found = {(one.model, one.metric) for one in costs}
        assert {("base", "generation_seconds"), ("one", "reading_seconds"), ("all", "peak_bytes")} <= found

    def test_the_base_alone_can_be_audited(self, audit_world: Any, tmp_path: Path) -> None:
        assert run(arguments(audit_world, tmp_path / "run")) == 0
        assert not [
            one for one in read_records_json(tmp_path / "run" / "auditing" / "card.json", Finding) if one.level != "ok"
        ]


def test_one_prompt_has_no_intervals_and_it_is_said(audit_world: Any, adapters: Sequence[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run([*arguments(audit_world, out, *adapters), "--limit", "1"]) == 0
    for name in ("verbosity", "collapse", "divergence"):
        for record in read_records_json(out / "auditing" / f"{name}.json", AuditRecord):
            if record.model != "classifier" and record.estimate.mean is not None:
                assert record.estimate.low is None
                assert "no interval" in record.estimate.method, record
    findings = read_records_json(out / "auditing" / "card.json", Finding)
    assert {one.level for one in findings if one.audit not in ("lineage",)} <= {"undecided", "ok"}


BAD_REWARDS = """
def undecided(prompts, completions):
    return [float("nan") for _ in completions]
"""


class TestBadInput:
    def refused(self, capsys: pytest.CaptureFixture[str], out: Path, given: list[str]) -> str:
        """The sentence; nothing may be left behind."""
        assert run(given) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ")
        assert not out.exists()
        return said

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--adapter", "nowhere"), "--adapter 'nowhere' is not of the form NAME=DIR"),
            (("--adapter", "a=nowhere"), "adapter folder nowhere does not exist"),
            (("--adapter", "base=x"), "adapter name 'base' cannot be used"),
            (("--adapter", "a=x", "--adapter", "a=y"), "--adapter 'a' is given twice"),
            (("--scorer", "chekcs"), "unknown reward 'chekcs'; did you mean 'checks'"),
            (("--scorer", "reward_model"), "alignment.reward is missing"),
            (("--scorer", "checks", "--gold", "checks"), "are both called 'checks'"),
            (("--gold", "model:nowhere"), "nowhere"),
            (("--fail-on", "everything"), "--fail-on 'everything' is unknown"),
            (("--set", "perturbations=[fillers]"), "perturbation 'fillers' is unknown; did you mean 'filler'"),
            (("--set", "thresholds.empty_rate.warn=2"), "severe = 0.25 is below warn = 2"),
            (("--set", "lenght_limit=3"), "unknown key 'lenght_limit' in AuditingConfig; did you mean 'length_limit'"),
            (("--prompts", "nowhere.jsonl"), "data file 'nowhere.jsonl' does not exist"),
            (("--validation", "0.001"), "leaves validation empty"),
        ],
    )
    def test_one_sentence_and_nothing_left(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
    ) -> None:
        out = tmp_path / "run"
        assert said in self.refused(capsys, out, arguments(audit_world, out, *more))

    def test_pairs_of_which_none_can_be_used(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pairs = audit_world.write("alike.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3)
        out = tmp_path / "run"
        given = arguments(audit_world, out, "--set", "on_bad=skip")
        given[given.index("--pairs") + 1] = pairs
        assert "none of 3 pairs can be used" in self.refused(capsys, out, given)

    def test_prompts_too_long_for_an_answer(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        said = self.refused(capsys, out, arguments(audit_world, out, "--set", "max_length=20"))
        assert "leaves room for an answer within max_length = 20" in said

    def test_an_adapter_that_does_not_fit_is_told_before_the_base_works(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import peft

        from triptych.models.loading import quiet_transformers
        from triptych.models.tiny import tiny_llama

        with quiet_transformers():
            wide: Any = peft.get_peft_model(tiny_llama(hidden=64), peft.LoraConfig(r=4, target_modules=["q_proj"]))
            wide.save_pretrained(tmp_path / "wide")
        out = tmp_path / "run"
        said = self.refused(capsys, out, arguments(audit_world, out, "--adapter", f"w={tmp_path / 'wide'}"))
        assert "does not fit model" in said

    def test_a_scorer_that_returns_nan(
        self, audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "rewards.py"
        file.write_text(BAD_REWARDS)
        out = tmp_path / "run"
        given = arguments(audit_world, out, "--scorer", f"{file}:undecided")
        assert run(given) == 2
        said = capsys.readouterr().err
        assert "reward 'undecided' returned nan for completion 0" in said
        # What the models wrote is kept: with the function mended, the same command goes on with scoring.
        responses = (out / "auditing" / "responses.parquet").stat().st_mtime_ns
        file.write_text(BAD_REWARDS.replace('float("nan")', "1.0"))
        command = [sys.executable, "-m", "triptych", *given]
        assert subprocess.run(command, env=environment(), check=False).returncode == 0
        assert (out / "auditing" / "responses.parquet").stat().st_mtime_ns == responses


def test_prompts_that_changed_after_they_were_answered(
    audit_world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, rewards, out = tmp_path / "prompts.jsonl", tmp_path / "rewards.py", tmp_path / "run"
    prompts.write_text('{"id": "a", "instruction": "Say 1."}\n')
    rewards.write_text("def undecided(prompts, completions):\n    return [float('nan') for _ in completions]\n")
    given = arguments(audit_world, out, "--prompts", str(prompts), "--scorer", f"{rewards}:undecided")
    assert run(given) == 2
    prompts.write_text('{"id": "a", "instruction": "Say 2."}\n')
    assert run(given) == 2
    assert "prompt 'a' has changed since it was answered" in capsys.readouterr().err


def environment() -> dict[str, str]:
    source = Path(__file__).parents[3] / "src"
    return {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


KILLED = """
import os, signal, sys
from triptych.cli import run
from triptych.parts import PartStore

save, left = PartStore.save, [int(sys.argv[1])]


def save_and_die(store, unit, table):
    save(store, unit, table)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)


PartStore.save = save_and_die
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.slow
def test_an_audit_killed_again_and_again_ends_with_the_same_figures(
    audit_world: Any, audited: Path, adapters: Sequence[str], tmp_path: Path
) -> None:
    """After its 1st and 21st finished unit.

    Beside an undisturbed audit in a process of its own: one that compiles the kernels rounds otherwise than those that
    load them (`audited` may have been the first on this machine, and has compiled all of them).
    """
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    more = ("--scorer", "concise", "--gold", "checks", "--prompts", audit_world.prompts)
    whole = [sys.executable, "-m", "triptych", *arguments(audit_world, undisturbed, *adapters, *more)]
    assert subprocess.run(whole, env=environment(), check=False).returncode == 0
    given = arguments(audit_world, out, *adapters, *more)
    for units in (1, 20):
        command = [sys.executable, "-c", KILLED, str(units), *given]
        assert subprocess.run(command, env=environment(), check=False).returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in (out / "auditing" / "parts").glob("*/*.parquet")}
    assert len(finished) == 21
    assert subprocess.run([sys.executable, "-m", "triptych", *given], env=environment(), check=False).returncode == 0
    for name in (*AUDITS, "card"):
        if name != "costs":
            found, expected = ((place / "auditing" / f"{name}.json").read_bytes() for place in (out, undisturbed))
            assert found == expected, name
    for name in TABLES:
        found_table, expected_table = (pq.read_table(p / "auditing" / f"{name}.parquet") for p in (out, undisturbed))
        assert found_table.equals(expected_table), name
    assert not (out / "auditing" / "parts").exists()
