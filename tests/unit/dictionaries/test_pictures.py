"""Pictures of hand-made codes: which images, where in them, which latents, and what lies on the disk."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from torch import Tensor

from triptych.dictionaries import pictures
from triptych.dictionaries.pictures import (
    LatentFeatures,
    Pick,
    Top,
    activation_map,
    as_bytes,
    heat_overlay,
    pick_latents,
    png,
    top_images,
    write_pictures,
)
from triptych.dictionaries.records import LatentPictures
from triptych.dictionaries.visualisation import Driven
from triptych.errors import DataError
from triptych.files import read_records_json

HOSTILE = "../../<img src=x onerror=alert(1)>\n/etc"
"""A model's name: it must reach no file name."""


@dataclass(frozen=True)
class Greys:
    """Images of one grey each: image i is of the value 10 i."""

    ids: Sequence[str] = tuple(f"image-{i}" for i in range(6))

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return np.full((8, 12, 3), 10 * index, dtype=np.uint8)


@dataclass(frozen=True)
class Square:
    """Sees the left 8 × 8 pixels; its only feature is their mean, in each of its rows."""

    grid: int | None = None
    image_size: tuple[int, int] = (8, 8)

    def preprocess(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(images)[:, :, :8].copy()).permute(0, 3, 1, 2) / 255

    def features(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3))[:, None, None].expand(-1, (self.grid or 1) ** 2, 1)


def codes(*rows: Sequence[float]) -> csr_matrix:
    return csr_matrix(np.array(rows, dtype=np.float32))


# Latent 0 fires on images 1 and 3 alike and most on 4; latent 1 nowhere; latent 2 on image 2 alone.
POOLED = codes([0.0, 0, 0], [0.5, 0, 0], [0, 0, 2], [0.5, 0, 0], [0.75, 0, 0], [0.25, 0, 0])
IMAGES = np.arange(6)


def test_top_images_by_activation_then_by_index() -> None:
    found = top_images(POOLED, [0, 1, 2], IMAGES, 3)
    assert found == [[Top(4, 0.75), Top(1, 0.5), Top(3, 0.5)], [], [Top(2, 2.0)]]
    assert top_images(POOLED, [2, 2], IMAGES, 1) == [[Top(2, 2.0)]] * 2
    assert top_images(POOLED, [], IMAGES, 1) == []


def test_an_image_counts_by_its_strongest_row() -> None:
    # Two rows an image, and image 7 was left out: its neighbours keep their numbers. A negative code is no firing.
    spatial = codes([0.1], [0.9], [0.5], [0.6], [0.0], [-3.0])
    assert top_images(spatial, [0], np.array([6, 6, 8, 8, 9, 9]), 5) == [
        [Top(6, pytest.approx(0.9)), Top(8, pytest.approx(0.6))]  # type: ignore[arg-type]
    ]


def test_codes_of_another_store_are_refused() -> None:
    with pytest.raises(DataError, match="codes have 6 rows and 5"):
        top_images(POOLED, [0], IMAGES[:5], 1)


def test_a_hot_row_is_where_it_was_planted() -> None:
    """Row 5 of a 3 × 3 grid is the middle row's right cell."""
    sparse = np.zeros((18, 2), dtype=np.float32)
    sparse[9 + 5, 1] = 4.0
    rows = np.repeat([3, 7], 9)
    strengths = activation_map(csr_matrix(sparse), 1, rows, 7, 3)
    assert np.argwhere(strengths).tolist() == [[1, 2]]
    overlay = heat_overlay(np.full((27, 57, 3), 100, dtype=np.uint8), strengths, 4.0)
    light = overlay.astype(float).sum(-1)
    hottest = np.argwhere(light == light.max())
    assert ((hottest >= (9, 38)) & (hottest < (18, 57))).all()
    # Where nothing fires, 45 % of inferno's first colour (0, 0, 4 of 255) over 100: 55, 55, 57.
    assert overlay[0, 0].tolist() == [55, 55, 57]
    # At the centre of the hot cell, 65 % of its last colour (252.0, 254.6, 164.5) over 100: 35 + 163.8, 165.5, 106.9.
    assert overlay[13, 47].tolist() == [199, 200, 142]
    assert overlay[22, 47].tolist() == [55, 55, 57]


def test_nothing_fires_nowhere_is_hot() -> None:
    overlay = heat_overlay(np.full((4, 4, 3), 100, dtype=np.uint8), np.zeros((2, 2), dtype=np.float32), 0.0)
    assert (overlay == overlay[0, 0]).all()


def test_a_map_needs_all_its_cells() -> None:
    with pytest.raises(DataError, match="image 4 has 1 rows .* 2 × 2 grid has 4"):
        activation_map(POOLED, 0, IMAGES, 4, 2)


# --- Which latents ----------------------------------------------------------------------------------------------------

FEATURES = LatentFeatures(
    # 0 and 1 universal, 2 unconfirmed, 3 of a, 4 and 5 of b, 6 dead, 7 between.
    entropy=np.array([0.99, 0.95, 0.97, 0.0, 0.0, 0.05, np.nan, 0.5]),
    universal=np.array([True, True, False, False, False, False, False, False]),
    specific_to=[None, None, None, "a", "b", "b", None, None],
    fires={"a": np.array([10, 10, 10, 8, 0, 1, 0, 3]), "b": np.array([10, 20, 10, 0, 7, 99, 0, 9])},
    co_fires=np.array([5, 8, 1, 0, 0, 0, 0, 1]),
    # Of a's energy latent 0 has 0.4 and latent 1 0.2; of b's 0.1 and 0.3.
    energy={
        "a": np.array([4.0, 2.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
        "b": np.array([100.0, 300.0, 100.0, 0.0, 200.0, 200.0, 0.0, 100.0]),
    },
    best={0: "shape = star (AUROC 0.98)"},
)


def test_picks() -> None:
    # Latent 0: co-firing (5/10 + 5/10) / 2 = 0.5, energy (0.4 + 0.1) / 2 = 0.25: 0.125.
    # Latent 1: (8/10 + 8/20) / 2 = 0.6, (0.2 + 0.3) / 2 = 0.25: 0.15, so it goes first.
    # Of b's two, which have the same energy, the lower number goes first.
    universal = [Pick(1, "universal", None), Pick(0, "universal", None)]
    specific = [Pick(3, "specific", "a"), Pick(4, "specific", "b"), Pick(5, "specific", "b")]
    assert pick_latents(FEATURES) == [*universal, *specific]
    assert pick_latents(FEATURES, universal=1, specific=1) == [universal[0], *specific[:2]]
    assert pick_latents(FEATURES, universal=0, specific=0) == []


def test_another_meaning_goes_before_the_same_again() -> None:
    # All are confirmed and fire alike, so energy decides: 0 to 5 in order.
    n = 6
    alike = LatentFeatures(
        entropy=np.ones(n),
        universal=np.ones(n, dtype=bool),
        specific_to=[None] * n,
        fires={"a": np.full(n, 4), "b": np.full(n, 4)},
        co_fires=np.full(n, 4),
        energy={"a": np.arange(n, 0, -1.0), "b": np.arange(n, 0, -1.0)},
        best={0: "hue = red (AUROC 0.99)", 1: "hue = red (AUROC 0.97)", 2: "hue = red (AUROC 0.96)", 4: "shape = star"},
    )
    # First the strongest of each meaning and those without one, then red again, and again.
    assert [pick.latent for pick in pick_latents(alike)] == [0, 3, 4, 5, 1, 2]
    assert [pick.latent for pick in pick_latents(alike._replace(best=None))] == [0, 1, 2, 3, 4, 5]


def test_no_picks_where_there_are_none() -> None:
    dead = FEATURES._replace(entropy=np.full(8, np.nan), universal=np.zeros(8, dtype=bool), specific_to=[None] * 8)
    assert pick_latents(dead) == []


# --- Files ------------------------------------------------------------------------------------------------------------


def driven(n: int) -> Driven:
    images = torch.zeros(n, 3, 8, 8)
    images[:, 0] = 1.0
    return Driven(images, torch.zeros(n), 3.0 + torch.arange(n))


def written(folder: Path, latents: Sequence[int] = (0, 1)) -> list[LatentPictures]:
    rows = np.repeat(IMAGES, 4)
    spatial = np.zeros((24, 8), dtype=np.float32)
    spatial[4 * 5 + 2, 0] = 1.0  # image 5, below left
    pooled = csr_matrix((POOLED.data, POOLED.indices, POOLED.indptr), shape=(6, 8))
    repeated = csr_matrix(np.repeat(pooled.toarray(), 4, axis=0))
    return write_pictures(
        folder,
        [Pick(latent, "universal", None) for latent in latents],
        FEATURES._replace(fires={HOSTILE: FEATURES.fires["a"], "b": FEATURES.fires["b"]}),
        {HOSTILE: Square(), "b": Square(grid=2)},
        {HOSTILE: repeated, "b": csr_matrix(spatial)},
        rows,
        Greys(),
        maximised={HOSTILE: driven(len(latents)), "b": driven(len(latents))},
        n_top=2,
    )


def opened(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def test_files_are_as_the_index_says(tmp_path: Path) -> None:
    records = written(tmp_path)
    folder = tmp_path / "images"
    assert read_records_json(folder / "index.json", LatentPictures) == records
    first, second = records
    shown = [(one.model, one.kind, one.rank, one.activation, one.image_id) for one in first.pictures]
    assert shown == [
        (HOSTILE, "top", 0, 0.75, "image-4"),
        (HOSTILE, "top", 1, 0.5, "image-1"),
        (HOSTILE, "maximised", 0, 3.0, None),
        ("b", "top", 0, 1.0, "image-5"),
        ("b", "heat", 0, 1.0, "image-5"),
        ("b", "maximised", 0, 3.0, None),
    ]
    assert (first.entropy, first.co_fires, first.fires, first.best) == (
        0.99,
        5,
        {HOSTILE: 10, "b": 10},
        "shape = star (AUROC 0.98)",
    )
    # Latent 1 fires on no image: only what drives it can be shown.
    assert [one.kind for one in second.pictures] == ["maximised", "maximised"]
    assert second.best is None
    files = sorted(one.file for record in records for one in record.pictures)
    assert sorted(path.name for path in folder.glob("*.png")) == files
    assert all(set(name) <= set("0123456789-mtopheax.png") for name in files)
    top, heat, best = (first.pictures[at].file for at in (0, 4, 5))
    assert (opened(folder / top) == 40).all()
    assert opened(folder / top).shape == (8, 8, 3)
    assert opened(folder / heat).sum(-1)[6, 1] == opened(folder / heat).sum(-1).max()
    assert (opened(folder / best) == (255, 0, 0)).all()


def test_again_gives_the_same_and_other_picks_replace_it(tmp_path: Path) -> None:
    written(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    (tmp_path / "images" / "notes.png").write_bytes(b"of somebody else")
    written(tmp_path)
    after = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert after == {**before, "notes.png": b"of somebody else"}
    written(tmp_path, latents=[1])
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {"00001-m0-max-0.png", "00001-m1-max-0.png", "index.json", "notes.png"}


def test_a_kill_leaves_whole_files_and_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []

    def dies(pixels: npt.NDArray[np.uint8]) -> bytes:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(png(pixels))
        return made[-1]

    monkeypatch.setattr(pictures, "png", dies)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path)
    left = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in left] == ["00000-m0-max-0.png", "00000-m0-top-0.png", "00000-m0-top-1.png"]
    assert all(opened(path).shape == (8, 8, 3) for path in left)
    monkeypatch.undo()
    assert len(written(tmp_path)) == 2


def test_no_picks_make_an_empty_index(tmp_path: Path) -> None:
    assert written(tmp_path, latents=[]) == []
    assert (tmp_path / "images" / "index.json").read_text() == "[]\n"


def test_large_pictures_are_shrunk_and_small_ones_kept() -> None:
    sizes = [
        Image.open(io.BytesIO(png(np.zeros((height, width, 3), dtype=np.uint8)))).size
        for height, width in ((8, 12), (320, 160))
    ]
    assert sizes == [(12, 8), (80, 160)]


def test_bytes_are_rounded_and_bounded() -> None:
    pixels = torch.tensor([-0.1, 0.5, 1.1]).view(3, 1, 1)
    assert as_bytes(pixels).tolist() == [[[0, 128, 255]]]
