"""What a finished training run is measured by: held-out figures with intervals, clustered by prompt.

Not here: the audits, which ask more of a checkpoint (`triptych.auditing`).
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

from triptych.alignment.dpo import DpoTask
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.grpo import GrpoTask
from triptych.alignment.reward_model import RewardTask
from triptych.alignment.state import Figure
from triptych.censoring import censored_mean, censored_mean_difference, censored_median, is_median_exact
from triptych.intervals import median
from triptych.stats import clustered_bootstrap, exponential, paired_difference
from triptych.workers import Workers


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
        *perplexities(held_out.logprobs, held_out.references, token_prompts, seed=seed),
        Figure(
            name="kl",
            estimate=clustered_bootstrap(held_out.kl, token_prompts, seed=seed),
            description="exact token KL to the reference on held-out chosen answers (nats per token)",
        ),
    ]


def grpo_figures(task: GrpoTask, *, max_new_tokens: int, seed: int) -> list[Figure]:
    """Of one completion of each held-out prompt, against the same draws at the start, and of held-out answers.

    Lengths are bounds where completions of `max_new_tokens` were cut (`triptych.censoring`).
    """
    before, after = task.first_evaluation, task.last_evaluation
    if not after:
        return []
    names = list(range(len(after["reward"])))
    figures = []
    # EOS is not counted, so that only a completion that was cut is as long as the limit.
    is_cut, was_cut = (
        [(length or 0.0) >= max_new_tokens for length in side.get("length", ())] for side in (after, before)
    )
    for name, what in (("reward", "reward"), ("gold", "gold score"), ("length", "length in tokens, EOS not counted")):
        values = after.get(name) or []
        if not any(value is not None for value in values):
            continue
        estimate = clustered_bootstrap(values, names, seed=seed)
        if name == "length":
            estimate = censored_mean(estimate, is_cut)
        figures.append(
            Figure(name=name, estimate=estimate, description=f"{what} of one completion of each held-out prompt")
        )
        if before:
            change = paired_difference(values, before[name], names, seed=seed)
            if name == "length":
                change = censored_mean_difference(change, is_cut, was_cut)
            figures.append(
                Figure(name=f"{name}_change", estimate=change, description=f"{what} less that of the base, paired")
            )
    empty = clustered_bootstrap([float(value == 0) for value in after["length"]], names, seed=seed, is_share=True)
    figures.append(
        Figure(name="empty_rate", estimate=empty, description="share of empty completions of held-out prompts")
    )
    middle = median(after["length"])
    is_exact = is_median_exact([length or 0.0 for length in after["length"]], is_cut)
    figures.append(
        Figure(
            name="length_median",
            estimate=censored_median(middle, is_exact=is_exact),
            description="median length in tokens of completions of held-out prompts",
        )
    )
    return [*figures, *_token_figures(task, seed=seed)]


def _token_figures(task: GrpoTask, *, seed: int) -> Iterator[Figure]:
    """Perplexity on held-out answers against the reference's, and the KL on the policy's own completions."""
    if (answers := task.held_out_tokens) is not None:
        yield from perplexities(answers.logprobs, answers.references, answers.prompts, seed=seed)
    if (own := task.own_tokens) is not None:
        yield Figure(
            name="kl",
            estimate=clustered_bootstrap(own.kl, own.prompts, seed=seed),
            description="exact token KL to the reference on own samples (nats per token)",
        )


def perplexities(
    logprobs: Sequence[float], references: Sequence[float], prompts: Sequence[Hashable], *, seed: int
) -> Iterator[Figure]:
    """Of held-out chosen answers, token by token, under the policy and its reference."""
    of_answers = "perplexity on held-out chosen answers"
    changes = [reference - logprob for logprob, reference in zip(logprobs, references, strict=True)]
    for name, values, what in (
        ("perplexity_ratio", changes, f"{of_answers} over the reference's, EOS counted; 1 is no change"),
        ("perplexity", [-p for p in logprobs], f"{of_answers}, EOS counted"),
        ("perplexity_reference", [-p for p in references], "the same of the reference"),
    ):
        yield Figure(name=name, estimate=exponential(clustered_bootstrap(values, prompts, seed=seed)), description=what)
