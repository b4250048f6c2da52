"""Top images of hand-made codes, and thumbnails of hand-made images: what lies on the disk."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

from triptych.dictionaries import tops
from triptych.dictionaries.records import THUMBNAILS, TOPS
from triptych.dictionaries.tops import GROUP_ROWS, N_TOPS, SIDE, thumbnail, top_table, write_tops


@dataclass(frozen=True)
class Greys:
    """Images of one grey each: image i is of the value i."""

    n: int = 8
    height: int = 10
    width: int = 20

    @property
    def ids(self) -> Sequence[str]:
        return [f"image-{i}" for i in range(self.n)]

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), index, dtype=np.uint8)


def codes(*rows: Sequence[float]) -> csr_matrix:
    return csr_matrix(np.array(rows, dtype=np.float32))


# Rows are images 0 … 7 but 2, which was skipped. Latent 0 fires alike on images 4 and 6, more on 7; latent 1 never;
# latent 2 on image 0 alone, and for model b not at all.
A = codes([0, 0, 3], [0.0, 0, 0], [0, 0, 0], [0.5, 0, 0], [0, 0, 0], [0.5, 0, 0], [0.75, 0, 0])
B = codes([0, 0, 0], [0.25, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0.0, 0, 0])
IMAGES = np.array([0, 1, 3, 4, 5, 6, 7])


def open_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_the_strongest_images_go_first_and_of_equals_the_lower_row() -> None:
    table = top_table({"a": A, "b": B}, [0, 2], IMAGES, Greys().ids)
    assert table.to_pylist() == [
        {"latent": 0, "model": "a", "rank": 0, "row": 7, "activation": 0.75, "image_id": "image-7"},
        {"latent": 0, "model": "a", "rank": 1, "row": 4, "activation": 0.5, "image_id": "image-4"},
        {"latent": 0, "model": "a", "rank": 2, "row": 6, "activation": 0.5, "image_id": "image-6"},
        {"latent": 0, "model": "b", "rank": 0, "row": 1, "activation": 0.25, "image_id": "image-1"},
        {"latent": 2, "model": "a", "rank": 0, "row": 0, "activation": 3.0, "image_id": "image-0"},
    ]


def test_there_are_six_at_most() -> None:
    ramp = codes(*[[float(value)] for value in range(1, 9)])
    table = top_table({"a": ramp}, [0], np.arange(8), Greys().ids)
    assert table["row"].to_pylist() == [7, 6, 5, 4, 3, 2]
    assert table.num_rows == N_TOPS


def test_an_image_counts_once_by_its_strongest_row() -> None:
    table = top_table({"a": codes([0.5], [1.0], [0.75], [0.25])}, [0], np.array([3, 3, 5, 5]), Greys().ids)
    assert table.select(["row", "activation"]).to_pylist() == [
        {"row": 3, "activation": 1.0},
        {"row": 5, "activation": 0.75},
    ]


def test_a_name_that_is_no_text_does_not_fail() -> None:
    """A file name of bytes that are no UTF-8 reaches Python with lone surrogates, which Parquet refuses."""
    table = top_table({"a": codes([1.0])}, [0], np.array([0]), ["caf\udce9.png"])
    assert table["image_id"].to_pylist() == ["caf\\udce9.png"]


def test_nothing_that_fires_gives_whole_files_without_rows(tmp_path: Path) -> None:
    write_tops(tmp_path, {"a": A, "b": B}, [], IMAGES, Greys())
    for name in (TOPS, THUMBNAILS):
        assert pq.read_table(tmp_path / name).num_rows == 0


def test_files_hold_each_image_once_and_only_those_that_are_meant(tmp_path: Path) -> None:
    write_tops(tmp_path, {"a": A, "b": B}, [0, 1, 2], IMAGES, Greys())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([TOPS, THUMBNAILS])
    shown = pq.read_table(tmp_path / TOPS)
    made = pq.read_table(tmp_path / THUMBNAILS)
    assert made["row"].to_pylist() == sorted(set(shown["row"].to_pylist())) == [0, 1, 4, 6, 7]
    for row, data in zip(made["row"].to_pylist(), made["image"].to_pylist(), strict=True):
        assert (np.asarray(open_image(data)) == Greys().read(row)).all()


def test_thumbnails_lie_in_small_groups(tmp_path: Path) -> None:
    n = 2 * GROUP_ROWS + 1
    write_tops(tmp_path, {"a": csr_matrix(np.eye(n, dtype=np.float32))}, range(n), np.arange(n), Greys(n=n))
    metadata = pq.read_metadata(tmp_path / THUMBNAILS)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [32, 32, 1]


@pytest.mark.parametrize(
    ("height", "width", "expected", "kind"),
    [
        (64, 64, (64, 64), "PNG"),
        (1, 3, (3, 1), "PNG"),
        (65, 64, (63, 64), "JPEG"),
        (200, 100, (32, 64), "JPEG"),
        (2, 1000, (64, 1), "JPEG"),
    ],
)
def test_tiny_images_stay_as_they_are_and_others_get_small(
    height: int, width: int, expected: tuple[int, int], kind: str
) -> None:
    with open_image(thumbnail(np.full((height, width, 3), 90, dtype=np.uint8))) as image:
        assert (image.size, image.format) == (expected, kind)
        assert max(image.size) <= SIDE
        assert abs(np.asarray(image, dtype=int) - 90).max() <= 2


class _Killed(BaseException):
    pass


def test_a_kill_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tops(tmp_path, {"a": A}, [0, 2], IMAGES, Greys())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killing(_: npt.NDArray[np.uint8]) -> bytes:
        raise _Killed

    monkeypatch.setattr(tops, "thumbnail", killing)
    with pytest.raises(_Killed):
        write_tops(tmp_path, {"a": B}, [0], IMAGES, Greys())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
