"""Beside the paper: all its figures and tables, where this run has its own, and the settings that explain differences.

What the run did is read from the sections; the paper's numbers and sentences are in `reported.json` and in the panels.
Not here: the sentences about results (`triptych.reports.differences`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from triptych.reports import format as fmt
from triptych.reports.sections import Section
from triptych.reports.settings import NOT_RECORDED, Setting
from triptych.reports.tables import Cell, Column, Table, Value, to_csv
from triptych.runs import Manifest


class Item(NamedTuple):
    """A figure or table of the paper."""

    name: str
    """`figure_04` or `table_03`."""
    shows: str
    panel: str
    """Section that has ours."""
    anchor: str
    """Where ours stands in the page."""

    @property
    def title(self) -> str:
        kind, _, number = self.name.partition("_")
        return f"{kind.capitalize()} {int(number)}"


def _figure(number: int, panel: str, shows: str) -> Item:
    return Item(f"figure_{number:02d}", shows, panel, f"figure_{number:02d}")


ITEMS = (
    _figure(1, "decoding", "mean log-probability of greedy completions, box plot"),
    _figure(2, "decoding", "mean log-probability of beam completions, box plot"),
    _figure(3, "decoding", "cumulative log-probability of beams, histogram"),
    _figure(4, "decoding", "mean log-probability over temperature, top-k and top-p"),
    _figure(5, "decoding", "Distinct-N across prompts over temperature"),
    _figure(6, "decoding", "Distinct-N within and across prompts at T 0.8"),
    _figure(7, "decoding", "reward over Distinct-1, top-k and top-p"),
    _figure(8, "auditing", "lengths of responses by category of prompt"),
    _figure(9, "auditing", "mean change of the score by perturbation"),
    _figure(10, "auditing", "change of the score of single examples by perturbation"),
    _figure(11, "dictionaries", "firing entropy of latents, histogram"),
    _figure(12, "dictionaries", "a universal latent in both models"),
    _figure(13, "dictionaries", "a specific latent in both models"),
    Item("table_03", "verbosity of the aligned model and its reference", "auditing", "table-auditing-3"),
    Item("table_04", "forgetting, verbosity and reward hacking after GRPO", "auditing", "table-auditing-4"),
    Item("table_05", "R² of reconstruction from model to model", "dictionaries", "table-dictionaries-5"),
    Item("table_06", "alignment tax", "dictionaries", "table-dictionaries-6"),
)
PANELS = {
    "decoding": "decoding",
    "alignment": "alignment",
    "auditing": "audits",
    "dictionaries": "universal dictionaries",
}
"""Sections that a run can have, and what they are called in a sentence."""
EFFECTS = {
    "model": "levels of every measure are the model’s own: compare directions and differences, not levels",
    "prompts": "other questions have other answers: levels move, paired differences within the run hold",
    "number of prompts": "more prompts narrow intervals and leave less undecided; they move no expected value",
    "new tokens at most": "longer texts repeat more: Distinct-N and lengths move",
    "repetition: n-gram": "when a text is cut off moves lengths and shares of stop reasons",
    "repetition: more than": "when a text is cut off moves lengths and shares of stop reasons",
    "beam width": "wider beams find more probable texts",
    "temperatures": "slopes are taken over another range",
    "top-k: k": "more candidates lower the log-probability and raise variety",
    "top-p: p": "a larger nucleus lowers the log-probability and raises variety",
    "samples of one prompt": "more samples repeat more: Distinct-N within a prompt falls",
    "prompt": "another frame around the instruction moves what a chat model writes",
    "reward model": "another scale and another taste: compare orders, not levels",
    "pairs": "another notion of a good answer, and answers of another style",
    "steps": "more updates move the policy further: KL and change of the reward grow",
    "epochs": "more passes over the data move the policy further",
    "batch": "smaller batches make noisier updates",
    "learning rate": "larger steps move the policy further in as many updates",
    "LoRA rank": "a higher rank has more parameters to move",
    "LoRA alpha": "scales every update of the adapter",
    "LoRA dropout": "less dropout fits the training data more closely",
    "LoRA targets": "with more layers adapted the same rank moves the policy further",
    "group": "the advantage is less noisy in larger groups",
    "base in 8 bit": "rounding of the base’s weights raises its perplexity slightly",
    "share of the data for training": "a larger held-out share narrows intervals and leaves less to learn from",
    "prompts for lengths": "more prompts narrow intervals",
    "prompts for perplexity, at most": "more answers narrow intervals",
    "limit of words": "the tighter the limit, the fewer answers keep it",
    "models that share it": "other models have other features: R², entropies and the tax are theirs",
    "images": "simpler images have fewer concepts: more of them are shared",
    "latents": "more latents leave more room for specific ones",
    "active latents": "more active latents explain more",
    "epochs of the dictionary": "longer training lowers the loss",
    "batch of the dictionary": "smaller batches make noisier updates",
    "learning rate of the dictionary": "larger steps end nearer to or past the optimum",
    "hardware": "time and memory are this machine’s; the arithmetic may differ in the last digits",
}
"""By setting, whatever the training run it is of: what a difference from the paper is expected to do."""


class Differing(NamedTuple):
    """A setting that is not known to be the paper's, and what that is expected to do."""

    panel: str
    setting: Setting
    effect: str


def items_table(sections: Sequence[Section]) -> Table:
    """Every figure and table of the paper, in order."""
    by_id = {section.id: section for section in sections}
    rows = tuple(
        (
            Cell(item.title, item.shows),
            _place(item, by_id.get(item.panel)),
            Cell(by_id[item.panel].beside.get(item.name, "–") if item.panel in by_id else "–"),
        )
        for item in ITEMS
    )
    columns = (Column("In the paper"), Column("In this report"), Column("Chief difference in result"))
    return Table("beside-items", "The paper’s figures and tables, and this run’s", columns, rows, stacked=True)


def _place(item: Item, section: Section | None) -> Cell:
    """A link to ours, or why there is none."""
    if section is None:
        return Cell(f"not here: this run has no {PANELS[item.panel]}", kind="none")
    figure = next((figure for figure in section.figures if figure.name == item.name), None)
    if figure is not None and figure.absent is not None:
        return Cell(f"not drawn: {figure.absent}", kind="none")
    if figure is None and not any(f'id="{item.anchor}"' in part.body for part in section.parts):
        return Cell("not here: the run did not measure it", kind="none")
    return Cell(Markup('<a href="#{}">{}</a>').format(item.anchor, f"{item.title} of this run"))


def settings_table(manifest: Manifest, sections: Sequence[Section]) -> Table:
    """The settings that differ from the paper's, or are not recorded."""
    rows = tuple(
        (
            Cell(row.setting.name, row.panel),
            Cell(row.setting.paper, row.setting.source),
            Cell(row.setting.ours),
            Cell(row.effect or "–"),
        )
        for row in differing(manifest, sections)
    )
    columns = (Column("Setting"), Column("Paper"), Column("This run"), Column("What the difference is expected to do"))
    return Table("beside-settings", "Settings that differ from the paper’s", columns, rows, stacked=True)


def settings_csv(manifest: Manifest, sections: Sequence[Section]) -> bytes:
    """`beside_settings.csv`: the same."""
    rows: list[list[Value]] = [
        [row.panel, row.setting.name, row.setting.paper, row.setting.source, row.setting.ours, row.effect]
        for row in differing(manifest, sections)
    ]
    return to_csv(["panel", "setting", "paper", "source", "this_run", "expected_effect"], rows)


def same_sentence(sections: Sequence[Section]) -> str:
    """How many settings are the paper's, and which."""
    same = [f"{setting.name} ({section.title})" for section in sections for setting in section.settings if setting.same]
    if not same:
        return "No recorded setting is the paper’s."
    return f"{fmt.plural(len(same), 'recorded setting')} are as in the paper: {fmt.joined(same)}."


def differing(manifest: Manifest, sections: Sequence[Section]) -> Iterator[Differing]:
    """Settings of all panels, then the hardware."""
    for section in sections:
        for setting in section.settings:
            if not setting.same:
                effect = EFFECTS.get(setting.name.rpartition(": ")[2]) or EFFECTS.get(setting.name) or ""
                yield Differing(section.title, setting, "" if setting.ours == NOT_RECORDED else effect)
    hardware = Setting("hardware", "not given", "", manifest.device, None)
    yield Differing("all panels", hardware, EFFECTS["hardware"])
