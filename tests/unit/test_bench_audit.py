import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from triptych.auditing.perturbations import PERTURBATIONS
from triptych.auditing.records import FOLDER, AuditRecord
from triptych.bench import audit as bench_audit
from triptych.bench import audit_peer
from triptych.bench.audit import Audited, make_adapters, report_of
from triptych.bench.audit_peer import AuditWork, Loop, Looped, forms_of, lay_out, loop
from triptych.cli import run
from triptych.config import parse_config
from triptych.errors import ConfigError, DataError, InputError, WorkError
from triptych.files import read_records_json
from triptych.models import load_language_model
from triptych.models.loading import quiet_transformers
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer

MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return str(save_tiny(folder, tiny_llama(context=512), tiny_tokenizer(context=512)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four prompts, the first with an answer, and four pairs."""
    folder = tmp_path_factory.mktemp("data")
    prompts = [{"id": f"q{i}", "instruction": f"Say {i}."} | ({"answers": ["0"]} if i == 0 else {}) for i in range(4)]
    pairs = [{"id": f"r{i}", "prompt": f"And {i}?", "chosen": f"{i} it is.", "rejected": "No."} for i in range(4)]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ("prompts", "pairs")}


@pytest.fixture
def work(model: str, data: dict[str, str]) -> AuditWork:
    return AuditWork(model=model, dtype="float32", **data, limit=3, peer_prompts=2, max_new_tokens=12)


@pytest.fixture(scope="module")
def adapters(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_adapters(model, tmp_path_factory.mktemp("made"))


def audited(names: tuple[str, ...], *, models: float, peak: int = 100 * MIB) -> Audited:
    """The base writes for 4 s and reads for 2; every adapter writes for 5 s and reads for 1; 300 tokens each."""
    costs = {"base": {"generation_seconds": 4.0, "reading_seconds": 2.0, "generated_tokens": 300.0}}
    costs |= {name: {"generation_seconds": 5.0, "reading_seconds": 1.0, "generated_tokens": 300.0} for name in names}
    stages = {"audit.models": models, "audit.scoring": 1.0, "audit.measuring": 3.0, "report": 99.0}
    return Audited(stages, costs, peak, 6, 3, {"base": {"a": -1.0, "b": -2.0}, "one": {"a": -1.5, "b": -2.5}})


def looped(**given: Any) -> Looped:
    fields: dict[str, Any] = {
        "n_prompts": 2,
        "writing_seconds": 30.0,
        "reading_seconds": 6.0,
        "written_tokens": 400,
        "n_perturbed": 1,
        "chosen_logprobs": {"base": {"a": -1.0}, "one": {"a": -1.75}},
        "peak_memory_bytes": 250 * MIB,
        "start_memory_bytes": 50 * MIB,
    }
    return Looped(**{**fields, **given})


class TestFigures:
    def report(self) -> dict[str, Any]:
        one, three = audited(("one",), models=12.0), audited(("one", "two", "three"), models=31.0)
        return report_of(AuditWork(), one, three, one, looped())

    def test_sharing(self) -> None:
        report = self.report()
        # 12 + 1 + 3 and 31 + 1 + 3 s; the report's 99 s count nowhere.
        assert report["sharing"]["one"]["seconds"] == 16.0
        assert report["sharing"]["three"]["seconds"] == 35.0
        assert report["sharing"]["generation_seconds"] == {"one": 5.0, "two": 5.0, "three": 5.0}
        # 1.5 · 16 + 15
        assert report["sharing"]["allowed_seconds"] == 39.0
        assert report["ratios"]["sharing"] == pytest.approx(35 / 39)

    def test_a_prompt_is_that_of_base_and_one_adapter(self) -> None:
        sides = self.report()["a_prompt"]
        # (4 + 5) and (2 + 1) s, 600 tokens and 3 responses over 6 prompts.
        assert sides["triptych"] == {
            "prompts": 6,
            "seconds": 2.0,
            "writing_seconds": 1.5,
            "reading_seconds": 0.5,
            "written_tokens": 100.0,
            "perturbed_responses": 0.5,
            "peak_memory_bytes": 100 * MIB,
        }
        # 30 and 6 s, 400 tokens and 1 response over 2 prompts.
        assert sides["plain loop"]["seconds"] == 18.0
        assert sides["plain loop"]["written_tokens"] == 200.0
        assert sides["plain loop"]["perturbed_responses"] == 0.5

    def test_the_loop_over_us(self) -> None:
        ratios = self.report()["ratios"]
        assert ratios["seconds"] == pytest.approx(18 / 2)
        assert ratios["reading_seconds"] == pytest.approx(3 / 0.5)
        # It wrote twice the tokens in ten times the seconds.
        assert ratios["seconds_a_written_token"] == pytest.approx(5.0)
        assert ratios["memory"] == pytest.approx(2.5)

    def test_both_read_the_same_answers(self) -> None:
        # -1.75 against -1.5; prompt b was not the loop's.
        assert self.report()["largest_logprob_difference"] == pytest.approx(0.25)


class Stub:
    """Processes that take as long as a table says, and note what they were given."""

    def __init__(self, three_models: float = 31.0) -> None:
        self.three_models = three_models
        self.audits: list[tuple[int, tuple[str, ...], int]] = []
        self.adapters: list[dict[str, torch.Tensor]] = []

    def audit(self, work: AuditWork, adapters: Mapping[str, Path], run_dir: Path, sizes: Mapping[str, int]) -> Audited:
        assert not run_dir.exists()
        self.audits.append((work.limit, tuple(adapters), sizes["hacking_prompts"]))
        self.adapters = [load_file(folder / "adapter_model.safetensors") for folder in adapters.values()]
        return audited(tuple(adapters), models=12.0 if len(adapters) == 1 else self.three_models)

    def loop(self, work: AuditWork, adapter: Path) -> Looped:
        assert adapter.name == "one"
        return looped()


class TestReport:
    def test_it_is_written_and_said(self, work: AuditWork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        stub, out = Stub(), tmp_path / "new" / "audit.json"
        report = bench_audit.run(out, work, show_progress=False, audit=stub.audit, loop=stub.loop)
        assert json.loads(out.read_bytes()) == report
        # The first one is small and not measured.
        three = ("one", "two", "three")
        assert stub.audits == [(1, ("one",), 1), (3, ("one",), 1), (3, three, 1), (3, ("one",), 3)]
        assert report["work"]["limit"] == 3
        assert report["machine"]
        assert report["versions"]["torch"]
        said = capsys.readouterr().out
        assert "three adapters take 0.90 times 1.5 x one adapter + generation of the three = 39.0 s" in said
        assert "(aim at most 1: reached)" in said
        assert "9.0 times our seconds a prompt are those of the plain loop (a written token 5.0, reading 6.0)" in said
        assert "2.5 times our peak memory is that of the plain loop" in said
        assert "our seconds of the base include compiling" in said

    def test_a_missed_aim_is_said(self, work: AuditWork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        stub = Stub(three_models=50.0)
        report = bench_audit.run(tmp_path / "a.json", work, show_progress=False, audit=stub.audit, loop=stub.loop)
        # 50 + 1 + 3 over 39.
        assert report["ratios"]["sharing"] == pytest.approx(54 / 39)
        assert "aim at most 1: missed" in capsys.readouterr().out


class TestAdapters:
    def test_they_differ_and_change_the_base_a_little(self, model: str, adapters: dict[str, Path]) -> None:
        assert list(adapters) == ["one", "two", "three"]
        states = [load_file(folder / "adapter_model.safetensors") for folder in adapters.values()]
        b = [torch.cat([v.flatten() for k, v in sorted(state.items()) if "lora_B" in k]) for state in states]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not torch.equal(b[one], b[other])
        # 768 numbers: the standard error of their deviation is 0.01 / √(2 · 768).
        assert all(float(one.std()) == pytest.approx(0.01, abs=0.001) for one in b)

    def test_plain_peft_reads_them(self, model: str, adapters: dict[str, Path]) -> None:
        ids = torch.tensor([[10, 20, 30]])
        with quiet_transformers():
            base = AutoModelForCausalLM.from_pretrained(model)
            before = base(ids).logits.detach()
            after = PeftModel.from_pretrained(base, str(adapters["one"]))(ids).logits.detach()
        assert 0 < float((after - before).abs().max()) < 1


class TestLayingOut:
    def test_prompts_and_answers_are_the_first_ones(self, work: AuditWork) -> None:
        material = lay_out(work)
        assert [one.prompt.id for one in material.prompts] == ["q0", "q1", "q2"]
        assert [one.prompt_id for one in material.chosen] == ["r0", "r1", "r2"]
        assert list(material.prompts[0].rendered) == ["plain", "limited", "greedy"]
        assert list(material.prompts[1].rendered) == ["plain", "limited"]
        counts = {getattr(material.config, f"{name}_prompts") for name in ("divergence", "hacking", "perplexity")}
        assert counts == {3}

    def test_not_as_many_answers_as_prompts(self, work: AuditWork) -> None:
        with pytest.raises(DataError, match=r"starter gives 6 prompts and .*pairs\.jsonl 4 chosen answers .* --limit$"):
            lay_out(work.model_copy(update={"prompts": "starter", "limit": 6}))


class TestPlainLoop:
    def test_it_does_the_whole_work(self, work: AuditWork, adapters: dict[str, Path]) -> None:
        done = loop(work, adapters["one"])
        assert done.n_prompts == 2
        # Two models, two prompts and kinds, one more kind for the prompt with an answer; 12 tokens at most.
        assert 10 <= done.written_tokens <= 2 * 5 * 12
        assert done.writing_seconds > 0
        assert done.reading_seconds > 0
        assert 0 < done.n_perturbed <= 2
        assert done.peak_memory_bytes >= done.start_memory_bytes > 0
        assert {name: list(of) for name, of in done.chosen_logprobs.items()} == {
            "base": ["r0", "r1"],
            "one": ["r0", "r1"],
        }
        assert done.chosen_logprobs["base"] != done.chosen_logprobs["one"]

    def test_a_read_text_is_a_row_of_its_own(self, model: str, adapters: dict[str, Path]) -> None:
        lm = load_language_model(model, dtype="float32", adapter=adapters["one"])
        prompt, answer = [10, 20, 30], [40, 50]
        with quiet_transformers():
            base = AutoModelForCausalLM.from_pretrained(model)
            expected = {"base": base(torch.tensor([[*prompt, *answer]])).logits}
            tuned = PeftModel.from_pretrained(base, str(adapters["one"]))
            expected["one"] = tuned(torch.tensor([[*prompt, *answer]])).logits
        for name, logits in expected.items():
            found = Loop(lm).read(name, prompt, answer)
            # The tokens at places 3 and 4 are predicted at 2 and 3.
            assert torch.allclose(found, logits[0, 2:4].detach().log_softmax(-1), atol=1e-5)

    def test_the_adapter_is_off_for_the_base_and_on_again(self, model: str, adapters: dict[str, Path]) -> None:
        both = Loop(load_language_model(model, dtype="float32", adapter=adapters["one"]))
        before = both.read("one", [10], [20])
        base = both.read("base", [10], [20])
        assert not torch.equal(before, base)
        assert torch.equal(both.read("one", [10], [20]), before)

    def test_greedy_is_greedy_and_no_response_is_too_long(self, model: str, adapters: dict[str, Path]) -> None:
        both = Loop(load_language_model(model, dtype="float32", adapter=adapters["one"]))
        with quiet_transformers():
            first, second = (both.write("base", "Say 1.", "greedy", 5) for _ in range(2))
            drawn = {both.write("base", "Say 1.", "plain", 5).token_ids for _ in range(8)}
        assert first == second
        assert 1 <= len(first.token_ids) <= 5
        assert len(drawn) > 1

    def test_each_different_text_is_read_once(self) -> None:
        # One sentence cannot be reordered: every other perturbation changes it.
        forms = forms_of("It rains today.", "p", tuple(PERTURBATIONS))
        assert forms[0] == "It rains today."
        assert len(forms) == len(set(forms)) == len(PERTURBATIONS)


@pytest.mark.slow
def test_the_processes(work: AuditWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    seen: list[Path] = []

    def audit(work: AuditWork, adapters: Mapping[str, Path], run_dir: Path, sizes: Mapping[str, int]) -> Audited:
        # Somewhere to look at afterwards.
        seen.append(tmp_path / run_dir.name)
        return bench_audit.audit_in_a_process(work, adapters, seen[-1], sizes)

    report = bench_audit.run(tmp_path / "audit.json", work, show_progress=False, audit=audit)
    assert all(value > 0 for value in report["ratios"].values())
    assert report["a_prompt"]["triptych"]["prompts"] == 3
    assert report["a_prompt"]["plain loop"]["prompts"] == 2
    # Seven responses of each model: two of every prompt, one more of the first.
    written = report["a_prompt"]["triptych"]["written_tokens"] * 3
    assert 14 <= written <= 14 * 12
    # In fp32, packed or row by row: the same numbers.
    assert report["largest_logprob_difference"] < 1e-4
    costs = {
        (one.model, one.metric): one.estimate.mean
        for one in read_records_json(seen[2] / FOLDER / "costs.json", AuditRecord)
    }
    for name, seconds in report["sharing"]["generation_seconds"].items():
        assert seconds == costs[name, "generation_seconds"]
    stages = json.loads((seen[1] / "manifest.json").read_bytes())["stages"]
    cost = sum(stages[f"audit.{name}"]["seconds"] for name in ("models", "scoring", "measuring"))
    assert report["sharing"]["one"]["seconds"] == pytest.approx(cost)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--limit", "0"], "limit is 0 but must be >= 1"),
            (["--peer-prompts", "0"], "peer_prompts is 0 but must be >= 1"),
            (["--pairs", "absent.jsonl"], "absent.jsonl"),
            (["--prompts", "absent.jsonl"], "absent.jsonl"),
            (["--dtype", "float8"], "dtype"),
            (["--model", "./absent"], "model folder ./absent does not exist"),
        ],
    )
    def test_exit_code_2(
        self, model: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = ["bench", "audit", "--model", model, "--out", str(tmp_path / "out.json"), *arguments]
        assert run(given) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert message in said[0]

    def test_a_folder_is_no_file_to_write(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["bench", "audit", "--model", model, "--out", str(tmp_path)]) == 2
        assert "name the JSON file to write" in capsys.readouterr().err

    def test_help_has_examples(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["bench", "audit", "--help"]) == 0
        assert "triptych bench audit --out" in capsys.readouterr().out

    def test_an_unknown_key(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'limit'"):
            parse_config(AuditWork, {"limits": 1}, where="test")


class TestFailingProcesses:
    """Stand-ins for Python, that end as a process can."""

    @staticmethod
    def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    def test_bad_input_stays_bad_input(self, work: AuditWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.python(tmp_path, monkeypatch, "echo 'error: prompt q0 is too long; shorten it' >&2; exit 2")
        with pytest.raises(InputError, match=r"^prompt q0 is too long; shorten it$"):
            bench_audit.audit_in_a_process(work, {"one": tmp_path}, tmp_path / "run", {})

    def test_a_failed_audit(self, work: AuditWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.python(tmp_path, monkeypatch, "echo 'error: out of memory' >&2; exit 1")
        with pytest.raises(WorkError, match=r"^audit of one, two failed: out of memory$"):
            bench_audit.audit_in_a_process(work, {"one": tmp_path, "two": tmp_path}, tmp_path / "run", {})

    def test_a_killed_loop(self, work: AuditWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.python(tmp_path, monkeypatch, "kill -9 $$")
        with pytest.raises(WorkError, match=r"^plain loop failed: it was killed, perhaps for want of memory$"):
            bench_audit.loop_in_a_process(work, tmp_path)

    def test_stdout_is_for_figures(
        self, work: AuditWork, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def chatty(work: AuditWork, adapter: Path) -> Looped:
            sys.stdout.write("advice\n")
            return looped()

        monkeypatch.setattr(audit_peer, "loop", chatty)
        audit_peer.main(work.model_dump_json(), "somewhere")
        assert Looped.model_validate_json(capsys.readouterr().out) == looped()
