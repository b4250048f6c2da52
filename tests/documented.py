"""What README and pages show to readers: their commands and programs, and a folder in which these run on tiny models.

A command is a line of a console block that begins with `$`; a `\\` at its end goes on with the next line. Not here: the
tests, and what is checked of a command that cannot be run.
"""

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

from triptych.cli import GLOBAL_FLAGS
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TRIPTYCH = ("triptych", ".venv/bin/triptych")
TOKENS = 1024
"""Context of the tiny model."""

BACKBONES = (
    "{image_size: 32, batch_size: 16, resnet: {stem: 8, hidden_sizes: [8], depths: [1], epochs: 1}, "
    "vit: {hidden_size: 16, layers: 1, heads: 2, epochs: 1}}"
)
DICTIONARIES = ("test_limit=24", "pictures={universal: 1, specific: 1, maximisation: {steps: 1}}")
STUDY = (
    "decoding={limit: 2, max_new_tokens: 4, strategies: [greedy, 'top_k:k=50,temperature=0.8']}",
    "alignment=null",
    "auditing=null",
    "dictionaries=null",
)
"""The other panels are run by commands of their own."""

SHORTER: dict[tuple[str, ...], tuple[str, ...]] = {
    ("study",): ("--recipe", "smoke", *(word for one in STUDY for word in ("--set", one))),
    ("decode",): ("--limit", "3", "--max-new-tokens", "4"),
    ("align", "reward"): ("--limit", "24", "--epochs", "1", "--max-steps", "2"),
    ("align", "dpo"): ("--limit", "24", "--epochs", "1", "--max-steps", "2"),
    ("align", "grpo"): ("--steps", "2", "--max-new-tokens", "8"),
    ("align", "pairs"): ("--limit", "6", "--samples", "8", "--max-new-tokens", "150"),
    ("audit",): ("--limit", "3", "--max-new-tokens", "8", "--set", "hacking_prompts=2"),
    ("explore",): ("--port", "0", "--no-models"),
    ("interpret", "vision"): (
        *("--limit", "48", "--latents", "16", "--k", "4", "--epochs", "1", "--seeds", "1"),
        *(word for one in DICTIONARIES for word in ("--set", one)),
    ),
    ("interpret", "activations"): ("--latents", "16", "--k", "4", "--epochs", "1", "--seeds", "1"),
}
"""Given after a command's own options, of which they repeat some: the last one counts."""


class Command(NamedTuple):
    """A line that a reader may type."""

    page: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def name(self) -> tuple[str, ...]:
        """Of a command of triptych: its words before the first option or argument."""
        groups = ("align", "interpret", "bench")
        return self.words[1:3] if self.words[1] in groups else self.words[1:2]

    @property
    def options(self) -> frozenset[tuple[str, ...]]:
        """Its name alone, and with each of its options: what a run of it tries."""
        named = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        return frozenset([self.name, *((*self.name, option) for option in named if option not in GLOBAL_FLAGS)])


def commands() -> list[Command]:
    """Of all pages, in their order."""
    return [Command(str(page.relative_to(ROOT)), words) for page in PAGES for words in _commands_in(page)]


def _commands_in(page: Path) -> Iterator[tuple[str, ...]]:
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield tuple(shlex.split(line.removeprefix("$ "), comments=True))


def programs() -> list[tuple[str, str]]:
    """(page, text) of all Python blocks."""
    return [(str(page.relative_to(ROOT)), block) for page in PAGES for block in blocks(page, "python")]


def blocks(page: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def furnish(folder: Path) -> str:
    """Fills a folder with what the pages' commands name: a tiny model, photos, pairs and prompts; the model's path."""
    pq.write_table(draw_photos(), folder / "photos.parquet")
    for number, row in enumerate(draw_photos().to_pylist()[:40]):
        place = folder / "photos" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(row["img"]["bytes"])
    (folder / "prompts.jsonl").write_text('{"instruction": "Name a colour."}\n{"instruction": "Name a fruit."}\n')
    _write_activations(folder)
    pairs = [f'{{"prompt": "Say {n}.", "chosen": "{n}!", "rejected": "no {n}"}}\n' for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(pairs))
    return str(save_tiny(folder / "my-model", tiny_llama(context=TOKENS), tiny_tokenizer(context=TOKENS)))


def _write_activations(folder: Path) -> None:
    """Activations of two models on the same rows, with labels: two files, and one of each model."""
    stream = np.random.default_rng(0)
    for file, n in (("acts.safetensors", 80), ("test.safetensors", 24)):
        label = np.arange(n) % 2
        cnn, vit = (stream.normal(size=(n, width)).astype(np.float32) + label[:, None] for width in (6, 9))
        save_file({"cnn": cnn.astype(np.float32), "vit": vit.astype(np.float32), "label": label}, folder / file)
        if file == "acts.safetensors":
            np.save(folder / "cnn.npy", cnn)
            pq.write_table(pa.table({"embedding": list(vit)}), folder / "vit.parquet")


def draw_photos() -> pa.Table:
    """Eighty small pictures, half of them reddish."""
    stream, rows = np.random.default_rng(0), []
    for number in range(80):
        picture = stream.integers(0, 120, (24, 24, 3), dtype=np.uint8)
        picture[..., 0 if number % 2 else 2] += 120
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        rows.append({"img": {"bytes": encoded.getvalue(), "path": None}, "label": ("blue", "red")[number % 2]})
    return pa.Table.from_pylist(rows)


def on_tiny(command: Command, model: str) -> list[str]:
    """The words of a command of triptych, with a tiny model for the starter one, and a small work."""
    words = [model if before == "--model" and word == "starter" else word for before, word in _pairs(command.words[1:])]
    if command.name == ("explore",):
        # The starter study is not made here.
        words = ["runs/look" if word == "runs/starter" else word for word in words]
    shorter = [*SHORTER.get(command.name, ())]
    if command.name == ("study",):
        shorter += ["--set", f"model={model}"]
    if command.name == ("interpret", "vision") and "--model" not in words:
        shorter += ["--set", f"backbones={BACKBONES}"]
    return [*words, *shorter, "--quiet"]


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    yield from zip(("", *words), words, strict=False)
