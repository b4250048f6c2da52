"""DPO as TRL computes it (1.16): losses, rewards, gradients and twenty optimizer steps on the same pairs.

TRL reads the texts and tokenises them itself; that its ids are ours is part of what is checked. It runs transformers' own
Llama with padded rows, once for the policy and once for the reference, where the native path packs a prompt with both of
its answers. fp32 on CPU, no dropout. The real model sees real Orca pairs from beside the repository, where they are there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.dpo import DpoConfig, DpoTask, PairOrder, reference_logprobs
from triptych.alignment.encoding import EncodedPair, encode_pairs, pair_prompt
from triptych.alignment.losses import Dpo, Hinge, LengthNormalisedDpo, PreferenceLoss
from triptych.alignment.optimisation import Optimiser, OptimiserConfig
from triptych.alignment.policy import Policy
from triptych.data.pairs import PreferencePair, load_pairs
from triptych.models import LanguageModel, load_language_model
from triptych.models.loading import load_tokenizer
from triptych.models.sources import resolve_source
from triptych.models.tiny import tiny_language_model, tiny_llama
from triptych.workers import Workers

pytest.importorskip("trl")

# What TRL, PEFT and datasets warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

ORCA = Path(__file__).parents[2].parent / "shared" / "data" / "orca_dpo_pairs_sample.jsonl"
LORA = LoraConfig(rank=4, alpha=8.0)

TINY_PAIRS = [
    PreferencePair(id=str(i), prompt=prompt, chosen=chosen, rejected=rejected)
    for i, (prompt, chosen, rejected) in enumerate(
        [
            ("Capital of France?", "Paris.", "Lyon, I think, or Marseille."),
            ("2 + 2?", "4", "5"),
            ("Name a colour.", "Blue is a colour.", "Seven"),
            ("Say hello politely to my grandmother.", "Good morning, madam!", "Yo"),
            ("Opposite of hot?", "Cold.", "Warm."),
            ("Is water wet?", "Yes, as most people use the word.", "No."),
            ("Translate 'Haus'.", "House", "A mouse in a house"),
        ]
    )
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """References of pairs are computed here, whatever an earlier run has kept."""
    monkeypatch.setattr("triptych.alignment.dpo.cache_root", lambda: tmp_path / "cache")


class Case(NamedTuple):
    """The same model twice, with the same LoRA, and pairs."""

    policy: Policy
    pairs: list[EncodedPair]
    rows: list[dict[str, str]]
    """The pairs as text, for TRL."""
    base: Any
    """The second copy, for TRL."""
    max_length: int


def make_case(
    load: Callable[[], LanguageModel], given: Sequence[PreferencePair], max_length: int, *, trained: bool
) -> Case:
    """With `trained`, B are not zero, as if training were under way: at the start all margins are 0."""
    policy, other = Policy(load(), lora=LORA, seed=0), load()
    if trained:
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                if ".lora_B." in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    tokenizer = policy.lm.tokenizer
    pairs = encode_pairs(given, "auto", tokenizer, max_length).pairs
    ids = {pair.id for pair in pairs}
    rows = [
        {"prompt": pair_prompt(pair, "auto", tokenizer), "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in given
        if pair.id in ids
    ]
    return Case(policy, pairs, rows, other, max_length)


def tiny_case(*, trained: bool, max_length: int = 70) -> Case:
    return make_case(lambda: tiny_language_model(tiny_llama(3)), TINY_PAIRS, max_length, trained=trained)


def real_case(*, trained: bool, n: int, max_length: int) -> Case:
    if not ORCA.is_file():
        pytest.skip("the Orca sample is not beside the repository")
    given = load_pairs(ORCA)
    encoded = encode_pairs(given, "auto", load_tokenizer(resolve_source("starter")), max_length).pairs
    # Prompts that leave room for some answer to learn from; the shortest, because TRL takes a second for 100 tokens.
    roomy = [pair for pair in encoded if len(pair.group.prompt) <= 0.8 * max_length]
    ids = [pair.id for pair in sorted(roomy, key=lambda pair: pair.group.n_tokens)[:n]]
    chosen = [pair for pair in given if pair.id in ids]
    return make_case(lambda: load_language_model("starter", dtype="float32"), chosen, max_length, trained=trained)


def trl_trainer(case: Case, folder: Path, rows: Sequence[int] | None = None, **settings: Any) -> Any:
    """TRL's trainer over the pairs in the order of `rows`, with our LoRA weights."""
    import copy

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    options = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "max_length": case.max_length,
        "logging_steps": 1,
        "optim": "adamw_torch",
    }
    chosen = list(range(len(case.rows))) if rows is None else rows
    adapter: Any = case.policy.model
    trainer = DPOTrainer(
        model=case.base.base,
        args=DPOConfig(**{**options, **settings}),
        train_dataset=Dataset.from_list([case.rows[i] for i in chosen]),
        processing_class=case.base.tokenizer,
        peft_config=copy.deepcopy(adapter.peft_config["default"]),
    )
    theirs = trained_by(trainer)
    with torch.no_grad():
        for name, parameter in case.policy.parameters.items():
            theirs[name].copy_(parameter)
    return trainer


def trained_by(trainer: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def native_task(case: Case, config: DpoConfig) -> DpoTask:
    workers = Workers()
    references = reference_logprobs(case.policy, case.pairs, config, workers=workers, show_progress=False)
    return DpoTask(case.policy, config, case.pairs, case.pairs, references, workers, seed=0)


class Step(NamedTuple):
    figures: dict[str, float]
    gradients: dict[str, Tensor]


def by_trl(trainer: Any, n: int, batch_size: int) -> Step:
    """One accumulated step over the first n rows: their mean loss and figures, and the gradient."""
    names = {
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
        "reward_chosen": "rewards/chosen",
        "reward_rejected": "rewards/rejected",
        "logp_chosen": "logps/chosen",
        "logp_rejected": "logps/rejected",
    }
    trainer.model.train()
    sums = dict.fromkeys(["loss", *names], 0.0)
    for start in range(0, n, batch_size):
        rows = [trainer.train_dataset[i] for i in range(start, min(start + batch_size, n))]
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        share = len(rows) / n
        (loss * share).backward()
        sums["loss"] += share * float(loss)
        for ours, theirs in names.items():
            sums[ours] += share * trainer._metrics["train"][theirs][-1]
    return Step(sums, taken(trained_by(trainer)))


def natively(task: DpoTask, policy: Policy) -> Step:
    measured = task.accumulate(0)
    return Step({name: float(value or 0.0) for name, value in measured.items()}, taken(policy.parameters))


def taken(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return gradients


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())


def require_same_step(found: Step, expected: Step, record: Callable[[str, object], None]) -> None:
    """Rewards within 1e-4 nats, log-probabilities (sums of a hundred tokens) and gradients within 1e-4 of their size."""
    largest = {
        name: abs(found.figures[name] - value) / max(1.0, abs(value)) for name, value in expected.figures.items()
    }
    largest["gradient_norm"] = abs(norm(found.gradients) - norm(expected.gradients))
    scale = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    largest["gradient"] = max(
        float((found.gradients[name] - gradient).abs().max()) / scale for name, gradient in expected.gradients.items()
    )
    record("largest deviations", {name: f"{value:.2g}" for name, value in largest.items()})
    assert set(found.gradients) == set(expected.gradients)
    assert {name: value for name, value in largest.items() if value > 1e-4} == {}


def test_trl_reads_the_same_tokens(tmp_path: Path) -> None:
    case = tiny_case(trained=False)
    require_same_tokens(trl_trainer(case, tmp_path), case)
    assert any(pair.is_truncated for pair in case.pairs)


def require_same_tokens(trainer: Any, case: Case) -> None:
    batch = trainer.data_collator(list(trainer.train_dataset))
    lengths = batch["attention_mask"].sum(-1).tolist()
    read = [row[:n] for row, n in zip(batch["input_ids"].tolist(), lengths, strict=True)]
    masks = [row[:n] for row, n in zip(batch["completion_mask"].tolist(), lengths, strict=True)]
    groups = [pair.group for pair in case.pairs]
    # All chosen answers come first, then all rejected ones.
    written = [(group.prompt, group.completions[which]) for which in (0, 1) for group in groups]
    assert read == [[*prompt, *answer] for prompt, answer in written]
    assert masks == [[0] * len(prompt) + [1] * len(answer) for prompt, answer in written]


LOSSES: dict[str, tuple[PreferenceLoss, dict[str, Any]]] = {
    "dpo": (Dpo(beta=0.1), {"loss_type": ["sigmoid"], "beta": 0.1}),
    "hinge": (Hinge(beta=0.2), {"loss_type": ["hinge"], "beta": 0.2}),
    # cDPO is (2 - 2ε) DPO - (1 - 2ε) robust DPO: -(1 - ε) log σ(βh) - ε log σ(-βh).
    "cdpo": (
        Dpo(beta=0.1, label_smoothing=0.1),
        {
            "loss_type": ["sigmoid", "robust"],
            "loss_weights": [1.8, -0.8],
            "label_smoothing": 0.1,
            "beta": 0.1,
        },
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "start"])
def test_the_first_step_is_trls(
    loss: str, trained: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    ours, theirs = LOSSES[loss]
    case = tiny_case(trained=trained)
    n = len(case.pairs)
    trainer = trl_trainer(case, tmp_path, PairOrder(n, n, 1, None, 0).batch(0), **theirs)
    expected = by_trl(trainer, n, batch_size=n)
    found = natively(native_task(case, DpoConfig(loss=ours, lora=LORA, batch_size=n)), case.policy)
    require_same_step(found, expected, record_property)
    assert (abs(expected.figures["margin"]) > 0.01) == trained


def test_length_normalised_dpo_is_trls_sigmoid_norm(tmp_path: Path) -> None:
    """Loss and gradient; what TRL calls rewards there is not length-normalised."""
    case = tiny_case(trained=True)
    n = len(case.pairs)
    trainer = trl_trainer(case, tmp_path, loss_type=["sigmoid_norm"], beta=5.0)
    expected = by_trl(trainer, n, batch_size=n)
    config = DpoConfig(loss=LengthNormalisedDpo(beta=5.0), lora=LORA, batch_size=n)
    found = natively(native_task(case, config), case.policy)
    assert found.figures["loss"] == pytest.approx(expected.figures["loss"], abs=1e-4)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_twenty_steps_are_trls(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    case = tiny_case(trained=False)
    run_trajectory(case, tmp_path, record_property, batch_size=3, steps=20, schedule="cosine")


def run_trajectory(
    case: Case,
    folder: Path,
    record: Callable[[str, object], None],
    *,
    batch_size: int,
    steps: int,
    schedule: Any = "linear",
    rate: float = 2e-3,
) -> None:
    """TRL's own training loop against ours, with warm-up, schedule, clipping and weight decay."""
    options = OptimiserConfig(learning_rate=rate, schedule=schedule, warmup=0.1, weight_decay=0.01, clip=0.5)
    # Whole batches: TRL is given the rows of all steps end to end.
    n = len(case.pairs) // batch_size * batch_size
    pairs = case.pairs[:n]
    order = PairOrder(n, batch_size, steps, steps, 0)
    assert order.steps == steps
    rows = [row for step in range(steps) for row in order.batch(step)]
    trainer = trl_trainer(
        case,
        folder,
        rows,
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type=schedule,
        warmup_steps=2,
        weight_decay=0.01,
        max_grad_norm=0.5,
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]

    config = DpoConfig(lora=LORA, batch_size=batch_size, epochs=steps, max_steps=steps, optimiser=options)
    task = native_task(case._replace(pairs=pairs), config)
    optimiser = Optimiser(case.policy.parameters, options)
    losses, norms, rates = [], [], []
    for step in range(steps):
        losses.append(float(task.accumulate(step)["loss"] or 0.0))
        grad_norm, learning_rate = optimiser.step(step, steps)
        norms.append(grad_norm)
        rates.append(learning_rate)

    def apart(name: str, values: Sequence[float]) -> float:
        return max(abs(float(entry[name]) - value) for entry, value in zip(history, values, strict=True))

    theirs = trained_by(trainer)
    weights = max(float((theirs[name] - p).abs().max()) for name, p in case.policy.parameters.items())
    record(
        "largest deviations",
        {"loss": apart("loss", losses), "gradient_norm": apart("grad_norm", norms), "weights": weights},
    )
    assert apart("loss", losses) < 1e-3
    assert apart("learning_rate", rates) < 1e-9
    assert weights < 1e-3
    # It is a trajectory and not a standstill.
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert min(losses) < 0.69


# --- The real model ---------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_the_first_step_of_the_real_model_is_trls(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = real_case(trained=True, n=16, max_length=256)
    n = len(case.pairs)
    assert n == 16
    trainer = trl_trainer(case, tmp_path)
    require_same_tokens(trainer, case)
    expected = by_trl(trainer, n, batch_size=2)
    found = natively(native_task(case, DpoConfig(lora=LORA, batch_size=n)), case.policy)
    require_same_step(found, expected, record_property)


@pytest.mark.real
@pytest.mark.slow
def test_twenty_steps_of_the_real_model_are_trls(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Short pairs, one a step: a minute or two rather than ten."""
    case = real_case(trained=False, n=10, max_length=128)
    run_trajectory(case, tmp_path, record_property, batch_size=1, steps=20, rate=1e-4)
