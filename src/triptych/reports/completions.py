"""Completions of one prompt by every arm, side by side, with every token shaded by how likely the model found it.

The prompts are chosen by a hash of their ids, evenly over the categories: neither by hand nor by outcome, and the same
in every run with the same prompts. All text is a model's or a data file's and is shown as text, whatever it holds.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from markupsafe import Markup

from triptych.reports.arms import Arm, make_arm, name_arms
from triptych.reports.figures.shape import REASON_NAMES
from triptych.reports.format import MINUS, number, plural
from triptych.reports.inputs import GENERATIONS, CompletionKey, Decoding, Reward, read_table
from triptych.reports.pieces import Span, join_spans
from triptych.reports.safe_text import clip, markup

PROBABILITY_STEPS = (0.9, 0.5, 0.2, 0.05, 0.01)
"""Bounds between the shades: a token at least this probable, down to the last shade for all others."""
SHADES = ("90 % or more", "50 to 90 %", "20 to 50 %", "5 to 20 %", "1 to 5 %", "less than 1 %")
MAX_TOKENS = 400
MAX_CHARACTERS = 2000
MAX_PIECE = 80
MAX_TITLE = 90
COLUMNS = (
    "prompt_id",
    "instruction",
    "input",
    "strategy",
    "params",
    "temperature",
    "sample",
    "text",
    "token_ids",
    "logprobs",
    "mean_logprob",
    "n_tokens",
    "stop_reason",
    "category",
)


class Token(NamedTuple):
    """Tokens of one span, ready for the page."""

    text: Markup
    shade: int | None
    """Index into `SHADES`; None where the piece is unknown."""
    title: str


class Completion(NamedTuple):
    """One arm's completion of a prompt."""

    arm: str
    facts: tuple[str, ...]
    """Stop reason, length, mean log-probability, reward."""
    tokens: tuple[Token, ...] | None
    """None where the run recorded no pieces: then `text` is shown."""
    text: Markup
    left_out: str
    """What is not shown of it, in words; empty where all is."""


class PromptView(NamedTuple):
    """One prompt with all arms' completions."""

    prompt_id: str
    category: str
    title: str
    """The beginning of the instruction, on one line."""
    body: tuple[Markup, ...]
    """Instruction and input; empty where the title has said it all."""
    completions: tuple[Completion, ...]


def choose_prompts(categories: Mapping[str, str | None], count: int) -> list[str]:
    """`count` prompt ids, in turn from every category, by the hash of the id."""
    by_category: dict[str, list[str]] = defaultdict(list)
    for prompt_id in sorted(categories, key=_hash):
        by_category[categories[prompt_id] or ""].append(prompt_id)
    rounds = zip_longest(*(by_category[category] for category in sorted(by_category)))
    chosen = [prompt_id for one_each in rounds for prompt_id in one_each if prompt_id is not None]
    return chosen[:count]


def read_prompt_views(run: Decoding, count: int) -> list[PromptView]:
    """Up to `count` prompts with their completions, in the order of choice: fewer are the first of these."""
    path = run.run_dir / GENERATIONS
    categories = {
        row["prompt_id"]: row.get("category") for row in read_table(path, ("prompt_id", "category")).to_pylist()
    }
    chosen = choose_prompts(categories, count)
    rows = read_table(path, COLUMNS, filters=[("prompt_id", "in", chosen)]).to_pylist()
    by_prompt: dict[str, dict[Arm, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        _keep_first_sample(by_prompt[row["prompt_id"]], row)
    return [_view(run, by_prompt[prompt_id]) for prompt_id in chosen]


def grouped(views: Sequence[PromptView]) -> list[PromptView]:
    """The same prompts, category by category."""
    return sorted(views, key=lambda view: view.category)


def shade_of(logprobs: Sequence[float]) -> int:
    """The shade of a span: of the mean log-probability of its tokens."""
    probability = math.exp(min(0.0, sum(logprobs) / len(logprobs)))
    return sum(probability < step for step in PROBABILITY_STEPS)


def _keep_first_sample(of_prompt: dict[Arm, dict[str, Any]], row: dict[str, Any]) -> None:
    arm = make_arm(row["strategy"], row["params"], row["temperature"])
    if arm not in of_prompt or row["sample"] < of_prompt[arm]["sample"]:
        of_prompt[arm] = row


def _view(run: Decoding, rows: Mapping[Arm, dict[str, Any]]) -> PromptView:
    first, names = next(iter(rows.values())), name_arms(run.arms)
    return PromptView(
        prompt_id=first["prompt_id"],
        category=first.get("category") or "uncategorised",
        title=title_of(first["instruction"]),
        body=body_of(first["instruction"], first["input"] or ""),
        completions=tuple(_completion(run, names[arm], arm, rows[arm]) for arm in run.arms if arm in rows),
    )


def title_of(instruction: str) -> str:
    """The first words; `textwrap.shorten` would look through a megabyte for them."""
    line = " ".join(instruction[: 2 * MAX_TITLE].split())
    return line if len(line) <= MAX_TITLE else f"{line[:MAX_TITLE]}…"


def body_of(instruction: str, further: str) -> tuple[Markup, ...]:
    """Instruction and input; nothing where the title has said it all."""
    if not further and title_of(instruction) == instruction:
        return ()
    return tuple(clipped_markup(text) for text in (instruction, further) if text)


def _completion(run: Decoding, name: str, arm: Arm, row: Mapping[str, Any]) -> Completion:
    rewards = run.rewards.get(CompletionKey(row["prompt_id"], arm, row["sample"]), ())
    ids, logprobs = row["token_ids"], row["logprobs"]
    if run.pieces is None:
        clipped = clip(row["text"], MAX_CHARACTERS)
        left_out = f"{plural(clipped.left_out, 'more character')} not shown" if clipped.left_out else ""
        return Completion(name, _facts(row, rewards), None, markup(clipped.text), left_out)
    spans = join_spans(ids[:MAX_TOKENS], logprobs[:MAX_TOKENS], run.pieces)
    more = len(ids) - MAX_TOKENS
    left_out = f"{plural(more, 'more token')} not shown" if more > 0 else ""
    return Completion(name, _facts(row, rewards), tuple(_token(span) for span in spans), Markup(), left_out)


def _facts(row: Mapping[str, Any], rewards: Sequence[Reward]) -> tuple[str, ...]:
    mean = row["mean_logprob"]
    has_mean = mean is not None and math.isfinite(mean)
    return (
        f"stopped by {REASON_NAMES.get(row['stop_reason'], row['stop_reason'])}",
        plural(row["n_tokens"], "token"),
        f"mean log-probability {number(mean, 2)}" if has_mean else "no log-probability",
        *(f"reward {number(r.score, 2)}" if r.score is not None else "reward: unscored" for r in rewards),
    )


def _token(span: Span) -> Token:
    # A line break is white space and would show no shade: it gets a visible sign before it.
    text = clipped_markup(span.text.replace("\n", "↵\n"), MAX_PIECE)
    if not span.known:
        return Token(text, None, "the run recorded no text for this token id")
    each = ", ".join(_logprob(logprob) for logprob in span.logprobs)
    if len(span.logprobs) > 1:
        return Token(text, shade_of(span.logprobs), f"{len(span.logprobs)} tokens: {each} nats")
    return Token(text, shade_of(span.logprobs), f"{each} nats ({number(100 * math.exp(span.logprobs[0]), 1)} %)")


def _logprob(value: float) -> str:
    return number(value, 3) if math.isfinite(value) else f"{MINUS}∞"


def clipped_markup(text: str, limit: int = MAX_CHARACTERS) -> Markup:
    """The beginning of a text as HTML, and in words how much is left out."""
    clipped = clip(text, limit)
    if not clipped.left_out:
        return markup(clipped.text)
    note = Markup('<span class="esc">… {} not shown</span>').format(plural(clipped.left_out, "character"))
    return markup(clipped.text) + note


def _hash(prompt_id: str) -> str:
    return hashlib.sha256(prompt_id.encode("utf-8", "surrogatepass")).hexdigest()
