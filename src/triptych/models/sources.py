"""Where a model comes from: a spec (`starter`, a local folder, a hub id) becomes a folder that can be loaded.

Only safetensors are taken: pickled weights run code when they are opened. Code that a repository brings along
(`trust_remote_code`) is never run either. Everything that can fail fails here, soon, and in one sentence.

Not here: loading (`language`, `reward`), the starter model (`starter`), talking to the hub (`hub`).
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triptych.errors import MissingInputError, ModelError
from triptych.models.hub import WEIGHTS, WEIGHTS_INDEX, cached_snapshot, download_snapshot
from triptych.models.starter import ensure_starter

STARTER = "starter"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED = "alignment"
"""Where a run directory has what was trained."""
TRAINER_STATE = "trainer_state.json"
REWARD_CONFIG = "reward_config.json"
"""How a reward model that was trained here reads a text."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spm.model", "spiece.model")
_HASHED_WHOLE_BYTES = 4 * 2**20
_HASHED_BLOCKS = 64
_BLOCK_BYTES = 2**16


@dataclass(frozen=True)
class ModelSource:
    """A model that is on disk, ready to be loaded."""

    spec: str
    """What the user wrote."""
    kind: Literal["starter", "folder", "hub"]
    folder: Path
    """Holds `config.json` and safetensors."""
    revision: str | None = None
    """The commit of the hub repository; None for anything local."""


def resolve_source(spec: str) -> ModelSource:
    """The folder behind a model spec, downloaded first where it must be.

    `starter` is always the embedded model (write `./starter` for a folder of that name); then an existing folder wins
    over a hub repository of the same name. A repository in the local cache of the hub is used as it is, without a
    look at the network.

    Raises `MissingInputError` where a path does not exist and `ModelError` for everything that cannot be loaded.
    """
    if spec == STARTER:
        return ModelSource(spec, "starter", ensure_starter())
    if (found := find_local_source(spec)) is not None:
        return found
    folder = download_snapshot(spec)
    _require_loadable(spec, folder)
    return ModelSource(spec, "hub", folder, revision=folder.name)


def find_local_source(spec: str, *, needs_tokenizer: bool = True) -> ModelSource | None:
    """The folder behind a spec that is on this disk, or in the local cache of the hub; None for what must be fetched.

    Raises `MissingInputError` and `ModelError` as `resolve_source` does; nothing is asked of the network.
    """
    path = Path(spec).expanduser()
    if spec and path.exists():
        _require_loadable(spec, path)
        return ModelSource(spec, "folder", path)
    if spec.startswith(("/", "./", "../", "~", ".\\", "..\\")) or Path(spec).is_absolute() or spec in (".", ".."):
        raise MissingInputError(f"model folder {spec} does not exist; check the path")
    if not _HUB_ID.fullmatch(spec):
        raise ModelError(
            f"model '{spec}' is neither 'starter', nor an existing folder, nor a hub id such as 'org/name'"
        )
    if (folder := _complete_snapshot(spec, needs_tokenizer=needs_tokenizer)) is None:
        return None
    _require_loadable(spec, folder)
    return ModelSource(spec, "hub", folder, revision=folder.name)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model in a folder, in a stable order; empty where there are none.

    Raises `ModelError` where the index of a sharded model cannot be read.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not index.is_file():
        return ()
    names = read_json(index).get("weight_map", {}).values()
    return tuple(folder / name for name in sorted(set(names)))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; `ModelError` where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object; fetch the model again")
    return value


def require_adapter(folder: Path) -> None:
    """Checks that a folder holds a PEFT adapter in safetensors; `MissingInputError` or `ModelError` where not."""
    if not folder.is_dir():
        raise MissingInputError(f"adapter folder {folder} does not exist; check the path")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{folder} is no PEFT adapter: it has no {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = _pickled_files(folder)
        remedy = f"{pickled[0]} is pickled and is not opened; save it as safetensors" if pickled else "train it first"
        raise ModelError(f"adapter {folder} has no {ADAPTER_WEIGHTS}: {remedy}")


def find_adapter(path: Path) -> Path:
    """The folder of an adapter: `path` itself, or the one that a run directory of `triptych align` holds.

    Raises `MissingInputError` or `ModelError` where there is none, or more than one to choose from.
    """
    if not (path / ADAPTER_CONFIG).is_file() and (path / TRAINED).is_dir():
        found = sorted(folder.parent for folder in (path / TRAINED).glob(f"*/{ADAPTER_CONFIG}"))
        policies = [folder for folder in found if folder.name != "reward"] or found
        if len(policies) > 1:
            raise ModelError(f"{path} holds several adapters; name one, such as {policies[0]}")
        path = policies[0] if policies else path
    require_adapter(path)
    return path


def require_own_base(folder: Path, source: ModelSource) -> None:
    """Refuses an adapter that this project trained on another base: it would load, and mean nothing.

    Raises `ModelError`. Adapters of others say nothing certain about their base; only their shapes can tell.
    """
    state = folder / TRAINER_STATE
    if not state.is_file():
        return
    known = read_json(state)
    if known.get("fingerprint") not in (None, fingerprint(source)):
        raise ModelError(
            f"adapter {folder} was trained on {known.get('model')}, not on {source.spec} (their weights differ); "
            "pass its own base"
        )


def fingerprint(source: ModelSource, adapter: Path | None = None) -> str:
    """16 hexadecimal digits that change with the configuration or the weights; for manifests.

    Files above 4 MiB count with their size and 64 evenly spaced blocks of 64 KiB: training moves every block.
    """
    digest = hashlib.sha256()
    files = [source.folder / "config.json", *weight_files(source.folder)]
    if adapter is not None:
        files += [adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS]
    for path in files:
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        for block in _sampled_blocks(path):
            digest.update(block)
    return digest.hexdigest()[:16]


def _sampled_blocks(path: Path) -> list[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _HASHED_WHOLE_BYTES:
            return [file.read()]
        blocks = []
        for index in range(_HASHED_BLOCKS):
            file.seek(index * (size - _BLOCK_BYTES) // (_HASHED_BLOCKS - 1))
            blocks.append(file.read(_BLOCK_BYTES))
        return blocks


def _complete_snapshot(repo: str, *, needs_tokenizer: bool = True) -> Path | None:
    """The folder of a repository in the hub's local cache, where everything that loading needs is there."""
    folder = cached_snapshot(repo)
    if folder is None or not (files := weight_files(folder)):
        return None
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return folder if (has_tokenizer or not needs_tokenizer) and all(path.is_file() for path in files) else None


def _require_loadable(spec: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"model {spec} is a file; give the folder that holds config.json and the safetensors")
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(f"{spec} is a PEFT adapter: pass it as the adapter, beside the base model it belongs to")
        raise ModelError(f"model folder {spec} has no config.json: it is not a transformers model")
    if not (files := weight_files(folder)):
        raise ModelError(_no_weights(spec, folder))
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(f"model folder {spec} lacks {missing[0]}, which {WEIGHTS_INDEX} names; fetch it again")


def _no_weights(spec: str, folder: Path) -> str:
    if pickled := _pickled_files(folder):
        return (
            f"model folder {spec} has only pickled weights ({pickled[0]}), which can run code when opened; "
            "convert it once, where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    if other := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"model folder {spec} has {other[0]} but no {WEIGHTS} (or {WEIGHTS_INDEX}); rename or save it again"
    return f"no *.safetensors in model folder {spec}: its weights are missing"


def _pickled_files(folder: Path) -> list[str]:
    return sorted(
        path.name for pattern in _PICKLED for path in folder.glob(pattern) if path.name != "training_args.bin"
    )
