"""Where the starter prompts and pairs lie, and which of them are for training."""

import json
from functools import cache
from pathlib import Path
from typing import Literal

Side = Literal["train", "held_out"]

STARTER = "starter"
"""What the user writes for any of them."""

FOLDER = Path(__file__).parent / "starter"
PROMPTS_FILE = FOLDER / "prompts.jsonl"
PAIRS_FILE = FOLDER / "pairs.jsonl"
SPLIT_FILE = FOLDER / "split.json"


@cache
def starter_sides() -> dict[str, Side]:
    """Prompt id → side. Fixed, so that whatever any run trained on the starter sets, it can be audited on the rest."""
    ids_by_side: dict[Side, list[str]] = json.loads(SPLIT_FILE.read_text(encoding="utf-8"))
    return {prompt_id: side for side, ids in ids_by_side.items() for prompt_id in ids}
