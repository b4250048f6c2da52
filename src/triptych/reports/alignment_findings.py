"""What a training run came to, in sentences made of its own numbers.

The headline of every run stands in the summary on top of the page, and with the details in the section. A sentence
stands here only if the run measured what it says; what has no interval says so. Not here: judging, which audits do.
"""

from collections.abc import Callable, Iterator

from triptych.alignment.state import Method, TrainerState, Warned
from triptych.reports import format as fmt
from triptych.reports.alignment_inputs import Alignment, TrainingRun, plain
from triptych.reports.figures.curves import smooth, smoothing_width
from triptych.reports.safe_text import clip

SUBJECTS: dict[Method, str] = {
    "reward": "The reward model",
    "dpo": "The policy of DPO",
    "grpo": "The policy of GRPO",
}
LEVELS = {"severe": "severe alarm", "warn": "warning", "note": "note"}
"""From the gravest to the lightest."""
SIGNS = {"severe": "✗ severe", "warn": "! warning", "note": "– note"}
MAX_SENTENCE = 300
_INTERVALS = f"Brackets are 95{fmt.NBSP}% intervals, clustered by prompt."


def findings(run: Alignment) -> tuple[str, ...]:
    """The headlines of all runs, for the summary of the page."""
    sentences = [sentence for of in run.runs.values() for sentence in headline(of)]
    return (*sentences, *([_INTERVALS] if has_intervals(run) else []))


def has_intervals(run: Alignment) -> bool:
    """Whether any final figure has one."""
    return any(figure.estimate.low is not None for of in run.runs.values() for figure in of.state.figures)


def headline(run: TrainingRun) -> list[str]:
    """What was trained, what it came to, and what went badly wrong."""
    return [_what_was_done(run), *_HEADLINES[run.method](run), *_severe(run)]


def details(run: TrainingRun) -> list[str]:
    """What the headline leaves out."""
    return [*_DETAILS[run.method](run), *_lighter(run)]


def measured(run: TrainingRun, name: str, unit: str = "") -> str | None:
    """The final figure with its interval, else the last evaluation; None where there is neither."""
    figure = run.figure(name)
    if figure is not None and figure.estimate.low is not None:
        return fmt.with_interval(figure.estimate) + unit
    value = run.after(name) if figure is None else figure.estimate.mean
    bound = "" if figure is None else fmt.BOUNDS[figure.estimate.bound]
    return None if value is None else f"{bound}{plain(value)}{unit} (no interval)"


def sentence_of(warned: Warned) -> str:
    """What a warning says, without the step, which stands beside it."""
    said = warned.sentence.removeprefix(f"step {warned.step}: ").strip()
    clipped = clip(said, MAX_SENTENCE)
    return clipped.text + ("…" if clipped.left_out else "")


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def _what_was_done(run: TrainingRun) -> str:
    state = run.state
    examples = fmt.plural(state.n_train, "prompt" if run.method == "grpo" else "pair")
    return f"{SUBJECTS[run.method]} was trained on {examples}{_ENDINGS[state.outcome](state)}."


_ENDINGS: dict[str, Callable[[TrainerState], str]] = {
    "finished": lambda state: f" for {fmt.plural(state.step, 'step')}",
    "stopped": lambda state: f" and stopped at step {state.step:,} of {state.total_steps:,}",
    "rolled_back": lambda state: f" and rolled back to step {state.step:,} of {state.total_steps:,}",
    "running": lambda state: f"; it was at step {state.step:,} of {state.total_steps:,} when this page was written",
}


def _reward_headline(run: TrainingRun) -> Iterator[str]:
    if (accuracy := measured(run, "accuracy")) is not None:
        before = run.before("accuracy")
        since = "" if before is None else f"; before training it was {plain(before)}"
        yield f"The share of held-out pairs whose chosen answer it scores higher is {accuracy}{since}."


def _reward_details(run: TrainingRun) -> Iterator[str]:
    yield from _change(run, "loss", "On held-out pairs the loss goes")


def _dpo_headline(run: TrainingRun) -> Iterator[str]:
    if (accuracy := measured(run, "accuracy")) is not None:
        yield f"The share of held-out pairs whose chosen answer gained more than the rejected one is {accuracy}."
    perplexity, reference = measured(run, "perplexity"), measured(run, "perplexity_reference")
    kl = measured(run, "kl", " nats per token")
    if perplexity is not None:
        against = "" if reference is None else f" against the reference's {reference}"
        distance = "" if kl is None else f", at a KL of {kl}"
        yield f"On held-out chosen answers its perplexity is {perplexity}{against}{distance}."


def _dpo_details(run: TrainingRun) -> Iterator[str]:
    yield from _change(run, "loss", "On held-out pairs the loss goes")
    yield from _change(run, "reward_chosen", "The implicit reward of chosen answers goes")
    yield from _change(run, "reward_rejected", "That of rejected answers goes")


def _grpo_headline(run: TrainingRun) -> Iterator[str]:
    yield from _change(run, "reward", "On held-out prompts the mean reward goes")
    yield from _change(run, "gold", "A gold score that training does not see goes")
    says, unit = "he median completion goes", " tokens"
    lengths = [*_change(run, "length_median", f"T{says}", unit)]
    yield from lengths or _change_in_training(run, "length_median", f"In training, t{says}", unit)


def _grpo_details(run: TrainingRun) -> Iterator[str]:
    yield from _change(run, "empty_rate", "The share of empty completions goes")
    if (kl := measured(run, "kl", " nats per token")) is not None:
        yield f"The KL from the reference is {kl}."
    perplexity, reference = measured(run, "perplexity"), measured(run, "perplexity_reference")
    if perplexity is not None:
        against = "" if reference is None else f" against the reference's {reference}"
        yield f"On held-out answers the perplexity is {perplexity}{against}."


_HEADLINES: dict[Method, Callable[[TrainingRun], Iterator[str]]] = {
    "reward": _reward_headline,
    "dpo": _dpo_headline,
    "grpo": _grpo_headline,
}
_DETAILS: dict[Method, Callable[[TrainingRun], Iterator[str]]] = {
    "reward": _reward_details,
    "dpo": _dpo_details,
    "grpo": _grpo_details,
}


def _change(run: TrainingRun, name: str, says: str, unit: str = "") -> Iterator[str]:
    """From the evaluation before training to the final figure."""
    before, after = run.before(name), measured(run, name, unit)
    if before is not None and after is not None and run.state.step > 0:
        yield f"{says} from {plain(before)} to {after}."


def _change_in_training(run: TrainingRun, name: str, says: str, unit: str) -> Iterator[str]:
    curve = run.training(name)
    if len(curve.steps) > 1:
        values = smooth(curve.values, smoothing_width(len(curve.steps)))
        yield f"{says} from {plain(values[0])} to {plain(values[-1])}{unit} (smoothed, no interval)."


def _severe(run: TrainingRun) -> Iterator[str]:
    severe = [warned for warned in run.state.warnings if warned.level == "severe"]
    if severe:
        first = severe[0]
        where = "before training" if first.step is None else f"at step {first.step:,}"
        one = "A severe alarm" if len(severe) == 1 else f"The first of {len(severe):,} severe alarms"
        yield f"{one}, {where}: {sentence_of(first).rstrip('.')}."
    elif run.method == "grpo":
        has_any = any(warned.level == "warn" for warned in run.state.warnings)
        yield f"The collapse watch raised no {'severe ' if has_any else ''}alarm."


def _lighter(run: TrainingRun) -> Iterator[str]:
    counts = {level: sum(warned.level == level for warned in run.state.warnings) for level in ("warn", "note")}
    parts = [fmt.plural(count, LEVELS[level]) for level, count in counts.items() if count]
    if parts:
        verb = "stand" if sum(counts.values()) > 1 else "stands"
        yield f"{fmt.joined(parts)} {verb} under Warnings."
