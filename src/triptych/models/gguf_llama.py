"""Reads a GGUF file of the Llama family into plain parts: weights in fp32, a configuration, a tokenizer.

Not here: other architectures, other tokenizers, running a quantised model, files of any other kind.

Why not the GGUF reader of transformers: it takes four times as long, marks the model as quantised (so that it refuses
to be saved), and its tokenizer loses the pre-tokenizer that the file names in one word (`smollm`), with which runs of
white space before a digit become other tokens than those the model was trained on. The weights are equal bit for bit.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from triptych.errors import ModelError

FloatArray = npt.NDArray[np.float32]

NAME_OF_PART = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME_OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class GgufLlama(NamedTuple):
    """A model read from a GGUF file."""

    config: LlamaConfig
    """Architecture, with the token ids of the file."""
    weights: dict[str, torch.Tensor]
    """fp32, under the names of `LlamaForCausalLM`; no `lm_head.weight` where the head is tied."""
    tokenizer: PreTrainedTokenizerFast
    """Byte-level BPE, with the chat template of the file."""


def read_gguf_llama(path: Path) -> GgufLlama:
    """The configuration, weights and tokenizer in a GGUF file of the Llama family.

    Quantised blocks are multiplied out in fp32, which holds them exactly enough (Q4_1: an fp16 scale times 0 … 15, plus
    an fp16 minimum).

    Raises `ModelError` where the architecture, the tokenizer or a weight is of a kind that this reader does not know.
    """
    reader = gguf.GGUFReader(path)
    fields = reader.fields
    _require(path, "architecture", fields["general.architecture"].contents(), "llama")
    _require(path, "tokenizer", fields["tokenizer.ggml.model"].contents(), "gpt2")
    _require(path, "pre-tokenizer", fields["tokenizer.ggml.pre"].contents(), "smollm")
    weights = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    config = _config(fields, tied="output.weight" not in weights)
    return GgufLlama(config, _named_weights(weights, config), _tokenizer(fields))


def _require(path: Path, what: str, found: object, known: str) -> None:
    if found != known:
        raise ModelError(f"{path.name}: the {what} is {found!r}, and only {known!r} can be read; convert the file")


def _config(fields: dict[str, Any], *, tied: bool) -> LlamaConfig:
    def value(name: str) -> Any:
        return fields[name].contents()

    hidden, heads = value("llama.embedding_length"), value("llama.attention.head_count")
    return LlamaConfig(
        vocab_size=len(value("tokenizer.ggml.tokens")),
        hidden_size=hidden,
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("llama.attention.head_count_kv"),
        head_dim=hidden // heads,
        max_position_embeddings=value("llama.context_length"),
        # The file holds the epsilon in fp32: 9.999999747378752e-06 is the nearest to the 1e-5 of the model's card.
        rms_norm_eps=float(f"{value('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        tie_word_embeddings=tied,
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        pad_token_id=value("tokenizer.ggml.padding_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )


def _named_weights(weights: dict[str, FloatArray], config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The weights under the names, and in the row order, of `LlamaForCausalLM`."""
    named: dict[str, torch.Tensor] = {}
    rotated_heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads or config.num_attention_heads,
    }
    for name, array in weights.items():
        if name in NAME_OUTSIDE_LAYERS:
            named[NAME_OUTSIDE_LAYERS[name]] = _owned(array)
            continue
        _, layer, part, _ = name.split(".")
        if part in rotated_heads:
            array = _rows_in_halves(array, rotated_heads[part])
        named[f"model.layers.{layer}.{NAME_OF_PART[part]}.weight"] = _owned(array)
    return named


def _owned(array: FloatArray) -> torch.Tensor:
    """A tensor over memory of its own: fp32 weights come as a read-only view of the mapped file."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _rows_in_halves(weight: FloatArray, heads: int) -> FloatArray:
    """Undoes the row order of GGUF, which interleaves the two halves that rotary embeddings pair: [heads · d, h]."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # What `smollm` stands for: every digit on its own *before* the byte-level split.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])

    def named(role: str) -> str:
        return tokens[int(fields[f"tokenizer.ggml.{role}_token_id"].contents())]

    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"].contents(),
    )
