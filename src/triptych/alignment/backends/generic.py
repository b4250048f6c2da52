"""The generic training path: any transformers model through its own forward pass and autograd, on any device.

Packed rows are padded to a rectangle, with a mask that lets each token see what it may. A model that does not take such
a mask (or none that it says it takes) is run on separate rows, right-padded, with a plain mask: the caller packs so.
"""

from typing import Any

import torch
from torch import Tensor, nn

from triptych.alignment.packing import Packed, row_bounds, visible


class GenericTrunk:
    """The body of a transformers model, from token ids to the states that its head reads (final norm included)."""

    def __init__(self, body: nn.Module, *, compute_dtype: torch.dtype | None, shares_prefix: bool) -> None:
        self._body: Any = body
        self._compute_dtype = compute_dtype
        self._shares_prefix = shares_prefix

    def hidden(self, packed: Packed) -> Tensor:
        """[T, H] in the order of the packed tokens."""
        device = next(self._body.parameters()).device
        bounds = row_bounds(packed)
        width = max(stop - start for start, stop in bounds)
        ids, positions = (torch.zeros(len(bounds), width, dtype=torch.int64) for _ in range(2))
        for row, (start, stop) in enumerate(bounds):
            ids[row, : stop - start] = packed.ids[start:stop]
            positions[row, : stop - start] = packed.positions[start:stop]
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": self._mask(packed, bounds, width).to(device),
        }
        if "position_ids" in self._arguments():
            inputs["position_ids"] = positions.to(device)
        if "use_cache" in self._arguments():
            inputs["use_cache"] = False
        with torch.autocast(device.type, dtype=self._compute_dtype, enabled=self._compute_dtype is not None):
            states: Tensor = self._body(**inputs).last_hidden_state
        return torch.cat([states[row, : stop - start] for row, (start, stop) in enumerate(bounds)])

    def _arguments(self) -> set[str]:
        import inspect

        return set(inspect.signature(self._body.forward).parameters)

    def _mask(self, packed: Packed, bounds: list[tuple[int, int]], width: int) -> Tensor:
        """[rows, 1, width, width] where prompts are shared, else [rows, width]."""
        if not self._shares_prefix:
            return torch.tensor([[1] * (stop - start) + [0] * (width - stop + start) for start, stop in bounds])
        # A row that sees nothing has no softmax: padding sees itself.
        mask = torch.eye(width, dtype=torch.bool).repeat(len(bounds), 1, 1)
        for row, (start, stop) in enumerate(bounds):
            mask[row, : stop - start, : stop - start] = visible(packed, start, stop)
        return mask[:, None]
