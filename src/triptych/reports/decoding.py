"""The decoding section: figures as in the paper and ours, tables, completions, methods and costs."""

from collections.abc import Iterator
from pathlib import Path

from triptych.reports import format as fmt
from triptych.reports import tables
from triptych.reports.completions import SHADES, PromptView, grouped, read_prompt_views
from triptych.reports.differences import decoding_differences
from triptych.reports.digests import decoding_digest
from triptych.reports.figures import OWN_FIGURES, PAPER_FIGURES, render
from triptych.reports.findings import findings
from triptych.reports.glossary import SCOPES, describe, in_order
from triptych.reports.html import render as fill
from triptych.reports.html import render_figures, render_tables
from triptych.reports.inputs import Decoding, read_decoding
from triptych.reports.reported import reported
from triptych.reports.sections import Part, Section
from triptych.reports.settings import settings

FOLDER = "decoding"
COMPLETIONS_PAGE = "completions.html"
PROMPTS_IN_REPORT = 6
PROMPTS_ON_PAGE = 40

COST_NAMES = {
    "load_seconds": "time to load the model",
    "seconds": "time to decode",
    "tokens": "tokens stepped, those of losing beams included",
    "useful_tokens": "tokens of the completions",
    "tokens_per_second": "tokens of the completions per second",
    "peak_memory_bytes": "peak memory",
    "peak_rows": "rows stepped together at most",
    "rows": "completions",
    "prefill_tokens": "prompt tokens read",
    "engine_path": "engine",
    "dtype": "arithmetic",
    "device": "device",
}


def decoding_section(run_dir: Path) -> Section | None:
    """The section, or None where the run has no decoding panel."""
    if not (run_dir / FOLDER).is_dir():
        return None
    run = read_decoding(run_dir)
    drawn = [render(spec, run) for spec in (*PAPER_FIGURES, *OWN_FIGURES)]
    n_paper, views = len(PAPER_FIGURES), read_prompt_views(run, PROMPTS_ON_PAGE)
    parts = (
        _settings_part(run),
        Part("figures", "The paper's figures", render_figures(drawn[:n_paper])),
        Part("more-figures", "Further figures", render_figures(drawn[n_paper:])),
        *_claims_part(run),
        *_frontier_part(run),
        Part("arms", "All measures", render_tables(tables.arm_tables(run), file="tables/decoding_arms.csv")),
        _completions_part(run, views),
        _methods_part(run),
        *_costs_part(run),
    )
    return Section(
        "decoding",
        "Decoding",
        findings(run),
        parts,
        tuple(drawn),
        _files(run, views),
        decoding_digest(run),
        decoding_differences(run),
        tuple(settings(run)),
        _rates(run),
    )


def _rates(run: Decoding) -> dict[str, str]:
    speed = run.costs.get("tokens_per_second")
    return {"decoding": f"{fmt.number(speed, 0)} tokens/s"} if isinstance(speed, int | float) else {}


def _settings_part(run: Decoding) -> Part:
    intro = (
        f"The report this project reproduces, {reported().citation}, prints settings, figures and sentences about "
        "decoding, but no numbers. So the settings stand side by side here, and its sentences are tested under Claims."
    )
    table = tables.settings_table(settings(run))
    return Part("settings", "Settings", render_tables([table], intro, "tables/settings.csv"))


def _claims_part(run: Decoding) -> Iterator[Part]:
    if run.claims:
        yield Part("claims", "Claims tested", render_tables([tables.claims_table(run)], file="tables/claims.csv"))


def _frontier_part(run: Decoding) -> Iterator[Part]:
    if run.frontier:
        yield Part("frontier", "Frontier", render_tables([tables.frontier_table(run)], file="tables/frontier.csv"))


def _completions_part(run: Decoding, views: list[PromptView]) -> Part:
    body = fill(
        "completions.html.j2",
        prompts=grouped(views[:PROMPTS_IN_REPORT]),
        shades=SHADES,
        shaded=run.pieces is not None,
        more=COMPLETIONS_PAGE if len(views) > PROMPTS_IN_REPORT else None,
        n_more=len(views),
    )
    return Part("completions", "Completions side by side", body)


def _methods_part(run: Decoding) -> Part:
    labels: dict[str, list[str]] = {}
    for metric in dict.fromkeys(metric for metric, _ in in_order((m, scope) for _, m, scope in run.measures)):
        labels.setdefault(describe(metric).definition, []).append(describe(metric).axis)
    scopes = {scope for _, _, scope in run.measures}
    methods = sorted({e.method for e in run.measures.values() if e.low is not None})
    body = fill(
        "methods.html.j2",
        definitions=[(", ".join(names), definition) for definition, names in labels.items()],
        scopes=[text for scope, text in SCOPES.items() if scope in scopes],
        methods=methods,
    )
    return Part("methods", "Methods", body)


def _costs_part(run: Decoding) -> Iterator[Part]:
    if run.costs:
        rows = tuple(
            (tables.Cell(COST_NAMES.get(name, name.replace("_", " "))), tables.Cell(_cost(name, cost)))
            for name, cost in run.costs.items()
        )
        columns = (tables.Column("Cost"), tables.Column("This run"))
        table = tables.Table("decoding-costs", "What the decoding panel cost", columns, rows)
        yield Part("costs", "Costs", render_tables([table]))


def _cost(name: str, cost: float | int | str | None) -> str:
    if cost is None or isinstance(cost, str):
        return cost or "not measured"
    if name.endswith("seconds"):
        return fmt.duration(cost)
    if name.endswith("bytes"):
        return fmt.size(cost)
    return fmt.number(cost, 0 if isinstance(cost, int) else 1)


def _files(run: Decoding, views: list[PromptView]) -> dict[str, bytes]:
    page = fill(
        "completions_page.html.j2",
        prompts=grouped(views),
        shades=SHADES,
        shaded=run.pieces is not None,
        run_id=run.manifest.run_id,
    )
    files = {
        COMPLETIONS_PAGE: page.encode(),
        "tables/decoding_arms.csv": tables.arms_csv(run),
        "tables/settings.csv": tables.settings_csv(settings(run)),
    }
    if run.claims:
        files["tables/claims.csv"] = tables.claims_csv(run)
    if run.frontier:
        files["tables/frontier.csv"] = tables.frontier_csv(run)
    return files
