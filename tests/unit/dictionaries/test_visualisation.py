"""Maximisation on planted linear models, whose best input is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor, nn

from triptych.dictionaries.coder import CoderConfig, UniversalSAE
from triptych.dictionaries.sparsifiers import TopK
from triptych.dictionaries.visualisation import (
    CANVASES,
    MaximisationConfig,
    Parametrisation,
    blurred,
    fourier_paint,
    fourier_unpaint,
    gaussian_kernel,
    maximise,
    pre_activations,
    resized,
    shifted,
    shifts,
    start_logits,
)
from triptych.errors import WorkError
from triptych.seeding import stream_key

STREAM = stream_key(0, "maximisation")
PLAIN = MaximisationConfig(steps=32, jitter=0, blur_every=0, learning_rate=0.1, l2=0.0)


def filters(n: int, size: int) -> Tensor:
    """One smooth filter [3, size, size] a latent: a wave of n + 1 periods in one colour, of mean square 1."""
    across = torch.arange(size) * (2 * torch.pi / size)
    planted = torch.zeros(n, 3, size, size)
    for latent in range(n):
        planted[latent, latent % 3] = torch.sin((latent + 1) * across).expand(size, size) * 6**0.5
    return planted


@dataclass(frozen=True)
class Planted:
    """Its features are its pixels' products with filters: feature k is a_k = mean(filter_k · pixels)."""

    weights: Tensor
    rows: int = 1

    @property
    def image_size(self) -> tuple[int, int]:
        return (self.weights.shape[2], self.weights.shape[3])

    def features(self, pixels: Tensor) -> Tensor:
        # Rows are strips of the image from left to right.
        strips = (pixels[:, None] * self.weights).unflatten(-1, (self.rows, -1))
        means: Tensor = strips.mean((2, 3, 5)).transpose(1, 2)
        return means


@dataclass(frozen=True)
class Identity:
    """Latents are features."""

    def pre_codes(self, model: str, activations: Tensor) -> Tensor:
        return activations


def run(latents: Sequence[int], config: MaximisationConfig = PLAIN, size: int = 16, rows: int = 1) -> Tensor:
    return maximise({"a": Planted(filters(4, size), rows)}, Identity(), latents, config, stream=STREAM)["a"].images


def correlation(image: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([image.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("parametrisation", ["fourier", "pixels"])
def test_images_resemble_the_filters_that_were_planted(parametrisation: Parametrisation) -> None:
    # The blur stays; the pull towards grey is for pre-activations of real codes, which are ten times as large.
    config = MaximisationConfig(steps=64, jitter=0, parametrisation=parametrisation, learning_rate=0.1, l2=0.0)
    found = maximise({"a": Planted(filters(4, 16))}, Identity(), range(4), config, stream=STREAM)["a"]
    # Best of all in [0, 1] is 1 where the filter is positive and 0 where it is negative. Its product with the filter
    # is then the mean of the filter's positive part: 1/π of a wave, times √6, in a third of the channels: 0.26.
    best = 6**0.5 / (3 * torch.pi)
    for latent, planted in enumerate(filters(4, 16)):
        # Waves come in natural colours: some of the other channels comes along, and costs nothing here.
        channel = latent % 3
        assert correlation(found.images[latent, channel], planted[channel]) > 0.6
        assert abs(float(found.first[latent])) < 0.02
        assert 0.6 * best < float(found.last[latent]) < 1.01 * best
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_what_is_reported_is_what_the_model_says_of_the_images() -> None:
    model = Planted(filters(4, 16))
    found = maximise({"a": model}, Identity(), [2], PLAIN, stream=STREAM)["a"]
    torch.testing.assert_close(found.last, model.features(found.images)[:, 0, 2])
    torch.testing.assert_close(found.first, model.features(torch.sigmoid(start_logits([2], (16, 16), STREAM)))[:, 0, 2])


def test_the_stream_decides() -> None:
    config = MaximisationConfig(steps=3)
    assert torch.equal(run([1], config), run([1], config))
    other = maximise({"a": Planted(filters(4, 16))}, Identity(), [1], config, stream=STREAM + 1)["a"].images
    assert not torch.allclose(run([1], config), other, atol=1e-3)


def test_a_batch_of_latents_is_as_one_at_a_time() -> None:
    config = MaximisationConfig(steps=16)
    together = run([3, 0, 2], config)
    torch.testing.assert_close(together, torch.cat([run([latent], config) for latent in (3, 0, 2)]))
    in_batches = maximise({"a": Planted(filters(4, 16))}, Identity(), [3, 0, 2], config, stream=STREAM, batch_size=2)[
        "a"
    ]
    torch.testing.assert_close(together, in_batches.images)


def test_models_start_alike_and_alone() -> None:
    weights = filters(4, 16)
    config = MaximisationConfig(steps=8)
    both = maximise(
        {"a": Planted(weights), "b": Planted(-weights), "twin": Planted(weights)},
        Identity(),
        [1],
        config,
        stream=STREAM,
    )
    # b is the negative of a: what its start gives is the negative of what the same start gives of a.
    torch.testing.assert_close(both["a"].first, -both["b"].first)
    assert torch.equal(both["a"].images, both["twin"].images)
    assert torch.equal(both["a"].images, run([1], config))


def test_the_start_is_resized_to_each_model() -> None:
    start = start_logits([0, 5], (32, 48), STREAM)
    assert start.shape == (2, 3, 32, 48)
    assert resized(start, (32, 48)) is start
    # Halving without aliasing: the mean of a smooth image remains.
    half = resized(start, (16, 24))
    torch.testing.assert_close(half.mean((2, 3)), start.mean((2, 3)), atol=2e-3, rtol=0.0)
    found = maximise(
        {"small": Planted(filters(2, 8)), "large": Planted(filters(2, 16))}, Identity(), [0], PLAIN, stream=STREAM
    )
    assert [tuple(one.images.shape) for one in found.values()] == [(1, 3, 8, 8), (1, 3, 16, 16)]
    small = Planted(filters(2, 8)).features(torch.sigmoid(resized(start_logits([0], (16, 16), STREAM), (8, 8))))
    torch.testing.assert_close(found["small"].first, small[:, 0, 0])


def test_no_latents_and_no_models() -> None:
    assert maximise({}, Identity(), [0], PLAIN, stream=STREAM) == {}
    assert run([]).shape == (0, 3, 16, 16)


def test_mean_and_maximum_over_rows() -> None:
    """Two rows, left and right: the mean draws in both, the maximum in the one that happens to lead."""
    mean = run([0], PLAIN.model_copy(update={"objective": "mean"}), rows=2)[0]
    most = run([0], PLAIN.model_copy(update={"parametrisation": "pixels"}), rows=2)[0]
    wave = filters(1, 16)[0]
    contrasts = [(most * wave)[..., part].mean().abs() for part in (slice(0, 8), slice(8, 16))]
    assert max(contrasts) > 1.5 * min(contrasts)
    assert (mean * wave)[..., :8].mean() > 0.05
    assert correlation(mean, wave) > 0.6


def test_pre_activations_are_of_the_own_latent_and_row() -> None:
    # Features of one-pixel images are the pixel's channels times the weights, over 3: latent k is w_k · rgb / 3.
    weights = torch.eye(3)[:, :, None, None] * torch.tensor([3.0, 30.0, 300.0])[:, None, None, None]
    pixels = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])[:, :, None, None]
    found = pre_activations("a", Planted(weights), Identity(), pixels, torch.tensor([2, 0]))
    torch.testing.assert_close(found, torch.tensor([[30.0], [0.4]]))


def test_no_gradient_but_the_inputs() -> None:
    """Weights that could be trained are left alone, in a model of bfloat16 too."""

    class Half(nn.Module):
        image_size = (16, 16)

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 16 * 16, 4, bias=False, dtype=torch.bfloat16)
            with torch.no_grad():
                self.layer.weight.copy_(filters(4, 16).flatten(1) / 100)

        def features(self, pixels: Tensor) -> Tensor:
            out: Tensor = self.layer(pixels.flatten(1).bfloat16())
            return out.float()[:, None]

    model = Half()
    coder = UniversalSAE(CoderConfig(latents=8, sparsifier=TopK(k=2)), {"a": 4})
    with torch.no_grad():
        coder.coder("a").encoder_weight.copy_(torch.eye(8, 4))
    found = maximise({"a": model}, coder, [1, 2], PLAIN, stream=STREAM)["a"]
    assert bool((found.last > found.first + 0.3).all())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *coder.parameters()])
    assert found.images.dtype == torch.float32


def test_no_number_is_an_error_that_names_the_latent() -> None:
    weights = filters(4, 16)
    weights[3] = torch.nan
    with pytest.raises(WorkError, match="model 'a', latent 3: .* lower the learning rate"):
        maximise({"a": Planted(weights)}, Identity(), [1, 3], PLAIN, stream=STREAM)


def test_shifts() -> None:
    drawn = [shifts(step, 4.0, STREAM) for step in range(200)]
    assert {value for pair in drawn for value in pair} == set(range(-4, 5))
    assert drawn[7] == shifts(7, 4.0, STREAM)
    assert all(shifts(step, 0.0, STREAM) == (0, 0) for step in range(5))
    # By rows then columns: what was at (0, 0) is at (1, 2).
    image = torch.zeros(1, 3, 4, 4)
    image[..., 0, 0] = 1
    assert torch.equal(shifted(image, 1, 2)[0, 0].nonzero(), torch.tensor([[1, 2]]))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    image = start_logits([0], (12, 20), STREAM)
    expected = ndimage.gaussian_filter(image.double().numpy(), sigma, mode="nearest", axes=(2, 3))
    np.testing.assert_allclose(blurred(image, sigma).numpy(), expected, atol=1e-6)
    assert float(gaussian_kernel(sigma).sum()) == pytest.approx(1.0)
    assert len(gaussian_kernel(sigma)) == 2 * int(4 * sigma + 0.5) + 1


def test_no_blur_is_none() -> None:
    image = start_logits([0], (8, 8), STREAM)
    assert blurred(image, 0.0) is image
    assert gaussian_kernel(0.0).tolist() == [1.0]


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (10, 5)])
@pytest.mark.parametrize("name", CANVASES)
def test_parametrisations_go_there_and_back(size: tuple[int, int], name: Parametrisation) -> None:
    logits = torch.from_numpy(np.random.Generator(np.random.Philox(0)).normal(size=(2, 3, *size))).float()
    canvas = CANVASES[name]
    torch.testing.assert_close(canvas.paint(canvas.unpaint(logits), size), logits, atol=1e-5, rtol=0.0)


def test_waves_decay_with_their_frequency() -> None:
    """A coefficient c of k waves across is 2 c / k · cos: the coefficient and its conjugate, each 1/k of c."""
    for across in (1, 2, 3):
        waves = torch.zeros(1, 3, 8, 5, 2)
        waves[0, 0, 0, across, 0] = 1.0
        light = fourier_paint(waves, (8, 8))[0, :, 0, 0] / 0.577
        torch.testing.assert_close(light, torch.full((3,), 2.0 / across))
    constant = torch.zeros(1, 3, 8, 5, 2)
    constant[0, 0, 0, 0, 0] = 1.0
    torch.testing.assert_close(fourier_paint(constant, (8, 8)), torch.full((1, 3, 8, 8), 0.577))
    assert fourier_unpaint(torch.zeros(1, 3, 8, 8)).abs().max() == 0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"blur_sigma": -1.0}, {"jitter": -1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MaximisationConfig(**wrong)
