"""The output head in chunks, against the dense formula and autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from triptych.alignment import head
from triptych.alignment.head import TokenLogprobs, any_head, compare_heads, frozen_head

T, H, V = 11, 8, 50


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


HIDDEN, WEIGHT = draw(T, H, seed=0), draw(V, H, seed=1)
TARGETS = torch.randint(V, (T,), generator=torch.Generator().manual_seed(2))
UPSTREAM = draw(T, seed=3)

Head = Callable[[Tensor, float], TokenLogprobs]
HEADS: dict[str, Head] = {
    "frozen": lambda hidden, temperature: frozen_head(hidden, WEIGHT, TARGETS, temperature),
    "any": lambda hidden, temperature: any_head(hidden, lambda states: states @ WEIGHT.T, TARGETS, temperature),
}


def dense(hidden: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(hidden.double() @ weight.double().T / temperature, dim=-1)
    return logp.gather(-1, TARGETS[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


# One token at a time, chunks that do not come out even, one that just fits, one for all.
@pytest.mark.parametrize("chunk", [1, 4, T, 256])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("name", HEADS)
def test_it_is_the_dense_formula(monkeypatch: pytest.MonkeyPatch, name: str, temperature: float, chunk: int) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    hidden = HIDDEN.clone().requires_grad_()
    read = HEADS[name](hidden, temperature)
    (read.logprobs * UPSTREAM).sum().backward()

    exact = HIDDEN.double().requires_grad_()
    logprobs, entropies = dense(exact, WEIGHT, temperature)
    (logprobs * UPSTREAM).sum().backward()
    assert read.logprobs.dtype == read.entropies.dtype == torch.float32
    torch.testing.assert_close(read.logprobs.double(), logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read.entropies.double(), entropies.detach(), rtol=1e-5, atol=1e-5)
    assert hidden.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)
    assert not read.entropies.requires_grad
    assert torch.equal(read.states, HIDDEN)
    assert not read.states.requires_grad


def test_a_uniform_prediction_by_hand() -> None:
    # Equal logits: every token has probability 1/V, the entropy is ln V.
    read = frozen_head(torch.zeros(T, H), WEIGHT, TARGETS, 1.0)
    expected = torch.full((T,), float(torch.tensor(float(V)).log()))
    torch.testing.assert_close(read.logprobs, -expected)
    torch.testing.assert_close(read.entropies, expected)


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_large_logits_stay_finite(scale: float) -> None:
    hidden = (scale * HIDDEN).requires_grad_()
    read = frozen_head(hidden, WEIGHT, TARGETS, 0.7)
    read.logprobs.sum().backward()
    assert read.logprobs.isfinite().all()
    assert read.entropies.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_bfloat16_reads_in_full_precision_what_it_has() -> None:
    hidden, weight = HIDDEN.bfloat16(), WEIGHT.bfloat16()
    read = frozen_head(hidden, weight, TARGETS, 0.7)
    # Logits are rounded to 8 bits once; everything after is fp32.
    logp = torch.log_softmax((hidden @ weight.T).float() / 0.7, dim=-1)
    torch.testing.assert_close(read.logprobs, logp.gather(-1, TARGETS[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_no_tokens_are_no_numbers_and_still_have_a_backward_pass() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for name in ("frozen", "any"):
        hidden = torch.zeros(0, H, requires_grad=True)
        if name == "frozen":
            read = frozen_head(hidden, WEIGHT, nothing, 1.0)
        else:
            read = any_head(hidden, lambda states: states @ WEIGHT.T, nothing, 1.0)
        assert (len(read.logprobs), len(read.entropies), read.states.shape) == (0, 0, (0, H))
        loss = read.logprobs.sum()
        loss.backward()
        assert float(loss.detach()) == 0.0


# --- Two models on the same tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4, 256])
@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_the_divergence_is_the_dense_one(monkeypatch: pytest.MonkeyPatch, chunk: int, scale: float) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    other = HIDDEN + scale * draw(T, H, seed=4)
    found = compare_heads(HIDDEN, other, lambda h: h @ WEIGHT.T, lambda h: h @ WEIGHT.T, TARGETS)
    logp, logq = (torch.log_softmax(states.double() @ WEIGHT.double().T, dim=-1) for states in (HIDDEN, other))
    kl = (logp.exp() * (logp - logq)).sum(-1)
    torch.testing.assert_close(found.kl.double(), kl, rtol=1e-4, atol=2e-6)
    assert (found.kl > -1e-6).all()
    for column, values in ((found.logprobs, logp), (found.reference, logq)):
        torch.testing.assert_close(column.double(), values.gather(-1, TARGETS[:, None])[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_models_diverge_by_exactly_nothing(dtype: torch.dtype) -> None:
    hidden, weight = HIDDEN.to(dtype), WEIGHT.to(dtype)
    found = compare_heads(hidden, hidden.clone(), lambda h: h @ weight.T, lambda h: h @ weight.T, TARGETS)
    assert torch.equal(found.kl, torch.zeros(T))
    assert torch.equal(found.logprobs, found.reference)


def test_each_model_has_its_own_head() -> None:
    found = compare_heads(HIDDEN, HIDDEN, lambda h: h @ WEIGHT.T, lambda h: 0.5 * (h @ WEIGHT.T), TARGETS)
    assert (found.kl > 0).all()
    torch.testing.assert_close(found.reference, frozen_head(HIDDEN, WEIGHT, TARGETS, 2.0).logprobs)


def test_comparing_nothing() -> None:
    nothing = torch.zeros(0, H)
    found = compare_heads(nothing, nothing, lambda h: h @ WEIGHT.T, lambda h: h, torch.zeros(0, dtype=torch.int64))
    assert [len(column) for column in found] == [0, 0, 0]
