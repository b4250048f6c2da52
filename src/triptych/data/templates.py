"""How a prompt is put to a model: four templates, and the markers that betray an echoed one.

Not here: loading prompts (`prompts`), stopping at a marker (`triptych.decoding`).
"""

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from triptych.data.prompts import question_of
from triptych.errors import ConfigError, ModelError, suggestion
from triptych.records import Prompt

Template = Callable[[Prompt, PreTrainedTokenizerBase], str]

SENTINEL = "\nAnswer:\n"
"""What the paper appends to every prompt."""

MARKERS = ("### Instruction", "### Input", "### Response", "Below is an instruction that describes a task")
"""Pieces of the Alpaca template: a completion that holds one has begun to write the next prompt."""

_HEAD = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."


def alpaca(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of Stanford Alpaca (Taori et al. 2023), one for each of with and without input.

    A finished prompt stays as it is.
    """
    if prompt.prompt is not None:
        return prompt.prompt
    if prompt.input.strip():
        head = f"{_HEAD}, paired with an input that provides further context. {_REQUEST}"
        return f"{head}\n\n### Instruction:\n{prompt.instruction}\n\n### Input:\n{prompt.input}\n\n### Response:\n"
    return f"{_HEAD}. {_REQUEST}\n\n### Instruction:\n{prompt.instruction}\n\n### Response:\n"


def paper(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The paper's: the Alpaca template without its trailing white space, then the sentinel `\\nAnswer:\\n`."""
    return alpaca(prompt, tokenizer).rstrip() + SENTINEL


def plain(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """Nothing but the text: the instruction, and the input where there is one, a blank line between them."""
    return question_of(prompt.instruction, prompt.input) if prompt.prompt is None else prompt.prompt


def chat(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The model's own chat template around one user message, open for the answer.

    Raises `ModelError` where the tokenizer has no such template, or its template fails.
    """
    message = {"role": "user", "content": plain(prompt, tokenizer)}
    name = tokenizer.name_or_path or "the tokenizer"
    if not tokenizer.chat_template:
        raise ModelError(f"{name} has no chat template; choose the template 'alpaca' or 'paper'")
    try:
        text: Any = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError) as error:
        raise ModelError(
            f"the chat template of {name} fails ({error}); choose the template 'alpaca' or 'paper'"
        ) from error
    return str(text)


TEMPLATES: dict[str, Template] = {"paper": paper, "alpaca": alpaca, "chat": chat, "plain": plain}


def render_prompt(prompt: Prompt, template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a model reads for a prompt; `ConfigError` for a template that does not exist."""
    if template not in TEMPLATES:
        raise ConfigError(f"template '{template}' is unknown{suggestion(template, TEMPLATES)}")
    return TEMPLATES[template](prompt, tokenizer)


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of a rendered prompt, to be continued by the model.

    With a BOS where the tokenizer puts one, but never two (chat templates write their own), and with no EOS at the
    end, which some tokenizers add: after an EOS there is nothing to continue.
    """
    bos: Any = tokenizer.bos_token
    ids: Any = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    eos = tokenizer.eos_token
    if eos and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(eos)):
        return [int(token) for token in ids[:-1]]
    return [int(token) for token in ids]
