"""Talks to the model hub: what its local cache holds, what a repository offers, fetching the files that are needed.

A hub that cannot be reached is noticed within seconds: one question with a short limit before anything is fetched.

Not here: judging a folder (`sources`), data sets (`triptych.data`).
"""

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from triptych.errors import ModelError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

PROBE_SECONDS = 5.0
"""How long the hub may take to answer before it counts as unreachable."""

_FETCHED = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]
_LEFT = ["*/*"]


def cached_snapshot(repo: str) -> Path | None:
    """The folder of a repository in the hub's local cache, complete or not; None where not even a config is there."""
    config = try_to_load_from_cache(repo, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def download_snapshot(repo: str) -> Path:
    """Fetches configuration, tokenizer and safetensors of a repository; the folder is named after the commit.

    Raises `ModelError` where the hub is forbidden, unreachable, or has no such model in safetensors.
    """
    names = {name for name in _file_names(repo) if "/" not in name}
    if "config.json" not in names:
        raise ModelError(f"hub repository {repo} has no config.json: it is not a transformers model")
    if not names & {WEIGHTS, WEIGHTS_INDEX}:
        raise ModelError(
            f"hub repository {repo} has no {WEIGHTS}: weights are only read as safetensors; choose a converted one"
        )
    try:
        return Path(snapshot_download(repo, allow_patterns=_FETCHED, ignore_patterns=_LEFT))
    except Exception as error:
        raise ModelError(f"model {repo}: the download broke off ({first_line(error)}); try again") from error


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


def _file_names(repo: str) -> list[str]:
    absent = f"model {repo} is not in the local cache (nor is it a local folder)"
    try:
        info = HfApi().model_info(repo, timeout=PROBE_SECONDS)
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
    return [sibling.rfilename for sibling in info.siblings or []]
