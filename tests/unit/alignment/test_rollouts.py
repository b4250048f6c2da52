"""Rollouts, their rewards, and the pairs that are made of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.alignment.on_policy import make_pairs, run_pairs, write_pairs
from triptych.alignment.reward_functions import NamedReward
from triptych.alignment.rewards import load_rewards
from triptych.alignment.rollouts import RolloutGroup, roll_out, score_rollouts
from triptych.data.pairs import load_pairs
from triptych.data.prompts import question_of
from triptych.data.templates import encode_prompt
from triptych.errors import ConfigError, DataError
from triptych.models import LanguageModel
from triptych.models.tiny import tiny_language_model, tiny_llama
from triptych.records import Prompt

PROMPTS = [
    Prompt(id=f"p{i}", instruction=f"Ask {i}", input="of it" if i % 2 else "", prompt=f"x{i}" * (i + 1), answers=("a",))
    for i in range(5)
]
EOS = frozenset(range(2, 22))


def make_lm() -> LanguageModel:
    return dataclasses.replace(tiny_language_model(tiny_llama(3)), eos_ids=EOS)


def write(prompts: list[Prompt] = PROMPTS, **options: Any) -> list[RolloutGroup]:
    defaults: dict[str, Any] = {"group_size": 3, "max_new_tokens": 8, "temperature": 0.8, "seed": 0, "step": 0}
    return roll_out(make_lm(), prompts, **(defaults | options))


def test_every_prompt_has_its_group_in_order() -> None:
    lm = make_lm()
    groups = write()
    assert [group.prompt for group in groups] == PROMPTS
    for group in groups:
        assert group.prompt_ids == tuple(encode_prompt(str(group.prompt.prompt), lm.tokenizer))
        assert len(group.rollouts) == 3
        assert group.group.completions == tuple(one.token_ids for one in group.rollouts)


def test_what_a_rollout_knows_of_itself() -> None:
    rollouts = [one for group in write() for one in group.rollouts]
    assert {one.is_truncated for one in rollouts} == {True, False}
    for one in rollouts:
        assert len(one.token_ids) == len(one.behaviour_logprobs) >= 1
        assert one.is_truncated == (one.token_ids[-1] not in EOS)
        assert one.n_tokens == len(one.token_ids) - (not one.is_truncated)
        # Only the last token ends a text, and only the limit cuts one.
        assert not EOS & set(one.token_ids[:-1])
        assert not one.is_truncated or len(one.token_ids) == 8


def test_log_probabilities_are_those_of_the_draw() -> None:
    model: Any = tiny_llama(3)
    for group in write():
        for one in group.rollouts:
            ids = torch.tensor([[*group.prompt_ids, *one.token_ids]])
            logits = model(input_ids=ids).logits[0].detach() / 0.8
            logp = torch.log_softmax(logits, -1)[len(group.prompt_ids) - 1 : -1]
            expected = logp.gather(-1, torch.tensor(one.token_ids)[:, None])[:, 0]
            assert one.behaviour_logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_draws_depend_on_seed_step_prompt_and_sample_alone() -> None:
    first = write()
    assert [group.rollouts for group in write()] == [group.rollouts for group in first]
    texts = [one.text for group in first for one in group.rollouts]
    for changed in (write(seed=1), write(step=1)):
        assert [one.text for group in changed for one in group.rollouts] != texts
    # Neither company nor the size of the group; log-probabilities to rounding.
    (alone,) = write([PROMPTS[2]], group_size=2)
    assert [one.text for one in alone.rollouts] == [one.text for one in first[2].rollouts[:2]]


# --- Rewards ------------------------------------------------------------------------------------------------------------------


def test_rewards_see_what_belongs_to_a_completion() -> None:
    groups = write()
    seen: dict[str, Any] = {}

    def look(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [float(i) for i in range(len(completions))]

    def sparse(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [1.0 if i == 1 else None for i in range(len(completions))]

    scored = score_rollouts(groups, [NamedReward("look", look), NamedReward("sparse", sparse, 10.0)])
    flat = [(group.prompt, one) for group in groups for one in group.rollouts]
    assert seen["prompts"] == [question_of(prompt.instruction, prompt.input) for prompt, _ in flat]
    assert seen["completions"] == [one.text for _, one in flat]
    assert seen["record"] == [prompt for prompt, _ in flat]
    assert seen["id"] == [prompt.id for prompt, _ in flat]
    assert seen["answers"] == [("a",)] * 15
    assert seen["n_tokens"] == [one.n_tokens for _, one in flat]
    assert seen["is_truncated"] == [one.is_truncated for _, one in flat]
    assert scored.by_name["look"] == [float(i) for i in range(15)]
    assert scored.total[0] == [0.0, 11.0, 2.0]
    assert scored.total[4] == [12.0, 13.0, 14.0]


def test_a_trained_reward_model_reads_no_end_behind_a_cut_answer(world: Any) -> None:
    from triptych.models import load_reward_model

    model: Any = load_reward_model(world.train("reward", epochs=8, max_steps=20).parents[1])
    pairs = [("Q1?", "yes"), ("Q1?", "no"), ("Q2?", "")]
    whole, cut = model.score(pairs), model.score(pairs, truncated=[True, False, True])
    # An answer of one token less is what a cut one is read as.
    read = model._group(pairs, [0], [True, False, True])
    assert read.completions[0] == model._group(pairs, [0], [False] * 3).completions[0][:-1]
    assert cut[0] == pytest.approx(float(model._scorer.scores([read])[0]), abs=1e-5)
    assert cut[0] != pytest.approx(whole[0], abs=1e-4)
    assert cut[1] == pytest.approx(whole[1], abs=1e-5)
    # Nothing was written: nothing is scored. An answer that is empty and finished is one like any other.
    assert (cut[2], whole[2] is None) == (None, False)


def test_reward_models_are_rewards(world: Any) -> None:
    run = world.train("reward", epochs=8, max_steps=20).parents[1]
    from triptych.models import load_reward_model

    expected = load_reward_model(run).score([("Q1?", "yes"), ("Q1?", "no")])
    brief, model = load_rewards(["brevity", f"model:{run}=0.5"], own=None, device="cpu")
    assert (brief.name, model.name, model.weight) == ("brevity", Path(run).name, 0.5)
    assert model.function(prompts=["Q1?", "Q1?"], completions=["yes", "no"], id=["a", "b"]) == expected
    (own,) = load_rewards(["reward_model"], own=run / "alignment" / "reward", device="cpu")
    assert own.function(prompts=["Q1?", "Q1?"], completions=["yes", "no"]) == expected
    assert own.weight == 1.0


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["reward_model"], "reward 'reward_model' needs a trained one: configure alignment.reward, or write model:DIR"),
        (["model:somewhere=much"], "its weight 'much' is no number"),
        (["brevty"], "unknown reward 'brevty'; did you mean 'brevity'"),
    ],
)
def test_rewards_that_are_not_there(specs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_rewards(specs, own=None, device="cpu")


def test_two_rewards_of_one_name(world: Any) -> None:
    run = world.train("reward").parents[1]
    with pytest.raises(ConfigError, match="both called"):
        load_rewards([f"model:{run}", f"model:{run}=0.5"], own=None, device="cpu")


# --- On-policy pairs ------------------------------------------------------------------------------------------------------------


def by_length(prompts: list[str], completions: list[str]) -> list[float | None]:
    return [float(len(completion)) for completion in completions]


def pairs_of(reward: Any, prompts: list[Prompt] = PROMPTS) -> Any:
    return make_pairs(
        make_lm(),
        prompts,
        [NamedReward("own", reward)],
        samples=4,
        max_new_tokens=8,
        temperature=1.0,
        seed=0,
        show_progress=False,
    )


def test_the_best_against_the_worst() -> None:
    made = pairs_of(by_length)
    assert len(made.rows) + made.n_alike == len(PROMPTS)
    groups = {group.prompt.id: group for group in write(group_size=4, temperature=1.0)}
    finished = {name: [one for one in group.rollouts if not one.is_truncated] for name, group in groups.items()}
    assert any(len(own) < 4 for own in finished.values())
    for row in made.rows:
        lengths = [len(one.text) for one in finished[row["id"]] if one.text.strip()]
        assert (row["reward_chosen"], row["reward_rejected"]) == (max(lengths), min(lengths))
        assert (len(row["chosen"]), len(row["rejected"])) == (max(lengths), min(lengths))
        assert row["question"] == question_of(groups[row["id"]].prompt.instruction, groups[row["id"]].prompt.input)


def test_samples_of_one_reward_make_no_pair() -> None:
    with pytest.raises(DataError, match="none of 5 prompts has finished samples of different reward; raise --samples"):
        pairs_of(lambda prompts, completions: [1.0] * len(completions))
    with pytest.raises(DataError, match="none of 5 prompts"):
        pairs_of(lambda prompts, completions: [None] * len(completions))


def test_they_are_read_as_any_other_pairs(tmp_path: Path) -> None:
    made = pairs_of(by_length)
    write_pairs(tmp_path / "pairs.jsonl", made)
    read = load_pairs(tmp_path / "pairs.jsonl")
    assert [(pair.id, pair.chosen, pair.rejected) for pair in read] == [
        (row["id"], row["chosen"], row["rejected"]) for row in made.rows
    ]
    # Put into a template, not taken for finished texts.
    assert not any(pair.is_finished for pair in read)


def run_on(world: Any, out: Path, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "rewards": ["repetition", f"{world.rewards}:length"],
        "samples": 3,
        "limit": 6,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "template": "auto",
        "adapter": None,
        "seed": 0,
        "show_progress": False,
    }
    return run_pairs(world.model, world.prompts, out, **(defaults | options))


def test_from_a_model_to_a_file(world: Any, tmp_path: Path) -> None:
    # Long enough for a model that has learnt nothing to end some of its texts.
    made = run_on(world, tmp_path / "pairs.jsonl", samples=8, max_new_tokens=150)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows == made.rows
    assert len(rows) + made.n_alike == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 1}, "--samples is 1; a pair needs at least 2"), ({"temperature": 0.0}, "--temperature is 0.0")],
)
def test_what_makes_no_pairs(world: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_on(world, tmp_path / "pairs.jsonl", **options)
