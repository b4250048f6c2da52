"""A training step on a CPU by one dense product and kernels that touch firing latents alone (`kernels` says why).

Equal to `generic` up to rounding, for what `UniversalConfig.is_plain` names. In bfloat16 the dense product only chooses
the latents; their values, and everything behind them, are computed in float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from triptych.dictionaries.backends import kernels
from triptych.dictionaries.backends.base import Batch, Firing
from triptych.dictionaries.backends.generic import summed_choice
from triptych.dictionaries.coder import Coder, UniversalSAE
from triptych.dictionaries.settings import ADAM_BETAS, ADAM_EPSILON, UniversalConfig
from triptych.simd import as_array

PARAMETERS = ("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias")


class _Part(NamedTuple):
    """One model's weights with what AdamW remembers of them."""

    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: dict[str, int]
    rounded: Tensor
    """The encoder's weight in bfloat16."""


class _Code(NamedTuple):
    """A source's code of a batch: [rows, k] each."""

    source: int
    latent: Tensor
    value: Tensor
    d_value: Tensor


@final
class Fused:
    """`Backend` by kernels."""

    def __init__(self, sae: UniversalSAE, config: UniversalConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._k = config.coder.sparsifier.k
        self._latents = sae.latents
        self._parts = [_part(sae.coder(name)) for name in sae.names]
        self._firing = Firing(sae.latents, torch.device("cpu"))
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        self.reload()

    def step(self, batch: Batch, sources: Sequence[int], rate: float) -> Float[Tensor, ""]:
        codes = self._codes(batch, sources)
        flat = _stacked(codes)
        starts = torch.empty(self._latents + 1, dtype=torch.int32)
        places = torch.empty(flat.latent.numel(), dtype=torch.int32)
        kernels.by_latent(_n(flat.latent), _n(flat.value), _n(starts), _n(places))
        self._firing.mask |= starts[1:] > starts[:-1]
        loss, errors = self._errors(batch, codes)
        for target, error in enumerate(errors):
            self._step_decoder(target, error, codes, (starts, places), rate)
        for code in codes:
            self._step_encoder(code, batch[code.source], rate)
        return loss

    # --- Forward, and the gradients of codes -------------------------------------------------------------------------

    def _codes(self, batch: Batch, sources: Sequence[int]) -> list[_Code]:
        pre = [self._pre_codes(source, batch[source]) for source in sources]
        if self._config.code == "summed":
            chosen = summed_choice(pre, self._k)
            pre = [one.masked_fill(~chosen, 0.0) for one in pre]
        codes = []
        for source, one in zip(sources, pre, strict=True):
            index = torch.empty(len(one), self._k, dtype=torch.int32)
            value = torch.empty(len(one), self._k)
            kernels.top_k(_n(one), _n(index), _n(value))
            if self._dtype == torch.bfloat16:
                weights = self._parts[source].weights
                rows, weight, bias = batch[source], weights["encoder_weight"], weights["encoder_bias"]
                kernels.exact_values(_n(rows), _n(weight), _n(bias), _n(index), _n(value))
            codes.append(_Code(source, index, value, torch.zeros_like(value)))
        return codes

    def _pre_codes(self, source: int, rows: Tensor) -> Tensor:
        part = self._parts[source]
        bias = part.weights["encoder_bias"]
        if self._dtype == torch.bfloat16:
            return functional.linear(rows.bfloat16(), part.rounded, bias.bfloat16()).float()
        return functional.linear(rows, part.weights["encoder_weight"], bias)

    def _errors(self, batch: Batch, codes: Sequence[_Code]) -> tuple[Tensor, list[Tensor]]:
        """The loss, and for every target the errors of all sources, one below another; fills the codes' gradients."""
        loss, errors = 0.0, []
        for target, rows in enumerate(batch):
            weights = self._parts[target].weights
            error = torch.empty(len(codes) * len(rows), rows.shape[1])
            size = rows.numel() * len(codes)
            for place, code in enumerate(codes):
                own = error[place * len(rows) : (place + 1) * len(rows)]
                arrays = (code.latent, code.value, weights["decoder_weight"], weights["decoder_bias"], rows)
                squares = kernels.reconstruct(*map(_n, arrays), 2.0 / size, _n(own), _n(code.d_value))
                loss += float(squares.sum()) / size
            errors.append(error)
        return torch.tensor(loss), errors

    # --- Backward and AdamW, in one ----------------------------------------------------------------------------------

    def _step_decoder(
        self, target: int, error: Tensor, codes: Sequence[_Code], sorted_codes: tuple[Tensor, Tensor], rate: float
    ) -> None:
        if self._config.update == "source":
            own = next((place for place, code in enumerate(codes) if code.source == target), None)
            if own is None:
                return
            # Of the stacked codes only its own: decoder j does not learn from others' codes.
            size = len(codes[own].value)
            full, error = error, error[own * size : (own + 1) * size]
            scale = 2.0 / full.numel()
            value = codes[own].value
            sorted_codes = self._sorted(codes[own].latent, value) if len(codes) > 1 else sorted_codes
        else:
            scale, value = 2.0 / error.numel(), _stacked(codes).value
        self._step_rows(target, "decoder_weight", value, scale, error, sorted_codes, rate)
        self._step_vector(target, "decoder_bias", error.sum(0) * scale, rate)

    def _step_encoder(self, code: _Code, rows: Tensor, rate: float) -> None:
        starts, places = self._sorted(code.latent, code.value)
        self._step_rows(code.source, "encoder_weight", code.d_value, 1.0, rows, (starts, places), rate)
        total = torch.empty(self._latents)
        kernels.sum_by_latent(_n(code.d_value), _n(starts), _n(places), _n(total))
        self._step_vector(code.source, "encoder_bias", total, rate)

    def _sorted(self, index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.empty(self._latents + 1, dtype=torch.int32)
        places = torch.empty(index.numel(), dtype=torch.int32)
        kernels.by_latent(_n(index), _n(value), _n(starts), _n(places))
        return starts, places

    def _step_rows(
        self,
        place: int,
        name: str,
        factors: Tensor,
        scale: float,
        rows: Tensor,
        sorted_codes: tuple[Tensor, Tensor],
        rate: float,
    ) -> None:
        part = self._parts[place]
        part.steps[name] += 1
        is_encoder = name == "encoder_weight"
        kernels.step_weights(
            _n(part.weights[name]),
            _n(part.first[name]),
            _n(part.second[name]),
            as_array(part.rounded),
            _n(factors),
            scale,
            _n(rows),
            *map(_n, sorted_codes),
            self._adam(part.steps[name], rate),
            not is_encoder and self._config.coder.decoder_norm == "unit",
            is_encoder and self._dtype == torch.bfloat16,
        )

    def _step_vector(self, place: int, name: str, gradient: Tensor, rate: float) -> None:
        part = self._parts[place]
        part.steps[name] += 1
        _, decay, beta1, beta2, epsilon, unbias1, unbias2 = self._adam(part.steps[name], rate)
        first, second, weight = part.first[name], part.second[name], part.weights[name]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weight.mul_(1 - rate * decay)
        weight.addcdiv_(first, (second / unbias2).sqrt_().add_(epsilon), value=-rate / unbias1)

    def _adam(self, steps: int, rate: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        beta1, beta2 = ADAM_BETAS
        decay = self._config.weight_decay
        return np.array([rate, decay, beta1, beta2, ADAM_EPSILON, 1 - beta1**steps, 1 - beta2**steps])

    # --- What outlives a step ----------------------------------------------------------------------------------------

    def fired(self) -> Bool[Tensor, " f"]:
        return self._firing.take()

    def forget(self, latents: Bool[Tensor, " f"]) -> None:
        for part in self._parts:
            for name in ("encoder_weight", "encoder_bias", "decoder_weight"):
                part.first[name][latents] = 0
                part.second[name][latents] = 0

    def reorder(self, place: int, order: Int[Tensor, " f"]) -> None:
        part = self._parts[place]
        for name in ("encoder_weight", "encoder_bias", "decoder_weight"):
            for tensors in (part.weights, part.first, part.second):
                tensors[name].copy_(tensors[name][order])

    def reload(self) -> None:
        for part in self._parts:
            part.rounded.copy_(part.weights["encoder_weight"])

    def moments(self) -> dict[str, Tensor]:
        found = {}
        for place, part in enumerate(self._parts):
            for name in PARAMETERS:
                found[f"{place}.{name}.exp_avg"] = part.first[name]
                found[f"{place}.{name}.exp_avg_sq"] = part.second[name]
                found[f"{place}.{name}.step"] = torch.tensor(float(part.steps[name]))
        return found

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        for place, part in enumerate(self._parts):
            for name in PARAMETERS:
                part.first[name].copy_(moments[f"{place}.{name}.exp_avg"])
                part.second[name].copy_(moments[f"{place}.{name}.exp_avg_sq"])
                part.steps[name] = int(moments[f"{place}.{name}.step"])
        self.reload()


def _part(coder: Coder) -> _Part:
    weights = {name: getattr(coder, name).detach() for name in PARAMETERS}
    return _Part(
        weights,
        {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        dict.fromkeys(PARAMETERS, 0),
        weights["encoder_weight"].bfloat16(),
    )


def _stacked(codes: Sequence[_Code]) -> _Code:
    """All codes, one below another; of one it is that one."""
    if len(codes) == 1:
        return codes[0]
    joined = (torch.cat([getattr(code, name) for code in codes]) for name in ("latent", "value", "d_value"))
    return _Code(-1, *joined)


def _n(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.numpy()
