"""No panel measures on a prompt that another panel trains on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from triptych.cli import run
from triptych.config import dump_yaml
from triptych.data.starter_sets import starter_sides
from triptych.models.tiny import save_tiny
from triptych.study import load_recipe, study_split

QUESTIONS = [f"What about {number}?" for number in range(24)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(number: int, chosen: str = "Yes") -> dict[str, Any]:
    return {"id": f"pair-{number}", "question": QUESTIONS[number], "chosen": f"{chosen} {number}.", "rejected": "No."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("split")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        save_tiny(folder / "model")
        write(folder / "pairs.jsonl", [pair(number) for number in range(16)])
        prompts = [{"id": f"prompt-{number}", "instruction": text} for number, text in enumerate(QUESTIONS)]
        write(folder / "prompts.jsonl", prompts)
        yield folder


def recipe(folder: Path) -> str:
    """Pairs of questions 0 to 15; prompts of all 24 for GRPO, decoding and audits."""
    pairs, prompts = str(folder / "pairs.jsonl"), str(folder / "prompts.jsonl")
    short = {"lora": {"rank": 2}, "max_steps": 1, "batch_size": 2}
    study: dict[str, Any] = {
        "model": str(folder / "model"),
        "dtype": "float32",
        "decoding": {"prompts": prompts, "strategies": ["greedy"], "max_new_tokens": 3, "reward_model": "trained"},
        "alignment": {
            "pairs": pairs,
            "validation": 0.25,
            "reward": short,
            "dpo": short,
            "grpo": {
                "prompts": prompts,
                "rewards": ["concise"],
                "steps": 1,
                "prompts_per_step": 2,
                "group_size": 2,
                "max_new_tokens": 3,
                "lora": {"rank": 2},
            },
        },
        "auditing": {"prompts": prompts, "max_new_tokens": 3, "hacking_prompts": 2, "scorers": ["reward_model"]},
    }
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(study), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def study(folder: Path) -> Path:
    assert run(["study", "--recipe", recipe(folder), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def ids(study: Path, table: str) -> set[str]:
    return {*pq.read_table(study / table, columns=["prompt_id"])["prompt_id"].to_pylist()}


def number_of(prompt_id: str) -> int:
    return int(prompt_id.rpartition("-")[2])


def test_nothing_is_measured_on_what_is_trained_on(study: Path) -> None:
    split = json.loads((study / "split.json").read_text())
    train, held_out = {*split["train"]}, {*split["held_out"]}
    # A question has one side, whether it stands among pairs or prompts.
    assert not {*map(number_of, train)} & {*map(number_of, held_out)}
    assert len([name for name in train if name.startswith("pair")]) == 12
    assert {*map(number_of, train | held_out)} == {*range(24)}
    generated = ids(study, "decoding/generations.parquet")
    assert generated == ids(study, "decoding/scores.parquet") == ids(study, "auditing/responses.parquet")
    assert generated == {name for name in held_out if name.startswith("prompt")}
    assert ids(study, "auditing/tokens.parquet") <= held_out
    lineage = json.loads((study / "auditing" / "lineage.json").read_text())
    seen = [record["estimate"]["mean"] for record in lineage if record["metric"] == "seen_in_training"]
    assert seen == [0.0, 0.0]


def test_the_recipe_again_finds_the_split_it_made(study: Path, folder: Path) -> None:
    before = (study / "split.json").read_bytes()
    again = ["study", "--recipe", recipe(folder), "--out", str(study), "--quiet"]
    assert run(again) == 0
    assert (study / "split.json").read_bytes() == before


def test_pairs_that_changed_under_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(folder / "changing.jsonl", [pair(number) for number in range(8)])
    arguments = ["--model", str(folder / "model"), "--pairs", pairs, "--max-steps", "1", "--dtype", "float32"]
    out = folder / "changed"
    assert run(["align", "dpo", *arguments, "--out", str(out), "--quiet"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    # As if the run had been interrupted while it trained.
    manifest["stages"].pop("align.dpo")
    (out / "manifest.json").write_text(json.dumps(manifest))
    write(folder / "changing.jsonl", [pair(number) for number in range(8, 16)])
    capsys.readouterr()
    assert run(["align", "dpo", *arguments, "--out", str(out), "--quiet"]) == 2
    assert "split.json does not fit the prompts and pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"train": ["x"], "held_out": ["y"]}', "names no prompt of"),
        ('{"train": ["pair-1"], "held_out": ["pair-1"]}', "prompt 'pair-1' is on both sides"),
        ('{"train": ["pair-0"]}', "is no split"),
    ],
)
def test_an_audit_by_a_split_that_does_not_fit(
    study: Path, folder: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    (folder / "bad.json").write_text(text)
    out = folder / "bad-audit"
    arguments = ["--model", str(folder / "model"), "--pairs", str(folder / "pairs.jsonl"), "--out", str(out)]
    assert run(["audit", *arguments, "--adapter", f"mine={study}/alignment/dpo", "--split", f"{folder}/bad.json"]) == 2
    assert problem in capsys.readouterr().err
    assert not out.exists()


def test_an_audit_reads_what_the_split_of_the_run_held_out(study: Path, folder: Path) -> None:
    out = folder / "audit"
    arguments = ["--model", str(folder / "model"), "--pairs", str(folder / "pairs.jsonl"), "--dtype", "float32"]
    adapter = ["--adapter", f"mine={study}/alignment/dpo", "--split", str(study / "split.json")]
    assert run(["audit", *arguments, *adapter, "--max-new-tokens", "3", "--out", str(out), "--quiet"]) == 0
    held_out = {*json.loads((study / "split.json").read_text())["held_out"]}
    assert ids(out, "auditing/responses.parquet") == {name for name in held_out if name.startswith("pair")}


@pytest.mark.parametrize("name", ["starter", "smoke", "grpo", "grpo_collapse"])
def test_recipes_on_the_starter_sets(name: str) -> None:
    _, written = study_split(load_recipe(name))
    sides = starter_sides()
    assert {*written.train} <= {prompt for prompt, side in sides.items() if side == "train"}
    assert {*written.held_out} <= {prompt for prompt, side in sides.items() if side == "held_out"}


def test_a_reward_model_of_another_run_does_not_score_what_it_was_trained_on(study: Path, folder: Path) -> None:
    out, reward = folder / "scored", str(study / "alignment" / "reward")
    arguments = ["--model", str(folder / "model"), "--prompts", str(folder / "prompts.jsonl"), "--strategy", "greedy"]
    scoring = ["--reward-model", reward, "--max-new-tokens", "3", "--out", str(out), "--quiet"]
    assert run(["decode", *arguments, *scoring]) == 0
    scores = pq.read_table(out / "decoding" / "scores.parquet").to_pylist()
    train = {*map(number_of, json.loads((study / "split.json").read_text())["train"])}
    assert {number_of(row["prompt_id"]) for row in scores if row["score"] is None} == train
    assert len(scores) == 24
