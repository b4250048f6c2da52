from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import LlamaForCausalLM

from triptych.errors import ModelError
from triptych.models.gguf_llama import read_gguf_llama
from triptych.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, VOCAB, tiny_llama, tiny_tokenizer

PART_OF_NAME = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """The row order of llama.cpp, whose rotary embedding pairs neighbours: row 2i + j of a head is row i of half j."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: LlamaForCausalLM, *, pre: str = "smollm", architecture: str = "llama") -> None:
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    names = [*tiny_tokenizer().convert_ids_to_tokens(list(range(VOCAB))), "ĠĠ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (len(names) - len(SPECIAL_TOKENS)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_chat_template(CHAT_TEMPLATE)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        if name == "model.embed_tokens.weight":
            # Quantised, as in the real file: blocks of 32 int8 with one fp16 scale.
            data = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor("token_embd.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", array)
        else:
            _, _, layer, *part, _ = name.split(".")
            short = PART_OF_NAME[".".join(part)]
            stored = interleaved(array, heads[short]) if short in heads else array
            writer.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_survives_the_way_through_gguf(tmp_path: Path) -> None:
    original = tiny_llama(seed=3, vocab=VOCAB + 1)
    write_gguf(tmp_path / "tiny.gguf", original)
    config, weights, _ = read_gguf_llama(tmp_path / "tiny.gguf")
    assert config.tie_word_embeddings
    restored = LlamaForCausalLM(config)
    restored.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    for name, parameter in original.named_parameters():
        if name != "model.embed_tokens.weight":
            assert torch.equal(restored.get_parameter(name), parameter), name
    # Q8_0 rounds to whole 127ths of the largest of 32 weights (half a step: 1/254 of it); the step is fp16 (2^-11).
    embedding = original.model.embed_tokens.weight.detach()
    error = (restored.model.embed_tokens.weight.detach() - embedding).abs()
    assert float((error / embedding.abs().amax(dim=1, keepdim=True)).max()) < 1 / 254 + 2**-11


def test_the_weights_own_their_memory(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(vocab=VOCAB + 1))
    weights = read_gguf_llama(tmp_path / "tiny.gguf").weights
    weights["model.norm.weight"].add_(1.0)  # a view of the mapped file would crash


def test_the_tokenizer_splits_digits_before_grouping_white_space(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(vocab=VOCAB + 1))
    tokenizer = read_gguf_llama(tmp_path / "tiny.gguf").tokenizer
    ids = tokenizer("  12 <|im_end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["ĠĠ", "1", "2", "Ġ", "<|im_end|>"]
    assert tokenizer.decode(ids) == "  12 <|im_end|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pre": "llama-bpe"}, "the pre-tokenizer is 'llama-bpe', and only 'smollm' can be read"),
        ({"architecture": "qwen2"}, "the architecture is 'qwen2', and only 'llama' can be read"),
    ],
)
def test_other_kinds_of_file_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(vocab=VOCAB + 1), **options)
    with pytest.raises(ModelError, match=message):
        read_gguf_llama(tmp_path / "tiny.gguf")
