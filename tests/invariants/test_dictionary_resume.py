"""A run that was killed and begun again ends where an undisturbed one does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from triptych.dictionaries import training
from triptych.dictionaries.coder import CoderConfig, UniversalSAE, initialise
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import BatchTopK, JumpRelu, Matryoshka, TopK
from triptych.dictionaries.training import Trained, train_universal_sae
from triptych.errors import DataError

EPOCHS, LATENTS = 5, 24


def config(**settings: Any) -> UniversalConfig:
    """k = 1 of many latents, so that some die and begin again."""
    names = ("sparsifier", "encoder", "decoder_norm")
    coder = {"latents": LATENTS, "sparsifier": TopK(k=1), "init": "random"}
    coder |= {name: settings.pop(name) for name in names if name in settings}
    usual = {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.01, "precision": "float32", "weight_decay": 0.01}
    return UniversalConfig(**usual | {"coder": CoderConfig(**coder)} | settings)


CONFIGS: dict[str, UniversalConfig] = {
    "kernels": config(),
    "kernels-schedule": config(warm_up=0.2, final_learning_rate=1e-3, update="source"),
    "kernels-every": config(sources="every", code="summed", decoder_norm="free"),
    "kernels-bfloat16": config(precision="bfloat16"),
    "autograd": config(loss="l1"),
    "autograd-every": config(loss="l1", sources="every", update="source", decoder_norm="free"),
    "autograd-aux_k": config(revival="aux_k", aux_k=4),
    "batch_norm": config(encoder="batch_norm"),
    "batch_top_k": config(sparsifier=BatchTopK(k=1)),
    "matryoshka": config(sparsifier=Matryoshka(k=1), revival="aux_k"),
    "jump_relu": config(sparsifier=JumpRelu(k=1, threshold=2.5), encoder="batch_norm"),
}


def activations(seed: int = 0, n: int = 67) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 6, generator=generator)
    return {name: shared @ torch.randn(6, w, generator=generator) for name, w in {"a": 7, "b": 5}.items()}


class Killed(BaseException):
    """No error that anybody catches."""


@pytest.fixture
def _saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state after every epoch."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", -1.0)


@pytest.fixture(params=[1, 2, 4])
def kill_after(request: pytest.FixtureRequest) -> int:
    epochs: int = request.param
    return epochs


def train_until(epochs: int, monkeypatch: pytest.MonkeyPatch, *arguments: Any, **settings: Any) -> None:
    """Dies within the epoch after `epochs`, some of its steps done."""
    batches = training._Run._batches

    def killing(run: Any, epoch: int) -> Iterator[list[Tensor]]:
        for number, batch in enumerate(batches(run, epoch)):
            if epoch == epochs and number == 2:
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_batches", killing)
        with pytest.raises(Killed):
            train_universal_sae(*arguments, **settings)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.history == other.history
    assert one.backend == other.backend
    weights, others = one.sae.state_dict(), other.sae.state_dict()
    assert set(weights) == set(others)
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.usefixtures("_saves")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_killed_run_ends_as_an_undisturbed_one(
    name: str, kill_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, state = CONFIGS[name], tmp_path / "new" / "state.safetensors"
    undisturbed = train_universal_sae(activations(), settings)
    assert undisturbed.backend == ("kernels" if name.startswith("kernels") else "autograd")
    train_until(kill_after, monkeypatch, activations(), settings, state=state)
    assert [path.name for path in state.parent.iterdir()] == ["state.safetensors"]
    assert_same(train_universal_sae(activations(), settings, state=state), undisturbed)


def test_latents_die_and_begin_again_in_what_is_tested_here() -> None:
    dead = {
        name: [epoch.dead for epoch in train_universal_sae(activations(), one).history] for name, one in CONFIGS.items()
    }
    for name in CONFIGS:
        assert any(dead[name][:3]), name


@pytest.mark.usefixtures("_saves")
def test_only_the_epochs_that_are_left_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, state = config(), tmp_path / "state.safetensors"
    train_until(3, monkeypatch, activations(), settings, state=state)
    seen: list[int] = []
    batches = training._Run._batches

    def watched(run: Any, epoch: int) -> Iterator[list[Tensor]]:
        seen.append(epoch)
        return batches(run, epoch)

    monkeypatch.setattr(training._Run, "_batches", watched)
    resumed = train_universal_sae(activations(), settings, state=state)
    assert seen == [3, 4]
    again = train_universal_sae(activations(), settings, state=state)
    assert seen == [3, 4]
    assert_same(again, resumed)
    assert again.seconds == resumed.seconds > 0


def test_a_state_that_is_some_epochs_old_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved after the second of three finished epochs."""
    settings, state = config(), tmp_path / "state.safetensors"
    undisturbed = train_universal_sae(activations(), settings)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", -1.0)
    train_until(2, monkeypatch, activations(), settings, state=state)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 1e9)
    train_until(3, monkeypatch, activations(), settings, state=state)
    assert_same(train_universal_sae(activations(), settings, state=state), undisturbed)


def test_the_last_epoch_is_always_saved(tmp_path: Path) -> None:
    train_universal_sae(activations(), config(), state=tmp_path / "state.safetensors")
    assert (tmp_path / "state.safetensors").is_file()


@pytest.mark.parametrize("name", ["kernels", "batch_norm"])
def test_windows_from_disk_go_on_where_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shards:
        def __init__(self, rows: Tensor) -> None:
            self._pieces: tuple[Tensor, ...] = rows.split(20)
            self.width = rows.shape[1]
            self.shard_rows = tuple(map(len, self._pieces))

        def read(self, shard: int) -> Tensor:
            return self._pieces[shard]

    stores = {name: Shards(rows) for name, rows in activations(n=61).items()}
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", -1.0)
    small: dict[str, Any] = {"budget_gib": 1e-9}
    undisturbed = train_universal_sae(stores, CONFIGS[name], **small)
    train_until(2, monkeypatch, stores, CONFIGS[name], state=tmp_path / "state", **small)
    assert_same(train_universal_sae(stores, CONFIGS[name], state=tmp_path / "state", **small), undisturbed)


# --- States of something else -----------------------------------------------------------------------------------------


def renamed() -> dict[str, Tensor]:
    return {f"{name}2": rows for name, rows in activations().items()}


OTHERS: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "settings": (activations(), {"config": config(learning_rate=0.02)}),
    "epochs": (activations(), {"config": config(epochs=EPOCHS + 1)}),
    "seed": (activations(), {"seed": 1}),
    "activations": (activations(seed=1), {}),
    "fewer rows": ({name: rows[:-1] for name, rows in activations().items()}, {}),
    "models": (renamed(), {}),
    "order of models": (dict(reversed(activations().items())), {}),
    "pairing": (activations(), {"pairing": {"b": torch.arange(67).flip(0)}}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_run_is_no_state(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.safetensors"
    train_universal_sae(activations(), config(), state=state)
    rows, change = OTHERS[name]
    arguments = {"config": config()} | change
    began: list[int] = []

    def watched(sae: UniversalSAE, samples: Any, seed: int) -> None:
        began.append(1)
        initialise(sae, samples, seed)

    monkeypatch.setattr(training, "initialise", watched)
    found = train_universal_sae(rows, **arguments, state=state)
    assert began == [1]
    assert_same(train_universal_sae(rows, **arguments), found)


def test_a_state_of_the_other_backend_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU that goes on where one without it was killed: their moments have other names."""
    state = tmp_path / "state.safetensors"
    train_universal_sae(activations(), config(), state=state)
    monkeypatch.setattr(UniversalConfig, "is_plain", False)
    trained = train_universal_sae(activations(), config(), state=state)
    assert trained.backend == "autograd"
    assert len(trained.history) == EPOCHS


def test_a_file_of_something_else_is_no_state(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    save_file({"x": torch.ones(2)}, state)
    assert_same(train_universal_sae(activations(), config(), state=state), train_universal_sae(activations(), config()))


@pytest.mark.parametrize("data", [b"", b"no tensors at all"])
def test_a_damaged_state_is_told_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    state = tmp_path / "state.safetensors"
    state.write_bytes(data)
    with pytest.raises(DataError, match=r"state.safetensors is no state of a dictionary in training .*; remove it"):
        train_universal_sae(activations(), config(), state=state)
    assert state.read_bytes() == data
