import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.dpo import ARITHMETIC, DpoConfig, DpoTask, PairOrder, completion_sums, reference_logprobs
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.packing import Group, pack
from triptych.alignment.policy import Policy
from triptych.errors import ConfigError, DataError
from triptych.models import LanguageModel
from triptych.models.loading import quiet_transformers
from triptych.models.tiny import tiny_language_model, tiny_llama
from triptych.seeding import generator
from triptych.workers import Workers

ALONE = Workers("cpu")


def make_pairs(n: int, seed: int = 0) -> list[EncodedPair]:
    rng = generator(seed, "pairs")

    def draw() -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(4, 260, int(rng.integers(1, 9))))

    return [EncodedPair(f"pair{i}", Group(draw(), (draw(), draw())), False) for i in range(n)]


def make_policy(lora: LoraConfig | None = LoraConfig(rank=2)) -> Policy:  # noqa: B008 - frozen
    def load() -> LanguageModel:
        return tiny_language_model(tiny_llama(3))

    return Policy(load(), lora=lora, seed=0, load_reference=load)


def make_task(
    policy: Policy, pairs: Sequence[EncodedPair], validation: Sequence[EncodedPair], **options: Any
) -> DpoTask:
    config = DpoConfig.model_validate({"batch_size": 2, **options})
    references = reference_logprobs(policy, pairs, config, workers=ALONE, show_progress=False)
    return DpoTask(policy, config, pairs, validation, references, ALONE, seed=0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


# --- Order ------------------------------------------------------------------------------------------------------------------


def test_an_epoch_takes_each_pair_once() -> None:
    order = PairOrder(7, 3, epochs=2, max_steps=None, seed=0)
    # The rest of an epoch is a batch of its own: 3 + 3 + 1.
    assert order.steps == 6
    batches = [order.batch(step) for step in range(6)]
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(row for batch in epoch for row in batch) == [*range(7)]
    assert batches[:3] != batches[3:]
    assert batches != [PairOrder(7, 3, 2, None, seed=1).batch(step) for step in range(6)]
    assert batches == [PairOrder(7, 3, 2, None, seed=0).batch(step) for step in range(6)]


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 6), (2, 2), (6, 6), (99, 6)])
def test_steps_at_most(max_steps: int | None, steps: int) -> None:
    assert PairOrder(7, 3, 2, max_steps, seed=0).steps == steps


def test_sums_are_over_whole_completions() -> None:
    packed = pack([Group((1,), ((2, 3), (4,))), Group((1,), ((5,), (6, 7, 8)))])
    logprobs = torch.tensor([1.0, 2.0, 10.0, 20.0, 1.0, 2.0, 4.0])
    assert completion_sums(logprobs, packed).tolist() == [[3.0, 10.0], [20.0, 7.0]]


# --- References ---------------------------------------------------------------------------------------------------------------


def test_references_are_the_base_s_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, pairs, config = make_policy(), make_pairs(5), DpoConfig(batch_size=2)
    found = reference_logprobs(policy, pairs, config, workers=ALONE, show_progress=False)
    model: Any = tiny_llama(3)
    for pair in pairs:
        for value, completion in zip(found[pair.id], pair.group.completions, strict=True):
            ids = torch.tensor([[*pair.group.prompt, *completion]])
            logp = torch.log_softmax(model(input_ids=ids).logits[0].detach(), -1)[len(pair.group.prompt) - 1 : -1]
            expected = float(logp.gather(-1, torch.tensor(completion)[:, None]).sum())
            assert value == pytest.approx(expected, rel=1e-5)

    def never(*arguments: Any, **options: Any) -> torch.Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(Policy, "reference_logprobs", never)
    assert reference_logprobs(policy, pairs, config, workers=ALONE, show_progress=False) == found
    with pytest.raises(AssertionError, match="computed again"):
        reference_logprobs(policy, make_pairs(5, seed=1), config, workers=ALONE, show_progress=False)


@pytest.mark.parametrize("moved", ["threads", "torch", "machine", "kernels"])
def test_references_of_other_arithmetic_are_not_taken(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last bits would differ: a margin before the first step that is not 0."""
    policy, pairs, config = make_policy(), make_pairs(5), DpoConfig(batch_size=2)
    reference_logprobs(policy, pairs, config, workers=ALONE, show_progress=False)
    calls: list[int] = []
    compute = Policy.reference_logprobs

    def counted(self: Policy, packed: Any) -> torch.Tensor:
        calls.append(1)
        return compute(self, packed)

    monkeypatch.setattr(Policy, "reference_logprobs", counted)
    match moved:
        case "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
        case "torch":
            monkeypatch.setattr(torch, "__version__", "2.99.0")
        case "machine":
            monkeypatch.setattr("triptych.alignment.dpo.device_description", lambda: "cpu: another")
        case _:
            monkeypatch.setattr("triptych.alignment.dpo.ARITHMETIC", ARITHMETIC[1:])
    reference_logprobs(policy, pairs, config, workers=ALONE, show_progress=False)
    assert calls


def test_only_pairs_that_a_step_will_take_have_references() -> None:
    config = DpoConfig(batch_size=2, max_steps=2)
    found = reference_logprobs(make_policy(), make_pairs(9), config, workers=ALONE, show_progress=False)
    order = PairOrder(9, 2, 1, 2, seed=0)
    assert set(found) == {f"pair{row}" for step in range(2) for row in order.batch(step)}


# --- Steps --------------------------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_first_step_by_autograd() -> None:
    # -log σ(β h) has the gradient -β/2 (∇ log π(c) - ∇ log π(r)) at h = 0, a mean over pairs.
    policy, pairs = make_policy(), make_pairs(3)
    make_task(policy, pairs, (), batch_size=3).accumulate(0)
    found = {name: p.grad.clone() for name, p in policy.parameters.items() if p.grad is not None}
    model: Any = policy.model
    model.zero_grad()
    total = torch.zeros(())
    for pair in pairs:
        for sign, completion in zip((1.0, -1.0), pair.group.completions, strict=True):
            ids = torch.tensor([[*pair.group.prompt, *completion]])
            logp = torch.log_softmax(model(input_ids=ids).logits[0], -1)[len(pair.group.prompt) - 1 : -1]
            total = total - 0.05 * sign * logp.gather(-1, torch.tensor(completion)[:, None]).sum() / 3
    total.backward()
    for name, parameter in policy.parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_what_is_measured_on_held_out_pairs() -> None:
    policy, validation = make_policy(), make_pairs(4, seed=1)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draws))
    task = make_task(policy, make_pairs(3), validation)
    measured, seen = task.evaluate(), task.last_evaluation
    assert seen is not None
    tokens = sum(len(pair.group.completions[0]) for pair in validation)
    assert (len(seen.ids), len(seen.kl), len(seen.logprobs)) == (4, tokens, tokens)
    assert [seen.token_pair.count(i) for i in range(4)] == [len(pair.group.completions[0]) for pair in validation]
    # Chosen answers alone: they are the first completion of every group.
    packed = policy.pack([pair.group._replace(completions=pair.group.completions[:1]) for pair in validation])
    compared = policy.compare(packed)
    assert measured["kl"] == pytest.approx(float(compared.kl.mean()), rel=1e-4)
    assert measured["perplexity"] == pytest.approx(math.exp(-float(compared.logprobs.mean())), rel=1e-4)
    assert measured["perplexity_reference"] == pytest.approx(math.exp(-float(compared.reference.mean())), rel=1e-4)
    assert measured["margin"] == pytest.approx(sum(seen.margins) / 4, rel=1e-5)
    assert measured["accuracy"] == sum(margin > 0 for margin in seen.margins) / 4


def test_training_moves_the_margin(world: Any) -> None:
    folder = world.train("dpo", epochs=8, max_steps=20, eval_every=5)
    steps, evaluations = (world.metrics(folder)[panel] for panel in ("dpo", "dpo.eval"))
    assert steps[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-7)
    assert steps[0]["margin"] == 0.0
    assert steps[-1]["loss"] < 0.6
    assert evaluations[0]["kl"] == 0.0
    assert all(line["kl"] > 0 for line in evaluations[1:])
    assert [line["step"] for line in evaluations] == [0, 5, 10, 15, 20]


def test_fewer_pairs_than_a_batch(world: Any) -> None:
    with pytest.raises(
        DataError, match=r"10 pairs to train on are fewer than a batch of 16; give more .*or lower batch_size"
    ):
        world.train("dpo", batch_size=16)


# --- Full fine-tuning -----------------------------------------------------------------------------------------------------------


def test_full_fine_tuning_keeps_the_original_base_as_its_reference() -> None:
    policy, validation = make_policy(None), make_pairs(4, seed=1)
    task = make_task(policy, make_pairs(4), validation, lora=None)
    before = policy.reference_logprobs(policy.pack([pair.group for pair in validation]))
    measured = task.evaluate()
    assert (measured["kl"], measured["margin"]) == (0.0, 0.0)
    for step in range(2):
        assert (task.accumulate(step)["margin"] == 0.0) == (step == 0)
        with torch.no_grad():
            for parameter in policy.parameters.values():
                assert parameter.grad is not None
                parameter.sub_(1e-2 * parameter.grad)
                parameter.grad = None
    measured = task.evaluate()
    assert float(measured["kl"] or 0) > 1e-6
    assert float(measured["margin"] or 0) != 0
    after = policy.reference_logprobs(policy.pack([pair.group for pair in validation]))
    assert torch.equal(before, after)


def test_a_fully_tuned_model_is_one_that_transformers_reads(world: Any) -> None:
    folder = world.train("dpo", lora=None)
    assert not (folder / "adapter_config.json").exists()
    with quiet_transformers():
        base, tuned = (AutoModelForCausalLM.from_pretrained(path) for path in (world.model, folder))
    changed = [name for name, p in base.named_parameters() if not torch.equal(p, tuned.get_parameter(name))]
    assert len(changed) == len([*base.named_parameters()])
    evaluations = world.metrics(folder)["dpo.eval"]
    assert evaluations[0]["kl"] == 0.0
    assert evaluations[-1]["kl"] > 0
    assert "full fine-tuning" not in world.state(folder)["path"]


def test_full_fine_tuning_needs_full_precision_and_a_second_base() -> None:
    lm = tiny_language_model(tiny_llama(3).bfloat16())
    with pytest.raises(ConfigError, match=r"full fine-tuning of tiny-llama-0 in torch.bfloat16: .*; use float32"):
        Policy(lm, lora=None, seed=0)
    alone = Policy(tiny_language_model(), lora=None, seed=0)
    with pytest.raises(ConfigError, match="needs a second copy of the base as its reference"):
        alone.reference_logprobs(alone.pack([make_pairs(1)[0].group]))
