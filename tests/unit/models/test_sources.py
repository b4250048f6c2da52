import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from triptych.errors import MissingInputError, ModelError
from triptych.models import hub, sources
from triptych.models.sources import ModelSource, fingerprint, require_adapter, resolve_source, weight_files
from triptych.models.tiny import save_tiny, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def test_a_local_folder(folder: Path) -> None:
    assert resolve_source(str(folder)) == ModelSource(str(folder), "folder", folder)


def test_a_relative_folder_wins_over_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "org").mkdir()
    folder.rename(folder.parent / "org" / "name")
    monkeypatch.chdir(folder.parent)
    assert resolve_source("org/name").kind == "folder"


def test_starter_is_the_embedded_model_even_beside_a_folder_of_that_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.parent / "starter")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sources, "ensure_starter", lambda: Path("the cache"))
    assert resolve_source("starter") == ModelSource("starter", "starter", Path("the cache"))
    assert resolve_source("./starter").kind == "folder"


@pytest.mark.parametrize("spec", ["/no/such/folder", "./nowhere", "../nowhere", "~/no-such-model"])
def test_a_path_that_is_not_there(spec: str) -> None:
    with pytest.raises(MissingInputError, match=f"model folder {spec} does not exist"):
        resolve_source(spec)


@pytest.mark.parametrize("spec", ["", "a/b/c", "white space", "org/", "ünïcode"])
def test_a_spec_that_can_be_nothing(spec: str) -> None:
    with pytest.raises(ModelError, match="neither 'starter', nor an existing folder, nor a hub id"):
        resolve_source(spec)


def test_a_folder_without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json: it is not a transformers model"):
        resolve_source(str(folder))


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors in model folder"):
        resolve_source(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=rf"only pickled weights \({name}\).*save_pretrained"):
        resolve_source(str(folder))


def test_safetensors_of_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"has weights.safetensors but no model.safetensors"):
        resolve_source(str(folder))


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the folder"):
        resolve_source(str(folder / "model.safetensors"))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="is a PEFT adapter: pass it as the adapter"):
        resolve_source(str(tmp_path))


def shard(folder: Path) -> None:
    """Splits the weights of a folder in two, as large models have them."""
    tiny_llama().save_pretrained(folder, max_shard_size="60KB")
    assert not (folder / "model.safetensors").exists()


def test_sharded_weights(tmp_path: Path) -> None:
    shard(tmp_path)
    files = weight_files(tmp_path)
    assert len(files) > 1
    assert list(files) == sorted(tmp_path.glob("*.safetensors"))
    assert resolve_source(str(tmp_path)).kind == "folder"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path)
    lost = weight_files(tmp_path)[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"lacks {lost.name}, which model.safetensors.index.json names"):
        resolve_source(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"model.safetensors.index.json .*fetch the model again"):
        resolve_source(str(tmp_path))


# --- Fingerprints -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_depends_on_content_not_on_place(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = save_tiny(tmp_path / "other", tiny_llama(seed=1))
    prints = [fingerprint(ModelSource("x", "folder", path)) for path in (folder, copy, other)]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 16


def test_the_fingerprint_sees_large_files_in_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_HASHED_WHOLE_BYTES", 100)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 16)
    source = ModelSource("x", "folder", folder)
    before = fingerprint(source)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(source) != before


# --- Adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_needs_its_folder_config_and_safetensors(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"adapter folder .*gone does not exist"):
        require_adapter(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"is no PEFT adapter: it has no adapter_config.json"):
        require_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors: train it first"):
        require_adapter(tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model.bin is pickled and is not opened"):
        require_adapter(tmp_path)


# --- The hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def answer(monkeypatch: pytest.MonkeyPatch, result: Exception | list[str]) -> None:
    """Makes the hub answer `model_info` with an error or with a list of files."""

    def model_info(*_: Any, **__: Any) -> ModelInfo:
        if isinstance(result, Exception):
            raise result
        return ModelInfo(id="org/name", siblings=[{"rfilename": name} for name in result])  # type: ignore[no-untyped-call]

    monkeypatch.setattr(HfApi, "model_info", model_info)


def hub_error(kind: type[Exception]) -> Exception:
    # Their constructors want a response of whichever HTTP library is installed.
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (OSError("[Errno -2] Name or service not known"), "not in the local cache .* the hub cannot be reached"),
        (OfflineModeIsEnabled("offline"), "not in the local cache .* HF_HUB_OFFLINE is set; unset it"),
        (hub_error(RepositoryNotFoundError), "not in the local cache .* the hub does not know it; check the spelling"),
        (hub_error(GatedRepoError), "is gated: accept its terms"),
        (["config.json", "pytorch_model.bin"], "has no model.safetensors: weights are only read as safetensors"),
        (["config.json", "onnx/model.safetensors"], "has no model.safetensors: weights are only read as safetensors"),
        (["model.safetensors"], "has no config.json"),
    ],
)
def test_what_the_hub_can_answer(monkeypatch: pytest.MonkeyPatch, result: Exception | list[str], message: str) -> None:
    answer(monkeypatch, result)
    with pytest.raises(ModelError, match=message):
        resolve_source("org/name")


def put_in_hub_cache(cache: Path, folder: Path) -> Path:
    """Lays a model out as huggingface_hub caches it."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc", encoding="utf-8")
    return snapshot


def test_a_cached_repository_is_used_without_the_network(
    folder: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = put_in_hub_cache(hub_cache, folder)
    answer(monkeypatch, AssertionError("the network was asked"))
    assert resolve_source("org/name") == ModelSource("org/name", "hub", snapshot, revision="0123abc")


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_half_a_cached_repository_is_not_used(
    folder: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    (put_in_hub_cache(hub_cache, folder) / lost).unlink()
    answer(monkeypatch, OSError("no network"))
    with pytest.raises(ModelError, match="not in the local cache"):
        resolve_source("org/name")


def test_only_what_is_needed_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    answer(monkeypatch, ["config.json", "model.safetensors", "pytorch_model.bin"])
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert resolve_source("org/name").revision == folder.name
    assert asked["repo"] == "org/name"
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])
    assert asked["ignore_patterns"] == ["*/*"]


def test_a_download_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise ConnectionResetError("reset by peer\nmore")

    answer(monkeypatch, ["config.json", "model.safetensors"])
    monkeypatch.setattr(hub, "snapshot_download", broken)
    with pytest.raises(ModelError, match=r"the download broke off \(reset by peer\); try again"):
        resolve_source("org/name")


def test_hub_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ["config.json"])
    assert hub.hub_is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.hub_is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    answer(monkeypatch, OSError("no network"))
    assert not hub.hub_is_reachable()


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # What HF_HUB_OFFLINE sets when huggingface_hub is imported; the request itself is the library's own.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"org/name is not in the local cache .* and HF_HUB_OFFLINE is set"):
        resolve_source("org/name")
    assert time.monotonic() - started < 2.0


def test_the_config_of_a_model_is_an_object(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(ModelError, match="holds no JSON object"):
        sources.read_json(folder / "config.json")
