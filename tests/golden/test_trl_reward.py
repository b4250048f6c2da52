"""Reward models as TRL trains them (1.16): losses, scores, gradients and optimizer steps on the same pairs.

TRL reads padded rows and finds the last token by the pad id; the native path packs a prompt with both of its answers and
knows where each ends. The same head, the same LoRA, fp32 on CPU, no dropout.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from triptych.alignment.adapters import LoraConfig
from triptych.alignment.dpo import PairOrder
from triptych.alignment.encoding import EncodedPair, encode_pairs, pair_prompt
from triptych.alignment.optimisation import Optimiser, OptimiserConfig
from triptych.alignment.reward_model import RewardConfig, RewardTask, new_scorer
from triptych.alignment.scorers import Scorer
from triptych.data.pairs import PreferencePair, load_pairs
from triptych.models.classifiers import load_classifier
from triptych.models.loading import load_tokenizer
from triptych.models.sources import resolve_source
from triptych.models.tiny import save_tiny, tiny_llama
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
            ("Say hello politely.", "Good morning, madam!", "Yo"),
            ("Opposite of hot?", "Cold.", "Warm."),
            ("Is water wet?", "Yes, as most people use the word.", "No."),
        ]
    )
]


class Case(NamedTuple):
    """The same backbone twice, with the same LoRA and head, and pairs."""

    spec: str
    scorer: Scorer
    tokenizer: Any
    pairs: list[EncodedPair]
    rows: list[dict[str, str]]
    """The pairs as text, for TRL."""


def make_case(spec: str, given: Sequence[PreferencePair], max_length: int) -> Case:
    config = RewardConfig(lora=LORA, max_length=max_length)
    scorer, tokenizer, *_ = new_scorer(spec, config, dtype="float32", device="cpu", seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in scorer.parameters.items():
            # As if training were under way; and a head whose scores are worth telling apart.
            if ".lora_A." not in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    pairs = encode_pairs(given, "auto", tokenizer, max_length).pairs
    # TRL leaves out what is too long, where it would be cut here.
    pairs = [pair for pair in pairs if not pair.is_truncated]
    ids = {pair.id for pair in pairs}
    rows = [
        {"prompt": pair_prompt(pair, "auto", tokenizer), "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in given
        if pair.id in ids
    ]
    return Case(spec, scorer, tokenizer, pairs, rows)


@pytest.fixture
def tiny(tmp_path: Path) -> Case:
    return make_case(str(save_tiny(tmp_path / "model", tiny_llama(3))), TINY_PAIRS, 256)


def trl_trainer(case: Case, folder: Path, rows: Sequence[int] | None = None, **settings: Any) -> Any:
    from datasets import Dataset
    from trl import RewardConfig as TrlConfig
    from trl import RewardTrainer

    options: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "optim": "adamw_torch",
    }
    source = resolve_source(case.spec)
    adapter: Any = case.scorer.model
    tokenizer = load_tokenizer(source)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # It would take the EOS that is scored for padding, and score the token before it.
        tokenizer.pad_token = tokenizer.unk_token
    trainer = RewardTrainer(
        model=load_classifier(source, dtype=torch.float32, device=torch.device("cpu"), seed=0),
        args=TrlConfig(**{**options, **settings}),
        train_dataset=Dataset.from_list([case.rows[i] for i in rows or range(len(case.rows))]),
        processing_class=tokenizer,
        peft_config=copy.deepcopy(adapter.peft_config["default"]),
    )
    theirs = trained_by(trainer)
    with torch.no_grad():
        for name, parameter in case.scorer.parameters.items():
            theirs[name].copy_(parameter)
    return trainer


def trained_by(trainer: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def native_task(case: Case, config: RewardConfig) -> RewardTask:
    return RewardTask(case.scorer, config, case.pairs, case.pairs, Workers(), seed=0)


def taken(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return gradients


def require_same_step(
    case: Case, centring: float, folder: Path, record: Callable[[str, object], None], batch_size: int
) -> None:
    """The whole data set as one batch, accumulated by TRL over rows of `batch_size` pairs."""
    trainer = trl_trainer(case, folder, center_rewards_coefficient=centring or None)
    trainer.model.train()
    n = len(case.pairs)
    loss, margin = 0.0, 0.0
    for start in range(0, n, batch_size):
        rows = [trainer.train_dataset[i] for i in range(start, min(start + batch_size, n))]
        part = trainer.compute_loss(trainer.model, trainer.data_collator(rows)) * len(rows) / n
        part.backward()
        loss += float(part)
        margin += trainer._metrics["train"]["margin"][-1] * len(rows) / n
    expected = taken(trained_by(trainer))

    measured = native_task(case, RewardConfig(lora=LORA, centring=centring, batch_size=n)).accumulate(0)
    found = taken(case.scorer.parameters)
    assert set(found) == set(expected)
    assert any(".modules_to_save." in name for name in found)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    norms = [torch.stack([gradient.norm() for gradient in one.values()]).norm() for one in (found, expected)]
    largest = {
        "loss": abs((measured["loss"] or 0.0) - loss),
        "margin": abs((measured["margin"] or 0.0) - margin),
        "gradient": max(float((found[name] - gradient).abs().max()) for name, gradient in expected.items()) / scale,
        "gradient_norm": float((norms[0] - norms[1]).abs() / norms[1]),
    }
    record("largest deviations", {name: f"{value:.2g}" for name, value in largest.items()})
    assert abs(margin) > 1e-3
    assert {name: value for name, value in largest.items() if value > 1e-4} == {}


@pytest.mark.parametrize("centring", [0.0, 0.01, 0.5])
def test_the_loss_and_its_gradient_are_trls(
    centring: float, tiny: Case, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    require_same_step(tiny, centring, tmp_path, record_property, batch_size=len(tiny.pairs))


def test_trl_reads_the_same_tokens(tiny: Case, tmp_path: Path) -> None:
    trainer = trl_trainer(tiny, tmp_path)
    groups = [pair.group for pair in tiny.pairs]
    for column, which in (("chosen_ids", 0), ("rejected_ids", 1)):
        read = [list(ids) for ids in trainer.train_dataset[column]]
        assert read == [[*group.prompt, *group.completions[which]] for group in groups]


def test_ten_steps_are_trls(tiny: Case, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    steps, batch_size = 10, 2
    options = OptimiserConfig(learning_rate=5e-3, schedule="linear", clip=1.0)
    order = PairOrder(len(tiny.pairs), batch_size, steps, steps, 0)
    rows = [row for step in range(steps) for row in order.batch(step)]
    trainer = trl_trainer(
        tiny,
        tmp_path,
        rows,
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        learning_rate=5e-3,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        center_rewards_coefficient=0.01,
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    config = RewardConfig(lora=LORA, batch_size=batch_size, epochs=steps, max_steps=steps, optimiser=options)
    task, optimiser = native_task(tiny, config), Optimiser(tiny.scorer.parameters, options)
    ours = []
    for step in range(steps):
        ours.append(float(task.accumulate(step)["loss"] or 0.0))
        optimiser.step(step, steps)
    after = trained_by(trainer)
    weights = max(float((after[name] - p).abs().max()) for name, p in tiny.scorer.parameters.items())
    losses = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    record_property("largest deviations", {"loss": losses, "weights": weights})
    assert losses < 1e-3
    assert weights < 1e-3


@pytest.mark.real
@pytest.mark.slow
def test_the_loss_of_the_real_model_is_trls(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    if not ORCA.is_file():
        pytest.skip("the Orca sample is not beside the repository")
    given = load_pairs(ORCA)
    encoded = encode_pairs(given, "auto", load_tokenizer(resolve_source("starter")), 512).pairs
    sizes = {pair.id: pair.group.n_tokens for pair in encoded if not pair.is_truncated}
    shortest = sorted(sizes, key=lambda name: sizes[name])[:16]
    case = make_case("starter", [pair for pair in given if pair.id in shortest], 512)
    assert len(case.pairs) == 16
    require_same_step(case, 0.01, tmp_path, record_property, batch_size=4)
