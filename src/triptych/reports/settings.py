"""The paper's settings beside those of a run: how they are compared, and those of the decoding panel.

What the run really did is read from its records (strategies, temperatures, prompts, samples); only what leaves no trace
there is looked up in the resolved configuration. What is in neither is "not recorded", never assumed to be the same.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from triptych.reports.arms import parameters, temperature_text
from triptych.reports.format import joined, number
from triptych.reports.inputs import Decoding
from triptych.reports.reported import ReportedValue, Scalar, reported

NOT_RECORDED = "not recorded"
EMBEDDED = {"starter": "starter (SmolLM2-135M-Instruct)"}
"""What a reader should know of a name that is ours; `triptych.models.starter` has it, and needs torch."""
MAX_TEXT = 200


class Setting(NamedTuple):
    """One setting, the paper's and ours."""

    name: str
    paper: str
    source: str
    """Where the paper says it."""
    ours: str
    same: bool | None
    """None where the run does not record it."""


def settings(run: Decoding) -> list[Setting]:
    """All settings of the paper's decoding panel."""
    config, paper = run.manifest.config, reported()
    temperatures = {arm.temperature for arm in run.arms if arm.temperature is not None}
    return [
        _named("model", paper["global.model"], _known_model(config)),
        _named("prompts", paper["global.dataset"], lookup(config, "prompts", "dataset")),
        _equal("number of prompts", paper["global.test_size"], [len(run.prompt_ids)]),
        _equal("new tokens at most", paper["global.max_new_tokens"], _looked_up(config, "max_new_tokens")),
        _equal("repetition: n-gram", paper["global.repeat_ngram_block"], _looked_up(config, "block")),
        _equal("repetition: more than", paper["global.repeat_threshold"], _looked_up(config, "threshold")),
        _equal("beam width", paper["decoding.beam_width"], _of_strategy(run, "beam", "width")),
        _equal("temperatures", paper["decoding.temperatures"], sorted(temperatures)),
        _equal("top-k: k", paper["decoding.top_k"], _of_strategy(run, "top_k", "k")),
        _equal("top-p: p", paper["decoding.top_p"], _of_strategy(run, "top_p", "p")),
        _equal("samples of one prompt", paper["decoding.within_prompt_samples"], [_samples_a_prompt(run)]),
        _template(paper["decoding.sentinel"], lookup(config, "template")),
        _named("reward model", paper["global.reward_model"], _reward_model(run)),
    ]


def lookup(config: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of `keys`, wherever in the configuration it stands; the outermost of several."""
    waiting: deque[Any] = deque([config])
    while waiting:
        group = waiting.popleft()
        if isinstance(group, Mapping):
            found = next((group[key] for key in keys if group.get(key) is not None), None)
            if found is not None:
                return found
            waiting.extend(group.values())
        elif isinstance(group, list):
            waiting.extend(group)
    return None


def compare(name: str, key: str, ours: Any) -> Setting:
    """One setting of the paper, by its key in `reported.json`, beside a value of ours; None is not recorded."""
    paper = reported()[key]
    unit = "" if paper.unit is None else f" {paper.unit.removesuffix('s') if paper.value == 1 else paper.unit}"
    if ours is None:
        return Setting(name, shown_value(paper.value) + unit, paper.source, NOT_RECORDED, None)
    same = bool(_comparable(paper.value) == _comparable(ours))
    return Setting(name, shown_value(paper.value) + unit, paper.source, shown_value(ours), same)


def shown_value(value: Any) -> str:
    """A value of a configuration as text, not too long."""
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, int):
        return number(value, 0)
    if isinstance(value, list | tuple):
        return ", ".join(shown_value(item) for item in value) or "none"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _comparable(value: Any) -> Any:
    """Names agree when their last parts do, whatever the case; lists whatever their order; 16 is 16.0."""
    if isinstance(value, list | tuple):
        return sorted(str(item) for item in value)
    return _last_part(value) if isinstance(value, str) else value


def model_name(run: Decoding) -> str:
    """What the run calls its model."""
    return _known_model(run.manifest.config) or "an unnamed model"


def _known_model(config: Mapping[str, Any]) -> str | None:
    name = _text(lookup(config, "model"))
    return None if name is None else EMBEDDED.get(name, name)


def _named(name: str, paper: ReportedValue, ours: Any) -> Setting:
    """Names agree when their last parts do, whatever the case: `HuggingFaceTB/smollm2-…` is the paper's model."""
    text = _text(ours)
    same = None if text is None else _last_part(text) == _last_part(str(paper.value))
    return Setting(name, str(paper.value), paper.source, text or NOT_RECORDED, same)


def _template(paper: ReportedValue, ours: Any) -> Setting:
    same = None if ours is None else ours == "paper"
    shown = {"paper": "the same", None: NOT_RECORDED}.get(ours, f"{ours} template")
    return Setting("prompt", "instruction and input, then “Answer:”", paper.source, shown, same)


def _reward_model(run: Decoding) -> str:
    """The model that scored, or why nothing was scored."""
    wanted = lookup(run.manifest.config, "reward_model")
    return joined(run.reward_models) or ("none: unscored" if wanted is None else f"{wanted} (not available: unscored)")


def _equal(name: str, paper: ReportedValue, ours: list[Any]) -> Setting:
    """Numbers agree when the run tried exactly the paper's."""
    wanted = list(paper.value) if isinstance(paper.value, tuple) else [paper.value]
    same = sorted(wanted) == sorted(ours) if ours else None
    return Setting(name, _values(wanted, paper.unit), paper.source, _values(ours, paper.unit) or NOT_RECORDED, same)


def _values(values: list[Any], unit: str | None) -> str:
    shown = ", ".join(_value(value) for value in values)
    return f"{shown} {unit}" if shown and unit else shown


def _value(value: Scalar) -> str:
    if isinstance(value, float):
        return temperature_text(value)
    return number(value, 0) if isinstance(value, int) else str(value)


def _looked_up(config: Mapping[str, Any], key: str) -> list[Any]:
    value = lookup(config, key)
    return [value] if isinstance(value, int | float) else []


def _of_strategy(run: Decoding, strategy: str, parameter: str) -> list[Any]:
    """All values that the run's arms of one strategy have for a parameter."""
    found = {parameters(arm.family).get(parameter) for arm in run.arms if arm.strategy == strategy}
    return sorted(value for value in found if value is not None)


def _samples_a_prompt(run: Decoding) -> int:
    return max(len(set(rows.samples.tolist())) for rows in run.rows.values())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].casefold()
