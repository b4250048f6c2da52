"""Tiny models of many architectures, for what must hold of all of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, dict[str, Any]] = {
    "usual": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": ("CodeGen", {**SIZES["gpt"], "rotary_dim": 4}),
    "falcon": ("Falcon", SIZES["usual"]),
    "falcon-alibi": ("Falcon", {**SIZES["usual"], "alibi": True}),
    "gemma2": ("Gemma2", {**SIZES["usual"], **GROUPED, "sliding_window": 4}),
    "gemma3": ("Gemma3", {**SIZES["usual"], **GROUPED, "sliding_window": 4, "sliding_window_pattern": 2}),
    "gpt2": ("GPT2", SIZES["gpt"]),
    "gptj": ("GPTJ", {**SIZES["gpt"], "rotary_dim": 4}),
    "mistral": ("Mistral", {**SIZES["usual"], "num_key_value_heads": 2, "sliding_window": 4}),
    "mistral-full": ("Mistral", {**SIZES["usual"], "num_key_value_heads": 2, "sliding_window": None}),
    "mpt": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
    "neox": ("GPTNeoX", SIZES["usual"]),
    "opt": ("OPT", {"hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32}),
    "phi": ("Phi", SIZES["usual"]),
    "qwen3": ("Qwen3", {**SIZES["usual"], **GROUPED}),
    "xglm": ("XGLM", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
}
"""(prefix of the class, settings) of causal language models with attention in all layers."""

RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": ("Jamba", {**SIZES["usual"], "num_hidden_layers": 4, "num_key_value_heads": 2, "num_experts": 2}),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "recurrentgemma": ("RecurrentGemma", {**SIZES["usual"], "num_hidden_layers": 3, "lru_width": 32}),
    "rwkv": ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2}),
}
"""Causal language models that remember something other than keys and values."""

VOCAB = 260


def build(name: str, settings: dict[str, Any]) -> PreTrainedModel:
    """Weights are large enough that tokens, positions and neighbours matter to every output."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config_class = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    model_class: Any = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noqa: TID251 - transformers draws first weights from the global generator
        model: PreTrainedModel = model_class(config_class(vocab_size=VOCAB, **ids, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.requires_grad_(False)
    return model


@pytest.fixture(params=CAUSAL)
def causal_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each architecture with attention in turn."""
    return build(*CAUSAL[request.param])


@pytest.fixture(params=RECURRENT)
def recurrent_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(*RECURRENT[request.param])


@pytest.fixture
def build_model() -> Callable[[str], PreTrainedModel]:
    """By its name in these tables."""
    return lambda name: build(*{**CAUSAL, **RECURRENT}[name])
