"""The model card of a training run: what was trained on what, how, and what was measured, in Markdown."""

from triptych.alignment.loop import TrainingConfig
from triptych.alignment.state import TrainerState
from triptych.config import dump_yaml
from triptych.records import Estimate

WHAT = {
    "reward": "A Bradley–Terry reward model",
    "dpo": "A policy aligned by direct preference optimisation",
    "grpo": "A policy aligned by group relative policy optimisation",
}

USE = {
    "reward": "from triptych.models import load_reward_model\n\nreward = load_reward_model(FOLDER)\n"
    'print(reward.score([("Capital of Mongolia?", "Ulaanbaatar.")]))',
    "adapter": "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)",
    "whole": "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(FOLDER)",
}


def model_card(state: TrainerState, config: TrainingConfig) -> str:
    """The card as Markdown, with the front matter that hubs read."""
    is_adapter = config.lora is not None
    library, kind = ("peft", "lora") if is_adapter else ("transformers", "full fine-tuning")
    front = dump_yaml({"base_model": state.model, "library_name": library, "tags": ["triptych", state.method, kind]})
    outcome = {
        "finished": f"{state.step} steps, finished",
        "stopped": f"stopped by the collapse watch after {state.step} of {state.total_steps} steps",
        "rolled_back": f"rolled back by the collapse watch to step {state.step} of {state.total_steps}",
        "running": "not finished",
    }[state.outcome]
    lines = [
        f"---\n{front}---",
        f"# {WHAT[state.method]}",
        _facts(state, outcome),
        "## Measured",
        _table(state),
        *_warnings(state),
        "## Use",
        f"```python\n{USE['reward' if state.method == 'reward' else 'adapter' if is_adapter else 'whole']}\n```",
        "## Recipe",
        f"```yaml\n{dump_yaml(config)}```",
        _costs(state),
    ]
    return "\n\n".join(lines) + "\n"


def _table(state: TrainerState) -> str:
    rows = [
        f"| {figure.name} | {shown(figure.estimate)} | {figure.estimate.n} | {figure.description} |"
        for figure in state.figures
    ]
    return "\n".join(["| figure | value [95 % interval] | n | what |", "|---|---|---|---|", *rows])


def _facts(state: TrainerState, outcome: str) -> str:
    return (
        f"Base: `{state.model}` (fingerprint `{state.fingerprint}`). {outcome}; {state.n_train} to train on and "
        f"{state.n_validation} held out, {state.n_trainable:,} trainable parameters."
    )


def _costs(state: TrainerState) -> str:
    gib = state.peak_bytes / 2**30
    return f"{state.seconds:.0f} s, {state.tokens:,} tokens, peak memory {gib:.2f} GiB, {state.path} path."


def _warnings(state: TrainerState) -> list[str]:
    if not state.warnings:
        return []
    return ["## Warnings", "\n".join(f"- **{one.level}**: {' '.join(one.sentence.split())}" for one in state.warnings)]


def shown(estimate: Estimate) -> str:
    """`0.61 [0.48, 0.73]`, or the value with the reason why it has no interval."""
    if estimate.mean is None:
        return estimate.method
    if estimate.low is None or estimate.high is None:
        return f"{_SIGNS[estimate.bound]}{estimate.mean:.4g} ({estimate.method})"
    return f"{_SIGNS[estimate.bound]}{estimate.mean:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


_SIGNS = {"lower": "≥ ", "upper": "≤ ", None: ""}
