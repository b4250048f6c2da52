"""Every command and program of the README runs as it stands there, on a tiny model in place of the real one."""

import io
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from triptych.cli import run
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PROMPT = "$ .venv/bin/triptych "
BACKBONES = (
    "{image_size: 32, batch_size: 16, resnet: {stem: 8, hidden_sizes: [8], depths: [1], epochs: 1}, "
    "vit: {hidden_size: 16, layers: 1, heads: 2, epochs: 1}}"
)
SHORTER = {
    "align reward": ["--max-steps", "2"],
    "align dpo": ["--max-steps", "2"],
    "align grpo": ["--steps", "2"],
    "audit --model": ["--limit", "3", "--max-new-tokens", "8", "--set", "hacking_prompts=2"],
    "interpret vision": [
        *("--limit", "48", "--latents", "16", "--k", "4", "--epochs", "1", "--seeds", "1"),
        *("--set", "test_limit=24", "--set", "pictures={universal: 1, specific: 1, maximisation: {steps: 1}}"),
        *("--set", f"backbones={BACKBONES}"),
    ],
}
"""Given after the README's own options, of which they repeat one at most: the last one counts."""


def commands() -> list[list[str]]:
    lines = README.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix(PROMPT), comments=True) for line in lines if line.startswith(PROMPT)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's folder; the commands run beside it."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(draw_photos(), tmp_path / "photos.parquet")
    return str(save_tiny(tmp_path / "tiny", tiny_llama(context=1024), tiny_tokenizer(context=1024)))


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


@pytest.mark.slow
def test_the_session(model: str) -> None:
    session = commands()
    assert {words[0] for words in session} == {"decode", "align", "audit", "interpret", "doctor"}
    for words in session:
        at = words.index("--model") + 1 if "--model" in words else None
        given = [model if i == at else word for i, word in enumerate(words)]
        assert run([*given, *SHORTER.get(" ".join(words[:2]), ()), "--quiet"]) == 0, words
    assert Path("runs/look/report.html").is_file()
    assert Path("models/aligned/model.safetensors").is_file()
    assert Path("runs/photos/dictionaries/universal/metrics.json").is_file()


def test_the_programs(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(programs) == 2
    for program in programs:
        file = Path(model).parent / "program.py"
        file.write_text(program.replace('"starter"', repr(model)), encoding="utf-8")
        runpy.run_path(str(file))
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert Path("models/dictionary/model.safetensors").is_file()
