"""One process or several under `torchrun` / `accelerate launch`: who I am, and sums over all.

Each worker takes its share of every batch and the gradients are summed before the step, so that any number of workers
takes the very steps that one takes with accumulation. Accelerate starts the process group and does the reductions.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from triptych.runs import read_manifest


@final
class Workers:
    """The processes of a training run; one where it was started plainly."""

    def __init__(self, device: str = "auto") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        if self.count > 1:
            import torch
            from accelerate import PartialState

            state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
            self.rank = state.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """Every `count`-th item, from this worker's own."""
        return [*items[self.rank :: self.count]]

    def sum(self, tensors: Sequence[Any]) -> None:
        """Each tensor becomes its sum over all workers, in place; one message for all of them."""
        if self.count == 1 or not tensors:
            return
        import torch
        from accelerate import PartialState
        from accelerate.utils import reduce

        flat = torch.cat([tensor.detach().reshape(-1).to(torch.float64) for tensor in tensors])
        summed = reduce(flat.to(PartialState().device), reduction="sum")
        for tensor, part in zip(tensors, summed.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_of(self, values: Sequence[float]) -> list[float]:
        """The sums of some numbers over all workers."""
        if self.count == 1:
            return [*values]
        import torch

        tensor = torch.tensor([*values], dtype=torch.float64)
        self.sum([tensor])
        return [float(value) for value in tensor]

    def gather(self, values: Sequence[float]) -> list[float]:
        """The numbers of all workers, worker by worker."""
        if self.count == 1:
            return [*values]
        from accelerate.utils import gather_object

        gathered: list[float] = gather_object([*values])
        return gathered

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()


@runtime_checkable
class Journal(Protocol):
    """What training needs of a run directory."""

    @property
    def path(self) -> Path: ...

    def is_done(self, stage: str) -> bool: ...

    def stage(self, name: str) -> AbstractContextManager[None]: ...

    def log(self, event: str, **fields: Any) -> None: ...

    def metric(self, panel: str, step: int, **values: float | None) -> None: ...


@final
class SilentJournal:
    """The run directory as workers see it that do not write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_done(self, stage: str) -> bool:
        record = read_manifest(self.path).stages.get(stage)
        return record is not None and record.status == "done"

    def stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def log(self, event: str, **fields: Any) -> None:
        """Nothing: the main worker does."""

    def metric(self, panel: str, step: int, **values: float | None) -> None:
        """Nothing: the main worker does."""
