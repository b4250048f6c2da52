"""Training curves: reward model, DPO and GRPO, and the health of the policy that GRPO trains.

Caption and alt text are made of the very panels that are drawn, so that neither can leave anything out. Not here: the
drawing (`triptych.reports.figures.curves`).
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from triptych.alignment.state import Method
from triptych.reports import format as fmt
from triptych.reports.alignment_inputs import PARTIAL_REWARD, Alignment, Curve, TrainingRun, plain
from triptych.reports.figures.curves import (
    ALARM_LOOKS,
    FOURTH,
    FURTHER,
    PLAIN,
    REFERENCE,
    SECOND,
    THIRD,
    Drift,
    Mark,
    Panel,
    Trace,
    alarms,
    draw_stack,
    drawable,
    longest,
    smooth,
    smoothing_width,
    stride,
)
from triptych.reports.figures.style import Look
from triptych.reports.glossary import describe_curve
from triptych.reports.safe_text import neutralise

PARTIAL_LOOKS = (PLAIN, SECOND, THIRD, FOURTH, *FURTHER)
MAX_QUOTED = 4
"""Alarms that a caption names one by one."""
LN_2 = float(np.log(2))
MARKS = {LN_2: "ln 2 = 0.693, the loss where both answers of a pair count alike", 0.5: "an accuracy of one half"}


class TrainingSpec(NamedTuple):
    """One figure of a training run; `FigureSpec` is that of the decoding panel."""

    name: str
    """Stem of its files."""
    title: str
    method: Method
    panels: Callable[[TrainingRun], list[Panel]]
    about: str
    """The beginning of the caption."""
    with_drift: bool = False
    """Scores against the distance from the reference stand below the panels."""

    def absent(self, run: Alignment) -> str | None:
        """Why this run directory has no such figure; None where it has."""
        if self.method not in run.runs:
            return f"this run has no training with {self.method}"
        return None if shown(run.runs[self.method], self) else "metrics.jsonl has none of its values"

    def draw(self, run: Alignment) -> Figure:
        """The figure."""
        of = run.runs[self.method]
        return draw_stack(of, shown(of, self), drifts(of, self))

    def caption(self, run: Alignment) -> str:
        """What is shown: units, smoothing, intervals, alarms and n."""
        of = run.runs[self.method]
        panels = shown(of, self)
        sentences = chain(
            [self.about],
            _marks_sentence(panels),
            _drift_sentence(drifts(of, self)),
            _smoothing_sentence(longest(of, panels)),
            _interval_sentence(of, panels),
            _alarm_sentence(of),
            [_n_sentence(of)],
        )
        return " ".join(sentences)

    def alt(self, run: Alignment) -> str:
        """Where every curve begins and ends, and the alarms."""
        of = run.runs[self.method]
        curves = [f"{t.label}, {_said(of, panel, t)}" for panel in shown(of, self) for t in panel.traces]
        scores = [f"{d.label} against √KL, from {_point(d, 0)} to {_point(d, -1)}" for d in drifts(of, self)]
        curves_sentence = f"{self.title}, curves over optimizer steps. {'; '.join([*curves, *scores])}."
        return " ".join([curves_sentence, *_alarm_sentence(of)])


# --- What the figures show --------------------------------------------------------------------------------------------


def panels_reward(run: TrainingRun) -> list[Panel]:
    """Loss and accuracy of the reward model."""
    return [
        _single(run, "loss", mark=Mark(LN_2, "ln 2")),
        _single(run, "accuracy", mark=Mark(0.5, "chance")),
    ]


def panels_dpo(run: TrainingRun) -> list[Panel]:
    """Loss, accuracy, implicit rewards, and their price: perplexity and KL."""
    is_dpo = run.loss_name in (None, "dpo")
    unit = " (nats)" if is_dpo else ""
    rewards = (
        Trace("margin", "margin", PLAIN),
        Trace("reward_chosen", "chosen", SECOND),
        Trace("reward_rejected", "rejected", THIRD),
    )
    return [
        Panel(f"loss{unit}", (Trace("loss", "loss", PLAIN),), mark=Mark(LN_2, "ln 2") if is_dpo else None),
        _single(run, "accuracy", mark=Mark(0.5, "chance")),
        Panel(f"implicit rewards{unit}", rewards),
        _perplexity(),
        _single(run, "kl"),
    ]


def panels_grpo(run: TrainingRun) -> list[Panel]:
    """Reward, its parts, the gold score and the distance."""
    parts = tuple(
        Trace(name, drawable(name.removeprefix(PARTIAL_REWARD)), PARTIAL_LOOKS[place % len(PARTIAL_LOOKS)])
        for place, name in enumerate(run.partial_rewards)
    )
    by_function = [Panel("reward of each function", parts)] if len(parts) > 1 else []
    return [_single(run, "reward"), *by_function, _single(run, "gold", SECOND), _single(run, "kl")]


def panels_health(run: TrainingRun) -> list[Panel]:
    """What the policy writes: all that tells a collapse that a reward hides."""
    silence = (
        Trace("empty_rate", "empty", PLAIN),
        Trace("eos_first", "end of text first", SECOND),
        Trace("truncated_rate", "cut off", THIRD),
    )
    length = (Trace("length_median", "median", PLAIN),)
    return [
        Panel("length (tokens)", length, band=("length_p10", "length_p90")),
        Panel("completions (%)", silence, percent=True),
        _single(run, "entropy"),
        Panel("groups of one reward (%)", (Trace("zero_variance", "groups of one reward", PLAIN),), percent=True),
        _perplexity(),
    ]


def shown(run: TrainingRun, spec: TrainingSpec) -> list[Panel]:
    """The panels of a figure, without the traces and panels that the log has nothing for."""
    found = [
        panel._replace(traces=tuple(trace for trace in panel.traces if _is_logged(run, trace.name)))
        for panel in spec.panels(run)
    ]
    return [panel for panel in found if panel.traces]


def drifts(run: TrainingRun, spec: TrainingSpec) -> list[Drift]:
    """Held-out reward, and gold score where there is one, against √KL: one point an evaluation.

    Source: Gao et al. 2023, "Scaling laws for reward model overoptimization", whose KL is that of whole completions;
    here it is per token.
    """
    kl = run.evaluated("kl")
    distance = dict(zip(kl.steps.tolist(), np.sqrt(np.maximum(0.0, kl.values)).tolist(), strict=True))
    found = []
    for name, look in (("reward", PLAIN), ("gold", SECOND)) if spec.with_drift else ():
        curve = run.evaluated(name)
        is_placed = np.isin(curve.steps, list(distance))
        if is_placed.sum() > 1:
            steps = tuple(curve.steps[is_placed].tolist())
            at = np.array([distance[step] for step in steps])
            found.append(Drift(describe_curve(run.method, name).label, look, at, curve.values[is_placed], steps))
    return found


def _single(run: TrainingRun, name: str, look: Look = PLAIN, mark: Mark | None = None) -> Panel:
    info = describe_curve(run.method, name)
    return Panel(info.axis, (Trace(name, info.label, look),), mark=mark)


def _perplexity() -> Panel:
    traces = (Trace("perplexity", "policy", PLAIN), Trace("perplexity_reference", "reference", REFERENCE))
    return Panel("perplexity", traces, may_be_log=True)


def _is_logged(run: TrainingRun, name: str) -> bool:
    return not (run.training(name).is_empty and run.evaluated(name).is_empty)


# --- In words ---------------------------------------------------------------------------------------------------------


def _marks_sentence(panels: Sequence[Panel]) -> list[str]:
    marks = [MARKS[panel.mark.value] for panel in panels if panel.mark is not None]
    return [f"Dotted: {'; and '.join(marks)}."] if marks else []


def _drift_sentence(drifts: Sequence[Drift]) -> list[str]:
    if not drifts:
        return []
    sentence = (
        "Lowest: held-out scores against the square root of the KL, after Gao et al. (2023), who take it over whole "
        "completions and not per token; a gold score that turns down while the reward still rises is over-optimisation."
    )
    return [sentence]


def _smoothing_sentence(n: int) -> list[str]:
    width, each = smoothing_width(n), stride(n)
    if width == 1:
        return []
    thinned = f"; of {n:,} steps, one in {each} is drawn" if each > 1 else ""
    return [f"Thin: each step; thick: the mean over {width} steps around it, of fewer at both ends{thinned}."]


def _interval_sentence(run: TrainingRun, panels: Sequence[Panel]) -> list[str]:
    names = [trace.name for panel in panels for trace in panel.traces]
    figures = [run.figure(name) for name in names if not run.evaluated(name).is_empty]
    estimates = [figure.estimate for figure in figures if figure is not None]
    methods = sorted({e.method.removeprefix("95% ") for e in estimates if e.low is not None})
    if not methods:
        return []
    return [f"Error bars at the step of the adapter: 95{fmt.NBSP}% intervals ({'; '.join(methods)})."]


def _alarm_sentence(run: TrainingRun) -> list[str]:
    listed = [f"{neutralise(w.signal)} at step {w.step:,} ({ALARM_LOOKS[w.level].label})" for w in alarms(run)]
    if not listed:
        return []
    more = len(listed) - MAX_QUOTED
    quoted = fmt.joined([*listed[:MAX_QUOTED], *([f"{more} more"] if more > 0 else [])])
    return [f"Vertical lines: the first alarm of each signal, {quoted}; a triangle marks the panel of the signal."]


def _n_sentence(run: TrainingRun) -> str:
    state, unit = run.state, "prompt" if run.method == "grpo" else "pair"
    held_out = f"{fmt.plural(state.n_validation, unit)} held out" if state.n_validation else "none held out"
    return f"n = {fmt.plural(state.n_train, unit)} for training, {held_out}."


def _said(run: TrainingRun, panel: Panel, trace: Trace) -> str:
    """`in training from 0.693 (step 1) to 0.410 (step 500), held out from …`."""
    training, held_out, said = run.training(trace.name), run.evaluated(trace.name), []
    if not training.is_empty:
        smoothed = training._replace(values=smooth(training.values, smoothing_width(len(training.steps))))
        said.append(f"in training {_ends(smoothed, panel)}")
    if not held_out.is_empty:
        said.append(f"held out {_ends(held_out, panel)}")
    return ", ".join(said)


def _ends(curve: Curve, panel: Panel) -> str:
    unit = f"{fmt.NBSP}%" if panel.percent else ""
    first, last = (f"{plain(panel.scale * curve.values[at])}{unit} (step {curve.steps[at]:,})" for at in (0, -1))
    return first if len(curve.steps) == 1 else f"from {first} to {last}"


def _point(drift: Drift, at: int) -> str:
    return f"{plain(drift.scores[at])} at {plain(drift.distances[at])} (step {drift.steps[at]:,})"


SPECS = (
    TrainingSpec(
        "figure_training_reward",
        "Training of the reward model",
        "reward",
        panels_reward,
        "Loss and accuracy of the reward model on pairs.",
    ),
    TrainingSpec(
        "figure_training_dpo",
        "Training with DPO",
        "dpo",
        panels_dpo,
        "Loss, accuracy and implicit rewards on pairs, and their price: perplexity and KL on held-out chosen answers.",
    ),
    TrainingSpec(
        "figure_training_grpo",
        "Training with GRPO: reward and distance",
        "grpo",
        panels_grpo,
        "Mean reward of completions, and their distance from the reference.",
        with_drift=True,
    ),
    TrainingSpec(
        "figure_training_health",
        "Training with GRPO: health of the policy",
        "grpo",
        panels_health,
        "What the policy writes. A policy can collapse while its reward rises: it falls silent, never ends, writes one "
        "thing only or babbles.",
    ),
)
