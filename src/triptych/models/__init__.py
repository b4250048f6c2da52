"""Models: where they come from, loading them, log-probabilities, and tiny ones for tests."""

from triptych.models.hardware import Hardware, detect_hardware
from triptych.models.language import LanguageModel, base_model, load_language_model
from triptych.models.logprobs import sequence_logprobs, token_logprobs
from triptych.models.reward import RewardModel, load_reward_model

__all__ = [
    "Hardware",
    "LanguageModel",
    "RewardModel",
    "base_model",
    "detect_hardware",
    "load_language_model",
    "load_reward_model",
    "sequence_logprobs",
    "token_logprobs",
]
