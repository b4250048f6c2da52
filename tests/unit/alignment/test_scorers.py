"""Encoders as reward models: what transformers computes, trained, saved and read again, by plain PEFT too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from triptych.alignment.adapters import LoraConfig, save_adapter
from triptych.alignment.encoding import encode_pairs
from triptych.alignment.reward_model import NewScorer, RewardConfig, RewardTask, new_scorer
from triptych.data.pairs import PreferencePair
from triptych.errors import ConfigError, ModelError
from triptych.files import atomic_write_json
from triptych.models import load_reward_model
from triptych.models.loading import quiet_transformers
from triptych.models.reward import max_tokens_of
from triptych.models.sources import REWARD_CONFIG
from triptych.models.tiny import PAD_ID, VOCAB, save_tiny, tiny_deberta_reward, tiny_tokenizer
from triptych.workers import Workers

CONTEXT = 64
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": PAD_ID}
LAYERS: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": CONTEXT}
MODERN: dict[str, Any] = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
DISTIL = DistilBertConfig(
    vocab_size=VOCAB, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=CONTEXT, pad_token_id=PAD_ID
)

BACKBONES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, **LAYERS)),
    "roberta": lambda: RobertaForMaskedLM(
        RobertaConfig(**SIZES, **{**LAYERS, "max_position_embeddings": CONTEXT + PAD_ID + 1}, type_vocab_size=1)
    ),
    "distilbert": lambda: DistilBertForMaskedLM(DISTIL),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, **LAYERS, embedding_size=16)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, **LAYERS, **MODERN)),
    "deberta": lambda: tiny_deberta_reward(context=CONTEXT),
}
"""As they are published: without the head of a classifier; DeBERTa as a reward model."""

# What PEFT knows no default for.
TARGETS = {"modernbert": ("Wqkv",), "electra": ("query", "value"), "distilbert": ("q_lin", "v_lin")}

PAIRS = [
    PreferencePair(id="a", prompt="Who?", chosen="I am the one.", rejected="no"),
    PreferencePair(id="b", prompt="Where are we now?", chosen="here", rejected="in the middle of nowhere"),
    PreferencePair(id="c", prompt="x" * 40, chosen="y" * 40, rejected="z"),
]


def saved(folder: Path, name: str) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # noqa: TID251 - transformers draws first weights from the global generator
        model = BACKBONES[name]()
    return str(save_tiny(folder, model, tiny_tokenizer(context=10**30, pairs=True)))


def shaken(name: str, folder: Path, dropout: float = 0.0, **options: Any) -> NewScorer:
    config = RewardConfig(lora=LoraConfig(rank=2, targets=TARGETS.get(name), dropout=dropout), **options)
    made = new_scorer(saved(folder / "base", name), config, dtype="auto", device="cpu", seed=3)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.scorer.parameters.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))
    return made


def plainly(base: str, folder: Path) -> tuple[Any, Any]:
    """By transformers and PEFT alone."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        return PeftModel.from_pretrained(model, folder).eval(), AutoTokenizer.from_pretrained(base)


@pytest.mark.parametrize("name", BACKBONES)
def test_plain_peft_gives_the_scores_of_what_was_trained(name: str, tmp_path: Path) -> None:
    made = shaken(name, tmp_path)
    folder = tmp_path / "reward"
    save_adapter(made.scorer.model, folder)
    atomic_write_json(folder / REWARD_CONFIG, made.reading)
    model, tokenizer = plainly(str(tmp_path / "base"), folder)
    texts = [(pair.prompt, answer) for pair in PAIRS[:2] for answer in (pair.chosen, pair.rejected)]
    with torch.no_grad():
        expected = [float(model(**tokenizer(*text, return_tensors="pt")).logits) for text in texts]
    found = load_reward_model(folder).score(texts)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == len(texts)
    # Company, order and an empty answer do not matter.
    assert load_reward_model(folder).score([("Who?", ""), *texts[::-1]])[1:] == pytest.approx(found[::-1], rel=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_step_by_an_independent_formula(name: str, tmp_path: Path) -> None:
    made = shaken(name, tmp_path, centring=0.01, batch_size=3)
    pairs = encode_pairs(PAIRS, "auto", made.tokenizer, made.reading.max_length, "encoder").pairs
    task = RewardTask(made.scorer, RewardConfig(batch_size=3), pairs, [], Workers("cpu"), seed=0)
    measured = task.accumulate(0)
    gradients = {n: p.grad.clone() for n, p in made.scorer.parameters.items() if p.grad is not None}
    assert set(gradients) == set(made.scorer.parameters)
    for parameter in made.scorer.parameters.values():
        parameter.grad = None
    rows = []
    for pair in PAIRS:
        cut = {"truncation": "only_second", "max_length": made.reading.max_length, "return_tensors": "pt"}
        both = [made.tokenizer(pair.prompt, answer, **cut) for answer in (pair.chosen, pair.rejected)]
        rows.append(torch.cat([made.scorer.model(**one).logits[:, 0] for one in both]))
    scores = torch.stack(rows)
    loss = (-F.logsigmoid(scores[:, 0] - scores[:, 1]) + 0.01 * scores.sum(-1) ** 2).mean()
    loss.backward()
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for parameter_name, parameter in made.scorer.parameters.items():
        torch.testing.assert_close(gradients[parameter_name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_rows_are_as_long_as_the_positions_reach(name: str, tmp_path: Path) -> None:
    made = shaken(name, tmp_path)
    assert made.reading.max_length == CONTEXT
    pairs = [PreferencePair(id="a", prompt="Why?", chosen="y" * 200, rejected="z")]
    (pair,) = encode_pairs(pairs, "auto", made.tokenizer, made.reading.max_length, "encoder").pairs
    assert made.scorer.scores([pair.group]).isfinite().all()
    assert max_tokens_of(made.scorer.model.base_model.model, made.tokenizer) == CONTEXT


def test_recomputing_and_dropout_change_what_they_should(tmp_path: Path) -> None:
    groups = [pair.group for pair in encode_pairs(PAIRS, "auto", tiny_tokenizer(pairs=True), CONTEXT, "encoder").pairs]

    def gradient(at: str, seed: int | None, **options: Any) -> torch.Tensor:
        made = shaken("bert", tmp_path / at, dropout=0.5, **options)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        made.scorer.scores(groups, generator).sum().backward()
        grads = [parameter.grad for parameter in made.scorer.parameters.values()]
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    for seed in (None, 1):
        kept, again = gradient(f"kept-{seed}", seed), gradient(f"again-{seed}", seed, gradient_checkpointing=True)
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-6)
    plain, one, same, other = (gradient(f"seed-{i}", seed) for i, seed in enumerate((None, 1, 1, 2)))
    assert torch.equal(one, same)
    assert not torch.allclose(plain, one)
    assert not torch.allclose(one, other)


def test_a_run_from_beginning_to_end(world: Any, tmp_path: Path) -> None:
    folder = world.train("reward", model=saved(tmp_path, "bert"), epochs=8, max_steps=20)
    losses = [line["loss"] for line in world.metrics(folder)["reward"]]
    assert sum(losses[-4:]) < sum(losses[:4])
    scores = load_reward_model(folder.parents[1]).score([("Q1?", "yes yes "), ("Q1?", "no 1")])
    assert None not in scores
    assert scores[0] > scores[1]  # type: ignore[operator]


def test_all_of_an_encoder(world: Any, tmp_path: Path) -> None:
    folder = world.train(
        "reward", model=saved(tmp_path, "bert"), lora=None, epochs=8, max_steps=20, optimiser={"learning_rate": 1e-3}
    )
    scores = load_reward_model(folder).score([("Q1?", "yes yes "), ("Q1?", "no 1")])
    assert scores[0] > scores[1]  # type: ignore[operator]


def test_what_cannot_be_done(world: Any, tmp_path: Path) -> None:
    bert = saved(tmp_path / "bert", "bert")
    with pytest.raises(ConfigError, match="an encoder has no training path 'fused'; choose generic"):
        world.train("reward", model=bert, path="fused")
    with pytest.raises(ConfigError, match="no counterpart to the encoder .* as a reward model: choose a decoder"):
        world.train("reward", model=bert, panel={"engine": "trl"})
    small = T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    folder = save_tiny(tmp_path / "t5", T5ForConditionalGeneration(small))
    with pytest.raises(ModelError, match="is an encoder-decoder; choose a decoder or an encoder"):
        new_scorer(str(folder), RewardConfig(), dtype="float32", device="cpu", seed=0)
