"""Dictionaries as others train them: `overcomplete`'s own loop, and a plain universal loop of PyTorch.

`overcomplete` is used as it is installed, by its `TopKSAE` and `train_sae`. Only its subpackage `sae` is imported: the
package itself imports image libraries, and its subpackage `optimization` needs scikit-learn, neither of which training
touches. Not here: this project's side (`usae_contenders`), comparing (`usae`).
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from triptych.dictionaries.sparsifiers import Codes, top_k
from triptych.errors import ConfigError
from triptych.seeding import generator, stream_key

PACKAGE = "overcomplete"
INSTALL = f"pip install --no-deps {PACKAGE} einops"
"""Its dependencies are OpenCV, timm and others, none of which training needs."""

Rows = Float[Tensor, "n d"]


class Learned(NamedTuple):
    """A trained dictionary, whoever trained it; it takes and gives standardised activations of a named model."""

    epoch_seconds: tuple[float, ...]
    encode: Callable[[str, Rows], Codes]
    decode: Callable[[str, Codes], Rows]


class Sizes(NamedTuple):
    """What is the same for all contenders."""

    latents: int
    k: int
    batch_size: int
    epochs: int
    learning_rate: float
    seed: int


# --- overcomplete -----------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """How `overcomplete` is called; by default as it comes."""

    encoder: str | None = None
    """A name of its factory; its own default is a linear layer (its docstring says with BatchNorm; it is not so)."""
    clip_grad: float | None = 1.0
    monitoring: int = 1
    is_fused: bool = False
    """AdamW in one kernel."""
    is_bfloat16: bool = False
    """Under autocast."""


def require_overcomplete() -> None:
    """Raises `ConfigError` where it is not installed."""
    missing = [name for name in (PACKAGE, "einops") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"this benchmark needs {' and '.join(missing)} to compare with: {INSTALL}")


def overcomplete_sae() -> ModuleType:
    """The module `overcomplete.sae`. Raises `ConfigError` where it is not installed."""
    require_overcomplete()
    if PACKAGE not in sys.modules:
        # The package without what its __init__ imports: its subpackages are found by its path.
        package = module_from_spec(_found(find_spec(PACKAGE)))
        optimization: Any = ModuleType(f"{PACKAGE}.optimization")
        optimization.batched_matrix_nnls = None
        sys.modules |= {PACKAGE: package, optimization.__name__: optimization}
    return importlib.import_module(f"{PACKAGE}.sae")


def _found(spec: ModuleSpec | None) -> ModuleSpec:
    assert spec is not None  # noqa: S101 - for the type checker: it was found before
    return spec


def train_overcomplete(rows: Rows, sizes: Sizes, setting: Setting) -> Learned:
    """`train_sae` on a `TopKSAE`, with AdamW and the mean squared error of its documentation."""
    sae = overcomplete_sae()
    # It initialises from torch's global generator; nobody else's draws may move by that.
    with torch.random.fork_rng(devices=[]):
        model = sae.TopKSAE(rows.shape[1], sizes.latents, top_k=sizes.k, encoder_module=setting.encoder)
    order = torch.Generator().manual_seed(stream_key(sizes.seed, "bench", "order") >> 1)
    loader = DataLoader(TensorDataset(rows), batch_size=sizes.batch_size, shuffle=True, generator=order)
    batches = _Timed(loader)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=sizes.learning_rate, weight_decay=0.0, fused=setting.is_fused or None
    )
    # Without the cache: one that lasts a whole training would keep the rounded weights of its first step.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.is_bfloat16, cache_enabled=False):
        sae.train_sae(
            model,
            batches,
            squared_error,
            optimiser,
            nb_epochs=sizes.epochs,
            clip_grad=setting.clip_grad,
            monitoring=setting.monitoring,
        )
    seconds = batches.epoch_seconds()
    model.eval()
    return Learned(seconds, lambda _, raw: model.encode(raw)[1], lambda _, codes: model.decode(codes))


def squared_error(
    x: Rows, x_hat: Rows, pre_codes: Codes, codes: Codes, dictionary: Float[Tensor, "f d"]
) -> Float[Tensor, ""]:
    """The criterion that `overcomplete`'s documentation shows."""
    return (x - x_hat).square().mean()


@final
class _Timed:
    """A loader that notes when an epoch begins: the loop asks for an iterator once an epoch."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._loader = loader
        self._begun: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        self._begun.append(time.perf_counter())
        return iter(self._loader)

    def epoch_seconds(self) -> tuple[float, ...]:
        """Of every epoch; called when the last one is over."""
        ends = [*self._begun[1:], time.perf_counter()]
        return tuple(end - start for start, end in zip(self._begun, ends, strict=True))


# --- A universal loop -------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor


def train_plainly(rows: Mapping[str, Rows], sizes: Sizes) -> Learned:
    """A universal dictionary as one writes it in PyTorch: dense products, autograd, bf16 autocast, fused AdamW.

    A step encodes one model, drawn at random, reconstructs all of them, and trains all decoders.
    """
    parts = {name: _part(name, one.shape[1], sizes) for name, one in rows.items()}
    parameters = [tensor.requires_grad_() for part in parts.values() for tensor in part]
    optimiser = torch.optim.AdamW(parameters, lr=sizes.learning_rate, weight_decay=0.0, fused=True)
    draws = generator(sizes.seed, "bench", "plain loop")
    names, n = [*rows], len(next(iter(rows.values())))
    epoch_seconds = []
    for _ in range(sizes.epochs):
        started = time.perf_counter()
        order = torch.from_numpy(draws.permutation(n))
        for chosen in order.split(sizes.batch_size):
            source = names[int(draws.integers(len(names)))]
            batch = {name: one[chosen] for name, one in rows.items()}
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                codes = _encode(parts[source], batch[source], sizes.k)
                errors = [functional.mse_loss(_decode(parts[name], codes), batch[name]) for name in names]
                torch.stack(errors).sum().backward()
            optimiser.step()
        epoch_seconds.append(time.perf_counter() - started)
    return Learned(
        tuple(epoch_seconds),
        lambda name, raw: _encode(parts[name], raw, sizes.k),
        lambda name, codes: _decode(parts[name], codes),
    )


def _part(name: str, width: int, sizes: Sizes) -> _Part:
    stream = torch.Generator().manual_seed(stream_key(sizes.seed, "bench", name) >> 1)
    decoder = functional.normalize(torch.randn(sizes.latents, width, generator=stream), dim=1)
    return _Part(decoder.clone(), torch.zeros(sizes.latents), decoder, torch.zeros(width))


def _encode(part: _Part, rows: Rows, k: int) -> Codes:
    return top_k(functional.linear(rows, part.encoder, part.encoder_bias), k)


def _decode(part: _Part, codes: Codes) -> Rows:
    return codes @ part.decoder + part.decoder_bias
