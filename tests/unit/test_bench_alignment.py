import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.bench import dpo, grpo, side_by_side
from triptych.bench.alignment_contenders import main as contender_main
from triptych.bench.alignment_contenders import near_thirty_words
from triptych.bench.alignment_work import WORK_FILE, DpoWork, GrpoWork, Step, read_pairs, write_work
from triptych.bench.side_by_side import Measured, figures_of, largest_loss_difference, process_of, ratios_of
from triptych.cli import run
from triptych.config import parse_config
from triptych.errors import ConfigError, DataError, WorkError
from triptych.models.tiny import save_tiny

MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def with_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubbed contenders need no TRL."""
    monkeypatch.setattr(side_by_side, "find_spec", lambda name: None)
    monkeypatch.setattr(dpo, "require_peer", lambda: None)
    monkeypatch.setattr(grpo, "require_peer", lambda: None)


def steps(*seconds: float, loss: float = 0.5, tokens: int = 100) -> tuple[Step, ...]:
    return tuple(Step(one, loss, tokens) for one in seconds)


class Stub:
    """Contenders that take as long as a table says, and note what they were given."""

    def __init__(self, seconds: dict[str, float], peaks: dict[str, int]) -> None:
        self.seconds, self.peaks = seconds, peaks
        self.called: list[str] = []
        self.seen: list[Any] = []

    def __call__(self, name: str, folder: Path, on_step: Callable[[], None]) -> Measured:
        self.called.append(name)
        self.seen.append(json.loads((folder / WORK_FILE).read_bytes()))
        n = len(self.seen[-1]["batches"])
        for _ in range(n):
            on_step()
        return Measured(steps(*[self.seconds[name]] * n), self.peaks[name], MIB)


@pytest.fixture
def stub() -> Stub:
    names = ("triptych", "TRL", "TRL without checkpointing")
    return Stub(
        dict(zip(names, (2.0, 12.0, 10.0), strict=True)),
        dict(zip(names, (100 * MIB, 250 * MIB, 400 * MIB), strict=True)),
    )


class TestFigures:
    def test_the_warm_up_counts_nowhere(self) -> None:
        # Measured: 1 + 3 s for 2 steps of 100 tokens; the 9 s are the warm-up's.
        figures = figures_of([Measured(steps(9.0, 1.0, 3.0), 5 * MIB, MIB)])
        assert figures["steps_per_second"] == 0.5
        assert figures["tokens_per_second"] == 50.0
        assert figures["tokens_per_step"] == 100.0
        assert figures["seconds_per_step"] == [1.0, 3.0]
        assert figures["warm_up_seconds"] == [9.0]
        assert figures["losses"] == [0.5, 0.5]

    def test_rounds_are_one_pool(self) -> None:
        # 1 + 3 and 2 + 2 s for 4 steps; the higher peak.
        runs = [Measured(steps(9.0, 1.0, 3.0), 5 * MIB, MIB), Measured(steps(7.0, 2.0, 2.0), 6 * MIB, MIB)]
        figures = figures_of(runs)
        assert figures["steps_per_second"] == 0.5
        assert figures["peak_memory_bytes"] == 6 * MIB
        assert figures["warm_up_seconds"] == [9.0, 7.0]
        assert len(figures["losses"]) == 2

    def test_speed_is_against_the_fastest_and_memory_against_the_leanest(self) -> None:
        contenders = {
            "triptych": figures_of([Measured(steps(1.0, 2.0), 100 * MIB, MIB)]),
            "TRL": figures_of([Measured(steps(1.0, 12.0), 250 * MIB, MIB)]),
            "TRL without checkpointing": figures_of([Measured(steps(1.0, 10.0), 400 * MIB, MIB)]),
        }
        ratios = ratios_of(contenders)
        # 10 s over 2 s, not 12 over 2; 250 over 100, not 400 over 100.
        assert ratios["speed"] == pytest.approx(5.0)
        assert ratios["tokens"] == pytest.approx(5.0)
        assert ratios["memory"] == pytest.approx(2.5)
        assert ratios["against"] == {
            "speed": "TRL without checkpointing",
            "tokens": "TRL without checkpointing",
            "memory": "TRL",
        }
        assert ratios["by_contender"]["TRL"] == pytest.approx({"speed": 6.0, "tokens": 6.0, "memory": 2.5})

    def test_fewer_tokens_a_step_do_not_count_as_speed(self) -> None:
        # Twice the steps/s, with a quarter of the tokens a step: half the tokens/s.
        contenders = {
            "triptych": figures_of([Measured(steps(1.0, 1.0, tokens=25), MIB, MIB)]),
            "TRL": figures_of([Measured(steps(1.0, 2.0), MIB, MIB)]),
        }
        assert ratios_of(contenders)["speed"] == pytest.approx(2.0)
        assert ratios_of(contenders)["tokens"] == pytest.approx(0.5)

    def test_the_largest_loss_difference(self) -> None:
        losses = {"triptych": [0.69, 0.68], "TRL": [0.69, 0.70], "TRL without checkpointing": [0.66, 0.68]}
        contenders = {name: {"losses": values} for name, values in losses.items()}
        # 0.02 in the second step against TRL, 0.03 in the first against the other.
        assert largest_loss_difference(contenders) == pytest.approx(0.03)


class TestLayingOut:
    def test_pairs_are_in_the_order_of_the_file_and_cut(self, model: str, tmp_path: Path) -> None:
        file = tmp_path / "pairs.jsonl"
        rows = [{"id": f"p{i}", "prompt": "ab", "chosen": "c" * (i + 1), "rejected": "d" * 9} for i in range(7)]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        laid_out = dpo.lay_out(DpoWork(model=model, pairs=str(file), steps=2, batch_size=2, max_length=27))
        # A warm-up and two steps of two: six of seven pairs.
        assert [[pair.id for pair in batch] for batch in laid_out.batches] == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
        # A token a byte or marker: the prompt is 2, with 3 + 5 + 1 + 10 of the chat template 21; 6 are left for the answer.
        assert [len(pair.rejected) for batch in laid_out.batches for pair in batch] == [6] * 6
        assert len(laid_out.batches[0][0].chosen) == 2
        # 2 · 21 + 2 + 6
        assert laid_out.batches[0][0].n_tokens == 50

    def test_it_comes_back_from_the_file_as_it_was(self, model: str, tmp_path: Path) -> None:
        laid_out = dpo.lay_out(DpoWork(model=model, steps=1, batch_size=1, max_length=200))
        write_work(laid_out, tmp_path)
        assert read_pairs(tmp_path) == laid_out

    def test_too_few_pairs(self, model: str) -> None:
        work = DpoWork(model=model, limit=3, steps=1, batch_size=2, max_length=200)
        with pytest.raises(DataError, match=r"^starter gives 3 pairs, and 4 are needed .*; lower --steps"):
            dpo.lay_out(work)

    def test_prompts_are_rendered(self, model: str) -> None:
        laid_out = grpo.lay_out(GrpoWork(model=model, steps=1, prompts_per_step=2))
        assert [len(batch) for batch in laid_out.batches] == [2, 2]
        assert all(str(one.prompt).endswith("assistant\n") for batch in laid_out.batches for one in batch)

    def test_too_few_prompts(self, model: str) -> None:
        with pytest.raises(DataError, match=r"gives 3 prompts, and 16 are needed"):
            grpo.lay_out(GrpoWork(model=model, limit=3))


@pytest.mark.usefixtures("with_trl")
class TestReports:
    def test_dpo(self, model: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        work = DpoWork(model=model, steps=2, batch_size=2, max_length=200, rounds=2)
        report = dpo.run(tmp_path / "new" / "dpo.json", work, show_progress=False, contender=stub)
        assert json.loads((tmp_path / "new" / "dpo.json").read_bytes()) == report
        # Contenders take turns, and all are given the same.
        assert stub.called == ["triptych", "TRL", "TRL without checkpointing"] * 2
        assert all(seen == stub.seen[0] for seen in stub.seen)
        assert report["ratios"]["speed"] == pytest.approx(5.0)
        assert report["ratios"]["memory"] == pytest.approx(2.5)
        assert report["largest_loss_difference"] == 0.0
        assert report["work"]["steps"] == 2
        assert report["machine"]
        out = capsys.readouterr().out
        assert "5.0x the steps/s of TRL without checkpointing (aim 4: reached)" in out
        assert "2.5 times our peak memory is that of TRL (aim 2: reached)" in out
        assert "0.5000" in out

    def test_grpo(self, model: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        work = GrpoWork(model=model, steps=1, prompts_per_step=2, group_size=5, max_new_tokens=10)
        stub.seconds["triptych"] = 5.0
        report = grpo.run(tmp_path / "grpo.json", work, show_progress=False, contender=stub)
        # 100 tokens in 2 · 5 completions; 10 s over 5 s.
        assert report["contenders"]["TRL"]["mean_length"] == 10.0
        assert report["ratios"]["speed"] == pytest.approx(2.0)
        assert "aim 4: missed" in capsys.readouterr().out


class TestContenders:
    """The native ones, in this process: TRL is not needed for tests."""

    @staticmethod
    def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_dpo(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        work = DpoWork(model=model, dtype="float32", steps=1, batch_size=2, max_length=200)
        laid_out = dpo.lay_out(work)
        write_work(laid_out, tmp_path)
        assert contender_main("dpo", "triptych", tmp_path) == 0
        *taken, last = self.told(capsys)
        assert [one["step"]["tokens"] for one in taken] == [
            sum(p.n_tokens for p in batch) for batch in laid_out.batches
        ]
        # A policy that is its reference has a margin of 0: ln 2. One step later it is another.
        assert taken[0]["step"]["loss"] == pytest.approx(0.693147, abs=1e-6)
        assert taken[1]["step"]["loss"] != taken[0]["step"]["loss"]
        assert last["peak_memory_bytes"] >= last["start_memory_bytes"] > 0
        # What the peers begin with.
        assert (tmp_path / "first_adapter" / "adapter_model.safetensors").exists()

    def test_grpo_writes_as_many_tokens_as_it_may(
        self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        work = GrpoWork(model=model, dtype="float32", steps=1, prompts_per_step=2, group_size=3, max_new_tokens=5)
        write_work(grpo.lay_out(work), tmp_path)
        assert contender_main("grpo", "triptych", tmp_path) == 0
        *taken, _ = self.told(capsys)
        assert [one["step"]["tokens"] for one in taken] == [2 * 3 * 5] * 2

    def test_the_reward(self) -> None:
        # 2 and 31 words; 30 are wanted.
        assert near_thirty_words([], ["one two", "a " * 31]) == [-28.0, -1.0]

    @pytest.mark.slow
    def test_a_failing_process_is_told_in_one_sentence(self, model: str, tmp_path: Path) -> None:
        work = DpoWork(model=model, steps=1, batch_size=1, max_length=200)
        laid_out = dpo.lay_out(work)
        write_work(laid_out.model_copy(update={"folder": tmp_path / "gone"}), tmp_path)
        with pytest.raises(
            WorkError, match=r"benchmark contender 'triptych' failed: model folder .*gone does not exist"
        ):
            process_of("dpo")("triptych", tmp_path, lambda: None)


class TestBadInput:
    def test_without_trl(self, monkeypatch: pytest.MonkeyPatch, model: str, tmp_path: Path) -> None:
        monkeypatch.setattr(side_by_side, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"needs TRL to compare with: pip install 'triptych\[bench\]'$"):
            dpo.run(tmp_path / "out.json", DpoWork(model=model), show_progress=False)

    @pytest.mark.usefixtures("with_trl")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["dpo", "--steps", "0"], "steps is 0 but must be >= 1"),
            (["dpo", "--pairs", "absent.jsonl"], "absent.jsonl"),
            (["dpo", "--dtype", "float8"], "dtype"),
            (["grpo", "--group-size", "1"], "group_size is 1 but must be >= 2"),
            (["grpo", "--prompts", "absent.jsonl"], "absent.jsonl"),
            (["grpo", "--limit", "2"], "2 prompts, and 16 are needed"),
        ],
    )
    def test_exit_code_2(
        self, model: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["bench", *arguments, "--model", model, "--out", str(tmp_path / "out.json")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert message in said[0]

    @pytest.mark.usefixtures("with_trl")
    def test_a_folder_is_no_file_to_write(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["bench", "dpo", "--model", model, "--out", str(tmp_path)]) == 2
        assert "name the JSON file to write" in capsys.readouterr().err

    @pytest.mark.parametrize("command", ["dpo", "grpo"])
    def test_help_has_examples(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["bench", command, "--help"]) == 0
        assert f"triptych bench {command} --out" in capsys.readouterr().out

    @pytest.mark.parametrize("config", [DpoWork, GrpoWork])
    def test_an_unknown_key(self, config: type[DpoWork] | type[GrpoWork]) -> None:
        with pytest.raises(ConfigError, match="did you mean 'steps'"):
            parse_config(config, {"step": 1}, where="test")
