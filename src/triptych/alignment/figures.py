"""What a finished training run is measured by: held-out figures with intervals, clustered by prompt.

Not here: the audits, which ask more of a checkpoint (`triptych.auditing`).
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from triptych.alignment.dpo import DpoTask
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.grpo import GrpoTask
from triptych.alignment.reward_model import RewardTask
from triptych.alignment.state import Figure
from triptych.records import Prompt
from triptych.runs import read_metrics
from triptych.stats import bare, clustered_bootstrap, exponential, paired_difference
from triptych.workers import Workers

WHOLE = "one figure of the whole held-out set"


def reward_figures(
    task: RewardTask, held_out: Sequence[EncodedPair], clusters: Mapping[str, str], workers: Workers, *, seed: int
) -> list[Figure]:
    """Accuracy and margin on held-out pairs."""
    if not held_out:
        return []
    margins = task.margins(held_out)
    prompts = [clusters[pair.id] for pair in held_out]
    accuracy = clustered_bootstrap([float(margin > 0) for margin in margins], prompts, seed=seed, is_share=True)
    return [
        Figure(
            name="eval_accuracy",
            estimate=accuracy,
            description="share of held-out pairs whose chosen answer scores higher",
        ),
        Figure(
            name="eval_margin",
            estimate=clustered_bootstrap(margins, prompts, seed=seed),
            description="score of the chosen answer less that of the rejected one, held-out pairs (logits)",
        ),
    ]


def dpo_figures(task: DpoTask, clusters: Mapping[str, str], workers: Workers, *, seed: int) -> list[Figure]:
    """Accuracy, margin, perplexity against the reference and KL on held-out pairs."""
    held_out = task.last_evaluation
    if held_out is None:
        return []
    prompts = [clusters[name] for name in held_out.ids]
    token_prompts: list[Hashable] = [prompts[i] for i in held_out.token_pair]
    accuracy = clustered_bootstrap(
        [float(margin > 0) for margin in held_out.margins], prompts, seed=seed, is_share=True
    )
    log_ratio = clustered_bootstrap(
        [b - a for a, b in zip(held_out.logprobs, held_out.references, strict=True)], token_prompts, seed=seed
    )
    return [
        Figure(
            name="eval_accuracy",
            estimate=accuracy,
            description="share of held-out pairs with a positive margin of implicit rewards; chance is 0.5",
        ),
        Figure(
            name="eval_margin",
            estimate=clustered_bootstrap(held_out.margins, prompts, seed=seed),
            description="implicit reward of the chosen answer less that of the rejected one, held-out pairs",
        ),
        Figure(
            name="perplexity_ratio",
            estimate=exponential(log_ratio),
            description="perplexity on held-out chosen answers over the reference's, EOS counted; 1 is no change",
        ),
        Figure(
            name="perplexity",
            estimate=exponential(clustered_bootstrap([-p for p in held_out.logprobs], token_prompts, seed=seed)),
            description="perplexity on held-out chosen answers, EOS counted",
        ),
        Figure(
            name="perplexity_reference",
            estimate=exponential(clustered_bootstrap([-p for p in held_out.references], token_prompts, seed=seed)),
            description="the same of the reference",
        ),
        Figure(
            name="kl",
            estimate=clustered_bootstrap(held_out.kl, token_prompts, seed=seed),
            description="exact token KL to the reference on held-out chosen answers (nats per token)",
        ),
    ]


def grpo_figures(task: GrpoTask, held_out: Sequence[Prompt], run: Path, *, seed: int) -> list[Figure]:
    """Reward, gold and lengths of one completion of each held-out prompt, against the same draws at the start."""
    before, after = task.first_evaluation, task.last_evaluation
    if not after:
        return []
    names = list(range(len(after["reward"])))
    figures = []
    for name, what in (("reward", "reward"), ("gold", "gold score"), ("length", "length in tokens, EOS not counted")):
        values = after.get(name) or []
        if not any(value is not None for value in values):
            continue
        estimate = clustered_bootstrap(values, names, seed=seed)
        figures.append(
            Figure(name=name, estimate=estimate, description=f"{what} of one completion of each held-out prompt")
        )
        if before:
            change = paired_difference(values, before[name], names, seed=seed)
            figures.append(
                Figure(name=f"{name}_change", estimate=change, description=f"{what} less that of the base, paired")
            )
    empty = clustered_bootstrap([float(value == 0) for value in after["length"]], names, seed=seed, is_share=True)
    figures.append(
        Figure(name="empty_rate", estimate=empty, description="share of empty completions of held-out prompts")
    )
    last = read_metrics(run, "grpo.eval")[-1:] if (run / "metrics.jsonl").exists() else []
    for name, what in (
        ("length_median", "median length in tokens of completions of held-out prompts"),
        ("perplexity", "perplexity on held-out chosen answers, EOS counted"),
        ("perplexity_reference", "the same of the reference"),
        ("kl", "exact token KL to the reference on own samples (nats per token)"),
    ):
        if last and last[0].get(name) is not None:
            figures.append(Figure(name=name, estimate=bare(float(last[0][name]), len(names), WHOLE), description=what))
    return figures
