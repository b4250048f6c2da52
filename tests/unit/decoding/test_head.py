import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.decoding.head import Head, read_by_sort, read_heads
from triptych.simd import as_array

NINF = -torch.inf


def random_logits(n: int, vocabulary: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(n * vocabulary)
    return (torch.randn(n, vocabulary, generator=generator) * scale).to(dtype)


def both(logits: Tensor, temperature: Tensor, rows: Tensor, m: int) -> tuple[Head, Head]:
    """The head by the kernels and by the sort."""
    return read_heads(logits, temperature).take(rows, m), read_by_sort(logits, temperature).take(rows, m)


def require_equal(ours: Head, reference: Head) -> None:
    assert torch.equal(ours.ids, reference.ids)
    assert torch.equal(ours.logits, reference.logits)
    assert ours.complete == reference.complete
    # Sums over the vocabulary in float32: what differs is rounding.
    for name in ("logp", "entropy", "log_normaliser"):
        assert torch.allclose(getattr(ours, name), getattr(reference, name), atol=2e-5, rtol=1e-5), name
    assert torch.allclose(ours.deviation, reference.deviation, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# A tiny vocabulary, one of a few blocks, none a multiple of the block but 256; the last is long enough that small heads
# are gathered by blocks and large ones by the histogram.
@pytest.mark.parametrize("vocabulary", [2, 37, 130, 256, 1000, 20001])
@pytest.mark.parametrize("m", [1, 64, 200, None])
def test_the_kernels_agree_with_the_sort(dtype: torch.dtype, vocabulary: int, m: int | None) -> None:
    logits = random_logits(6, vocabulary, dtype)
    temperature = torch.tensor([0.1, 0.2, 0.7, 1.0, 1.5, 5.0])
    require_equal(*both(logits, temperature, torch.arange(6), vocabulary if m is None else m))


def test_a_head_is_never_longer_than_the_vocabulary() -> None:
    ours, reference = both(random_logits(2, 37), torch.ones(2), torch.arange(2), 64)
    assert ours.ids.shape == reference.ids.shape == (2, 37)
    assert ours.complete
    assert reference.complete


def test_any_rows_in_any_order() -> None:
    logits, temperature = random_logits(9, 500), torch.linspace(0.5, 2.0, 9)
    rows = torch.tensor([7, 2, 2, 0])
    ours, reference = both(logits, temperature, rows, 20)
    require_equal(ours, reference)
    every = read_heads(logits, temperature).take(torch.arange(9), 20)
    assert torch.equal(ours.ids, every.ids[rows])
    assert torch.equal(ours.logp, every.logp[rows])


def test_no_rows() -> None:
    head = read_heads(random_logits(3, 500), torch.ones(3)).take(torch.empty(0, dtype=torch.int64), 20)
    assert head.ids.shape == (0, 20)


def test_float16_is_read_as_float32() -> None:
    logits = random_logits(4, 300, torch.float16)
    require_equal(*both(logits, torch.ones(4), torch.arange(4), 50))


@pytest.mark.parametrize("m", [1, 5, 64, 200, 9000])
def test_ties_go_to_the_lower_id(m: int) -> None:
    # Seven distinct values: every block's largest ties with the others.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(7, (5, 9000), generator=generator).float()
    ours, reference = both(logits, torch.ones(5), torch.arange(5), m)
    require_equal(ours, reference)
    first = torch.nonzero(logits[0] == 6)[: min(m, 1000), 0]
    assert torch.equal(ours.ids[0, : len(first)], first)


def test_both_zeros_tie() -> None:
    ours, reference = both(torch.tensor([[-0.0, 0.0, -0.0, -1.0]]), torch.ones(1), torch.arange(1), 4)
    assert ours.ids.tolist() == reference.ids.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("m", [1, 60, 200, 5000])
def test_masked_logits_come_last_and_weigh_nothing(dtype: torch.dtype, m: int) -> None:
    logits = random_logits(4, 5000, dtype)
    logits[1, 100:] = NINF
    logits[2, ::2] = NINF
    logits[3, 7:] = NINF
    temperature = torch.tensor([1.0, 0.5, 1.0, 2.0])
    ours, reference = both(logits, temperature, torch.arange(4), m)
    require_equal(ours, reference)
    assert (ours.logp[3, 7:] == NINF).all()
    # The same as if the masked tokens were not there.
    alone = read_heads(logits[3:, :7].contiguous(), temperature[3:]).take(torch.arange(1), 7)
    assert torch.allclose(ours.entropy[3:], alone.entropy, atol=1e-6)
    assert torch.allclose(ours.deviation[3:], alone.deviation, rtol=1e-5)
    assert torch.allclose(ours.logp[3:, :7], alone.logp[:, : ours.logp.shape[1]], atol=1e-6)


def test_one_token_alone_has_no_deviation() -> None:
    for head in both(torch.tensor([[NINF, 2.0, NINF]]), torch.ones(1), torch.arange(1), 3):
        assert head.deviation.item() == 0.0
        assert head.entropy.item() == pytest.approx(0.0, abs=1e-30)
        assert head.logp.tolist() == [[0.0, NINF, NINF]]


def test_logits_far_below_the_largest() -> None:
    # Beyond the 64 nats that the histogram resolves, and beyond what float32 exponentials can hold.
    logits = torch.cat([torch.arange(0.0, -400.0, -0.5), torch.arange(-1000.0, -5000.0, -1.0)])[None]
    for m in (1, 3, 150, 1000, logits.shape[1]):
        require_equal(*both(logits, torch.ones(1), torch.arange(1), m))


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits_do_not_overflow(offset: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]]) + offset
    ours, reference = both(logits, torch.ones(1), torch.arange(1), 3)
    assert torch.allclose(ours.logp, torch.tensor([[3.0, 2.0, 1.0]]).log_softmax(-1), atol=2e-3)
    assert torch.allclose(reference.entropy, ours.entropy, atol=1e-5)


def test_statistics_by_hand() -> None:
    # Probabilities 0.5, 0.25, 0.25: entropy 1.5 ln 2. Logits log 2, log 1, log 1: normaliser log 4, and with d = log 2,
    # squared distances from the mean d / 3 sum to 4d²/9 + 2 · d²/9, over n - 1 = 2: d² / 3.
    head = read_heads(torch.tensor([[1.0, 2.0, 1.0]]).log(), torch.ones(1)).take(torch.arange(1), 3)
    d = np.log(2.0)
    assert head.entropy.item() == pytest.approx(1.5 * d, abs=1e-6)
    assert head.log_normaliser.item() == pytest.approx(2 * d, abs=1e-6)
    assert head.deviation.item() == pytest.approx(d / 3**0.5, abs=1e-6)
    assert head.logp.exp().tolist() == [pytest.approx([0.5, 0.25, 0.25])]


def test_the_normaliser_and_the_deviation_ignore_temperature_and_the_rest_does_not() -> None:
    logits = random_logits(1, 700).expand(2, -1).contiguous()
    head = read_heads(logits, torch.tensor([0.3, 1.0])).take(torch.arange(2), 700)
    assert head.log_normaliser[0] == head.log_normaliser[1]
    assert head.deviation[0] == head.deviation[1]
    assert head.entropy[0] < head.entropy[1]
    assert torch.allclose(head.logp[0], (logits[0] / 0.3).log_softmax(0)[head.ids[0]], atol=2e-5)


def test_sums_over_a_real_vocabulary_are_accurate_to_float32() -> None:
    # 49,152 tokens, as many as SmolLM2 has. The sums are float32; compared with float64.
    logits = random_logits(3, 49_152, scale=4.0)
    head = read_heads(logits, torch.ones(3)).take(torch.arange(3), 10)
    exact = logits.double()
    logp = exact.log_softmax(-1)
    assert torch.allclose(head.log_normaliser.double(), exact.logsumexp(-1), atol=5e-6)
    assert torch.allclose(head.logp.double(), logp.gather(1, head.ids), atol=5e-6)
    assert torch.allclose(head.entropy.double(), -(logp.exp() * logp).sum(-1), atol=5e-5)
    assert torch.allclose(head.deviation.double(), exact.std(-1), rtol=1e-5)


def test_bf16_arrays_are_bit_patterns() -> None:
    tensor = torch.tensor([1.0, -2.5, 3.0e38]).bfloat16()
    array = as_array(tensor)
    assert array.dtype == np.uint16
    assert (array.astype(np.uint32) << 16).view(np.float32).tolist() == tensor.float().tolist()
