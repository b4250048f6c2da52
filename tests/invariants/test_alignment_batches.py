"""A step is a function of its batch: not of how the batch is cut into passes, of the order within it, or of padding.

Gradients and figures of one step are compared, in fp32 to 1e-5 of the largest entry. And the first step of all starts from
nothing: a loss of ln 2, margins of 0, a KL of 0, to the last bit. Passes side by side are, to the last bit, the passes one
after the other.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.dpo import DpoConfig, DpoTask, reference_logprobs
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.grpo import GrpoConfig, GrpoTask
from triptych.alignment.packing import Group
from triptych.alignment.policy import Policy
from triptych.alignment.reward_functions import NamedReward
from triptych.alignment.reward_model import RewardConfig, RewardTask, new_scorer
from triptych.alignment.scorers import DecoderScorer, Scorer
from triptych.lanes import Lanes
from triptych.models.tiny import save_tiny, tiny_gpt2, tiny_language_model, tiny_llama
from triptych.records import Prompt
from triptych.seeding import generator
from triptych.workers import Workers

ALONE = Workers("cpu")
LORA = LoraConfig(rank=3, alpha=6.0)
CASES: dict[str, tuple[Any, str]] = {
    "fused": (tiny_llama, "fused"),
    "generic": (tiny_llama, "generic"),
    "gpt2": (tiny_gpt2, "generic"),
}
# The ways to cut eight prompts into passes; with the first, nothing is cut.
CUTS: list[dict[str, Any]] = [
    {"micro_batch_tokens": 100_000},
    {"micro_batch_size": 1},
    {"micro_batch_size": 3},
    {"micro_batch_tokens": 40},
]


def make_pairs(n: int = 8, seed: int = 0) -> list[EncodedPair]:
    rng = generator(seed, "pairs")

    def draw(most: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(4, 260, int(rng.integers(1, most))))

    return [EncodedPair(f"pair{i}", Group(draw(20), ((*draw(15), 2), (*draw(15), 2))), False) for i in range(n)]


PAIRS = make_pairs()
PROMPTS = [Prompt(id=f"p{i}", instruction=f"say {i}", prompt="x" * (1 + 5 * i)) for i in range(8)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


def make_policy(case: str, *, dtype: torch.dtype = torch.float32, trained: bool = True, **options: Any) -> Policy:
    make, path = CASES[case]
    policy = Policy(tiny_language_model(make(3).to(dtype)), lora=LORA, seed=0, path=path, **options)
    if trained:
        shake(policy.parameters)
    return policy


def shake(parameters: Mapping[str, Tensor]) -> None:
    """B that are not zero, as after some steps; small, so that no ratio runs into its clip range."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))


def dpo_task(
    policy: Policy, pairs: Sequence[EncodedPair] = PAIRS, validation: Sequence[EncodedPair] = (), **options: Any
) -> DpoTask:
    config = DpoConfig.model_validate({"lora": LORA, "batch_size": len(PAIRS), **options})
    references = reference_logprobs(policy, pairs, config, workers=ALONE, show_progress=False)
    return DpoTask(policy, config, pairs, validation, references, ALONE, seed=0)


def reward_task(scorer: Scorer, pairs: Sequence[EncodedPair] = PAIRS, **options: Any) -> RewardTask:
    config = RewardConfig.model_validate({"lora": LORA, "batch_size": len(PAIRS), **options})
    return RewardTask(scorer, config, pairs, (), ALONE, seed=0)


def spread(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
    """Something that differs from text to text; the fifth one is not scored."""
    return [None if i == 5 else float(sum(map(ord, text)) % 17) for i, text in enumerate(completions)]


def grpo_task(
    policy: Policy, prompts: Sequence[Prompt] = PROMPTS, validation: Sequence[Prompt] = (), **options: Any
) -> GrpoTask:
    config = GrpoConfig.model_validate(
        {"lora": LORA, "prompts_per_step": len(prompts), "group_size": 3, "max_new_tokens": 12, **options}
    )
    return GrpoTask(policy, config, prompts, validation, (), [NamedReward("spread", spread)], None, ALONE, seed=0)


def step(task: Any, parameters: Mapping[str, torch.nn.Parameter]) -> tuple[dict[str, float | None], dict[str, Tensor]]:
    measured = task.accumulate(0)
    gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return measured, gradients


def require_same(found: Any, expected: Any, *, but: Sequence[str] = ()) -> None:
    for name, value in expected[0].items():
        if name not in but:
            assert found[0][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0, name
        assert (found[1][name] - gradient).abs().max() < 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("case", CASES)
class TestDpo:
    def test_the_passes_that_a_batch_is_cut_into(self, case: str) -> None:
        policy = make_policy(case)
        expected, *others = (step(dpo_task(policy, **cut), policy.parameters) for cut in CUTS)
        for found in others:
            require_same(found, expected)

    def test_the_order_of_pairs(self, case: str) -> None:
        policy = make_policy(case)
        found = step(dpo_task(policy, PAIRS[::-1]), policy.parameters)
        require_same(found, step(dpo_task(policy), policy.parameters))

    def test_a_shared_prompt(self, case: str) -> None:
        shared, apart = (make_policy(case, share_prefix=on) for on in (True, False))
        found = step(dpo_task(shared), shared.parameters)
        require_same(found, step(dpo_task(apart), apart.parameters), but=["tokens"])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_first_step_starts_from_nothing(self, case: str, dtype: torch.dtype) -> None:
        # In passes of other rows, matrix products would round otherwise; in bf16 margins would be off by 0.2.
        policy = make_policy(case, dtype=dtype, trained=False)
        validation = make_pairs(5, seed=1)
        task = dpo_task(policy, validation=validation, batch_size=3, micro_batch_tokens=120)
        held_out = task.evaluate()
        assert held_out["kl"] == 0.0
        assert held_out["perplexity"] == held_out["perplexity_reference"]
        for measured in (held_out, task.accumulate(0), task.accumulate(1), task.accumulate(2)):
            assert (measured["margin"], measured["reward_chosen"], measured["reward_rejected"]) == (0.0, 0.0, 0.0)
            assert measured["loss"] == pytest.approx(math.log(2.0), abs=1e-7)
            assert measured["accuracy"] == 0.0
        assert task.last_evaluation is not None
        assert set(task.last_evaluation.margins) == {0.0}


@pytest.mark.parametrize("path", ["fused", "generic"])
class TestReward:
    def scorer(self, folder: Path, path: str, **options: Any) -> Scorer:
        config = RewardConfig.model_validate({"lora": LORA, "path": path, **options})
        made = new_scorer(str(folder), config, dtype="float32", device="cpu", seed=0).scorer
        shake(made.parameters)
        return made

    def test_the_passes_that_a_batch_is_cut_into(self, path: str, tmp_path: Path) -> None:
        scorer = self.scorer(save_tiny(tmp_path), path)
        expected, *others = (step(reward_task(scorer, **cut), scorer.parameters) for cut in CUTS)
        for found in others:
            require_same(found, expected)

    def test_the_order_of_pairs(self, path: str, tmp_path: Path) -> None:
        scorer = self.scorer(save_tiny(tmp_path), path)
        found = step(reward_task(scorer, PAIRS[::-1]), scorer.parameters)
        require_same(found, step(reward_task(scorer), scorer.parameters))

    def test_a_shared_prompt(self, path: str, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path)
        shared, apart = (self.scorer(folder, path, share_prefix=on) for on in (True, False))
        require_same(step(reward_task(shared), shared.parameters), step(reward_task(apart), apart.parameters))

    def test_the_other_path(self, path: str, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path)
        one, other = (self.scorer(folder, name) for name in (path, "generic"))
        require_same(step(reward_task(one), one.parameters), step(reward_task(other), other.parameters))


@pytest.mark.parametrize("case", CASES)
class TestGrpo:
    @pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo"])
    def test_the_passes_that_a_batch_is_cut_into(self, case: str, loss: str) -> None:
        policy = make_policy(case)
        options: dict[str, Any] = {"loss": {"name": loss, "beta": 0.1, "clip_high": 0.3, "clip_low": 0.3}}
        expected, *others = (step(grpo_task(policy, **options, **cut), policy.parameters) for cut in CUTS)
        assert expected[0]["truncated_rate"] not in (0.0, None)
        for found in others:
            require_same(found, expected)

    def test_a_shared_prompt(self, case: str) -> None:
        shared, apart = (make_policy(case, share_prefix=on) for on in (True, False))
        found = step(grpo_task(shared), shared.parameters)
        require_same(found, step(grpo_task(apart), apart.parameters), but=["tokens"])

    def test_the_order_of_prompts(self, case: str) -> None:
        # What a completion is drawn from has its prompt's name in it, so that rewards must be of the text alone.
        policy = make_policy(case)
        even = NamedReward("even", lambda prompts, completions: [float(sum(map(ord, c)) % 17) for c in completions])
        tasks = []
        for prompts in (PROMPTS, PROMPTS[::-1]):
            task = grpo_task(policy, prompts)
            task.rewards = [even]
            tasks.append(step(task, policy.parameters))
        require_same(tasks[1], tasks[0], but=["reward/even"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestLanes:
    """Three passes and more, in one lane and in two: whoever ends first, the sums are added in the same order."""

    CUT: ClassVar[dict[str, Any]] = {"micro_batch_size": 1}

    def require_same_bits(self, task: Any, policy: Policy) -> None:
        held_out, found = [], []
        for lanes in (Lanes(1), Lanes(2)):
            policy.trunk = policy.trunk._replace(lanes=lanes)
            held_out.append(task.evaluate())
            found.append(step(task, policy.parameters))
        assert held_out[0] == held_out[1]
        assert found[0][0] == found[1][0]
        for name, gradient in found[0][1].items():
            assert torch.equal(gradient, found[1][1][name]), name

    def test_dpo(self, dtype: torch.dtype) -> None:
        policy = make_policy("fused", dtype=dtype)
        self.require_same_bits(dpo_task(policy, validation=make_pairs(5, seed=1), **self.CUT), policy)

    def test_the_reference_of_dpo(self, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = make_policy("fused", dtype=dtype)
        config = DpoConfig.model_validate({"lora": LORA, "batch_size": 3, **self.CUT})
        found = []
        for lanes in (Lanes(1), Lanes(2)):
            policy.trunk = policy.trunk._replace(lanes=lanes)
            monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / str(lanes.count)))
            found.append(reference_logprobs(policy, PAIRS, config, workers=ALONE, show_progress=False))
        assert found[0] == found[1]

    def test_grpo(self, dtype: torch.dtype) -> None:
        policy = make_policy("fused", dtype=dtype)
        self.require_same_bits(grpo_task(policy, validation=PROMPTS[:3], **self.CUT), policy)

    def test_a_reward_model(self, dtype: torch.dtype, tmp_path: Path) -> None:
        config = RewardConfig.model_validate({"lora": LORA, "path": "fused"})
        number = str(dtype).removeprefix("torch.")
        scorer = new_scorer(str(save_tiny(tmp_path)), config, dtype=number, device="cpu", seed=0).scorer
        assert isinstance(scorer, DecoderScorer)
        shake(scorer.parameters)
        task = reward_task(scorer, **self.CUT)
        margins, found = [], []
        for lanes in (Lanes(1), Lanes(2)):
            scorer.lanes = lanes
            margins.append(task.margins(PAIRS))
            found.append(step(task, scorer.parameters))
        assert (margins[0], found[0][0]) == (margins[1], found[1][0])
        for name, gradient in found[0][1].items():
            assert torch.equal(gradient, found[1][1][name]), name


def test_the_gradient_of_a_prompts_end_is_added_up_in_one_order() -> None:
    # A group's completions all send a gradient to the last token of their prompt. Added up on two threads in whatever
    # order they come, as indexing does it with as many numbers as here, sums differ from time to time.
    policy = make_policy("fused")
    packed = policy.pack([Group((5, 6, 7), tuple(tuple(range(4, 104)) for _ in range(12)))])
    hidden = torch.randn(packed.n_tokens, policy.lm.base.config.hidden_size, requires_grad=True)
    gradient = torch.randn(len(packed.sources), hidden.shape[1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        (expected,) = torch.autograd.grad(policy._selected(hidden, packed, policy.trunk), hidden, gradient)
        torch.set_num_threads(4)
        for _ in range(200):
            (found,) = torch.autograd.grad(policy._selected(hidden, packed, policy.trunk), hidden, gradient)
            assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(threads)
