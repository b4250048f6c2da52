"""Merging an adapter into its base, and saving whole models: folders that anything built on transformers reads."""

import shutil
from pathlib import Path
from typing import Any

from triptych.errors import OutputError
from triptych.files import TEMPORARY, make_folder, output_errors
from triptych.models import load_language_model
from triptych.models.loading import quiet_transformers


def merge(model: str, adapter: Path, out: Path, *, dtype: str = "float32") -> Path:
    """Writes base + adapter as one model to the folder `out`, which must not hold anything yet.

    fp32 by default: in bf16, what the adapter changed is rounded to the base's own 8 bits.

    Raises `ModelError` where adapter and base do not fit, `OutputError` where `out` cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty: pass another --out")
    lm = load_language_model(model, dtype=dtype, device="cpu", adapter=adapter)
    wrapped: Any = lm.model
    with quiet_transformers():
        merged = wrapped.merge_and_unload()
    save_model(merged, lm.tokenizer, out)
    return out


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Model, configuration and tokenizer; each file in place only when all are written."""
    partial = folder / f"{TEMPORARY}model"
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        with output_errors(partial), quiet_transformers():
            model.save_pretrained(partial, safe_serialization=True)
            tokenizer.save_pretrained(partial)
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
