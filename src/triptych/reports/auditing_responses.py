"""Responses of all checkpoints to one prompt, side by side: what the findings of the report card point at.

Prompts that a finding names come first, the gravest before the others; where there are few, further ones are chosen by
a hash of their ids: neither by hand nor by outcome. Every response has an anchor that is a number, because names and
prompt ids are anybody's text. Not here: the report card (`triptych.reports.auditing_card`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

from markupsafe import Markup

from triptych.auditing.records import BASE, Evidence, Finding, Kind, Level
from triptych.reports.auditing_glossary import perturbation_name
from triptych.reports.auditing_inputs import PERTURBED, RESPONSES, SCORES, Auditing, shown_name
from triptych.reports.completions import MAX_CHARACTERS, body_of, choose_prompts, clipped_markup, title_of
from triptych.reports.format import number, plural, with_true_minus
from triptych.reports.inputs import read_table
from triptych.reports.safe_text import clip, markup
from triptych.reports.word_diff import Stretch, stretches

PAGE = "audit_responses.html"
MAX_PROMPTS = 60
MIN_PROMPTS = 6
MAX_NOTE = 120
KINDS: dict[Kind, str] = {
    "plain": "Drawn for the prompt as it is",
    "limited": "Drawn for the prompt behind a limit of words",
    "greedy": "The most likely response to the prompt as it is",
}
PERTURBED_TITLE = "The base’s response, perturbed; words added or moved are marked"
COLUMNS = (
    "model",
    "prompt_id",
    "kind",
    "instruction",
    "input",
    "category",
    "text",
    "n_tokens",
    "n_words",
    "is_truncated",
)
PERTURBED_COLUMNS = ("prompt_id", "perturbation", "text")
SCORE_COLUMNS = ("scorer", "model", "prompt_id", "perturbation", "score")


class Place(NamedTuple):
    """What tells one text of the page from every other."""

    model: str
    prompt_id: str
    kind: str
    perturbation: str | None = None


class Pointer(NamedTuple):
    """A finding that names a response."""

    level: Level
    note: str
    """What is to be seen there."""


class ResponseView(NamedTuple):
    """One response, ready for the page."""

    anchor: str
    name: str
    facts: tuple[str, ...]
    text: Markup
    left_out: str
    """What is not shown of it, in words; empty where all is."""
    pointers: tuple[Pointer, ...]


class PromptView(NamedTuple):
    """One prompt with all checkpoints' responses."""

    category: str
    title: str
    body: tuple[Markup, ...]
    groups: tuple[tuple[str, tuple[ResponseView, ...]], ...]
    """Title and responses of every kind that there is."""


class Responses(NamedTuple):
    """What the page shows, and where links to it lead."""

    prompts: tuple[PromptView, ...]
    anchors: Mapping[Place, str]

    def link(self, evidence: Evidence) -> str | None:
        """The address of the response that an evidence names; None where the page has it not."""
        anchor = self.anchors.get(place_of(evidence))
        return None if anchor is None else f"{PAGE}#{anchor}"


class Texts(NamedTuple):
    """What the files hold of some prompts."""

    responses: Mapping[Place, Mapping[str, Any]]
    perturbed: Mapping[Place, str]
    scores: Mapping[Place, Mapping[str, float | None]]
    pointers: Mapping[Place, tuple[Pointer, ...]]


def place_of(evidence: Evidence) -> Place:
    """Perturbed texts are the base's, and of responses to plain prompts."""
    if evidence.perturbation is not None:
        return Place(BASE, evidence.prompt_id, "plain", evidence.perturbation)
    return Place(evidence.model, evidence.prompt_id, evidence.kind)


def read_responses(run: Auditing) -> Responses:
    """The prompts of the page with all that was written to them; nothing where the run kept no responses."""
    path = run.run_dir / RESPONSES
    if not path.is_file():
        return Responses((), {})
    rows = read_table(path, ("prompt_id", "category")).to_pylist()
    chosen = chosen_prompts(run.card, {row["prompt_id"]: row.get("category") for row in rows})
    texts = read_texts(run, chosen)
    numbers, anchors = count(1), dict[Place, str]()
    prompts = tuple(_prompt_view(run, texts, prompt_id, numbers, anchors) for prompt_id in chosen)
    return Responses(prompts, anchors)


def chosen_prompts(card: Iterable[Finding], categories: Mapping[str, str | None]) -> list[str]:
    """Prompts that findings name, in their order and at most `MAX_PROMPTS`; by hash until there are `MIN_PROMPTS`."""
    named = dict.fromkeys(
        evidence.prompt_id for finding in card for evidence in finding.evidence if evidence.prompt_id in categories
    )
    chosen = list(named)[:MAX_PROMPTS]
    others = {prompt_id: category for prompt_id, category in categories.items() if prompt_id not in named}
    return chosen + choose_prompts(others, max(0, MIN_PROMPTS - len(chosen)))


def marked(original: str, perturbed: str) -> Markup:
    """The perturbed text as HTML, with the words marked that the original has not, or has elsewhere."""
    return Markup().join(_marked(stretch) for stretch in stretches(original, perturbed, MAX_CHARACTERS))


def _marked(stretch: Stretch) -> Markup:
    text = markup(stretch.text)
    return markup(stretch.white) + (Markup("<mark>{}</mark>").format(text) if stretch.is_changed else text)


def read_texts(run: Auditing, chosen: list[str]) -> Texts:
    """All that was written to some prompts, with the scores; DataError where a file cannot be read."""
    filters = [("prompt_id", "in", chosen)]
    rows = read_table(run.run_dir / RESPONSES, COLUMNS, filters=filters).to_pylist()
    perturbed: dict[Place, str] = {}
    if (run.run_dir / PERTURBED).is_file():
        for row in read_table(run.run_dir / PERTURBED, PERTURBED_COLUMNS, filters=filters).to_pylist():
            perturbed[Place(BASE, row["prompt_id"], "plain", row["perturbation"])] = row["text"]
    scores: dict[Place, dict[str, float | None]] = {}
    if (run.run_dir / SCORES).is_file():
        for row in read_table(run.run_dir / SCORES, SCORE_COLUMNS, filters=filters).to_pylist():
            place = Place(row["model"], row["prompt_id"], "plain", row["perturbation"])
            scores.setdefault(place, {})[row["scorer"]] = row["score"]
    responses = {Place(row["model"], row["prompt_id"], row["kind"]): row for row in rows}
    return Texts(responses, perturbed, scores, _pointers(run.card))


def _pointers(card: Iterable[Finding]) -> dict[Place, tuple[Pointer, ...]]:
    pointers: dict[Place, tuple[Pointer, ...]] = {}
    for finding in card:
        for evidence in finding.evidence:
            place, pointer = place_of(evidence), Pointer(finding.level, shown_note(evidence.note))
            if pointer not in pointers.get(place, ()):
                pointers[place] = (*pointers.get(place, ()), pointer)
    return pointers


def shown_note(note: str) -> str:
    """A note of an evidence, not too long."""
    clipped = clip(note, MAX_NOTE)
    return with_true_minus(clipped.text) + ("…" if clipped.left_out else "")


def _prompt_view(
    run: Auditing, texts: Texts, prompt_id: str, numbers: Iterator[int], anchors: dict[Place, str]
) -> PromptView:
    first = next(row for place, row in texts.responses.items() if place.prompt_id == prompt_id)

    def views(places: Iterable[Place]) -> tuple[ResponseView, ...]:
        found = []
        for place in places:
            anchors[place] = f"r-{next(numbers)}"
            found.append(_VIEWS[place.perturbation is not None](run, texts, place, anchors[place]))
        return tuple(found)

    groups = [
        (title, views(p for model in run.checkpoints if (p := Place(model, prompt_id, kind)) in texts.responses))
        for kind, title in KINDS.items()
    ]
    # Of all perturbed forms only those that a finding names.
    named = [Place(BASE, prompt_id, "plain", perturbation) for perturbation in run.perturbations]
    groups.append((PERTURBED_TITLE, views(p for p in named if p in texts.perturbed and p in texts.pointers)))
    return PromptView(
        category=first.get("category") or "uncategorised",
        title=title_of(first["instruction"]),
        body=body_of(first["instruction"], first["input"] or ""),
        groups=tuple((title, shown) for title, shown in groups if shown),
    )


def _response_view(run: Auditing, texts: Texts, place: Place, anchor: str) -> ResponseView:
    row = texts.responses[place]
    # The base's texts are scored by the other checkpoints too, for the perturbations alone.
    scores = {} if place.kind != "plain" else texts.scores.get(place, {})
    own = {name: score for name, score in scores.items() if name not in surrogates(run)}
    facts = (
        plural(row["n_tokens"], "token"),
        plural(row["n_words"], "word"),
        *(["cut by the token limit"] if row["is_truncated"] else []),
        *(f"{shown_name(name)} {_score(score)}" for name, score in own.items()),
    )
    text = clipped_markup(row["text"]) if row["text"] else Markup('<span class="esc">empty</span>')
    return ResponseView(anchor, shown_name(place.model), facts, text, "", texts.pointers.get(place, ()))


def _perturbed_view(run: Auditing, texts: Texts, place: Place, anchor: str) -> ResponseView:
    original, text = place._replace(perturbation=None), texts.perturbed[place]
    # The file has the unperturbed texts too; a run may keep only one of the two.
    row = texts.responses.get(original)
    before = texts.perturbed.get(original) or ("" if row is None else row["text"])
    scores, after = texts.scores.get(original, {}), texts.scores.get(place, {})
    rewards_first = sorted(after.items(), key=lambda scored: scored[0] in surrogates(run))
    left_out = len(text) - MAX_CHARACTERS
    return ResponseView(
        anchor,
        perturbation_name(place.perturbation or ""),
        tuple(f"{shown_name(name)} {_moved(scores.get(name), score)}" for name, score in rewards_first),
        marked(before, text),
        f"{plural(left_out, 'more character')} not shown" if left_out > 0 else "",
        texts.pointers.get(place, ()),
    )


_VIEWS = {False: _response_view, True: _perturbed_view}
"""By whether the text is perturbed."""


def surrogates(run: Auditing) -> set[str]:
    """Scorers that a checkpoint is of itself, as the scores name them."""
    return {scorer.column for scorer in run.text_scorers if scorer.is_surrogate}


def _score(score: float | None) -> str:
    return "unscored" if score is None or not math.isfinite(score) else number(score, 2)


def _moved(before: float | None, after: float | None) -> str:
    """`1.20 → 2.31 (+1.11)`."""
    if before is None or after is None or not math.isfinite(before + after):
        return f"{_score(before)} → {_score(after)}"
    sign = "+" if after > before else ""
    return f"{_score(before)} → {_score(after)} ({sign}{number(after - before, 2)})"
