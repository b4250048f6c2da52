"""Data: prompts and how they are put to a model, preference pairs, and the checks of both."""

from triptych.data.answer_checks import answer_score, check_answer
from triptych.data.pair_checks import PairLengths, PairReport, check_pairs
from triptych.data.pairs import Message, PreferencePair, load_pairs
from triptych.data.prompts import load_prompts
from triptych.data.templates import MARKERS, TEMPLATES, encode_prompt, render_prompt

__all__ = [
    "MARKERS",
    "TEMPLATES",
    "Message",
    "PairLengths",
    "PairReport",
    "PreferencePair",
    "answer_score",
    "check_answer",
    "check_pairs",
    "encode_prompt",
    "load_pairs",
    "load_prompts",
    "render_prompt",
]
