"""Tables of the interpretation panel: counts of latents, training and matching, factors, latents, backbones, costs.

Not here: tables 5 and 6 of the paper (`triptych.reports.dictionaries_paper`).
"""

import numpy as np

from triptych.dictionaries.records import MAIN, BackboneRecord, TrainedRecord
from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.alignment_inputs import plain
from triptych.reports.auditing_inputs import shown_name
from triptych.reports.auditing_tables import INTERVAL, audit_cell
from triptych.reports.dictionaries_glossary import describe_measure, role_name
from triptych.reports.dictionaries_inputs import Class, Dictionaries, Key, Latents
from triptych.reports.reported import reported
from triptych.reports.tables import Cell, Column, Table, Value, estimate_values, to_csv

PRINTED = "as printed, no interval given"
NOTHING = Cell("–", kind="none")
ESTIMATE_HEADER = ("value", "low", "high", "n", "clusters", "unscored", "method")
COUNTS = (
    "universal",
    "partial",
    "specific",
    "dead",
    "confirmed",
    "universal_by_counts",
    "specific_by_counts",
    "co_firing_proportion",
    "co_firing_chance",
)
SHARED_ROLES = (MAIN, "other_update", "sparc", "shuffled", "same")
QUALITY = ("loss", "l0", "co_firing", "matching_cosine", "matched")
MAX_LATENTS = 8
"""Of each class in the page; features.parquet has all."""
PAPER_COUNTS = {
    "universal_by_counts": "usae.universal_features",
    "specific_by_counts": "usae.specific_features",
    "co_firing_proportion": "usae.co_firing_proportion",
}


def head(metric: str) -> Column:
    """The head of a column of one measure."""
    info = describe_measure(metric)
    return Column(info.label, info.unit, numeric=True)


def measures_csv(run: Dictionaries) -> bytes:
    """`dictionaries_measures.csv`: all measures of all dictionaries, one a row; no seed is over all seeds."""
    header = ["role", "metric", "seed", "source", "target", "factor", *ESTIMATE_HEADER]
    rows = [
        [r.role, r.metric, r.seed, r.source, r.target, r.factor, *estimate_values(r.estimate)] for r in run.measures
    ]
    return to_csv(header, rows)


def count_in_words(estimate: Estimate) -> str:
    """`110 [104, 116]` for sentences: a mean of counts has no thousandths."""
    return fmt.with_interval(estimate, _count_decimals(estimate))


def _count_cell(metric: str, estimate: Estimate | None) -> Cell:
    if estimate is None or estimate.mean is None or metric.startswith("co_firing"):
        return audit_cell(estimate)
    decimals = _count_decimals(estimate)
    return Cell(fmt.value(estimate, decimals), fmt.interval(estimate, decimals))


def _count_decimals(estimate: Estimate) -> int:
    return 0 if estimate.value >= 10 or (estimate.value.is_integer() and estimate.low is None) else 1


def named_role(run: Dictionaries, role: str) -> str:
    """What a role is called in this run."""
    return role_name(role, dict(run.updates()), run.unit)


# --- Latents ----------------------------------------------------------------------------------------------------------


def counts_table(run: Dictionaries) -> Table:
    """How many latents are universal, specific and dead in every dictionary that models share, and the paper's."""
    metrics = [metric for metric in COUNTS if any(row.metric == metric for row in run.measures)]
    rows = [
        (Cell(named_role(run, role)), *(_count_cell(metric, run.estimate(Key(role, metric))) for metric in metrics))
        for role in SHARED_ROLES
        if any(run.estimate(Key(role, metric)) is not None for metric in metrics)
    ]
    rows.append((Cell("Paper", PRINTED), *(_paper_count(metric) for metric in metrics)))
    latents = f"How many of {run.main.latents:,} latents" if run.main is not None else "How many latents"
    caption = f"{latents} are universal and specific, and co-firing: value and {INTERVAL}, beside the paper’s"
    return Table("dictionaries-counts", caption, (Column("Dictionary"), *map(head, metrics)), tuple(rows))


def _paper_count(metric: str) -> Cell:
    key = PAPER_COUNTS.get(metric)
    if key is None:
        return NOTHING
    value = reported().number(key)
    return Cell(fmt.number(value, 0 if isinstance(value, int) else 4), "" if value < 1 else f"of {_paper_latents()}")


def _paper_latents() -> str:
    return fmt.number(reported().number("usae.latents"), 0)


def latents_table(run: Dictionaries) -> Table | None:
    """The latents whose pictures are shown, then those that labels tell the most about; None without features."""
    latents = run.latents
    if latents is None or not latents.n_live:
        return None
    rows = tuple(_latent_row(run, latents, index) for index in _chosen(run, latents))
    columns = (
        Column("Latent"),
        Column("firing entropy", numeric=True),
        *(Column(f"fires: {run.named(model)}", "held-out rows", numeric=True) for model in latents.fires),
        Column("co-fires", "by chance", numeric=True),
        Column("best label", "AUROC", numeric=True),
    )
    caption = "Some latents of the shared dictionary: those in the pictures, then those that labels tell the most about"
    return Table("dictionaries-latents", caption, columns, rows)


def _chosen(run: Dictionaries, latents: Latents) -> list[int]:
    """Rows of the table, as places in the arrays."""
    shown = [latent.latent for kind in ("universal", "specific") if (latent := run.pictured(kind)) is not None]
    chosen = [int(place) for number in shown for place in np.flatnonzero(latents.numbers == number)]
    classes: tuple[Class, ...] = ("universal", "specific")
    for name in classes:
        own = np.flatnonzero(latents.of_class(name) & ~np.isnan(latents.label_aurocs))
        best = own[np.argsort(-latents.label_aurocs[own], kind="stable")]
        chosen += [int(place) for place in best[:MAX_LATENTS]]
    return list(dict.fromkeys(chosen))


def _latent_row(run: Dictionaries, latents: Latents, index: int) -> tuple[Cell, ...]:
    chance = latents.chances[index]
    entropy = latents.entropies[index]
    confirmed = "; confirmed" if latents.confirmed[index] else ""
    return (
        Cell(str(latents.numbers[index]), _class_name(latents, index)),
        NOTHING if np.isnan(entropy) else Cell(fmt.number(float(entropy), 3)),
        *(Cell(fmt.number(int(fires[index]), 0)) for fires in latents.fires.values()),
        Cell(
            fmt.number(int(latents.co_fires[index]), 0),
            "" if np.isnan(chance) else f"{fmt.number(float(chance), 1)}{confirmed}",
        ),
        _label_cell(latents, index),
    )


def _class_name(latents: Latents, index: int) -> str:
    if latents.dead[index]:
        return "dead"
    classes: tuple[Class, ...] = ("universal", "specific")
    name = next((name for name in classes if latents.of_class(name)[index]), "partial")
    owner = latents.owner(index)
    return name if owner is None else f"{name} to {shown_name(owner)}"


def _label_cell(latents: Latents, index: int) -> Cell:
    label, auroc = latents.labels[index], latents.label_aurocs[index]
    if label is None:
        return Cell("no label", kind="none")
    return Cell(shown_name(label), "" if np.isnan(auroc) else fmt.number(float(auroc), 3))


# --- Training, matching, factors --------------------------------------------------------------------------------------


def quality_table(run: Dictionaries) -> Table | None:
    """Loss, sparsity, co-firing and matching, one column a role; None where nothing of it was measured."""
    lines = [
        (metric, model)
        for metric in QUALITY
        for model in (None, *run.models)
        if any(_quality(run, role, metric, model) is not None for role in run.roles)
    ]
    roles = [role for role in run.roles if any(_quality(run, role, *line) is not None for line in lines)]
    if not lines:
        return None
    rows = tuple(
        (
            _measure_cell(run, metric, model),
            *(_or_nothing(_quality(run, role, metric, model)) for role in roles),
            Cell(fmt.number(reported().number("usae.final_loss"), 3)) if metric == "loss" else NOTHING,
        )
        for metric, model in lines
    )
    columns = (
        Column("Measure"),
        *(Column(named_role(run, role), numeric=True) for role in roles),
        Column("Paper", PRINTED, numeric=True),
    )
    return Table("dictionaries-quality", f"Loss, sparsity and matching: value and {INTERVAL}", columns, rows)


def _quality(run: Dictionaries, role: str, metric: str, model: str | None) -> Estimate | None:
    return run.estimate(Key(role, metric, model))


def _measure_cell(run: Dictionaries, metric: str, model: str | None) -> Cell:
    info = describe_measure(metric)
    of = [] if model is None else [run.named(model)]
    return Cell(info.label, ", ".join([*of, *([info.unit] if info.unit else [])]))


def _or_nothing(estimate: Estimate | None) -> Cell:
    """Most measures are of some roles alone: what was never meant to be measured is not called missing."""
    return NOTHING if estimate is None else audit_cell(estimate)


def factors_table(run: Dictionaries) -> Table | None:
    """How well the best latents tell labels; None where images had none."""
    if not run.factors:
        return None
    metrics = ("auroc_universal", "auroc_specific")
    rows = tuple(
        (
            Cell(shown_name(factor)),
            *(audit_cell(run.estimate(Key(MAIN, metric, factor=factor))) for metric in metrics),
        )
        for factor in run.factors
    )
    caption = f"Agreement of latents with labels: value and {INTERVAL}"
    return Table("dictionaries-factors", caption, (Column("Factor"), *map(head, metrics)), rows)


# --- Backbones and costs ----------------------------------------------------------------------------------------------


def backbones_table(run: Dictionaries) -> Table | None:
    """The backbones that were trained on the spot, and how well they name factors; None where none was."""
    if not run.backbones:
        return None
    factors = dict.fromkeys(factor for backbone in run.backbones for factor in backbone.accuracy)
    # A factor a row: a page is not wide enough for many factors beside each other.
    rows = (
        (Cell("parameters"), *(Cell(fmt.number(one.parameters, 0)) for one in run.backbones)),
        (Cell("images", "epochs"), *(_trained_on(one) for one in run.backbones)),
        (Cell("time"), *(Cell(fmt.duration(one.seconds)) for one in run.backbones)),
        *(
            (
                Cell(f"accuracy: {shown_name(factor)}", "the commonest value"),
                *(_accuracy(one, factor) for one in run.backbones),
            )
            for factor in factors
        ),
    )
    columns = (
        Column("Measure"),
        *(Column(shown_name(one.name), one.family, numeric=True) for one in run.backbones),
    )
    return Table("dictionaries-backbones", f"Backbones: accuracy on held-out images, {INTERVAL}", columns, rows)


def _trained_on(backbone: BackboneRecord) -> Cell:
    return Cell(fmt.number(backbone.images, 0), fmt.plural(backbone.epochs, "epoch"))


def _accuracy(backbone: BackboneRecord, factor: str) -> Cell:
    cell = audit_cell(backbone.accuracy.get(factor))
    chance = backbone.chance.get(factor)
    return cell if chance is None else cell._replace(note=f"{cell.note}; {fmt.number(chance, 3)}".removeprefix("; "))


def matrices_table(run: Dictionaries) -> Table | None:
    """The files of activations and labels that were given; None where there were images."""
    if not run.matrices:
        return None
    parts = {"train": "to train on", "test": "held out", "labels": "labels"}
    rows = tuple(
        (
            Cell(shown_name(matrix.name), parts[matrix.part]),
            Cell(shown_name(matrix.file), shown_name(matrix.key or "")),
            Cell(fmt.number(matrix.rows, 0)),
            Cell(fmt.number(matrix.width, 0), matrix.dtype) if matrix.part != "labels" else NOTHING,
            Cell(matrix.fingerprint),
        )
        for matrix in run.matrices
    )
    columns = (
        Column("Model", "part"),
        Column("file", "key"),
        Column("rows", numeric=True),
        Column("features", "dtype", numeric=True),
        Column("fingerprint"),
    )
    return Table("dictionaries-matrices", "Files of activations", columns, rows)


def costs_table(run: Dictionaries) -> Table | None:
    """What training every dictionary took; None where that was not recorded."""
    if not run.trained:
        return None
    rows = tuple(_cost_row(run, one) for one in run.trained)
    columns = (
        Column("Dictionary"),
        Column("models"),
        Column("seed", numeric=True),
        Column("latents", "active", numeric=True),
        Column("update"),
        Column("steps", numeric=True),
        Column("rows seen", numeric=True),
        Column("final loss", numeric=True),
        Column("time", numeric=True),
        Column("rows a second", numeric=True),
    )
    return Table("dictionaries-costs", "Dictionaries that were trained, and what it took", columns, rows)


def _cost_row(run: Dictionaries, one: TrainedRecord) -> tuple[Cell, ...]:
    return (
        Cell(shown_name(one.name), named_role(run, one.role)),
        Cell(", ".join(run.named(model) for model in one.models)),
        Cell(str(one.seed)),
        Cell(fmt.number(one.latents, 0), str(one.k)),
        Cell(one.update if len(one.models) > 1 else "–"),
        Cell(fmt.number(one.steps, 0)),
        Cell(fmt.number(one.samples, 0)),
        Cell(plain(one.loss)),
        Cell(fmt.duration(one.seconds)),
        Cell(fmt.number(one.samples / one.seconds, 0)) if one.seconds > 0 else NOTHING,
    )


def costs_csv(run: Dictionaries) -> bytes:
    """`dictionaries_training.csv`: one row a dictionary."""
    header = ["name", "role", "seed", "models", "latents", "k", "update", "steps", "samples", "loss", "seconds"]
    rows: list[list[Value]] = [
        [t.name, t.role, t.seed, " ".join(t.models), t.latents, t.k, t.update, t.steps, t.samples, t.loss, t.seconds]
        for t in run.trained
    ]
    return to_csv(header, rows)
