"""A training step by torch's autograd: every option, any device. The reference for the kernels (`fused`)."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from triptych.dictionaries.backends.base import Batch, Firing
from triptych.dictionaries.coder import Coder, UniversalSAE
from triptych.dictionaries.settings import ADAM_BETAS, ADAM_EPSILON, UniversalConfig
from triptych.dictionaries.sparsifiers import Codes, JumpRelu, firing_count, prefixes, top_k

LOSSES = {"mse": functional.mse_loss, "l1": functional.l1_loss}


@final
class Generic:
    """`Backend` by autograd, one AdamW a model."""

    def __init__(self, sae: UniversalSAE, config: UniversalConfig, dtype: torch.dtype) -> None:
        self._sae = sae.train()
        self._config = config
        self._dtype = dtype
        self._coders: list[Coder] = [sae.coder(name) for name in sae.names]
        self._device = self._coders[0].encoder_weight.device
        self._optimisers = [self._optimiser(coder) for coder in self._coders]
        self._firing = Firing(sae.latents, self._device)
        self._idle = torch.zeros(sae.latents, dtype=torch.bool, device=self._device)
        self._prefixes = prefixes(config.coder.sparsifier, sae.latents)

    def _optimiser(self, coder: Coder) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            coder.parameters(),
            lr=self._config.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            weight_decay=self._config.weight_decay,
            fused=self._device.type in ("cpu", "cuda"),
        )

    def step(self, batch: Batch, sources: Sequence[int], rate: float) -> Float[Tensor, ""]:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            pre = [self._coders[source].pre_codes(batch[source]).float() for source in sources]
            codes = self._codes(pre, sources)
            losses = [self._loss(one, batch, source) for one, source in zip(codes, sources, strict=True)]
            penalties = [self._penalty(p, z, batch, s) for p, z, s in zip(pre, codes, sources, strict=True)]
        reconstruction = torch.stack(losses).mean()
        (reconstruction + torch.stack(penalties).mean()).backward()
        self._update(sources, rate)
        with torch.no_grad():
            for one in codes:
                self._firing.mask |= (one > 0).any(0)
        return reconstruction.detach()

    def _codes(self, pre: Sequence[Codes], sources: Sequence[int]) -> list[Codes]:
        if self._config.code == "own":
            return [self._coders[source].sparsify(one) for one, source in zip(pre, sources, strict=True)]
        chosen = summed_choice(pre, self._config.coder.sparsifier.k)
        return [one.relu() * chosen for one in pre]

    def _loss(self, codes: Codes, batch: Batch, source: int) -> Float[Tensor, ""]:
        """Σ_j of the error in model j, a mean over nested prefixes of the latents."""
        criterion = LOSSES[self._config.loss]
        losses = []
        for target, (coder, rows) in enumerate(zip(self._coders, batch, strict=True)):
            weight: Tensor = coder.decoder_weight
            guess: Tensor = coder.decoder_bias
            if self._config.update == "source" and target != source:
                weight, guess = weight.detach(), guess.detach()
            for start, end in zip((0, *self._prefixes), self._prefixes, strict=False):
                guess = guess + codes[:, start:end] @ weight[start:end]
                losses.append(criterion(guess.float(), rows) / len(self._prefixes))
        return torch.stack(losses).sum()

    def _penalty(self, pre: Codes, codes: Codes, batch: Batch, source: int) -> Float[Tensor, ""]:
        sparsifier, penalty = self._config.coder.sparsifier, pre.new_zeros(())
        if isinstance(sparsifier, JumpRelu):
            count = firing_count(pre, self._coders[source].threshold)
            penalty = penalty + sparsifier.penalty * (count / sparsifier.k - 1) ** 2
        if self._config.revival == "aux_k":
            penalty = penalty + self._config.aux_coefficient * self._auxiliary(pre, codes, batch, source)
        return penalty

    def _auxiliary(self, pre: Codes, codes: Codes, batch: Batch, source: int) -> Float[Tensor, ""]:
        """How badly the dead latents alone predict the error of the source (Gao et al. 2024, appendix A.2)."""
        coder, rows = self._coders[source], batch[source]
        error = rows - coder.reconstruct(codes).detach().float()
        dead = top_k(pre.masked_fill(~self._idle, 0.0), min(self._config.aux_k, self._sae.latents))
        return functional.mse_loss((dead @ coder.decoder_weight).float(), error) * self._idle.any()

    def _update(self, sources: Sequence[int], rate: float) -> None:
        unit = self._config.coder.decoder_norm == "unit"
        for place, (coder, optimiser) in enumerate(zip(self._coders, self._optimisers, strict=True)):
            if self._config.update == "all" or place in sources:
                if unit:
                    project(coder.decoder_weight)
                optimiser.param_groups[0]["lr"] = rate
                optimiser.step()
                with torch.no_grad():
                    if unit:
                        coder.decoder_weight.copy_(functional.normalize(coder.decoder_weight, dim=1))
                    if isinstance(self._config.coder.sparsifier, JumpRelu):
                        # Below zero they would count latents that do not fire.
                        coder.threshold.clamp_(min=0)
            optimiser.zero_grad(set_to_none=True)

    def fired(self) -> Bool[Tensor, " f"]:
        taken = self._firing.take()
        self._idle = ~taken
        return taken

    def forget(self, latents: Bool[Tensor, " f"]) -> None:
        for coder, optimiser in zip(self._coders, self._optimisers, strict=True):
            # All others have a row or an entry for every latent.
            for parameter in (one for name, one in coder.named_parameters() if name != "decoder_bias"):
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in optimiser.state[parameter]:
                        optimiser.state[parameter][name][latents] = 0

    def reorder(self, place: int, order: Int[Tensor, " f"]) -> None:
        coder, optimiser = self._coders[place], self._optimisers[place]
        tensors = [tensor for name, tensor in coder.named_parameters() if name != "decoder_bias"]
        remembered = [optimiser.state[tensor].get(name) for tensor in tensors for name in ("exp_avg", "exp_avg_sq")]
        running = [tensor for tensor in coder.norm.buffers() if tensor.ndim]
        with torch.no_grad():
            for tensor in (*tensors, *(one for one in remembered if one is not None), *running):
                tensor.copy_(tensor[order])

    def reload(self) -> None:
        """The parameters are the weights: nothing to do."""

    def moments(self) -> dict[str, Tensor]:
        found = {"idle": self._idle}
        for name, _, parameter, optimiser in self._named():
            for key, value in optimiser.state[parameter].items():
                found[f"{name}.{key}"] = value
        return found

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        self._idle = moments["idle"].to(self._device)
        for name, _, parameter, optimiser in self._named():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
            if keys:
                # The step's count stays where torch's fused AdamW wants it.
                state = {key: moments[f"{name}.{key}"].to(self._device) for key in keys}
                optimiser.state[parameter] = state

    def _named(self) -> list[tuple[str, Coder, nn.Parameter, torch.optim.AdamW]]:
        pairs = list(enumerate(zip(self._coders, self._optimisers, strict=True)))
        return [
            (f"{place}.{name}", coder, parameter, optimiser)
            for place, (coder, optimiser) in pairs
            for name, parameter in coder.named_parameters()
        ]


def project(weight: nn.Parameter) -> None:
    """Takes out of the gradient of unit rows what points along them: it would only change their length."""
    if weight.grad is not None:
        with torch.no_grad():
            along = (weight.grad * weight).sum(1, keepdim=True)
            weight.grad -= along * weight


def summed_choice(pre: Sequence[Codes], k: int) -> Bool[Tensor, "n f"]:
    """The k latents of every row with the largest summed pre-activations (SPARC's global TopK)."""
    total = torch.stack([*pre]).sum(0)
    return torch.zeros_like(total, dtype=torch.bool).scatter(1, total.topk(k, dim=1).indices, value=True)
