"""Tables 5 and 6 of the paper with this run's dictionaries beside them: R² from model to model, and the alignment tax.

The paper's values stand as printed: it gives no intervals, and says neither which mean its R² takes nor which update it
trained with. Not here: all other tables (`triptych.reports.dictionaries_tables`).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from triptych.dictionaries.records import MAIN
from triptych.records import Estimate
from triptych.reports import format as fmt
from triptych.reports.auditing_tables import INTERVAL, audit_cell
from triptych.reports.dictionaries_glossary import describe_measure
from triptych.reports.dictionaries_inputs import Dictionaries, Key
from triptych.reports.dictionaries_tables import (
    ESTIMATE_HEADER,
    NOTHING,
    PRINTED,
    head,
    named_role,
)
from triptych.reports.reported import reported
from triptych.reports.settings import Setting, compare, lookup, shown_value
from triptych.reports.tables import Cell, Column, Table, Value, estimate_values, to_csv

PAPER_MODELS = {"resnet18": ("resnet", "ResNet-18"), "vit": ("vit", "ViT-B/16")}
"""In the keys of `reported.json`: what the name of a model of that family holds, and what the paper calls its own."""
CONVENTIONS = ("r2", "r2_global")
TAX_COLUMNS = (
    "r2_independent",
    "r2",
    "alignment_tax",
    "r2_independent_equal_updates",
    "alignment_tax_equal_updates",
)
PAPER_TAX = {
    "r2_independent": "usae.independent_r2",
    "r2": "usae.universal_r2",
    "alignment_tax": "usae.alignment_tax",
}
PAPER_TAX_ROW = "Paper: ResNet-18 (Model A)"


class Way(NamedTuple):
    """From which model's code which model's activations are reconstructed."""

    source: str
    target: str


def family_models(run: Dictionaries) -> dict[str, str]:
    """The run's model in the place of each of the paper's two; empty unless names tell both, and tell them apart."""
    found = {key: [model for model in run.models if part in model.lower()] for key, (part, _) in PAPER_MODELS.items()}
    is_clear = all(len(own) == 1 for own in found.values()) and len({own[0] for own in found.values()}) == len(found)
    return {key: own[0] for key, own in found.items()} if is_clear else {}


def paper_r2(run: Dictionaries) -> dict[Way, float]:
    """The paper's R² by our models; empty where ours are none of its families."""
    ours = family_models(run)
    return {Way(ours[s], ours[t]): value for (s, t), value in _paper_ways().items()} if ours else {}


def _paper_ways() -> dict[tuple[str, str], float]:
    return {(s, t): reported().number(f"usae.r2.{s}_to_{t}") for s in PAPER_MODELS for t in PAPER_MODELS}


def ways(run: Dictionaries) -> list[Way]:
    """From every model to every model."""
    return [Way(source, target) for source in run.models for target in run.models]


# --- Settings ---------------------------------------------------------------------------------------------------------


def dictionary_settings(run: Dictionaries) -> tuple[Setting, ...]:
    """The paper's settings of its dictionary beside this run's."""
    given, main = run.manifest.config.get("dictionaries"), run.main
    config = given if isinstance(given, Mapping) else {}
    names = [run.named(model) for model in run.models]
    widths = reported()["usae.models"]
    own = {
        "images": ("usae.dataset", "activations of its own" if run.matrices else config.get("images")),
        "latents": ("usae.latents", None if main is None else main.latents),
        "active latents": ("usae.k", None if main is None else main.k),
        "epochs of the dictionary": ("usae.epochs", lookup(config.get("universal") or {}, "epochs")),
        "batch of the dictionary": ("usae.batch_size", lookup(config.get("universal") or {}, "batch_size")),
        "learning rate of the dictionary": (
            "usae.learning_rate",
            lookup(config.get("universal") or {}, "learning_rate"),
        ),
    }
    models = Setting(
        "models that share it", shown_value(widths.value), widths.source, shown_value(names), _are_theirs(run)
    )
    return (models, *(compare(name, key, ours) for name, (key, ours) in own.items()))


def _are_theirs(run: Dictionaries) -> bool:
    """Pretrained ones of the paper's two families: what this run trained on the spot is another model."""
    return bool(family_models(run)) and not run.backbones


# --- Table 5 ----------------------------------------------------------------------------------------------------------


def table_5(run: Dictionaries) -> Table:
    """The paper's table 5: R² from every model to every model, by convention and update, then the paper's."""
    arms = _arms(run)
    theirs = paper_r2(run)
    rows = [
        (
            Cell(run.named(way.source), f"→ {run.named(way.target)}"),
            *(audit_cell(run.estimate(Key(role, metric, *way))) for role, metric in arms),
            _printed_r2(theirs[way]) if way in theirs else NOTHING,
        )
        for way in ways(run)
    ]
    if not theirs:
        rows += [
            (_paper_way(source, target), *[NOTHING] * len(arms), _printed_r2(value))
            for (source, target), value in _paper_ways().items()
        ]
    columns = (
        Column("Source", "→ target"),
        *(_arm_head(run, role, metric) for role, metric in arms),
        Column("Paper", PRINTED, numeric=True),
    )
    caption = f"Table 5. R² of reconstruction: value and {INTERVAL}, beside the paper’s"
    return Table("dictionaries-5", caption, columns, tuple(rows))


def _paper_way(source: str, target: str) -> Cell:
    return Cell(f"Paper: {PAPER_MODELS[source][1]}", f"→ {PAPER_MODELS[target][1]}")


def _printed_r2(value: float) -> Cell:
    return Cell(fmt.number(value, 3))


def _arms(run: Dictionaries) -> list[tuple[str, str]]:
    """Role and convention of the columns."""
    return [(role, metric) for metric in CONVENTIONS for role, _ in run.updates()]


def _arm_head(run: Dictionaries, role: str, metric: str) -> Column:
    info = describe_measure(metric)
    return Column(f"{info.label}, {named_role(run, role)}", info.unit, numeric=True)


def table_5_csv(run: Dictionaries) -> bytes:
    """`table_05.csv`: one row a direction, dictionary and convention, then the paper's."""
    updates = dict(run.updates())
    rows: list[list[Value]] = [
        [*way, role, updates[role], metric, *estimate_values(run.estimate(Key(role, metric, *way)))]
        for way in ways(run)
        for role, metric in _arms(run)
    ]
    rows += [
        [PAPER_MODELS[s][1], PAPER_MODELS[t][1], "paper", None, "r2", value, *_no_interval()]
        for (s, t), value in _paper_ways().items()
    ]
    return to_csv(["source", "target", "role", "update", "metric", *ESTIMATE_HEADER], rows)


def sparc_table(run: Dictionaries) -> Table | None:
    """R² of SPARC, apart from table 5: its codes have seen the target. None where none was trained."""
    rows = [
        (Cell(run.named(way.source), f"→ {run.named(way.target)}"), audit_cell(estimate))
        for way in ways(run)
        if (estimate := run.estimate(Key("sparc", "r2", *way))) is not None
    ]
    columns = (Column("Source", "→ target"), Column("R²", "latents chosen with all models’ activations", numeric=True))
    caption = f"R² of SPARC, whose latents are chosen with the target’s own activations: value and {INTERVAL}"
    return Table("dictionaries-sparc", caption, columns, tuple(rows)) if rows else None


def _no_interval() -> list[Value]:
    return [*[None] * (len(ESTIMATE_HEADER) - 2), PRINTED]


# --- Table 6 ----------------------------------------------------------------------------------------------------------


def table_6(run: Dictionaries) -> Table:
    """The paper's table 6: what sharing costs every model; the paper's row stands below the model in its place."""
    rows: list[tuple[Cell, ...]] = []
    theirs = (Cell(PAPER_TAX_ROW, PRINTED), *(_paper_tax(metric) for metric in TAX_COLUMNS))
    model_a = family_models(run).get("resnet18")
    for model in run.models:
        rows.append((Cell(run.named(model)), *(audit_cell(tax_of(run, metric, model)) for metric in TAX_COLUMNS)))
        if model == model_a:
            rows.append(theirs)
    if model_a is None:
        rows.append(theirs)
    caption = f"Table 6. Alignment tax: value and {INTERVAL}, beside the paper’s"
    return Table("dictionaries-6", caption, (Column("Model"), *map(_tax_head, TAX_COLUMNS)), tuple(rows))


def _tax_head(metric: str) -> Column:
    return Column("R² of the shared dictionary", "model to itself", numeric=True) if metric == "r2" else head(metric)


def _paper_tax(metric: str) -> Cell:
    return Cell(fmt.number(reported().number(PAPER_TAX[metric]), 4)) if metric in PAPER_TAX else NOTHING


def tax_of(run: Dictionaries, metric: str, model: str) -> Estimate | None:
    """One figure of table 6."""
    if metric == "r2":
        return run.estimate(Key(MAIN, "r2", model, model))
    if metric.startswith("r2_independent"):
        return run.independent_r2(model, equal_updates=metric.endswith("equal_updates"))
    return run.of_model(metric, model)


def table_6_csv(run: Dictionaries) -> bytes:
    """`table_06.csv`: one row a model and figure, then the paper's."""
    return to_csv(["model", "metric", *ESTIMATE_HEADER], [*_tax_rows(run), *_paper_tax_rows()])


def _tax_rows(run: Dictionaries) -> Iterator[list[Value]]:
    for model in run.models:
        for metric in TAX_COLUMNS:
            yield [model, metric, *estimate_values(tax_of(run, metric, model))]


def _paper_tax_rows() -> Iterator[list[Value]]:
    for metric, key in PAPER_TAX.items():
        yield [PAPER_TAX_ROW, metric, reported().number(key), *_no_interval()]
