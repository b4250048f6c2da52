from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from triptych.data import MARKERS, TEMPLATES, encode_prompt, render_prompt
from triptych.errors import ConfigError, ModelError
from triptych.models.tiny import tiny_tokenizer
from triptych.records import Prompt

PLAIN = Prompt(id="1", instruction="Name a colour.")
WITH_INPUT = Prompt(id="2", instruction="Sort the words.", input="b, a")
FINISHED = Prompt(id="3", instruction="Once upon", prompt="Once upon a time \n")

# The text of Stanford Alpaca's prompts (Taori et al. 2023).
ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a colour.\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSort the words.\n\n### Input:\nb, a\n\n### Response:\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.mark.parametrize(
    ("template", "prompt", "text"),
    [
        ("alpaca", PLAIN, ALPACA_PLAIN),
        ("alpaca", WITH_INPUT, ALPACA_WITH_INPUT),
        ("alpaca", FINISHED, "Once upon a time \n"),
        ("paper", PLAIN, ALPACA_PLAIN.rstrip() + "\nAnswer:\n"),
        ("paper", WITH_INPUT, ALPACA_WITH_INPUT.rstrip() + "\nAnswer:\n"),
        ("paper", FINISHED, "Once upon a time\nAnswer:\n"),
        ("chat", PLAIN, "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"),
        ("plain", PLAIN, "Name a colour."),
        ("plain", WITH_INPUT, "Sort the words.\n\nb, a"),
        ("plain", FINISHED, "Once upon a time \n"),
        ("chat", WITH_INPUT, "<|im_start|>user\nSort the words.\n\nb, a<|im_end|>\n<|im_start|>assistant\n"),
        ("chat", FINISHED, "<|im_start|>user\nOnce upon a time \n<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_templates(tokenizer: PreTrainedTokenizerFast, template: str, prompt: Prompt, text: str) -> None:
    assert render_prompt(prompt, template, tokenizer) == text


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_instruction_is_in_every_template_once(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    text = render_prompt(WITH_INPUT, template, tokenizer)
    assert (text.count("Sort the words."), text.count("b, a")) == (1, 1)


def test_every_marker_is_a_piece_of_the_alpaca_template() -> None:
    assert all(marker in ALPACA_WITH_INPUT for marker in MARKERS)


def test_an_unknown_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="template 'alpacca' is unknown; did you mean 'alpaca'"):
        render_prompt(PLAIN, "alpacca", tokenizer)


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template; choose the template 'alpaca' or 'paper'"),
        ("{% for", "the chat template of .* fails"),
    ],
)
def test_chat_templates_that_are_none(chat_template: str | None, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    with pytest.raises(ModelError, match=message):
        render_prompt(PLAIN, "chat", tokenizer)


def with_bos_and_eos() -> PreTrainedTokenizerFast:
    """A tokenizer that frames every text, as Llama's (BOS) and some others (EOS, too) do."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    framed: PreTrainedTokenizerFast = tokenizer
    return framed


def test_an_encoded_prompt_has_one_bos_and_no_eos() -> None:
    tokenizer = with_bos_and_eos()
    ids = encode_prompt("hi", tokenizer)
    assert (ids[0], len(ids)) == (1, 3)
    assert encode_prompt("<|im_start|>hi", tokenizer) == ids
    assert encode_prompt("hi<|im_end|>", tokenizer)[-1] == 2


def test_a_tokenizer_without_special_tokens_adds_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    assert len(encode_prompt("hi", tokenizer)) == 2


@given(st.text())
def test_an_encoded_prompt_is_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(encode_prompt(text, tokenizer)) == text
