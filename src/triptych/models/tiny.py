"""Tiny models that need no download, for tests.

Their weights are a pure function of the seed (the global generators of torch are left as they were), and their
tokenizer is one token a byte, so that any text can be encoded. Nothing they say means anything.

Not here: trained models.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from triptych.models.language import LanguageModel
from triptych.models.loading import quiet_transformers
from triptych.seeding import stream_key

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""Ids 0 … 3; the bytes follow. As in SmolLM2, `<|im_end|>` (2) ends a text."""

EOS_ID, PAD_ID = 2, 3
VOCAB = len(SPECIAL_TOKENS) + 256

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_Model = TypeVar("_Model", bound=PreTrainedModel)


def tiny_llama(
    seed: int = 0,
    *,
    vocab: int = VOCAB,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 256,
    tied: bool = True,
) -> LlamaForCausalLM:
    """A Llama with grouped-query attention and, as SmolLM2 has it, a head tied to the embedding."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return _initialised(LlamaForCausalLM, config, seed)


def tiny_gpt2(
    seed: int = 0, *, vocab: int = VOCAB, hidden: int = 32, layers: int = 2, heads: int = 4, context: int = 256
) -> GPT2LMHeadModel:
    """A GPT-2: learned positions, layer norm, one fused projection; what is not Llama."""
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return _initialised(GPT2LMHeadModel, config, seed)


def tiny_bert_reward(
    seed: int = 0, *, vocab: int = VOCAB, hidden: int = 32, layers: int = 2, labels: int = 1, context: int = 256
) -> BertForSequenceClassification:
    """A BERT classifier with one output, as a reward model has it."""
    options = _encoder_options(vocab, hidden, layers, context) | {"num_labels": labels}
    return _initialised(BertForSequenceClassification, BertConfig(**options), seed)


def tiny_deberta_reward(
    seed: int = 0, *, vocab: int = VOCAB, hidden: int = 32, layers: int = 2, context: int = 256
) -> DebertaV2ForSequenceClassification:
    """A DeBERTa-v3 classifier with one output, the architecture of OpenAssistant's reward model."""
    relative = {
        "relative_attention": True,
        "position_buckets": 16,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    }
    no_absolute = {"position_biased_input": False, "type_vocab_size": 0, "norm_rel_ebd": "layer_norm"}
    head = {"pooler_hidden_size": hidden, "num_labels": 1}
    options = _encoder_options(vocab, hidden, layers, context) | relative | no_absolute | head
    return _initialised(DebertaV2ForSequenceClassification, DebertaV2Config(**options), seed)


def tiny_tokenizer(*, context: int = 256, pairs: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, four special tokens, a ChatML template.

    With `pairs`, two texts are joined as reward models join them: `<|im_start|> a <|im_end|> b <|im_end|>`.
    """
    names = [*SPECIAL_TOKENS, *_byte_names()]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A <|im_end|>",
            pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
            special_tokens=[("<|im_start|>", 1), ("<|im_end|>", EOS_ID)],
        )
    options: dict[str, Any] = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def tiny_language_model(model: PreTrainedModel | None = None, seed: int = 0) -> LanguageModel:
    """A tiny Llama (or the model given) as `load_language_model` would return it, without touching the disk."""
    chosen = tiny_llama(seed) if model is None else model
    return LanguageModel(
        model=chosen.requires_grad_(False),
        tokenizer=tiny_tokenizer(),
        spec=f"tiny-{chosen.config.model_type}-{seed}",
        eos_ids=frozenset({EOS_ID}),
        fingerprint=f"tiny-{chosen.config.model_type}-{seed}",
    )


def save_tiny(
    folder: Path, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Writes a tiny model (a Llama by default) and its tokenizer where `load_language_model` can find them."""
    with quiet_transformers():
        (tiny_llama() if model is None else model).save_pretrained(folder)
        (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def _encoder_options(vocab: int, hidden: int, layers: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": context,
        "pad_token_id": PAD_ID,
    }


def _initialised(model_class: type[_Model], config: Any, seed: int) -> _Model:
    """A model whose weights depend on the seed alone: drawn parameter by parameter, each from a stream of its own.

    Normal with a standard deviation of 0.3 (norms keep their ones and zeros): large enough that two tokens, positions
    or seeds never give nearly equal logits, which the usual 0.02 does.
    """
    # The constructor draws from torch's global generator; nobody else's draws may move by that.
    with torch.random.fork_rng(devices=[]):
        model: Any = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                generator = torch.Generator().manual_seed(stream_key(seed, "tiny", name) >> 1)
                nn.init.normal_(parameter, std=0.3, generator=generator)
    initialised: _Model = model.eval()
    return initialised


def _byte_names() -> list[str]:
    """The printable stand-ins that byte-level tokenizers have for the 256 bytes, in the order of `ByteLevel`."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())
