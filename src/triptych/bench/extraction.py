"""Extraction of activations by this project and by a plain loop of transformers, over the same images in one process.

The plain loop is what its documentation shows: images of Pillow through `AutoImageProcessor`, in batches of 32 through
the model in fp32 with its default settings, under `no_grad`.

Not here: the command and its report.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from triptych.data.image_files import Factor, ImageSet, UInt8Image
from triptych.dictionaries.extraction import extract
from triptych.errors import ConfigError
from triptych.models.loading import quiet_transformers
from triptych.models.vision import VisionModel, load_vision_model, resolve_vision_source
from triptych.records import Record

PEER_BATCH = 32


class ExtractionRecord(Record):
    """Figures of one model, or of all together (`model` = `all`)."""

    model: str
    pooling: str
    images: int
    ours: float
    """Images a second, decoding, resizing and writing included."""
    peer: float
    """Images a second of the plain loop, decoding and resizing included."""
    ratio: float
    """Ours over the peer's."""
    mean_cosine: float
    """Between our features of an image and the peer's."""
    min_cosine: float


def measure(folder_spec: Mapping[str, str], images: ImageSet, n: int) -> tuple[ExtractionRecord, ...]:
    """Figures of every model (name → folder or hub id) on the first `n` images, and of all models in one go.

    All are read at their output, pooled as `auto` says. One batch beforehand warms either side up. `all` has the time
    of one extraction with all models against the sum of the plain loops, as that is how either is used.
    """
    if not folder_spec or n < 1:
        raise ConfigError("nothing to measure: name at least one model and one image")
    chosen = _FirstImages(images, n)
    models = {name: load_vision_model(spec) for name, spec in folder_spec.items()}
    records = []
    for name, model in models.items():
        theirs, seconds = _peer(model, chosen)
        ours, own_seconds = _ours({name: model}, chosen)
        cosines = F.cosine_similarity(ours[name], theirs, dim=1)
        speeds = (len(chosen) / own_seconds, len(chosen) / seconds)
        records.append(_record(name, model.pooling, len(chosen), speeds, cosines))
    _, together = _ours(models, chosen)
    return (*records, _summary(records, len(chosen) / together))


def _record(
    name: str, pooling: str, n: int, speeds: tuple[float, float], cosines: Float[Tensor, " n"]
) -> ExtractionRecord:
    return ExtractionRecord(
        model=name,
        pooling=pooling,
        images=n,
        ours=speeds[0],
        peer=speeds[1],
        ratio=speeds[0] / speeds[1],
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
    )


def _summary(records: Sequence[ExtractionRecord], ours: float) -> ExtractionRecord:
    """All models together; the plain loops run one after the other."""
    peer = 1 / sum(1 / record.peer for record in records)
    return records[0].model_copy(
        update={
            "model": "all",
            "pooling": "auto",
            "ours": ours,
            "peer": peer,
            "ratio": ours / peer,
            "mean_cosine": sum(record.mean_cosine for record in records) / len(records),
            "min_cosine": min(record.min_cosine for record in records),
        }
    )


def _ours(models: Mapping[str, VisionModel], images: ImageSet) -> tuple[dict[str, Tensor], float]:
    """The features of each model and the seconds that they took."""
    with tempfile.TemporaryDirectory(prefix="triptych-bench-") as folder:
        extract(_FirstImages(images, PEER_BATCH), models, f"{folder}/warm-up", show_progress=False)
        started = time.perf_counter()
        stores = extract(images, models, f"{folder}/measured", show_progress=False)
        seconds = time.perf_counter() - started
        return {name: store.load() for name, store in stores.items()}, seconds


def _peer(model: VisionModel, images: ImageSet) -> tuple[Tensor, float]:
    """The features of a plain loop and the seconds that they took."""
    folder = resolve_vision_source(model.spec).folder
    cls: Any = type(model.model)
    with quiet_transformers():
        processor = AutoImageProcessor.from_pretrained(folder)
        plain = cls.from_pretrained(folder, dtype=torch.float32).to(model.device).eval()
        _loop(plain, processor, _FirstImages(images, PEER_BATCH), POOLED[model.pooling])
        started = time.perf_counter()
        features = _loop(plain, processor, images, POOLED[model.pooling])
    return features, time.perf_counter() - started


@torch.no_grad()
def _loop(model: Any, processor: Any, images: ImageSet, pool: Callable[[Any], Tensor]) -> Tensor:
    features = []
    for start in range(0, len(images), PEER_BATCH):
        batch = range(start, min(start + PEER_BATCH, len(images)))
        pictures = [Image.fromarray(images.read(index)) for index in batch]
        inputs = processor(images=pictures, return_tensors="pt").to(model.device)
        features.append(pool(model(**inputs)).cpu())
    return torch.cat(features)


POOLED: Mapping[str, Callable[[Any], Tensor]] = {
    "pooled": lambda output: output.pooler_output.flatten(1),
    "cls": lambda output: output.last_hidden_state[:, 0],
    "mean": lambda output: output.last_hidden_state.mean(1),
}
"""What `auto` comes to, said of an output of transformers."""


@final
class _FirstImages:
    """The first images of a set."""

    def __init__(self, images: ImageSet, n: int) -> None:
        self.ids: Sequence[str] = images.ids[:n]
        self.source = images.source
        self.fingerprint = f"{images.fingerprint}:{n}"
        self.factors: Mapping[str, Factor] = {}
        self._images = images

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> UInt8Image:
        return self._images.read(index)
