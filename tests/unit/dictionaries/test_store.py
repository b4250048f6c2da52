import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from triptych.dictionaries.store import (
    INFO,
    ActivationStore,
    ShardInfo,
    StoreInfo,
    matching_rows,
    shard_name,
    write_info,
    write_shard,
)
from triptych.errors import DataError, MissingInputError

FIELDS: dict[str, Any] = {
    "model": "a",
    "spec": "org/a",
    "fingerprint": "0" * 16,
    "site": "output",
    "pooling": "spatial",
    "grid": 2,
    "images": "set",
    "images_fingerprint": "f",
    "rows_per_image": 4,
    "width": 3,
    "dtype": "float32",
    "computed_in": "float32",
    "shard_images": 2,
    "n_images": 4,
    "skipped": ("two",),
    "complete": True,
}
"""Four images in shards of two, four rows each; the third was skipped."""


def made(folder: Path, *, images: tuple[list[int], ...] = ([0, 1], [3]), **changes: Any) -> Path:
    fields = {**FIELDS, **changes}
    rows_per_image, width = fields["rows_per_image"], fields["width"]
    shards = []
    for shard, indices in enumerate(images):
        n = len(indices) * rows_per_image
        rows = torch.arange(n * width).view(n, width) + 100.0 * shard
        write_shard(folder / shard_name(shard), rows, torch.tensor(indices, dtype=torch.int32))
        shards.append(ShardInfo(file=shard_name(shard), rows=n))
    write_info(folder, StoreInfo(**{**fields, "shards": tuple(shards)}))
    return folder


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    store = ActivationStore.open(made(tmp_path))
    assert (store.width, store.n_rows, store.n_shards, store.shard_rows) == (3, 12, 2, (8, 4))
    assert store.read(1)[0].tolist() == [100.0, 101.0, 102.0]
    assert store.load().equal(torch.cat([store.read(0), store.read(1)]))
    assert store.images_of_rows().tolist() == [0] * 4 + [1] * 4 + [3] * 4
    assert store.info.n_shards == 2


def test_rows_kept_in_half_the_bits_are_read_in_full(tmp_path: Path) -> None:
    made(tmp_path, dtype="bfloat16")
    for shard in range(2):
        path = tmp_path / shard_name(shard)
        write_shard(
            path, torch.ones((8, 4)[shard], 3, dtype=torch.bfloat16), torch.zeros((2, 1)[shard], dtype=torch.int32)
        )
    store = ActivationStore.open(tmp_path)
    assert store.read(0).dtype == store.load().dtype == torch.float32


def test_no_store_is_told_from_a_store(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="does not exist"):
        ActivationStore.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"is no activation store: it has no {INFO}"):
        ActivationStore.open(tmp_path)
    (tmp_path / INFO).write_text('{"model": 3}')
    with pytest.raises(DataError, match="does not describe a store"):
        ActivationStore.open(tmp_path)


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    made(tmp_path, images=([0, 1],), complete=False)
    with pytest.raises(DataError, match=r"unfinished \(1 of 2 shards\)"):
        ActivationStore.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (made(tmp_path) / shard_name(1)).unlink()
    with pytest.raises(MissingInputError, match="lacks shard_00001.safetensors; remove the folder and extract again"):
        ActivationStore.open(tmp_path)


def test_a_shard_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    path = made(tmp_path) / shard_name(1)
    write_shard(path, torch.zeros(4, 5), torch.tensor([3], dtype=torch.int32))
    with pytest.raises(DataError, match=r"shard_00001.safetensors: its rows are 4 x 5 and store.json says 4 x 3"):
        ActivationStore.open(tmp_path)
    save_file({"rows": torch.zeros(4, 3)}, path)
    with pytest.raises(DataError, match="its images are missing and store.json says 1"):
        ActivationStore.open(tmp_path)


def test_a_torn_shard_is_named(tmp_path: Path) -> None:
    path = made(tmp_path) / shard_name(0)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"shard_00000.safetensors is damaged"):
        ActivationStore.open(tmp_path)
    shutil.copy(tmp_path / shard_name(1), path)


def test_stores_of_the_same_images_pair_up(tmp_path: Path) -> None:
    one, other = (ActivationStore.open(made(tmp_path / name, model=name)) for name in "ab")
    matching_rows({"a": one, "b": other})
    matching_rows({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_images": 5}, "images: 4 against 5"),
        ({"images_fingerprint": "g"}, "fingerprint of the images: f against g"),
        ({"rows_per_image": 1}, "rows of an image: 4 against 1"),
        ({"skipped": ()}, "skipped images: two against none"),
        ({"images": ([0, 2], [3])}, "rows are of other images"),
        ({"images": ([1, 0], [3])}, "or in another order"),
    ],
)
def test_stores_that_do_not_pair_up_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    one = ActivationStore.open(made(tmp_path / "a"))
    other = ActivationStore.open(made(tmp_path / "b", **changes))
    with pytest.raises(DataError, match=f"'a' and 'b' do not pair up: .*{message}"):
        matching_rows({"a": one, "b": other})
