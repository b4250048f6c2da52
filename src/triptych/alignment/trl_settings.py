"""A recipe in TRL's words: every key passed on to TRL's settings or refused by name.

Not here: running it (`trl_engine`).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from triptych.alignment.dpo import DpoConfig
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.grpo import GrpoConfig
from triptych.alignment.loop import TrainingConfig
from triptych.alignment.losses import Dpo, Hinge, LengthNormalisedDpo
from triptych.alignment.policy_losses import PolicyLoss
from triptych.alignment.reward_model import RewardConfig
from triptych.alignment.setup import Panel
from triptych.errors import ConfigError
from triptych.models.loading import resolve_device, resolve_dtype


def reward_settings(config: RewardConfig) -> dict[str, Any]:
    """What only `trl.RewardConfig` has; raises `ConfigError` for what TRL has no counterpart to."""
    _require_known(config, "reward")
    return {"center_rewards_coefficient": config.centring or None, "disable_dropout": False}


def dpo_settings(config: DpoConfig) -> dict[str, Any]:
    """What only `trl.DPOConfig` has; raises `ConfigError` for what TRL has no counterpart to."""
    _require_known(config, "dpo")
    if config.loss.name not in PREFERENCE_LOSSES:
        raise no_counterpart(f"dpo.loss '{config.loss.name}'", f"it has {', '.join(PREFERENCE_LOSSES)}")
    return PREFERENCE_LOSSES[config.loss.name](config.loss)


def _sigmoid(loss: Dpo) -> dict[str, Any]:
    """DPO; cDPO as the weighted sum of two losses that TRL has.

    With L± = -log σ(±βh), TRL's `robust` is ((1 - ε) L₊ - ε L₋) / (1 - 2ε), so that

        (1 - ε) L₊ + ε L₋ = (2 - 2ε) L₊ - (1 - 2ε) robust
    """
    smoothing = loss.label_smoothing
    if smoothing == 0.0:
        return {"loss_type": ["sigmoid"], "beta": loss.beta}
    weights = [2.0 - 2.0 * smoothing, 2.0 * smoothing - 1.0]
    return {
        "loss_type": ["sigmoid", "robust"],
        "loss_weights": weights,
        "label_smoothing": smoothing,
        "beta": loss.beta,
    }


def _hinge(loss: Hinge) -> dict[str, Any]:
    return {"loss_type": ["hinge"], "beta": loss.beta}


def _sigmoid_norm(loss: LengthNormalisedDpo) -> dict[str, Any]:
    if loss.label_smoothing:
        raise no_counterpart("dpo.loss.label_smoothing with length_normalised_dpo", "set it to 0")
    return {"loss_type": ["sigmoid_norm"], "beta": loss.beta}


PREFERENCE_LOSSES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "dpo": _sigmoid,
    "hinge": _hinge,
    "length_normalised_dpo": _sigmoid_norm,
}
"""TRL's `ipo` divides log-probabilities by lengths first, which is another loss; it has no SimPO here."""

POLICY_LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}

SCALES = {"group_normalised": "group", "centred": "none"}


def grpo_settings(config: GrpoConfig) -> dict[str, Any]:
    """What only `trl.GRPOConfig` has; raises `ConfigError` for what TRL has no counterpart to."""
    _require_known(config, "grpo")
    loss: PolicyLoss = config.loss
    if config.advantage not in SCALES:
        raise no_counterpart(f"grpo.advantage '{config.advantage}'", f"choose one of {', '.join(SCALES)}")
    if config.lora is None and loss.needs_reference:
        raise no_counterpart("grpo.lora = null with grpo.loss.beta > 0", "it takes no reference; set either")
    if config.watch.action == "rollback":
        raise no_counterpart("grpo.watch.action 'rollback'", "choose warn or stop")
    return POLICY_LOSSES[loss.name] | {
        "beta": loss.beta,
        "epsilon": loss.clip_low,
        "epsilon_high": loss.clip_high,
        "delta": loss.delta,
        # The penalty as GRPO's paper has it; TRL's default multiplies it with the importance ratio.
        "use_bias_correction_kl": False,
        "scale_rewards": SCALES[config.advantage],
        "num_generations": config.group_size,
        "num_iterations": config.iterations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        # In force where vLLM writes.
        **{f"vllm_importance_sampling_{key}": value for key, value in config.importance_sampling},
        "mask_truncated_completions": config.mask_truncated,
        # The rows are in our order already.
        "shuffle_dataset": False,
    }


def _require_known(config: TrainingConfig, name: str) -> None:
    if config.path is not None:
        raise no_counterpart(f"{name}.path '{config.path}'", "leave it out")
    if config.lora is None and config.optimiser.weight_decay:
        raise no_counterpart(
            f"{name}.optimiser.weight_decay with lora = null", "it leaves norms and biases out of it; set it to 0"
        )


def no_counterpart(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"engine 'trl' has no counterpart to {what}: {remedy}, or use engine 'native'")


class PassSizes(NamedTuple):
    """An optimizer step as TRL takes it: so many rows a pass, so many passes."""

    rows: int
    passes: int


def pass_sizes(config: TrainingConfig, device: torch.device, batch: int, longest: int, n: int) -> PassSizes:
    """A whole batch where it fits into `micro_batch_tokens`; else a common divisor of it and of an epoch's rest.

    TRL takes means of means, which are means only where all passes have as many rows.
    """
    fitting = min(max(1, config.pass_tokens(device) // longest), config.micro_batch_size or batch)
    common = math.gcd(batch, n)
    rows = max((d for d in range(1, fitting + 1) if common % d == 0), default=1) if batch > fitting else batch
    return PassSizes(rows, batch // rows)


def rollout_sizes(config: GrpoConfig, device: torch.device, prompts: Sequence[int]) -> PassSizes:
    batch = config.prompts_per_step * config.group_size
    per_group = None if config.micro_batch_size is None else config.micro_batch_size * config.group_size
    limited = config.model_copy(update={"micro_batch_size": per_group})
    return pass_sizes(limited, device, batch, max(prompts) + config.max_new_tokens, batch)


def longest_pair(pairs: Sequence[EncodedPair]) -> int:
    """Tokens of the longest pair as two rows."""
    return max(2 * (len(p.group.prompt) + max(map(len, p.group.completions))) for p in pairs)


def common_settings(panel: Panel, config: TrainingConfig, steps: int, sizes: PassSizes, folder: Path) -> dict[str, Any]:
    """What all of TRL's configs have of transformers' `TrainingArguments`."""
    options = config.optimiser
    warm = math.ceil(options.warmup * steps)
    schedule = "constant_with_warmup" if options.schedule == "constant" and warm else options.schedule
    return {
        "output_dir": str(folder),
        "seed": panel.seed,
        "data_seed": panel.seed,
        "max_steps": steps,
        "per_device_train_batch_size": sizes.rows,
        "gradient_accumulation_steps": sizes.passes,
        "optim": "adamw_torch",
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": warm,
        "adam_beta1": options.betas[0],
        "adam_beta2": options.betas[1],
        "adam_epsilon": options.epsilon,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip or 0.0,
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": training_dtype(panel, config) == torch.bfloat16,
        "use_cpu": resolve_device(panel.device).type == "cpu",
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
    }


def training_dtype(panel: Panel, config: TrainingConfig) -> torch.dtype:
    device = resolve_device(panel.device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ConfigError("engine 'trl' takes the only GPU it sees; name one in CUDA_VISIBLE_DEVICES")
    chosen = torch.float32 if config.lora is None else resolve_dtype(panel.dtype, device)
    if chosen == torch.float16:
        raise no_counterpart("dtype 'float16' without loss scaling", "choose float32 or bfloat16")
    return chosen
