"""Every command and program of the README runs as it stands there, on a tiny model in place of the real one."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from triptych.cli import run
from triptych.models.tiny import save_tiny, tiny_llama, tiny_tokenizer

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PROMPT = "$ .venv/bin/triptych "
SHORTER = {
    "align reward": ["--max-steps", "2"],
    "align dpo": ["--max-steps", "2"],
    "align grpo": ["--steps", "2"],
    "audit --model": ["--limit", "3", "--max-new-tokens", "8", "--set", "hacking_prompts=2"],
}
"""Given after the README's own options, of which they repeat one at most: the last one counts."""


def commands() -> list[list[str]]:
    lines = README.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix(PROMPT), comments=True) for line in lines if line.startswith(PROMPT)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's folder; the commands run beside it."""
    monkeypatch.chdir(tmp_path)
    return str(save_tiny(tmp_path / "tiny", tiny_llama(context=1024), tiny_tokenizer(context=1024)))


@pytest.mark.slow
def test_the_session(model: str) -> None:
    session = commands()
    assert {words[0] for words in session} == {"decode", "align", "audit", "doctor"}
    for words in session:
        at = words.index("--model") + 1 if "--model" in words else None
        given = [model if i == at else word for i, word in enumerate(words)]
        assert run([*given, *SHORTER.get(" ".join(words[:2]), ()), "--quiet"]) == 0, words
    assert Path("runs/look/report.html").is_file()
    assert Path("models/aligned/model.safetensors").is_file()


def test_the_program(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    file = Path(model).parent / "program.py"
    file.write_text(program.replace('"starter"', repr(model)), encoding="utf-8")
    runpy.run_path(str(file))
    assert len(capsys.readouterr().out.splitlines()) >= 3
