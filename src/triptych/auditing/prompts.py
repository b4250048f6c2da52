"""What the checkpoints are asked and what they read: prompts as they are and behind a limit of words, chosen answers.

Not here: writing and reading.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from triptych.alignment.encoding import Template, encode_answer, encode_pairs, pair_prompt, resolve_template
from triptych.alignment.packing import Group
from triptych.auditing.categories import classify
from triptych.auditing.plan import AuditingConfig, PairSource
from triptych.auditing.records import Kind
from triptych.data.pairs import Message, PreferencePair, load_pairs, prompt_key, split_pairs
from triptych.data.prompts import load_prompts
from triptych.data.templates import encode_prompt, render_prompt
from triptych.errors import DataError
from triptych.records import Prompt

LIMIT_PREFIX = "Answer in at most {limit} words.\n\n"


class AuditPrompt(NamedTuple):
    """A prompt as a model reads it."""

    prompt: Prompt
    category: str
    """Its own where the data has one, else the classifier's."""
    rendered: Mapping[Kind, str]
    """By kind of response; `greedy` where the prompt has answers."""


class Chosen(NamedTuple):
    """A held-out chosen answer, encoded."""

    prompt_id: str
    group: Group


def audited_pairs(source: PairSource, *, n: int, seed: int) -> list[PreferencePair]:
    """The first n pairs of different prompts, of the held-out side where one is asked for.

    Raises `DataError` where none is left, and what reading them raises.
    """
    pairs = load_pairs(source.source, limit=source.limit, seed=seed, shuffle=source.shuffle, on_bad=source.on_bad)
    if source.validation is not None:
        pairs = split_pairs(pairs, validation=source.validation, seed=seed).validation
    first = {prompt_key(pair): pair for pair in reversed(pairs)}
    kept = [pair for pair in pairs if first[prompt_key(pair)] is pair][:n]
    if not kept:
        raise DataError(f"{source.source} leaves no pair to audit on; give more pairs")
    return kept


def chosen_answers(
    pairs: Sequence[PreferencePair], template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Chosen]:
    """Chosen answers behind their prompts; those whose prompts fill `max_length` are left out.

    Raises `DataError` where none is left.
    """
    encoded = encode_pairs(pairs, template, tokenizer, max_length).pairs
    return [Chosen(pair.id, pair.group._replace(completions=pair.group.completions[:1])) for pair in encoded]


def audit_prompts(
    config: AuditingConfig, pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[AuditPrompt]:
    """The prompts that all checkpoints answer, at most `verbosity_prompts` of them."""
    if config.prompts == "pairs":
        return [_of_pair(pair, config, tokenizer) for pair in pairs[: config.verbosity_prompts]]
    prompts = load_prompts(config.prompts, limit=config.verbosity_prompts, seed=seed)
    name = resolve_template(config.template, tokenizer)
    return [_of_prompt(prompt, config, name, tokenizer) for prompt in prompts]


def _of_prompt(
    prompt: Prompt, config: AuditingConfig, template: str, tokenizer: PreTrainedTokenizerBase
) -> AuditPrompt:
    prefix = LIMIT_PREFIX.format(limit=config.length_limit)
    finished = None if prompt.prompt is None else prefix + prompt.prompt
    limited = prompt.model_copy(update={"instruction": prefix + prompt.instruction, "prompt": finished})
    rendered: dict[Kind, str] = {
        "plain": render_prompt(prompt, template, tokenizer),
        "limited": render_prompt(limited, template, tokenizer),
    }
    if prompt.answers:
        rendered["greedy"] = rendered["plain"]
    return AuditPrompt(prompt, prompt.category or classify(prompt.instruction, prompt.input), rendered)


def _of_pair(pair: PreferencePair, config: AuditingConfig, tokenizer: PreTrainedTokenizerBase) -> AuditPrompt:
    prefix = LIMIT_PREFIX.format(limit=config.length_limit)
    limited = pair.model_copy(update={"prompt": prefix + pair.prompt, "messages": _prefixed(pair.messages, prefix)})
    rendered: dict[Kind, str] = {
        "plain": pair_prompt(pair, config.template, tokenizer),
        "limited": pair_prompt(limited, config.template, tokenizer),
    }
    question = pair.messages[-1].content if pair.messages else pair.prompt
    return AuditPrompt(Prompt(id=pair.id, instruction=pair.prompt), classify(question), rendered)


def _prefixed(messages: Sequence[Message], prefix: str) -> tuple[Message, ...]:
    """The conversation with the prefix before its last turn."""
    if not messages:
        return ()
    last = messages[-1]
    return (*messages[:-1], last.model_copy(update={"content": prefix + last.content}))


def answers_group(
    prompt: str,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    is_truncated: bool = False,
) -> Group | None:
    """A rendered prompt with some texts as its answers; None where they do not fit `max_length` whole.

    No EOS follows forms of an answer that broke off.
    """
    ids: Any = encode_prompt(prompt, tokenizer)
    answers = tuple(encode_answer(text, tokenizer, is_truncated=is_truncated) for text in texts)
    fits = len(ids) + max(map(len, answers)) <= max_length
    return Group(tuple(ids), answers) if fits else None
