"""Data: prompts and how they are put to a model."""

from triptych.data.prompts import load_prompts
from triptych.data.templates import MARKERS, TEMPLATES, encode_prompt, render_prompt

__all__ = ["MARKERS", "TEMPLATES", "encode_prompt", "load_prompts", "render_prompt"]
