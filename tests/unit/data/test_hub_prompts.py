import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from triptych.data import hub, load_prompts
from triptych.errors import DataError
from triptych.records import Prompt


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def dataset_info(*_: Any, **__: Any) -> SimpleNamespace:
        if error is not None:
            raise error
        return SimpleNamespace()

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)


def hub_error(kind: type[Exception]) -> Exception:
    # Their constructors want a response of whichever HTTP library is installed.
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no route to host"), r"the hub cannot be reached \(no route to host\); check the connection"),
        (hub_error(RepositoryNotFoundError), "the hub does not know it; check the spelling"),
        (hub_error(GatedRepoError), "it is gated; accept its terms"),
    ],
)
def test_a_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    answer(monkeypatch, error)
    with pytest.raises(DataError, match=f"data set org/name is not in the local cache .*{message}"):
        load_prompts("org/name")


def test_offline_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"org/name is not in the local cache .* HF_HUB_OFFLINE is set; unset it"):
        load_prompts("org/name")
    assert time.monotonic() - started < 2.0


def test_the_train_split_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        asked.update(options, name=name, offline=datasets.config.HF_HUB_OFFLINE)
        return datasets.Dataset.from_list([{"instruction": "a", "output": "x"}, {"instruction": "b", "output": "y"}])

    answer(monkeypatch, None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_prompts("org/name") == [
        Prompt(id="row-000001", instruction="a"),
        Prompt(id="row-000002", instruction="b"),
    ]
    assert asked == {"name": "org/name", "split": "train", "offline": False}


def test_a_row_that_is_no_prompt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([{"text": "a"}]))
    with pytest.raises(DataError, match=r"org/name, row 1: neither 'instruction' nor 'prompt' \(its keys: text\)"):
        load_prompts("org/name")


def test_a_data_set_without_that_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> datasets.Dataset:
        raise ValueError("Unknown split \"train\". Should be one of ['test'].\nmore")

    answer(monkeypatch, None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"data set org/name: its split 'train' cannot be read \(Unknown split"):
        load_prompts("org/name")


def test_a_cached_data_set_is_read_offline(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    (empty_cache / "org___my_name" / "default" / "0.0.0" / "abc").mkdir(parents=True)
    seen: list[bool] = []

    def load_dataset(*_: Any, **__: Any) -> datasets.Dataset:
        seen.append(datasets.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE)
        return datasets.Dataset.from_list([{"instruction": "a"}])

    answer(monkeypatch, OSError("no network"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_prompts("org/MyName")) == 1
    assert seen == [True]
    assert not datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["alpaca-cleaned", "MyDataSet", "GSM8K", "OpenR1-Math-220k", "orca_dpo_pairs"])
def test_cache_folders_are_named_as_the_library_names_them(empty_cache: Path, name: str) -> None:
    snake = datasets.naming.camelcase_to_snakecase(name)
    (empty_cache / f"org___{snake}" / "default" / "0.0.0" / "abc").mkdir(parents=True)
    assert hub.is_cached(f"org/{name}")
