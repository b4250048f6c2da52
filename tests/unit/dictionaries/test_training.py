import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from triptych.dictionaries import training
from triptych.dictionaries.backends.base import Backend
from triptych.dictionaries.backends.fused import Fused
from triptych.dictionaries.backends.generic import Generic
from triptych.dictionaries.coder import Coder, CoderConfig
from triptych.dictionaries.rows import Moments, PairedRows
from triptych.dictionaries.settings import UniversalConfig
from triptych.dictionaries.sparsifiers import BatchTopK, JumpRelu, Matryoshka, TopK
from triptych.dictionaries.training import Trained, learning_rate, normalisation, train_universal_sae
from triptych.errors import DataError, WorkError
from triptych.progress import progress

WIDTHS = {"a": 10, "b": 8}
N, TRUE_LATENTS = 128, 12


def planted(n: int = N, seed: int = 0, widths: dict[str, int] = WIDTHS) -> dict[str, Tensor]:
    """Every row is a sum of two of twelve directions, the same two in every model."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.zeros(n, TRUE_LATENTS)
    for row in codes:
        row[torch.randperm(TRUE_LATENTS, generator=generator)[:2]] = 1 + torch.rand(2, generator=generator)
    found = {}
    for place, (name, width) in enumerate(widths.items()):
        directions = torch.randn(TRUE_LATENTS, width, generator=torch.Generator().manual_seed(100 + place))
        found[name] = codes @ directions + 3.0
    return found


def config(coder: dict[str, Any] | None = None, **settings: Any) -> UniversalConfig:
    made = CoderConfig(**{"latents": 24, "sparsifier": TopK(k=2)} | (coder or {}))
    usual = {"epochs": 4, "batch_size": 32, "learning_rate": 0.01, "precision": "float32"}
    return UniversalConfig(**usual | {"coder": made} | settings)


def weights(trained: Trained) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in trained.sae.state_dict().values()])


def same(one: Trained, other: Trained) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.shape == theirs.shape and torch.equal(mine, theirs)


# --- What training does -----------------------------------------------------------------------------------------------


WAYS: dict[str, UniversalConfig] = {
    "plain": config(epochs=20),
    "every": config(epochs=20, sources="every"),
    "summed": config(epochs=20, sources="every", code="summed"),
    "source": config(epochs=20, update="source"),
    "free": config({"decoder_norm": "free"}, epochs=20),
    "l1": config(epochs=20, loss="l1"),
    "batch_norm": config({"encoder": "batch_norm"}, epochs=20),
    "batch_top_k": config({"sparsifier": BatchTopK(k=2)}, epochs=20),
    "matryoshka": config({"sparsifier": Matryoshka(k=2)}, epochs=20),
    "jump_relu": config({"sparsifier": JumpRelu(k=2)}, epochs=20),
    "aux_k": config(epochs=20, revival="aux_k"),
    "scalar": config({"normalisation": "scalar"}, epochs=20),
    "no normalisation": config({"normalisation": "none"}, epochs=20),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_loss_falls_on_a_planted_set(name: str) -> None:
    trained = train_universal_sae(planted(), WAYS[name])
    losses = [epoch.loss for epoch in trained.history]
    assert [epoch.epoch for epoch in trained.history] == list(range(1, 21))
    assert [epoch.step for epoch in trained.history] == [4 * epoch for epoch in range(1, 21)]
    # A mean over the first epoch, in which encoders already have the length that explains most.
    assert losses[-1] < 0.8 * losses[0]
    assert not trained.sae.training
    assert trained.seconds > 0
    assert trained.backend == ("kernels" if WAYS[name].is_plain else "autograd")


def test_both_models_are_explained_from_either() -> None:
    """Most of the variance of rows that training has not seen, within and across models."""
    trained = train_universal_sae(planted(), config(epochs=60, final_learning_rate=1e-4))
    held_out = planted(n=128, seed=1)
    for source in WIDTHS:
        for target in WIDTHS:
            rows = held_out[target]
            error = (trained.sae(source, target, held_out[source]) - rows).square().sum()
            assert 1 - float(error.detach() / (rows - rows.mean(0)).square().sum()) > 0.5, (source, target)


def test_jump_relu_fires_about_k_times() -> None:
    trained = train_universal_sae(planted(), config({"sparsifier": JumpRelu(k=3, penalty=1.0)}, epochs=60))
    for name, rows in planted().items():
        assert float((trained.sae.encode(name, rows) > 0).sum(1).float().mean()) == pytest.approx(3.0, abs=1.0)


def test_thresholds_of_jump_relu_stay_above_zero() -> None:
    """Where more latents are asked for than can fire, thresholds below 0 would count ones that do not."""
    settings = config({"sparsifier": JumpRelu(k=24, penalty=10.0)}, epochs=40, learning_rate=0.03)
    trained = train_universal_sae(planted(), settings)
    for name in WIDTHS:
        threshold = trained.sae.coder(name).threshold
        assert threshold.min() == 0.0


@pytest.mark.parametrize("sparsifier", [BatchTopK(k=2), Matryoshka(k=2)], ids=["batch_top_k", "matryoshka"])
def test_thresholds_of_batches_fire_about_k_times(sparsifier: BatchTopK | Matryoshka) -> None:
    # The threshold is a mean over about 100 steps of a model: the first ones must be forgotten.
    trained = train_universal_sae(planted(), config({"sparsifier": sparsifier}, epochs=50, batch_size=8))
    for name, rows in planted().items():
        assert float((trained.sae.encode(name, rows) > 0).sum(1).float().mean()) == pytest.approx(2.0, abs=1.0)


@pytest.mark.parametrize("settings", [config(), config(loss="l1"), config({"encoder": "batch_norm"})])
def test_seeds(settings: UniversalConfig) -> None:
    one = train_universal_sae(planted(), settings, seed=3)
    assert same(one, train_universal_sae(planted(), settings, seed=3))
    assert one.history == train_universal_sae(planted(), settings, seed=3).history
    assert not same(one, train_universal_sae(planted(), settings, seed=4))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    train_universal_sae(planted(), config(revival="aux_k"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_activations_are_left_as_they_are() -> None:
    rows = planted()
    train_universal_sae(rows, config())
    assert all(torch.equal(tensor, planted()[name]) for name, tensor in rows.items())


@pytest.mark.parametrize("convert", [Tensor.double, Tensor.bfloat16, lambda rows: rows.clone().requires_grad_()])
def test_activations_of_any_float_type(convert: Callable[[Tensor], Tensor]) -> None:
    # Unmatched: whether two latents change places may hang on the last bit.
    settings = config(match=False)
    trained = train_universal_sae({name: convert(rows) for name, rows in planted().items()}, settings)
    expected = train_universal_sae(planted(), settings)
    assert trained.history[-1].loss == pytest.approx(expected.history[-1].loss, rel=0.02)


def test_shuffled_pairs_leave_nothing_to_share() -> None:
    """A code of `a` says nothing of the other's row: the loss stays near its variance, and is less where paired."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    settings = config(epochs=15)
    paired = train_universal_sae(planted(), settings)
    shuffled = train_universal_sae(planted(), settings, pairing={"b": order})
    assert shuffled.history[-1].loss > 1.3 * paired.history[-1].loss


def test_a_single_model_is_an_ordinary_autoencoder() -> None:
    trained = train_universal_sae({"a": planted()["a"]}, config(epochs=20))
    assert trained.sae.names == ("a",)
    assert trained.history[-1].loss < 0.5 * trained.history[0].loss


@pytest.mark.parametrize("encoder", ["linear", "batch_norm"])
@pytest.mark.parametrize("n", [31, 32, 33, 64, 65, 97])
def test_a_last_row_alone_joins_the_batch_before(encoder: str, n: int) -> None:
    """33 rows are one batch of 33, 65 are 32 and 33; batch_norm could not normalise one row by itself."""
    rows = PairedRows(planted(n))
    run = training._Run(rows, config({"encoder": encoder}), 0, "cpu", None)
    sizes = [len(batch[0]) for batch in run._batches(0)]
    assert sum(sizes) == n
    assert min(sizes) > 1
    assert len(sizes) == run._steps_of_epoch() == {31: 1, 32: 1, 33: 1, 64: 2, 65: 2, 97: 3}[n]
    assert train_universal_sae(planted(n), config({"encoder": encoder})).history[0].step == len(sizes)


def test_an_epoch_sees_every_row_once_and_in_pairs() -> None:
    run = training._Run(PairedRows(planted()), config(), 0, "cpu", None)
    coders = [run.sae.coder(name) for name in WIDTHS]
    seen = [torch.cat(batches) for batches in zip(*run._batches(0), strict=True)]
    for coder, rows, raw in zip(coders, seen, planted().values(), strict=True):
        torch.testing.assert_close(coder.denormalise(rows).sort(0).values, raw.sort(0).values)
    assert not torch.equal(seen[0], torch.cat([batch[0] for batch in run._batches(1)]))
    first, second = (tensor[:, 0] for tensor in seen)
    stored = [coder.normalise(rows)[:, 0] for coder, rows in zip(coders, planted().values(), strict=True)]
    assert {(float(x), float(y)) for x, y in zip(first, second, strict=True)} == {
        (float(x), float(y)) for x, y in zip(*stored, strict=True)
    }


def test_several_windows_train_as_well() -> None:
    class Shards:
        def __init__(self, rows: Tensor) -> None:
            self._pieces: tuple[Tensor, ...] = rows.split(24)
            self.width = rows.shape[1]
            self.shard_rows = tuple(map(len, self._pieces))

        def read(self, shard: int) -> Tensor:
            return self._pieces[shard]

    stores = {name: Shards(rows) for name, rows in planted().items()}
    windows = train_universal_sae(stores, config(epochs=20), budget_gib=1e-9)
    whole = train_universal_sae(stores, config(epochs=20))
    assert windows.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=0.5)
    assert windows.history[-1].loss < 0.5 * windows.history[0].loss
    # Shards of 24 rows and a last one of 8 are a batch each.
    assert windows.history[0].step == 6
    assert torch.equal(windows.sae.coder("a").mean, whole.sae.coder("a").mean)


# --- Every setting ----------------------------------------------------------------------------------------------------


DEAD = {"latents": 32, "sparsifier": TopK(k=1), "init": "random"}
"""A dictionary some of whose latents die, so that revival has something to do."""

PERTURBED: dict[str, tuple[UniversalConfig, ...]] = {
    "update": (config(update="all"), config(update="source")),
    "sources": (config(sources="one"), config(sources="every")),
    "code": (config(sources="every"), config(sources="every", code="summed")),
    "loss": (config(), config(loss="l1")),
    "epochs": (config(), config(epochs=5)),
    "batch_size": (config(), config(batch_size=33)),
    "learning_rate": (config(), config(learning_rate=0.011)),
    "final_learning_rate": (config(), config(final_learning_rate=0.001)),
    "warm_up": (config(), config(warm_up=0.2)),
    "weight_decay": (config(), config(weight_decay=0.1)),
    "match": (config({"init": "random"}), config({"init": "random"}, match=False)),
    "revival": (config(DEAD), config(DEAD, revival="none")),
    "revival-aux_k": (config(DEAD, revival="aux_k"), config(DEAD, revival="none")),
    "revival-jump_relu": tuple(
        config({"sparsifier": JumpRelu(k=1, threshold=3.0)}, revival=kind) for kind in ("aux_k", "none")
    ),
    "aux_coefficient": (config(DEAD, revival="aux_k"), config(DEAD, revival="aux_k", aux_coefficient=1.0)),
    "aux_k": (config(DEAD, revival="aux_k"), config(DEAD, revival="aux_k", aux_k=1)),
    "precision": (config(), config(precision="bfloat16")),
    "precision-autograd": (config(loss="l1"), config(loss="l1", precision="bfloat16")),
    "coder": (config(), config({"latents": 25})),
    "coder.latents": (config(), config({"latents": 25})),
    "coder.sparsifier": (config(), config({"sparsifier": TopK(k=3)})),
    "coder.sparsifier-batch": (config(loss="l1"), config({"sparsifier": BatchTopK(k=2)}, loss="l1")),
    "coder.sparsifier-matryoshka": (config({"sparsifier": BatchTopK(k=2)}), config({"sparsifier": Matryoshka(k=2)})),
    "coder.sparsifier-prefixes": tuple(
        config({"sparsifier": Matryoshka(k=2, prefixes=one)}) for one in ((0.5,), (0.25,))
    ),
    "coder.sparsifier-penalty": tuple(config({"sparsifier": JumpRelu(k=2, penalty=one)}) for one in (0.1, 5.0)),
    "coder.sparsifier-threshold": tuple(config({"sparsifier": JumpRelu(k=2, threshold=one)}) for one in (0.5, 0.6)),
    "coder.sparsifier-k": tuple(config({"sparsifier": JumpRelu(k=k)}) for k in (2, 3)),
    "coder.encoder": (config(loss="l1"), config({"encoder": "batch_norm"}, loss="l1")),
    "coder.decoder_norm": (config(), config({"decoder_norm": "unit"})),
    "coder.normalisation": (config(), config({"normalisation": "scalar"})),
    "coder.normalisation-none": (config(), config({"normalisation": "none"})),
    "coder.init": (config(), config({"init": "random"})),
}


def test_no_setting_is_left_out_below() -> None:
    tested = {name.partition("-")[0] for name in PERTURBED}
    assert tested == {*UniversalConfig.model_fields} | {f"coder.{name}" for name in CoderConfig.model_fields}


@pytest.mark.parametrize("name", PERTURBED)
def test_every_setting_changes_something(name: str) -> None:
    one, other = PERTURBED[name]
    assert not same(train_universal_sae(planted(), one), train_universal_sae(planted(), other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code": "summed"}, "all models"),
        (
            {"code": "summed", "sources": "every", "coder": CoderConfig(sparsifier=BatchTopK())},
            "needs the sparsifier top_k",
        ),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"learning_rate": math.inf}, "finite"),
        ({"final_learning_rate": 0.0}, "greater than 0"),
        ({"warm_up": 1.0}, "less than 1"),
        ({"weight_decay": -0.1}, "greater than or equal to 0"),
        ({"aux_k": 0}, "greater than or equal to 1"),
        ({"aux_coefficient": 0.0}, "greater than 0"),
        ({"update": "none"}, "'source' or 'all'"),
        ({"precision": "float16"}, "'auto', 'float32' or 'bfloat16'"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UniversalConfig(**settings)


def test_what_kernels_can_do() -> None:
    assert UniversalConfig().is_plain
    for other in (
        config(loss="l1"),
        config(revival="aux_k"),
        config({"encoder": "batch_norm"}),
        config({"sparsifier": JumpRelu(k=2)}),
        config({"sparsifier": Matryoshka(k=2)}),
    ):
        assert not other.is_plain


# --- The rate, the scales ---------------------------------------------------------------------------------------------


def test_a_constant_rate() -> None:
    assert [learning_rate(config(learning_rate=0.5), step, 10) for step in range(10)] == [0.5] * 10


def test_a_rate_that_rises_and_falls() -> None:
    """Ten steps, a fifth of which rise: 0.5 and 1; then eight of a cosine from 1 towards 0.2.

    0.2 + 0.8 · (1 + cos(π s / 8)) / 2 for s = 0, ..., 7: 1 at its start, 0.6 half-way, and 0.2 just after the end.
    """
    settings = config(learning_rate=1.0, final_learning_rate=0.2, warm_up=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.6)
    assert rates[10] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert all(one > other for one, other in itertools.pairwise(rates[2:]))


def test_a_rise_over_part_of_a_step() -> None:
    """0.25 · 10 = 2.5 steps: three rise, by thirds."""
    rates = [learning_rate(config(learning_rate=3.0, warm_up=0.25), step, 10) for step in range(5)]
    assert rates == [1.0, 2.0, 3.0, 3.0, 3.0]


def test_steps_beyond_the_last_keep_the_final_rate() -> None:
    settings = config(learning_rate=1.0, final_learning_rate=0.2)
    assert learning_rate(settings, 25, 10) == pytest.approx(0.2)
    assert learning_rate(settings, 0, 1) == 1.0


def moments(*columns: list[float]) -> Moments:
    rows = torch.tensor(columns, dtype=torch.float64).T
    return Moments(rows.mean(0), rows.var(0, unbiased=False))


def test_normalisation_by_feature() -> None:
    """1, 3 and 0, 8: means 2 and 4, deviations 1 and 4."""
    mean, scale = normalisation(moments([1.0, 3.0], [0.0, 8.0]), "feature")
    assert (mean.tolist(), scale.tolist()) == ([2.0, 4.0], [1.0, 4.0])
    assert mean.dtype == scale.dtype == torch.float32


def test_normalisation_by_model() -> None:
    """1, 3, 0, 8 together: mean 3, variance (4 + 0 + 9 + 25) / 4 = 9.5."""
    mean, scale = normalisation(moments([1.0, 3.0], [0.0, 8.0]), "scalar")
    assert mean.tolist() == [3.0, 3.0]
    assert scale.tolist() == pytest.approx([math.sqrt(9.5)] * 2)


def test_no_normalisation() -> None:
    mean, scale = normalisation(moments([1.0, 3.0], [0.0, 8.0]), "none")
    assert (mean.tolist(), scale.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("value", [0.0, 5.0, 1e6, 0.1, -3e4])
def test_a_feature_that_never_varies_has_scale_one(value: float) -> None:
    rows = PairedRows({"a": torch.full((1000, 3), value)})
    mean, scale = normalisation(rows.moments()[0], "feature")
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert mean.tolist() == pytest.approx([value] * 3)


def test_a_feature_that_hardly_varies_keeps_its_scale() -> None:
    _, scale = normalisation(moments([1000.0, 1000.2], [1e-9, 3e-9]), "feature")
    assert scale.tolist() == pytest.approx([0.1, 1e-9])


def test_the_scales_of_a_dictionary_are_those_of_its_rows() -> None:
    trained = train_universal_sae(planted(), config())
    for name, rows in planted().items():
        coder = trained.sae.coder(name)
        normalised = coder.normalise(rows)
        torch.testing.assert_close(normalised.mean(0), torch.zeros(coder.width), atol=1e-5, rtol=0)
        torch.testing.assert_close(normalised.std(0, unbiased=False), torch.ones(coder.width))


# --- Who learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Generic, Fused])
@pytest.mark.parametrize("update", ["source", "all"])
def test_who_learns_from_a_step(make: type[Backend], update: str) -> None:
    """A step from `a` alone: its own encoder and decoder move, the decoder of `b` with `all`, its encoder never."""
    settings = config(update=update, weight_decay=0.1)
    run = training._Run(PairedRows(planted()), settings, 0, "cpu", None)
    backend = make(run.sae, settings, torch.float32)  # type: ignore[call-arg]
    before = {name: tensor.clone() for name, tensor in run.sae.state_dict().items()}
    backend.step(next(run._batches(0)), [0], 0.01)
    moved = {name for name, tensor in run.sae.state_dict().items() if not torch.equal(tensor, before[name])}
    both = {f"coders.0.{part}_{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias")}
    others = {"coders.1.decoder_weight", "coders.1.decoder_bias"}
    assert moved == (both | others if update == "all" else both)


@pytest.mark.parametrize("make", [Generic, Fused])
def test_the_loss_of_a_step_by_hand(make: type[Backend]) -> None:
    """A mean over sources of the sum over targets of the mean squared error, before the step."""
    settings = config(sources="every")
    run = training._Run(PairedRows(planted()), settings, 0, "cpu", None)
    batch = next(run._batches(0))
    coders = [run.sae.coder(name) for name in WIDTHS]
    expected = 0.0
    with torch.no_grad():
        for source, rows in zip(coders, batch, strict=True):
            codes = source.sparsify(source.pre_codes(rows))
            expected += (
                sum(float((c.reconstruct(codes) - r).square().mean()) for c, r in zip(coders, batch, strict=True)) / 2
            )
    backend = make(run.sae, settings, torch.float32)  # type: ignore[call-arg]
    assert float(backend.step(batch, [0, 1], 0.01)) == pytest.approx(expected, rel=1e-5)


# --- Dead latents -----------------------------------------------------------------------------------------------------


def by_encoder(coder: Coder) -> None:
    coder.encoder_bias[:5] = -1e6


def by_threshold(coder: Coder) -> None:
    coder.threshold[:5] = 1e6


def by_norm(coder: Coder) -> None:
    assert isinstance(coder.norm, torch.nn.BatchNorm1d)
    coder.norm.bias[:5] = -1e6


KILLED: dict[str, tuple[UniversalConfig, Callable[[Coder], None]]] = {
    "kernels": (config(epochs=10, match=False), by_encoder),
    "autograd": (config(epochs=10, match=False, loss="l1"), by_encoder),
    "summed": (config(epochs=10, match=False, sources="every", code="summed"), by_encoder),
    "batch_top_k": (config({"sparsifier": BatchTopK(k=2)}, epochs=10, match=False), by_encoder),
    "matryoshka": (config({"sparsifier": Matryoshka(k=2)}, epochs=10, match=False), by_encoder),
    "jump_relu": (config({"sparsifier": JumpRelu(k=2)}, epochs=10, match=False), by_threshold),
    "batch_norm": (config({"encoder": "batch_norm"}, epochs=10, match=False), by_norm),
}


def run_of(settings: UniversalConfig, kill: Callable[[Coder], None], epochs: int) -> training._Run:
    run = training._Run(PairedRows(planted()), settings, 0, "cpu", None)
    with torch.no_grad():
        for name in WIDTHS:
            kill(run.sae.coder(name))
    run.backend.reload()
    with progress(None, "rows", "training", enabled=False) as meter:
        for _ in range(epochs):
            run.epoch(meter)
    return run


@pytest.mark.parametrize("name", KILLED)
def test_dead_latents_begin_again(name: str) -> None:
    """Whatever they died of. Five cannot fire in the first epoch, most can in the later ones."""
    settings, kill = KILLED[name]
    dead = [epoch.dead for epoch in run_of(settings, kill, 4).history]
    assert dead[0] >= 5
    assert dead[-1] <= 2


@pytest.mark.parametrize("name", KILLED)
def test_dead_latents_stay_dead_without_revival(name: str) -> None:
    settings, kill = KILLED[name]
    settings = settings.model_copy(update={"revival": "none"})
    assert min(epoch.dead for epoch in run_of(settings, kill, 4).history) >= 5


def test_latents_are_left_alone_in_the_last_fifth() -> None:
    """Of five epochs the first three are followed by revival: 4 of 5 are the share of 0.8."""
    revived: list[int] = []
    settings = config(epochs=5, learning_rate=1e-9)
    run = training._Run(PairedRows(planted()), settings, 0, "cpu", None)
    run._revive = lambda idle, epoch: revived.append(epoch)  # type: ignore[method-assign]
    with torch.no_grad():
        for name in WIDTHS:
            by_encoder(run.sae.coder(name))
    run.backend.reload()
    with progress(None, "rows", "training", enabled=False) as meter:
        for _ in range(5):
            run.epoch(meter)
    assert revived == [1, 2, 3]


def test_what_is_born_is_an_error_of_one_image_in_all_models() -> None:
    """Unit decoder rows, encoder rows of half the living ones' mean length, no bias, no moments."""
    settings = config()
    run = training._Run(PairedRows(planted()), settings, 0, "cpu", None)
    rows = [coder.normalise(one) for coder, one in zip(run._coders, planted().values(), strict=True)]
    run.sae.eval()
    with torch.no_grad():
        errors = [r - c.reconstruct(c.sparsify(c.pre_codes(r))) for c, r in zip(run._coders, rows, strict=True)]
        lengths = [c.encoder_weight[3:].norm(dim=1).mean() * training.REVIVED_LENGTH for c in run._coders]
    run.backend.step([one[:32] for one in rows], [0], 0.0)
    run._revive(torch.arange(24) < 3, 1)
    images = []
    for coder, error, length in zip(run._coders, errors, lengths, strict=True):
        cosines = torch.nn.functional.normalize(error, dim=1) @ coder.decoder_weight[:3].T
        best = cosines.max(0)
        assert best.values.min() > 0.9999
        images.append(best.indices.tolist())
        torch.testing.assert_close(coder.encoder_weight[:3], length * coder.decoder_weight[:3])
        assert not coder.encoder_bias[:3].any()
    assert images[0] == images[1]
    assert len(set(images[0])) == 3
    for name, tensor in run.backend.moments().items():
        if "exp_avg" in name and "decoder_bias" not in name:
            assert not tensor[:3].any()
    assert run.sae.training


def test_more_dead_latents_than_images_is_fine() -> None:
    settings = config({"latents": 200, "sparsifier": TopK(k=1)})
    assert len(train_universal_sae(planted(10), settings).history) == 4


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_activations_that_never_vary_are_no_error(loss: str) -> None:
    """Nothing fires and nothing is left to explain: there is no image to begin again in."""
    rows = {"a": torch.ones(64, 4), "b": torch.full((64, 3), 7.0)}
    trained = train_universal_sae(rows, config(loss=loss))
    assert [epoch.loss for epoch in trained.history] == [0.0] * 4
    assert [epoch.dead for epoch in trained.history] == [24] * 4


# --- What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"loss": "l1"}, {"coder": {"decoder_norm": "free"}}])
@pytest.mark.parametrize("rate", [1e20, 1e30])
def test_a_loss_that_is_no_number_is_told(settings: dict[str, Any], rate: float) -> None:
    with pytest.raises(WorkError, match=r"the loss became (nan|inf) in epoch 1; lower learning_rate or use precision"):
        train_universal_sae(planted(), config(**settings, learning_rate=rate))


def test_rows_that_do_not_correspond_are_told() -> None:
    with pytest.raises(DataError, match="'a' has 128 rows and 'b' 127"):
        train_universal_sae({"a": planted()["a"], "b": planted()["b"][1:]}, config())


def test_no_models_are_told() -> None:
    with pytest.raises(DataError, match="at least one model"):
        train_universal_sae({}, config())


def test_rows_that_are_not_finite_are_told() -> None:
    rows = planted()
    rows["b"][7, 2] = math.nan
    with pytest.raises(DataError, match=r"activations of 'b' are not finite \(row 7 of shard 0\)"):
        train_universal_sae(rows, config())
