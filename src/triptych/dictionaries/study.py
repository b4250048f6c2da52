"""The interpretation panel: from a configuration to `dictionaries/` in a run directory.

    interpret.backbones     backbones/resnet, backbones/vit      where they are trained on the spot
    interpret.activations   activations/{train,test}/<model>/; matrices.json and activations/labels.parquet of matrices
    interpret.training      <dictionary>/config.json, model.safetensors; dictionaries.json
    interpret.measuring     <dictionary>/metrics.json, features.parquet, agreement.parquet; measures.json
    interpret.pictures      universal/images/, tops.parquet, thumbnails.parquet

Each is a stage that is done once; the first three keep what they have finished over a kill. Not here: what is trained
(`arms`), a training step (`training`), the figures (`measures`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from triptych.data.images import Factor, ImageSplit, load_images
from triptych.dictionaries.arms import Arm, arms
from triptych.dictionaries.backbones import train_backbones
from triptych.dictionaries.coder import UniversalSAE
from triptych.dictionaries.codes import read_rows
from triptych.dictionaries.extraction import extract
from triptych.dictionaries.matrix_stores import RowNames, check_matrices, copy_matrices, open_matrices, stored_factors
from triptych.dictionaries.measures import (
    Facts,
    SelfR2,
    agreement_records,
    agreement_table,
    agreements,
    facts_of,
    feature_table,
    labels_of,
    matching_records,
    metrics_of,
    over_seeds,
    records_of,
    tax_records,
)
from triptych.dictionaries.pictures import LatentFeatures, Pick, pick_latents, write_pictures
from triptych.dictionaries.plan import DictionariesConfig, SiteConfig
from triptych.dictionaries.reconstruction import r_squared
from triptych.dictionaries.records import (
    FOLDER,
    MAIN,
    MEASURES,
    TRAINED,
    DictionaryRecord,
    MatrixRecord,
    TrainedRecord,
)
from triptych.dictionaries.rows import PairedRows
from triptych.dictionaries.store import ActivationStore, matching_rows
from triptych.dictionaries.tops import top_table, write_top_table, write_tops
from triptych.dictionaries.training import Trained, train_universal_sae
from triptych.dictionaries.visualisation import Driven, MaximisationConfig, maximise
from triptych.files import atomic_path, atomic_write_json, read_records_json, write_records_json
from triptych.models.loading import resolve_device
from triptych.models.vision import VisionModel, load_vision_model, resolve_vision_source
from triptych.progress import progress
from triptych.runs import RunDirectory
from triptych.seeding import generator, stream_key

BACKBONES, ACTIVATIONS = f"{FOLDER}/backbones", f"{FOLDER}/activations"
FEATURES, AGREEMENT, METRICS, RECORD = "features.parquet", "agreement.parquet", "metrics.json", "training.json"
STATE = "state.safetensors"


class Interpretation(NamedTuple):
    """What all stages of the panel share."""

    config: DictionariesConfig
    device: str
    seed: int
    run: RunDirectory
    show_progress: bool
    checked: tuple[MatrixRecord, ...] = ()
    """The matrices that were given, if any, once their values have been read."""

    def images(self) -> ImageSplit:
        config = self.config
        return load_images(
            config.images,
            test_source=config.test_images,
            limit=config.limit,
            test_limit=config.test_limit,
            test_share=config.test_share,
            seed=self.seed,
        )

    def models(self) -> dict[str, VisionModel]:
        """All models, the trained backbones first."""
        config, own = self.config, self.run.path / BACKBONES
        trained = {name: SiteConfig(source=str(own / name)) for name in config.names if name not in config.models}
        return {
            name: load_vision_model(
                site.source,
                site=site.site,
                pooling=site.pooling,
                grid=config.grid,
                dtype=config.dtype,
                device=self.device,
            )
            for name, site in {**trained, **config.models}.items()
        }

    @property
    def has_images(self) -> bool:
        """Whether rows are of images, and not of matrices that were given."""
        return self.config.matrices is None

    def factors(self) -> Mapping[str, Factor]:
        """What is labelled, by the number of a held-out image or row."""
        return self.images().test.factors if self.has_images else stored_factors(self.activations)

    def folder(self, arm: Arm) -> Path:
        return self.run.path / FOLDER / arm.name

    def stores(self, split: str) -> dict[str, ActivationStore]:
        base = self.activations / split
        stores = {name: ActivationStore.open(base / name) for name in self.config.names}
        matching_rows(stores)
        return stores

    @property
    def activations(self) -> Path:
        own = self.config.activations
        return self.run.path / ACTIVATIONS if own is None else Path(own).expanduser()


def run_interpretation(panel: Interpretation) -> bool:
    """Runs the panel's stages that are not done yet; whether there were any.

    Raises an `InputError` for images, models and settings that cannot be used, as far as that can be told before
    anything is made.
    """
    is_copied = panel.run.is_done("interpret.activations")
    if not panel.has_images:
        checked = check_matrices(panel.config, panel.run.path, panel.seed, is_copied=is_copied)
        panel = panel._replace(checked=tuple(checked))
    elif not is_copied:
        # Before backbones are trained for a minute.
        panel.images()
        for site in panel.config.models.values():
            resolve_vision_source(site.source)
    return panel.run.work_through({stage: partial(work, panel) for stage, work in STAGES.items()})


# --- Activations ------------------------------------------------------------------------------------------------------


def _backbones(panel: Interpretation) -> None:
    if panel.config.backbones is not None:
        folder = panel.run.path / BACKBONES
        train_backbones(
            panel.images(),
            panel.config.backbones,
            folder,
            seed=panel.seed,
            device=panel.device,
            show_progress=panel.show_progress,
        )


def _activations(panel: Interpretation) -> None:
    if not panel.has_images:
        opened = open_matrices(panel.config, panel.seed)
        copy_matrices(opened, panel.checked, panel.run.path, panel.activations, show_progress=panel.show_progress)
        return
    images, models = panel.images(), panel.models()
    for split, chosen in images._asdict().items():
        extract(
            chosen,
            models,
            panel.activations / split,
            on_corrupt=panel.config.on_corrupt,
            show_progress=panel.show_progress,
        )


# --- Training ---------------------------------------------------------------------------------------------------------


def _train(panel: Interpretation) -> None:
    stores = panel.stores("train")
    whole: dict[str, Any] = {name: store.load() if _fits(stores) else store for name, store in stores.items()}
    planned = arms(panel.config)
    records = []
    for number, arm in enumerate(planned, start=1):
        path = panel.folder(arm) / RECORD
        if not path.is_file():
            reads = {called: whole[read] for called, read in zip(arm.models, arm.reads, strict=True)}
            trained = train_universal_sae(
                reads,
                arm.config,
                seed=stream_key(panel.seed, "dictionary", arm.seed),
                device=panel.device,
                state=panel.folder(arm) / STATE,
                pairing=_pairing(panel, arm, next(iter(stores.values())).n_rows),
                show_progress=panel.show_progress,
                description=f"training {arm.name} ({number} of {len(planned)})",
            )
            _finish(panel, arm, trained)
        records += read_records_json(path, TrainedRecord)
    write_records_json(panel.run.path / TRAINED, records)


def _fits(stores: Mapping[str, ActivationStore], budget: int = 4 * 2**30) -> bool:
    """Whether activations are read once for all dictionaries."""
    return 4 * sum(store.n_rows * store.width for store in stores.values()) <= budget


def _pairing(panel: Interpretation, arm: Arm, n_rows: int) -> dict[str, Tensor] | None:
    """Rows of all models but the first in another order, where images are not to correspond."""
    if not arm.is_shuffled:
        return None
    orders = {name: generator(panel.seed, "pairing", name).permutation(n_rows) for name in arm.models[1:]}
    return {name: torch.from_numpy(order) for name, order in orders.items()}


def _finish(panel: Interpretation, arm: Arm, trained: Trained) -> None:
    folder, last = panel.folder(arm), trained.history[-1]
    trained.sae.save(folder)
    for epoch in trained.history:
        panel.run.metric(f"dictionaries.{arm.name}", epoch.step, loss=epoch.loss, dead=float(epoch.dead))
    record = TrainedRecord(
        name=arm.name,
        role=arm.role,
        seed=arm.seed,
        models=arm.models,
        latents=arm.config.coder.latents,
        k=arm.config.coder.sparsifier.k,
        update=arm.config.update,
        steps=last.step,
        samples=arm.config.epochs * trained.n_rows,
        loss=last.loss,
        seconds=round(trained.seconds, 3),
    )
    # Last: a folder that has it is whole.
    write_records_json(folder / RECORD, [record])
    (folder / STATE).unlink(missing_ok=True)


# --- Measuring --------------------------------------------------------------------------------------------------------


def _measure(panel: Interpretation) -> None:
    factors, stores, planned = panel.factors(), panel.stores("test"), arms(panel.config)
    whole: dict[str, Any] = {name: store.load() if _fits(stores) else store for name, store in stores.items()}
    of_rows = next(iter(stores.values())).images_of_rows().numpy()
    losses = {one.name: one.loss for one in read_records_json(panel.run.path / TRAINED, TrainedRecord)}
    records: list[DictionaryRecord] = []
    alone: dict[tuple[str, int, str], float] = {}
    with progress(len(planned), "dictionaries", "measuring", enabled=panel.show_progress) as meter:
        # Independent ones first: the shared ones are compared with them.
        for arm in sorted(planned, key=lambda one: len(one.models) > 1):
            sae = UniversalSAE.load(panel.folder(arm)).to(torch.device("cpu"))
            reads = {called: whole[read] for called, read in zip(arm.models, arm.reads, strict=True)}
            rows = PairedRows(reads, pairing=_pairing(panel, arm, len(of_rows)))
            facts = facts_of(
                sae,
                read_rows(sae, rows, summed=arm.is_summed),
                of_rows,
                threshold=panel.config.firing_threshold,
            )
            metrics = metrics_of(facts, losses[arm.name])
            if len(arm.models) == 1:
                alone[arm.role, arm.seed, arm.models[0]] = r_squared(
                    facts.reading.errors[0, 0], facts.reading.spread[0]
                )
            records += records_of(arm.role, arm.seed, facts, metrics)
            if arm.role == "universal":
                records += _compare(panel, arm, sae, facts, metrics, alone)
            labels = None
            if arm.role in ("universal", "other_update", "sparc") and factors:
                found = agreements(facts, factors, np.unique(of_rows))
                records += agreement_records(arm.role, arm.seed, facts, found)
                labels = labels_of(facts, found)
                _write_table(panel.folder(arm) / AGREEMENT, agreement_table(facts, found))
            _write_table(panel.folder(arm) / FEATURES, feature_table(facts, labels))
            atomic_write_json(panel.folder(arm) / METRICS, metrics)
            meter.advance()
    write_records_json(panel.run.path / MEASURES, [*over_seeds(records), *records])


def _compare(
    panel: Interpretation,
    arm: Arm,
    sae: UniversalSAE,
    facts: Facts,
    metrics: dict[str, Any],
    alone: Mapping[tuple[str, int, str], float],
) -> list[DictionaryRecord]:
    """What sharing costs, and whether the same latents are found alone; fills the tax into the metrics."""
    own = {
        name: SelfR2(
            alone.get(("independent", arm.seed, name)), alone.get(("independent_equal_updates", arm.seed, name))
        )
        for name in arm.models
    }
    taxes = [*tax_records(arm.seed, facts, own)]
    found = {one.source: one.estimate.mean for one in taxes if one.metric == "alignment_tax"}
    metrics["alignment_tax"] = found or None
    folders = {name: panel.run.path / FOLDER / _alone_folder(name, arm.seed) for name in arm.models}
    trained = {name: UniversalSAE.load(folder) for name, folder in folders.items() if folder.is_dir()}
    return [*taxes, *matching_records(arm.seed, facts, sae, trained)]


def _alone_folder(model: str, seed: int) -> str:
    return f"independent.{model}" if seed == 0 else f"independent.{model}.seed{seed}"


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def _pictures(panel: Interpretation) -> None:
    wanted = panel.config.pictures
    if wanted is None:
        return
    folder = panel.run.path / FOLDER / MAIN
    stores = panel.stores("test")
    sae = UniversalSAE.load(folder).to(resolve_device(panel.device))
    rows = PairedRows(dict(stores))
    codes = dict(zip(sae.names, read_rows(sae, rows).codes, strict=True))
    features = _features(folder, sae.names)
    of_rows = next(iter(stores.values())).images_of_rows().numpy()
    live = np.flatnonzero(np.sum(list(features.fires.values()), axis=0)).tolist()
    if not panel.has_images:
        write_top_table(folder, top_table(codes, live, of_rows, RowNames(int(of_rows.max()) + 1, panel.factors())))
        return
    images, models = panel.images().test, panel.models()
    write_tops(folder, codes, live, of_rows, images, show_progress=panel.show_progress)
    picks = pick_latents(features, universal=wanted.universal, specific=wanted.specific)
    driven = _maximised(panel, wanted.maximisation, models, sae, picks)
    write_pictures(folder, picks, features, models, codes, of_rows, images, maximised=driven, n_top=wanted.top)


def _maximised(
    panel: Interpretation,
    settings: MaximisationConfig | None,
    models: Mapping[str, VisionModel],
    sae: UniversalSAE,
    picks: Sequence[Pick],
) -> dict[str, Driven] | None:
    """What drives the picked latents, model by model; None where that is not asked for or there is none."""
    if settings is None or not picks:
        return None
    return maximise(
        models,
        sae,
        [pick.latent for pick in picks],
        settings,
        stream=stream_key(panel.seed, "maximisation"),
        device=sae.coder(sae.names[0]).mean.device,
        show_progress=panel.show_progress,
    )


def _features(folder: Path, names: tuple[str, ...]) -> LatentFeatures:
    table = pq.read_table(folder / FEATURES)

    def column(name: str) -> Any:
        return table[name].to_numpy(zero_copy_only=False)

    labels = zip(table["label"].to_pylist(), table["label_auroc"].to_pylist(), strict=True)
    best = {at: f"{text} (AUROC {auroc:.2f})" for at, (text, auroc) in enumerate(labels) if text is not None}
    return LatentFeatures(
        entropy=column("firing_entropy").astype(np.float64),
        universal=column("kind") == "universal",
        specific_to=table["specific_to"].to_pylist(),
        fires={name: column(f"fires_{name}") for name in names},
        co_fires=column("co_fires"),
        energy={name: column(f"energy_{name}") for name in names},
        best=best,
    )


STAGES: dict[str, Callable[[Interpretation], None]] = {
    "interpret.backbones": _backbones,
    "interpret.activations": _activations,
    "interpret.training": _train,
    "interpret.measuring": _measure,
    "interpret.pictures": _pictures,
}
