"""Hub data sets, through `datasets`: rows of the training split, splits of images, a quick answer without a network.

Not here: local files (`tables`), models.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from triptych.errors import DataError
from triptych.models.hub import PROBE_SECONDS, first_line, total_bytes

SPLIT = "train"

PREFERENCE_SPLIT = "train_prefs"
"""What preference data sets call it that also hold splits for supervised fine-tuning."""


def read_hub_rows(name: str) -> list[dict[str, Any]]:
    """Every row of the `train` split of a hub data set, from the local cache where the hub cannot be reached.

    Where it has no such split but `train_prefs`, the rows of that one.

    Raises `DataError` where the hub does not know it, it is neither cached nor reachable, or has neither split.
    """
    with _reading(name, f"its split '{SPLIT}'"):
        return _training_rows(name)


def read_hub_splits(name: str) -> dict[str, datasets.Dataset]:
    """Every split of a hub data set by its name, images as they are stored ({bytes, path}).

    Raises `DataError` where the hub does not know it, or it is neither cached nor reachable.
    """
    with _reading(name, "its splits"):
        return {str(split): _undecoded(rows) for split, rows in datasets.load_dataset(name).items()}


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


@contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    """For reading a data set inside the block; a `DataError` where it cannot be had, or where reading fails."""
    problem = _hub_problem(name)
    if problem is not None and not is_cached(name):
        raise DataError(_unavailable(name, problem))
    try:
        with _quiet_datasets(offline=problem is not None):
            yield
    except Exception as error:
        raise DataError(f"data set {name}: {what} cannot be read ({first_line(error)})") from error


def _training_rows(name: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = datasets.load_dataset(name, split=SPLIT).to_list()
    except ValueError as error:
        # Said of a split that is not there, with the names of those that are.
        if f"'{PREFERENCE_SPLIT}'" not in str(error):
            raise
        rows = datasets.load_dataset(name, split=PREFERENCE_SPLIT).to_list()
    return rows


def _unavailable(name: str, problem: str) -> str:
    return f"data set {name} is not in the local cache (nor is it a local file) and {problem}"


def _hub_problem(name: str) -> str | None:
    """Why the hub cannot give a data set, with the remedy; None where it can. One question with a short limit."""
    try:
        HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except GatedRepoError:
        return "it is gated; accept its terms on the hub, then `hf auth login`"
    except RepositoryNotFoundError:
        return "the hub does not know it; check the spelling, or log in"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set; unset it, fetch the data set beforehand, or use 'starter'"
    except Exception as error:  # noqa: BLE001  (the HTTP library behind huggingface_hub, and so the error, has changed)
        remedy = "check the connection, fetch the data set beforehand, or use 'starter'"
        return f"the hub cannot be reached ({first_line(error)}); {remedy}"
    return None


def offered_bytes(name: str) -> int | None:
    """Bytes of a data set's files, by a question for metadata; None where the hub does not say.

    Raises `DataError` where the hub cannot give it.
    """
    problem = _hub_problem(name)
    if problem is not None:
        raise DataError(_unavailable(name, problem))
    info = HfApi().dataset_info(name, timeout=PROBE_SECONDS, files_metadata=True)
    return total_bytes([file.size for file in info.siblings or []])


def is_cached(name: str) -> bool:
    """Whether `datasets` has prepared this data set before; it names the folder `org___snake_case_name`."""
    *organisation, last = name.split("/")
    snake = re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", last).lower()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*organisation, snake])
    return any(folder.glob("*/*/*"))


@contextmanager
def _quiet_datasets(*, offline: bool) -> Iterator[None]:
    """No progress bars; and with `offline` no tries to reach the hub, of which `datasets` would make six in 23 s."""
    had_bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()
