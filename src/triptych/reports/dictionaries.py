"""The section of universal dictionaries: R², what sharing costs, latents, pictures, labels and methods."""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from triptych.reports import dictionaries_paper as paper
from triptych.reports import dictionaries_tables as tables
from triptych.reports import format as fmt
from triptych.reports.dictionaries_findings import findings
from triptych.reports.dictionaries_glossary import DICTIONARY_TERMS, FEATURE_TERMS, ROLE_TERMS, describe_measure
from triptych.reports.dictionaries_inputs import IMAGES, TOPS_FILE, Dictionaries, read_dictionaries
from triptych.reports.differences import dictionaries_differences
from triptych.reports.digests import dictionaries_digest
from triptych.reports.figures import DICTIONARY_FIGURES, Rendered, render
from triptych.reports.format import why_no_interval
from triptych.reports.html import render as fill
from triptych.reports.html import render_figures, render_tables
from triptych.reports.sections import Part, Section

TABLE_5, TABLE_6, MEASURES, TRAINING = (
    f"tables/{name}.csv" for name in ("table_05", "table_06", "dictionaries_measures", "dictionaries_training")
)
INTRO_5 = (
    "From the code that the source model’s encoder gives, the target model’s decoder reconstructs its activations. "
    "The paper prints one number for each, and says neither which mean its R² takes nor which weights a step updates: "
    "both conventions and both updates stand beside it, of other images and models than the paper’s unless this run "
    "was made of them."
)
INTRO_6 = (
    "What a model’s reconstruction loses by sharing its dictionary. In the shared dictionary a model is the source of "
    "one step in as many as there are models: against an independent dictionary of equal steps the tax holds this, "
    "too; that of equal updates leaves it out. The paper has Model A alone, and its R² of the shared dictionary here "
    "(0.7566) differs from that in its table 5 (0.759)."
)
INTRO_COUNTS = (
    "A latent is universal here if it explains about as much of every model and is confirmed: fired together beyond "
    "chance, with codes that correlate. The paper’s definition, by counts, compares how often models fire a latent, "
    "never on what: two models that share nothing may fire it equally often. The null with shuffled {unit}s shows how "
    "many latents do; it must have no confirmed ones. In a model against itself, from other starts, hardly any latent "
    "may be other than universal."
)
INTRO_SPARC = (
    "SPARC chooses latents by the summed logits of all models, the target’s among them. What it explains across models "
    "is therefore no reconstruction from another model’s code, and cannot be compared with table 5."
)


def dictionaries_section(run_dir: Path) -> Section | None:
    """The section, or None where the run directory has no measures of dictionaries."""
    run = read_dictionaries(run_dir)
    if run is None:
        return None
    drawn = {part: [render(spec, run) for spec in specs] for part, specs in DICTIONARY_FIGURES.items()}
    parts = (
        Part(
            "r2",
            "R² from model to model",
            render_tables([paper.table_5(run)], INTRO_5, TABLE_5) + _sparc(run) + render_figures(drawn["r2"]),
        ),
        Part("tax", "Alignment tax", render_tables([paper.table_6(run)], INTRO_6, TABLE_6)),
        _latents_part(run, drawn["latents"]),
        _pictures_part(run, drawn["pictures"]),
        _factors_part(run, drawn["factors"]),
        *_training_parts(run),
        _methods_part(run),
    )
    return Section(
        "dictionaries",
        "Universal dictionaries",
        findings(run),
        parts,
        tuple(figure for group in drawn.values() for figure in group),
        _csvs(run),
        dictionaries_digest(run),
        dictionaries_differences(run),
        paper.dictionary_settings(run),
        _rates(run),
    )


def _sparc(run: Dictionaries) -> Markup:
    table = paper.sparc_table(run)
    return Markup() if table is None else render_tables([table], INTRO_SPARC, MEASURES)


def _rates(run: Dictionaries) -> dict[str, str]:
    works = {
        "interpret.backbones": [(one.images * one.epochs, one.seconds, "images") for one in run.backbones],
        "interpret.training": [(one.samples, one.seconds, "rows") for one in run.trained],
    }
    return {
        stage: f"{fmt.number(sum(n for n, _, _ in done) / seconds, 0)} {done[0][2]}/s"
        for stage, done in works.items()
        if (seconds := sum(seconds for _, seconds, _ in done)) > 0
    }


def _latents_part(run: Dictionaries, drawn: list[Rendered]) -> Part:
    body = render_tables([tables.counts_table(run)], INTRO_COUNTS.format(unit=run.unit), MEASURES) + render_figures(
        drawn
    )
    listed = tables.latents_table(run)
    if listed is not None:
        body += render_tables([listed])
    return Part("latents", "Universal and specific latents", body)


def _pictures_part(run: Dictionaries, drawn: list[Rendered]) -> Part:
    body = fill(
        "dictionaries_pictures.html.j2",
        figures=drawn,
        n_latents=len(run.pictures),
        folder=IMAGES,
        unit=run.unit,
        tops=TOPS_FILE,
    )
    return Part("pictures", "Pictures of latents", body)


def _factors_part(run: Dictionaries, drawn: list[Rendered]) -> Part:
    table = tables.factors_table(run)
    body = render_figures(drawn) + (Markup() if table is None else render_tables([table], file=MEASURES))
    return Part("factors", "Latents and labels", body)


def _training_parts(run: Dictionaries) -> Iterator[Part]:
    if (matrices := tables.matrices_table(run)) is not None:
        yield Part("matrices", "Activations that were given", render_tables([matrices]))
    if (quality := tables.quality_table(run)) is not None:
        yield Part("training", "Training and matching", render_tables([quality], file=MEASURES))
    backbones = tables.backbones_table(run)
    if run.matrices:
        sentence = "This run has no backbones: its activations were given as matrices."
    else:
        sentence = "" if backbones else "No backbone was trained in this run: the models came trained, from elsewhere."
    yield Part("backbones", "Backbones", render_tables([backbones] if backbones else [], sentence))
    if (costs := tables.costs_table(run)) is not None:
        total = sum(one.seconds for one in run.trained)
        intro = (
            f"{fmt.plural(len(run.trained), 'training run')} of dictionaries took {fmt.duration(total)} together, "
            "activations not counted."
        )
        yield Part("dictionary-costs", "Costs of dictionaries", render_tables([costs], intro, TRAINING))


def _methods_part(run: Dictionaries) -> Part:
    found = {row.metric for row in run.measures}
    known = [metric for metric in DICTIONARY_TERMS if metric in found]
    terms = [describe_measure(metric) for metric in [*known, *sorted(found - set(known))]]
    estimates = [row.estimate for row in run.measures]
    body = fill(
        "dictionaries_methods.html.j2",
        features=FEATURE_TERMS,
        definitions=[(term.axis, term.definition) for term in terms],
        roles=[(tables.named_role(run, role), ROLE_TERMS[role]) for role in run.roles if role in ROLE_TERMS],
        n_seeds=len(run.seeds),
        unit=run.unit,
        methods=sorted({estimate.method for estimate in estimates if estimate.low is not None}),
        without=sorted({why_no_interval(estimate) for estimate in estimates if estimate.low is None}),
    )
    return Part("methods", "Methods of dictionaries", body)


def _csvs(run: Dictionaries) -> dict[str, bytes]:
    files = {
        TABLE_5: paper.table_5_csv(run),
        TABLE_6: paper.table_6_csv(run),
        MEASURES: tables.measures_csv(run),
    }
    return {**files, TRAINING: tables.costs_csv(run)} if run.trained else files
