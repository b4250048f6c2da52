import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from triptych.errors import MissingInputError, ModelError
from triptych.models import RewardModel, load_reward_model
from triptych.models.reward import score_pairs
from triptych.models.tiny import (
    PAD_ID,
    VOCAB,
    save_tiny,
    tiny_bert_reward,
    tiny_deberta_reward,
    tiny_llama,
    tiny_tokenizer,
)

PAIRS = [("What is 2 + 2?", "4"), ("Why?", ""), ("A much longer question, is it not?", "Yes, it is. " * 5)]


def tiny_llama_reward(seed: int = 0, *, pad_id: int | None = PAD_ID) -> PreTrainedModel:
    """A decoder that scores at the last token that is not its pad id."""
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_labels": 1,
        "max_position_embeddings": 256,
        "pad_token_id": pad_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel = LlamaForSequenceClassification(LlamaConfig(**options))
    return model


def load(folder: Path, model: PreTrainedModel) -> RewardModel:
    return loaded(save_tiny(folder, model, tiny_tokenizer(pairs=True)))


def loaded(folder: Path) -> RewardModel:
    model = load_reward_model(folder, device="cpu")
    assert isinstance(model, RewardModel)
    return model


@pytest.mark.parametrize("make", [tiny_bert_reward, tiny_deberta_reward, tiny_llama_reward])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_those_of_each_pair_alone(
    tmp_path: Path, make: Callable[[], PreTrainedModel], batch_size: int
) -> None:
    reward = load(tmp_path, make())
    values = reward.score(PAIRS, batch_size)
    for (prompt, answer), value in zip(PAIRS, values, strict=True):
        inputs = reward.tokenizer(prompt, answer, return_tensors="pt")
        with torch.no_grad():
            expected = float(reward.model(**inputs).logits[0, 0])
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_no_eos_is_read_behind_an_answer_that_was_cut(tmp_path: Path, batch_size: int) -> None:
    reward = load(tmp_path, tiny_llama_reward())
    whole = reward.score(PAIRS, batch_size)
    values = reward.score(PAIRS, batch_size, truncated=[True, False, True])
    ids = [reward.tokenizer(*pair)["input_ids"] for pair in PAIRS]
    assert all(one[-1] == reward.tokenizer.eos_token_id for one in ids)
    with torch.no_grad():
        cut = [float(reward.model(input_ids=torch.tensor([one[:-1]])).logits[0, 0]) for one in ids]
    assert values == pytest.approx([cut[0], whole[1], cut[2]], abs=1e-5)
    assert values[0] != pytest.approx(whole[0], abs=1e-4)
    with pytest.raises(ValueError, match="one flag a pair: 1 flags, 3 pairs"):
        reward.score(PAIRS, truncated=[True])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return load(tmp_path_factory.mktemp("reward"), tiny_bert_reward())


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=2, max_size=5), st.integers(1, 5))
def test_order_and_company_change_nothing(bert: RewardModel, pairs: list[tuple[str, str]], batch_size: int) -> None:
    forwards, backwards = bert.score(pairs, batch_size), bert.score(pairs[::-1], batch_size)
    assert forwards == pytest.approx(backwards[::-1], abs=1e-4)


def test_the_pair_is_read_in_order(bert: RewardModel) -> None:
    first, swapped = bert.score([("one", "another"), ("another", "one")])
    assert first != pytest.approx(swapped, abs=1e-3)


def test_nothing_to_score(bert: RewardModel) -> None:
    assert score_pairs(bert, []) == ([], 0)


def test_long_pairs_are_cut_and_counted(bert: RewardModel) -> None:
    # 256 positions, three special tokens, one token a byte: 253 bytes fit.
    fits, long = ("q", "a" * 252), ("q", "a" * 253)
    scores = score_pairs(bert, [fits, long])
    assert scores.n_truncated == 1
    assert scores.values[0] == pytest.approx(scores.values[1], abs=1e-5)


def test_a_score_that_is_no_number_is_unscored(tmp_path: Path) -> None:
    model = tiny_bert_reward()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[10] = math.nan
    reward = load(tmp_path, model)
    poisoned = str(reward.tokenizer.decode([10]))
    values = reward.score([("fine", "x"), ("not fine", poisoned)])
    assert values[0] is not None
    assert values[1] is None


def test_without_a_pad_id_pairs_go_one_by_one(tmp_path: Path) -> None:
    # transformers refuses to batch such a decoder: it could not tell where a row ends.
    reward = load(tmp_path, tiny_llama_reward(pad_id=None))
    assert None not in reward.score(PAIRS)


def test_a_batch_has_rows(bert: RewardModel) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        bert.score(PAIRS, 0)


def test_more_than_one_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 3 outputs; a reward model has exactly one"):
        load(tmp_path, tiny_bert_reward(labels=3))


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a LlamaForCausalLM, not a reward model"):
        load(tmp_path, tiny_llama())


def test_a_reward_model_that_is_not_there() -> None:
    with pytest.raises(MissingInputError, match=r"model folder ./no-such-reward does not exist"):
        load_reward_model("./no-such-reward")


def test_what_it_knows_of_itself(bert: RewardModel) -> None:
    assert bert.max_tokens == 256
    assert len(bert.fingerprint) == 16
    assert bert.revision is None
    assert next(bert.model.parameters()).dtype == torch.float32


def test_the_shorter_limit_counts(tmp_path: Path) -> None:
    save_tiny(tmp_path, tiny_bert_reward(), tiny_tokenizer(pairs=True))
    settings_file = tmp_path / "tokenizer_config.json"
    stated = json.loads(settings_file.read_text(encoding="utf-8")) | {"model_max_length": 10**30}
    settings_file.write_text(json.dumps(stated), encoding="utf-8")
    assert loaded(tmp_path).max_tokens == 256
    settings_file.write_text(json.dumps(stated | {"model_max_length": 64}), encoding="utf-8")
    assert loaded(tmp_path).max_tokens == 64
