"""However a model is run in training, it says the same: by the fused path, by transformers' own modules under autograd, with
prompts shared or not, in one pass or in several, with activations kept or computed again.

The yardstick is the plainest thing there is: one row a completion, the whole model of transformers and PEFT, log-softmax
of its logits, autograd. Values are log-probabilities, gradients those of a loss with random weights, of every A and B.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.backends import fused
from triptych.alignment.backends.fused import PROJECTIONS
from triptych.alignment.head import CHUNK
from triptych.alignment.packing import Group
from triptych.alignment.policy import Policy
from triptych.models.tiny import tiny_gpt2, tiny_language_model, tiny_llama
from triptych.seeding import generator

# Lengths that differ in every way: a prompt of one token, a completion of one, a group of one, and of many.
SHAPES = [(5, (3, 6)), (1, (4, 1, 2)), (17, (1,)), (8, (5, 5, 2, 9)), (30, (12, 3))]


def make_groups(shapes: Sequence[tuple[int, tuple[int, ...]]] = SHAPES, seed: int = 0) -> list[Group]:
    rng = generator(seed, "groups")

    def draw(n: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(4, 260, n))

    return [Group(draw(m), tuple(draw(n) for n in lengths)) for m, lengths in shapes]


GROUPS = make_groups()
N_TOKENS = sum(n for _, lengths in SHAPES for n in lengths)

LORAS = {
    "q and v": LoraConfig(rank=3, alpha=7.0),
    "all seven": LoraConfig(rank=2, alpha=5.0, targets=PROJECTIONS),
    "down alone": LoraConfig(rank=2, targets=("down_proj",)),
}
# Four queries to a key, two, one; and a head that is not the width over the heads' number would be no plain Llama.
MODELS: dict[str, Callable[[], Any]] = {
    "four heads a key": lambda: tiny_llama(3, heads=4, kv_heads=1),
    "two heads a key": lambda: tiny_llama(3),
    "one head a key": lambda: tiny_llama(3, heads=4, kv_heads=4, layers=3, tied=False),
}


def make_policy(
    model: Any | None = None,
    lora: LoraConfig | None = LORAS["q and v"],
    *,
    dtype: torch.dtype = torch.float32,
    trained: bool = True,
    **options: Any,
) -> Policy:
    """A policy whose B are not zero, as if it had been trained already."""
    base: Any = tiny_llama(3) if model is None else model
    base = base.to(dtype)
    policy = Policy(tiny_language_model(base), lora=lora, seed=0, **options)
    if trained:
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                if ".lora_B." in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draws))
    return policy


class Read(NamedTuple):
    values: Tensor
    gradients: dict[str, Tensor]


def read(
    policy: Policy,
    values_of: Callable[[], Tensor],
    weights: Tensor | None = None,
) -> Read:
    """Values, and the gradients of their sum with random weights."""
    weights = torch.randn(N_TOKENS, generator=torch.Generator().manual_seed(2)) if weights is None else weights
    values = values_of()
    (values * weights).sum().backward()
    gradients = {}
    for name, parameter in policy.parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return Read(values.detach(), gradients)


def ours(policy: Policy, groups: Sequence[Group] = GROUPS, temperature: float = 1.0) -> Read:
    return read(policy, lambda: policy.logprobs(policy.pack(groups), temperature=temperature).logprobs)


def plainest(policy: Policy, groups: Sequence[Group] = GROUPS, temperature: float = 1.0) -> Read:
    return read(policy, lambda: row_by_row(policy.model, groups, temperature))


def row_by_row(model: Any, groups: Sequence[Group], temperature: float = 1.0) -> Tensor:
    parts = []
    for prompt, completions in groups:
        for completion in completions:
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].float() / temperature
            logp = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
            parts.append(logp.gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return torch.cat(parts)


def require_same(found: Read, expected: Read, *, tolerance: float = 1e-5) -> None:
    """Differences are measured against the largest entry: single ones may be as small as rounding."""
    assert found.values.shape == expected.values.shape
    assert apart(found.values, expected.values) < tolerance
    assert set(found.gradients) == set(expected.gradients)
    for name, gradient in expected.gradients.items():
        assert gradient.abs().max() > 0, name
        assert apart(found.gradients[name], gradient) < tolerance, name


def apart(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).abs().max() / expected.abs().max())


# --- The fused path is transformers' own --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("longest", [0, 8, 512], ids=["by segment", "some rows whole", "rows whole"])
def test_the_fused_path_is_transformers_own(
    model: str, lora: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "BLOCK_TOKENS", longest)
    policy = make_policy(MODELS[model](), LORAS[lora])
    assert (policy.trunk.path, policy.trunk.shares_prefix) == ("fused", True)
    require_same(ours(policy), plainest(policy))


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_at_another_temperature(temperature: float) -> None:
    policy = make_policy()
    require_same(ours(policy, temperature=temperature), plainest(policy, temperature=temperature))


@pytest.mark.parametrize("lora", LORAS)
def test_activations_may_be_computed_again(lora: str) -> None:
    # The same operations on the same numbers, so nothing at all may differ.
    found, expected = (ours(make_policy(lora=LORAS[lora], checkpointing=on)) for on in (True, False))
    assert torch.equal(found.values, expected.values)
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name


@pytest.mark.parametrize("path", ["fused", "generic"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_they_are_computed_again_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, path: str, dropout: float
) -> None:
    # transformers ignores the wish outside of training mode, which only dropout would need.
    calls = []
    forward = fused._forward

    def counted(*arguments: Any) -> Any:
        calls.append("fused")
        return forward(*arguments)

    monkeypatch.setattr(fused, "_forward", counted)
    for checkpointing, expected in ((False, 2), (True, 4)):
        policy = make_policy(lora=LoraConfig(rank=3, dropout=dropout), path=path, checkpointing=checkpointing)
        base: Any = policy.lm.base
        for layer in base.base_model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_: calls.append("generic"))
        calls.clear()
        draws = torch.Generator().manual_seed(5)
        read(policy, lambda p=policy, d=draws: p.logprobs(p.pack(GROUPS), generator=d).logprobs)  # type: ignore[misc]
        assert calls == [path] * expected
        calls.clear()
        policy.compare(policy.pack(GROUPS))
        assert calls == [path] * 4


def test_more_tokens_than_the_head_reads_at_once() -> None:
    groups = make_groups([(3, (CHUNK // 2,) * 3)], seed=1)
    policy = make_policy(tiny_llama(3, context=1024))
    weights = torch.randn(3 * (CHUNK // 2), generator=torch.Generator().manual_seed(3))
    found = read(policy, lambda: policy.logprobs(policy.pack(groups)).logprobs, weights)
    require_same(found, read(policy, lambda: row_by_row(policy.model, groups), weights))


def test_bfloat16_is_the_same_to_its_rounding() -> None:
    # A bf16 base has 8 bits. The yardstick is the same rounded weights in fp32; transformers' own bf16 is no nearer to it.
    rounded = tiny_llama(3).bfloat16()
    mine = make_policy(rounded, LORAS["all seven"], dtype=torch.bfloat16)
    assert mine.trunk.path == "fused"
    generic = make_policy(tiny_llama(3), LORAS["all seven"], dtype=torch.bfloat16, path="generic")
    exact = make_policy(tiny_llama(3).bfloat16().float(), LORAS["all seven"])
    truth = plainest(exact)
    found, peer = ours(mine), ours(generic)
    assert apart(found.values, truth.values) < 0.03
    assert (found.values - truth.values).abs().mean() < 1.5 * (peer.values - truth.values).abs().mean()
    for name, gradient in truth.gradients.items():
        assert found.gradients[name].dtype == torch.float32
        assert torch.cosine_similarity(found.gradients[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


# --- The generic path is the fused one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("lora", LORAS)
def test_the_generic_path_is_the_fused_one(lora: str, share: bool) -> None:
    hand_written = make_policy(lora=LORAS[lora], path="fused", share_prefix=share)
    generic = make_policy(lora=LORAS[lora], path="generic", share_prefix=share)
    assert (generic.trunk.path, generic.trunk.shares_prefix) == ("generic", share)
    require_same(ours(generic), ours(hand_written))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_generic_path_on_another_architecture(checkpointing: bool) -> None:
    policy = make_policy(tiny_gpt2(3), LoraConfig(rank=3), checkpointing=checkpointing)
    assert (policy.trunk.path, policy.trunk.shares_prefix) == ("generic", True)
    require_same(ours(policy), plainest(policy))


def test_full_fine_tuning_is_generic_and_reaches_every_weight() -> None:
    policy = make_policy(lora=None, trained=False)
    assert policy.trunk.path == "generic"
    assert set(policy.parameters) == {name for name, _ in tiny_llama().named_parameters()}
    require_same(ours(policy), plainest(policy))


# --- Shared prompts are separate ones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("path", ["fused", "generic"])
def test_shared_prompts_are_separate_ones(model: Callable[[int], Any], path: str) -> None:
    if model is tiny_gpt2 and path == "fused":
        pytest.skip("a GPT-2 has no fused path")
    shared, apart = (make_policy(model(3), LoraConfig(rank=3), path=path, share_prefix=on) for on in (True, False))
    assert shared.pack(GROUPS).n_tokens < apart.pack(GROUPS).n_tokens
    require_same(ours(shared), ours(apart))


@pytest.mark.parametrize("path", ["fused", "generic"])
def test_groups_do_not_see_each_other(path: str) -> None:
    # In one pass or each in its own; on the generic path that is also padding or none.
    policy = make_policy(path=path)
    whole = ours(policy)
    parts = [policy.logprobs(policy.pack([group])).logprobs for group in GROUPS]
    require_same(read(policy, lambda: torch.cat(parts)), whole)


@pytest.mark.parametrize("path", ["fused", "generic"])
def test_the_order_of_groups_does_not_matter(path: str) -> None:
    policy = make_policy(path=path)
    backwards = policy.logprobs(policy.pack(GROUPS[::-1])).logprobs.detach()
    found = backwards.split([sum(n) for _, n in SHAPES[::-1]])
    assert apart(torch.cat(found[::-1]), ours(policy).values) < 1e-5


# --- The base, with the LoRA off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fused", "generic"])
@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_without_its_lora_a_policy_is_its_base(model: Callable[[int], Any], path: str) -> None:
    if model is tiny_gpt2 and path == "fused":
        pytest.skip("a GPT-2 has no fused path")
    policy = make_policy(model(3), LoraConfig(rank=3), path=path)
    packed = policy.pack(GROUPS)
    untouched = make_policy(model(3), LoraConfig(rank=3), path=path, trained=False)
    reference = policy.reference_logprobs(packed)
    assert torch.equal(reference, untouched.reference_logprobs(packed))
    # A new B is zero and adds exact zeros, so not a bit may differ before the first step either.
    assert torch.equal(reference, untouched.logprobs(packed).logprobs)
    assert not torch.allclose(reference, policy.logprobs(packed).logprobs, atol=1e-2)
    assert apart(reference, row_by_row(model(3), GROUPS)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", ["fused", "generic"])
def test_a_new_policy_diverges_by_exactly_nothing(path: str, dtype: torch.dtype) -> None:
    policy = make_policy(path=path, dtype=dtype, trained=False)
    packed = policy.pack(GROUPS)
    compared = policy.compare(packed)
    assert torch.equal(compared.kl, torch.zeros(N_TOKENS))
    assert torch.equal(compared.logprobs, compared.reference)
    with torch.no_grad():
        # What the training step reads: so its first margins are 0 as well.
        assert torch.equal(policy.logprobs(packed).logprobs, policy.reference_logprobs(packed))


# --- Dropout --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fused", "generic"])
class TestDropout:
    def policy(self, path: str, rate: float = 0.5) -> Policy:
        return make_policy(lora=LoraConfig(rank=3, dropout=rate, targets=PROJECTIONS), path=path)

    def logprobs(self, policy: Policy, seed: int | None) -> Tensor:
        draws = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return policy.logprobs(policy.pack(GROUPS), generator=draws).logprobs

    def test_masks_are_those_of_the_generator(self, path: str) -> None:
        policy = self.policy(path)
        first, second, other = (self.logprobs(policy, seed) for seed in (5, 5, 6))
        assert torch.equal(first, second)
        assert not torch.allclose(first, other, atol=1e-3)

    def test_the_global_generator_is_neither_read_nor_moved(self, path: str) -> None:
        policy = self.policy(path)
        before = torch.random.get_rng_state()
        self.logprobs(policy, 5)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_it_is_off_in_evaluation(self, path: str) -> None:
        assert torch.equal(self.logprobs(self.policy(path), None), self.logprobs(self.policy(path, 0.0), None))
        # Also after a training pass, which must not leave it on.
        policy = self.policy(path)
        self.logprobs(policy, 5)
        assert torch.equal(self.logprobs(policy, None), self.logprobs(self.policy(path, 0.0), None))
        packed = policy.pack(GROUPS)
        assert torch.equal(policy.reference_logprobs(packed), self.policy(path, 0.0).reference_logprobs(packed))

    def test_what_is_kept_is_scaled_up_by_what_is_dropped(self, path: str) -> None:
        # The update of a single projection of one layer is linear in its input's mask: its mean over masks is the update
        # without dropout. 400 draws of rate 0.25 leave 1 / sqrt(3 · 400), 3 %, of noise.
        lora = LoraConfig(rank=3, dropout=0.25, targets=("down_proj",))
        policy = make_policy(tiny_llama(3, layers=1), lora, path=path)
        packed = policy.pack(GROUPS[:1])
        with torch.no_grad():
            base, plain = (policy.trunk.run(packed, on, None) for on in (False, True))
            if path == "generic":
                pytest.skip("its states are past the final norm, which is not linear; PEFT scales by itself")
            draws = torch.Generator().manual_seed(7)
            mean = sum(policy.trunk.run(packed, True, draws) for _ in range(400)) / 400
        assert apart(mean - base, plain - base) < 0.12

    def test_gradients_are_those_of_the_masks_that_were_drawn(self, path: str) -> None:
        # By finite differences in a random direction, with the masks of one seed.
        policy = self.policy(path)

        def value() -> Tensor:
            return policy.logprobs(policy.pack(GROUPS), generator=torch.Generator().manual_seed(5)).logprobs

        gradients = read(policy, value).gradients
        draws = torch.Generator().manual_seed(8)
        direction = {name: torch.randn(p.shape, generator=draws) for name, p in policy.parameters.items()}
        weights = torch.randn(N_TOKENS, generator=torch.Generator().manual_seed(2)).double()
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for name, parameter in policy.parameters.items():
                    parameter.add_(sign * 1e-4 * direction[name])
                ends.append(float((value().double() * weights).sum()))
                for name, parameter in policy.parameters.items():
                    parameter.sub_(sign * 1e-4 * direction[name])
        slope = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, rel=5e-3)

    def test_activations_computed_again_get_the_same_masks(self, path: str) -> None:
        reads = []
        for checkpointing in (True, False):
            policy = make_policy(
                lora=LoraConfig(rank=3, dropout=0.5, targets=PROJECTIONS), path=path, checkpointing=checkpointing
            )
            draws = torch.Generator().manual_seed(5)
            reads.append(
                read(policy, lambda p=policy, d=draws: p.logprobs(p.pack(GROUPS), generator=d).logprobs)  # type: ignore[misc]
            )
        require_same(*reads)
