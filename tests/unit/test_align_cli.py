"""`triptych align` on a tiny model: what it writes, and that bad input is one sentence, exit code 2, nothing left behind."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from triptych.cli import run
from triptych.models import load_language_model
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer

FAST = ("--set", "optimiser.schedule=constant")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    return str(save_tiny(folder, tiny_llama(context=512), tiny_tokenizer(context=512)))


def write(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def good(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, not {i}."} for i in range(n)]


def align(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run(["align", *arguments, "--quiet"])
    return code, capsys.readouterr().err


class TestWhatItWrites:
    def test_a_dpo_run(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pairs = write(tmp_path / "pairs.jsonl", good(12))
        out = tmp_path / "run"
        code, _ = align(capsys, "dpo", "--model", model, "--pairs", pairs, "--out", str(out), "--batch-size", "2")
        assert code == 0
        folder = out / "alignment" / "dpo"
        assert {path.name for path in folder.iterdir()} == {
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "trainer_state.json",
        }
        state = json.loads((folder / "trainer_state.json").read_text())
        assert (state["method"], state["step"], state["outcome"]) == ("dpo", 5, "finished")
        assert {figure["name"] for figure in state["figures"]} >= {"eval_accuracy", "perplexity_ratio", "kl"}
        assert (out / "report.html").exists()
        # By the run's own folder, too.
        assert load_language_model(model, adapter=out, device="cpu").adapter == str(folder)
        merged = tmp_path / "merged"
        assert run(["align", "merge", "--model", model, "--adapter", str(out), "--out", str(merged), "--quiet"]) == 0
        assert "model.embed_tokens.weight" in load_file(merged / "model.safetensors")

    def test_on_policy_pairs_are_pairs(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        prompts = write(tmp_path / "prompts.jsonl", [{"instruction": f"Count to {i}."} for i in range(6)])
        made = tmp_path / "made.jsonl"
        arguments = ("pairs", "--model", model, "--prompts", prompts, "--out", str(made), "--reward", "brevity")
        assert align(capsys, *arguments, "--samples", "8", "--max-new-tokens", "150")[0] == 0
        rows = [json.loads(line) for line in made.read_text().splitlines()]
        assert rows
        assert all(row["reward_chosen"] > row["reward_rejected"] for row in rows)
        again = ("dpo", "--model", model, "--pairs", str(made), "--out", str(tmp_path / "run"), "--max-steps", "1")
        assert align(capsys, *again, "--batch-size", "1", "--validation", "0")[0] == 0


BAD_PAIRS = {
    "no shared prompt": (
        {
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
        },
        "chosen and rejected share no prompt",
    ),
    "empty chosen": ({"prompt": "p", "chosen": " ", "rejected": "no"}, "'chosen' is blank"),
    "the same answers": ({"prompt": "p", "chosen": "x", "rejected": "x"}, "'chosen' and 'rejected' are the same"),
    "no answers": ({"prompt": "p"}, "chosen"),
}


class TestBadPairs:
    @pytest.mark.parametrize("name", BAD_PAIRS)
    @pytest.mark.parametrize("method", ["dpo", "reward"])
    def test_are_named(
        self, name: str, method: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        row, sentence = BAD_PAIRS[name]
        pairs = write(tmp_path / "pairs.jsonl", [*good(9), row])
        out = tmp_path / "run"
        code, said = align(capsys, method, "--model", model, "--pairs", pairs, "--out", str(out))
        assert code == 2
        assert sentence in said
        assert "line 10" in said
        assert not out.exists()

    def test_fewer_than_a_batch(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pairs = write(tmp_path / "pairs.jsonl", good(5))
        out = tmp_path / "run"
        code, said = align(capsys, "dpo", "--model", model, "--pairs", pairs, "--out", str(out), "--batch-size", "8")
        assert code == 2
        assert "4 pairs to train on are fewer than a batch of 8" in said
        assert not out.exists()

    def test_a_misspelt_key(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pairs = write(tmp_path / "pairs.jsonl", good(9))
        arguments = ("dpo", "--model", model, "--pairs", pairs, "--out", str(tmp_path / "run"))
        code, said = align(capsys, *arguments, "--set", "lora.rnak=4")
        assert code == 2
        assert "unknown key 'rnak' in LoraConfig; did you mean 'rank'?" in said

    def test_an_unknown_loss(self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pairs = write(tmp_path / "pairs.jsonl", good(9))
        arguments = ("dpo", "--model", model, "--pairs", pairs, "--out", str(tmp_path / "run"), "--loss", "ddpo")
        code, said = align(capsys, *arguments)
        assert code == 2
        assert "unknown name 'ddpo'; did you mean 'dpo'" in said


BAD_REWARDS = {
    "nan": ("return [1.0] * (len(completions) - 1) + [float('nan')]", "nan"),
    "short": ("return [1.0]", "returned 1 values for 4 completions"),
    "raises": ("raise KeyError('length')", "raised KeyError"),
    "text": ("return ['good'] * len(completions)", "good"),
}


class TestBadRewards:
    @pytest.mark.parametrize("name", BAD_REWARDS)
    def test_are_named_with_their_function(
        self, name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        body, sentence = BAD_REWARDS[name]
        file = tmp_path / f"{name}_rewards.py"
        file.write_text(f"def judge(prompts, completions, **columns):\n    {body}\n")
        prompts = write(tmp_path / "prompts.jsonl", [{"instruction": f"Count to {i}."} for i in range(8)])
        out = tmp_path / "run"
        code, said = align(
            capsys, "grpo", "--model", model, "--prompts", prompts, "--reward", f"{file}:judge", "--out", str(out),
            "--prompts-per-step", "2", "--group-size", "2", "--max-new-tokens", "4", "--steps", "1", "--validation", "0",
        )  # fmt: skip
        assert code == 2
        assert "reward 'judge'" in said
        assert sentence in said

    def test_a_reward_model_that_is_not_there(
        self, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ("grpo", "--model", model, "--prompts", "starter", "--reward", "model:/no/such", "--out")
        code, said = align(capsys, *arguments, str(tmp_path / "run"))
        assert code == 2
        assert "/no/such" in said


def test_an_adapter_of_another_base(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(tmp_path / "pairs.jsonl", good(9))
    out = tmp_path / "run"
    assert align(capsys, "dpo", "--model", model, "--pairs", pairs, "--out", str(out), "--max-steps", "1")[0] == 0
    other = str(save_tiny(tmp_path / "other", tiny_llama(seed=1, context=512), tiny_tokenizer(context=512)))
    code, said = align(capsys, "merge", "--model", other, "--adapter", str(out), "--out", str(tmp_path / "merged"))
    assert code == 2
    assert "was trained on" in said
    assert not (tmp_path / "merged").exists()


def test_a_finished_run_is_not_repeated_and_another_recipe_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", good(9))
    arguments = ("dpo", "--model", model, "--pairs", pairs, "--out", str(tmp_path / "run"), "--max-steps", "1")
    assert align(capsys, *arguments)[0] == 0
    adapter = tmp_path / "run" / "alignment" / "dpo" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    assert align(capsys, *arguments)[0] == 0
    assert adapter.stat().st_mtime_ns == before
    code, said = align(capsys, *arguments, "--beta", "0.5")
    assert code == 2
    assert "another configuration" in said
    assert adapter.stat().st_mtime_ns == before


@pytest.mark.filterwarnings("ignore")
def test_a_base_in_8_bit(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes")
    pairs = write(tmp_path / "pairs.jsonl", good(9))
    arguments = ("dpo", "--model", model, "--pairs", pairs, "--max-steps", "1", "--set", "quantisation=8bit")
    assert align(capsys, *arguments, "--out", str(tmp_path / "dpo"))[0] == 0
    small = ("--steps", "1", "--prompts-per-step", "2", "--group-size", "2", "--max-new-tokens", "4")
    rewarded = ("grpo", "--model", model, "--prompts", "starter", "--reward", "concise", *small)
    fewer = ("--set", "quantisation=8bit", "--set", "eval_prompts=2", "--out", str(tmp_path / "grpo"))
    assert align(capsys, *rewarded, *fewer)[0] == 0
