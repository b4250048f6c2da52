"""Talks to the model hub: what its local cache holds, what a repository offers, fetching the files that are needed.

A hub that cannot be reached is noticed within seconds: one question with a short limit before anything is fetched.

Not here: judging a folder (`sources`), data sets (`triptych.data`).
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoSibling

from triptych.errors import ModelError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

PROBE_SECONDS = 5.0
"""How long the hub may take to answer before it counts as unreachable."""

_FETCHED = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]
_LEFT = ["*/*"]


class Offer(NamedTuple):
    """What a repository holds, as far as the hub says."""

    n_bytes: int | None
    parameters: int | None
    """Of a model in safetensors."""


def cached_snapshot(repo: str) -> Path | None:
    """The folder of a repository in the hub's local cache, complete or not; None where not even a config is there."""
    config = try_to_load_from_cache(repo, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def download_snapshot(repo: str) -> Path:
    """Fetches configuration, tokenizer and safetensors of a repository; the folder is named after the commit.

    Raises `ModelError` where the hub is forbidden, unreachable, or has no such model in safetensors.
    """
    _model_files(repo, _info(repo))
    try:
        return Path(snapshot_download(repo, allow_patterns=_FETCHED, ignore_patterns=_LEFT))
    except Exception as error:
        raise ModelError(f"model {repo}: the download broke off ({first_line(error)}); try again") from error


def ask_for(repo: str) -> Offer:
    """What `download_snapshot` would fetch, by a question for metadata alone; raises `ModelError` where it would."""
    info = _info(repo, sizes=True)
    names = (file for file in _model_files(repo, info) if any(fnmatch(file.rfilename, one) for one in _FETCHED))
    sizes = [file.size for file in names]
    tensors = getattr(info, "safetensors", None)
    return Offer(total_bytes(sizes), None if tensors is None else tensors.total)


def total_bytes(sizes: Sequence[int | None]) -> int | None:
    """The sum; None where one is not known, or there are none."""
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def hub_is_reachable() -> bool:
    """Whether the hub answers within seconds; False at once where HF_HUB_OFFLINE is set."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().model_info("openai-community/gpt2", timeout=PROBE_SECONDS)
    except Exception:  # noqa: BLE001  (the HTTP library behind huggingface_hub, and with it the errors, has changed)
        return False
    return True


def first_line(error: BaseException) -> str:
    """The first line of an error's text (with the second, where the first only announces it), for use in a sentence."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = f"{first} {rest[0]}" if first.endswith(":") and rest else first
    return line.rstrip(".: ")


def _model_files(repo: str, info: ModelInfo) -> list[RepoSibling]:
    """The files at the top of a repository that holds a model in safetensors; `ModelError` for any other."""
    files = [file for file in info.siblings or [] if "/" not in file.rfilename]
    names = {file.rfilename for file in files}
    if "config.json" not in names:
        raise ModelError(f"hub repository {repo} has no config.json: it is not a transformers model")
    if not names & {WEIGHTS, WEIGHTS_INDEX}:
        raise ModelError(
            f"hub repository {repo} has no {WEIGHTS}: weights are only read as safetensors; choose a converted one"
        )
    return files


def _info(repo: str, *, sizes: bool = False) -> ModelInfo:
    absent = f"model {repo} is not in the local cache (nor is it a local folder)"
    try:
        return HfApi().model_info(repo, timeout=PROBE_SECONDS, files_metadata=sizes)
    except GatedRepoError as error:
        raise ModelError(f"model {repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{absent} and the hub does not know it; check the spelling, or log in") from error
    except OfflineModeIsEnabled as error:
        remedy = "unset it, fetch the model beforehand, or use 'starter'"
        raise ModelError(f"{absent} and HF_HUB_OFFLINE is set; {remedy}") from error
    except Exception as error:
        remedy = "check the connection, fetch the model beforehand, or use 'starter'"
        raise ModelError(f"{absent} and the hub cannot be reached ({first_line(error)}); {remedy}") from error
