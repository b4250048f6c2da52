import io
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from PIL import Image

from triptych.data import image_files
from triptych.data.images import Factor, ImageSet, decode_image, load_images
from triptych.errors import ConfigError, DataError, MissingInputError
from triptych.seeding import generator

REAL = Path(__file__).parents[3].parent / "shared" / "data"
real = pytest.mark.skipif(not (REAL / "cifar10_train.parquet").exists(), reason="needs ../shared/data")


def pixels(number: int, size: int = 8) -> npt.NDArray[np.uint8]:
    """A picture of its own for every number."""
    return generator(number, "test picture").integers(0, 256, (size, size + 1, 3), dtype=np.uint8)


def encoded(image: Image.Image | npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels(number)))
    return path


def put_parquet(path: Path, n: int, rows: Sequence[Any] | None = None, group: int = 1000, **columns: Any) -> Path:
    """Pictures 0 to n - 1 (or these values) with these columns beside them, in row groups of `group`."""
    values = [{"bytes": encoded(pixels(k)), "path": None} for k in range(n)] if rows is None else list(rows)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(values, kind), **columns})
    pq.write_table(table, path, row_group_size=group)
    return path


def whole(images: ImageSet) -> list[bytes]:
    return [images.read(index).tobytes() for index in range(len(images))]


def labels(images: ImageSet, name: str = "label") -> list[str | None]:
    factor = images.factors[name]
    return [None if k < 0 else factor.values[k] for k in factor.of]


# Decoding


def test_what_is_decoded_is_what_pillow_decodes() -> None:
    data = encoded(pixels(0, 40), "JPEG", quality=80)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = decode_image(data, "x")
    assert np.array_equal(decoded, expected)
    assert decoded.flags.writeable
    assert np.array_equal(decode_image(encoded(pixels(1)), "x"), pixels(1))


GREY = np.array([[0, 128, 255], [1, 2, 3]], dtype=np.uint8)
AS_RGB = np.repeat(GREY[..., None], 3, axis=2)


def palette_with_a_transparent_colour() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(GREY), AS_RGB),
        (encoded(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)), np.where(AS_RGB > 127, 255, 0)),
        # 16 bits: v / 257, rounded; 128 · 257 + 128 is 128.498, one more would be 128.502.
        (encoded(np.array([[0, 65535, 32896]], dtype=np.uint16)), [[[0] * 3, [255] * 3, [128] * 3]]),
        (encoded(np.array([[33024, 33025, 256]], dtype=np.uint16)), [[[128] * 3, [129] * 3, [1] * 3]]),
        (encoded(np.array([[65535, 257]], dtype=np.uint16), "TIFF"), [[[255] * 3, [1] * 3]]),
        # Opaque, transparent, and half of red (128 / 255 of it, the rest white: 127).
        (
            encoded(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128]]], dtype=np.uint8)),
            [[[255, 0, 0], [255, 255, 255], [255, 127, 127]]],
        ),
        (encoded(Image.fromarray(np.array([[[9, 255], [9, 0]]], dtype=np.uint8), "LA")), [[[9] * 3, [255] * 3]]),
        (palette_with_a_transparent_colour(), [[[255, 255, 255], [200, 100, 50]]]),
        (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[[255, 0, 0]]]),
    ],
)
def test_modes(data: bytes, expected: Any) -> None:
    assert decode_image(data, "x").tolist() == np.asarray(expected).tolist()


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats(kind: str) -> None:
    assert decode_image(encoded(np.full((5, 4, 3), 128, dtype=np.uint8), kind), "x").shape == (5, 4, 3)


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert decode_image(data, "x")[4, 4] == pytest.approx(np.array([255, 0, 0]), abs=3)


def test_of_an_animation_the_first_picture() -> None:
    first, second = Image.new("RGB", (3, 3), "red"), Image.new("RGB", (3, 3), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decode_image(data, "x")[0, 0].tolist() == [255, 0, 0]


def test_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    data = encoded(pixels(2), exif=exif)
    assert np.array_equal(decode_image(data, "x"), np.rot90(pixels(2), k=-1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_notes_are_no_damage() -> None:
    data = encoded(pixels(2), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode_image(data, "x").shape == (8, 9, 3)


def bomb() -> bytes:
    """A small PNG whose header says 20,000 × 20,000."""
    data = bytearray(encoded(pixels(0)))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a/b.png is empty: it holds no image; replace or remove it"),
        (
            b"hello, I am a text",
            "a/b.png is no image of a known format .BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP.; replace",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (encoded(pixels(3, 60), "JPEG")[:-500], "a/b.png is damaged: image file is truncated.*; replace or remove it"),
        (encoded(pixels(3, 60))[:-500], "a/b.png is damaged: "),
        (encoded(pixels(3, 60), "BMP")[:-500], "a/b.png is damaged: "),
        (
            encoded(Image.new("F", (2, 2), 0.5), "TIFF"),
            "a/b.png is damaged: its pixels are floating-point numbers; save",
        ),
        (
            encoded(Image.new("I", (2, 2), 70_000), "TIFF"),
            "its pixels have more than 16 bits; save it with 8 or 16 bits",
        ),
        (bomb(), "a/b.png has more than 67,108,864 pixels; scale it down or remove it"),
    ],
)
def test_images_that_cannot_be_decoded(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        decode_image(data, "a/b.png")
    assert "\n" not in str(caught.value)


def test_the_largest_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 8 * 9)
    assert decode_image(encoded(pixels(0)), "x").shape == (8, 9, 3)
    with pytest.raises(DataError, match="x has more than 72 pixels"):
        decode_image(encoded(pixels(0, 9)), "x")


# Folders


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Five cats (0 to 4) and five dogs (5 to 9), one of them deeper; and what is to be passed over."""
    for number in range(10):
        put(tmp_path / "pets" / ("cat" if number < 5 else "dog") / f"{number}.png", number)
    (tmp_path / "pets" / "dog" / "pugs").mkdir()
    (tmp_path / "pets" / "dog" / "9.png").rename(tmp_path / "pets" / "dog" / "pugs" / "9.PNG")
    put(tmp_path / "pets" / ".thumbs" / "0.png", 0)
    put(tmp_path / "pets" / "__MACOSX" / "0.png", 0)
    put(tmp_path / "pets" / "cat" / "._0.png", 0)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("good cats")
    (tmp_path / "pets" / "empty").mkdir()
    return tmp_path / "pets"


def test_class_folders(class_folders: Path) -> None:
    train, test = load_images(str(class_folders))
    assert (len(train), len(test)) == (8, 2)  # a fifth of ten is held out
    assert sorted([*train.ids, *test.ids]) == [
        *(f"cat/{number}.png" for number in range(5)),
        *(f"dog/{number}.png" for number in range(5, 9)),
        "dog/pugs/9.PNG",
    ]
    for images in (train, test):
        assert labels(images) == [name.split("/")[0] for name in images.ids]
        assert images.factors["label"].values == ("cat", "dog")
        for index, name in enumerate(images.ids):
            assert np.array_equal(images.read(index), pixels(int(name.split("/")[-1].split(".")[0])))
    assert train.source == f"{class_folders}, train"
    assert test.source == f"{class_folders}, held out"


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / f"{number}.png", number)
    train, test = load_images(str(tmp_path))
    assert sorted([*train.ids, *test.ids]) == ["0.png", "1.png", "2.png", "3.png"]
    assert train.factors == {}


def test_images_beside_class_folders_have_no_label(class_folders: Path) -> None:
    put(class_folders / "stray.png", 20)
    train, test = load_images(str(class_folders), test_share=0.01)
    both = dict(zip([*train.ids, *test.ids], [*labels(train), *labels(test)], strict=True))
    assert both["stray.png"] is None
    assert both["cat/0.png"] == "cat"


@pytest.mark.parametrize("name", ["test", "val"])
def test_train_and_test_folders(tmp_path: Path, name: str) -> None:
    for number in range(6):
        put(tmp_path / "train" / ("a" if number % 2 else "b") / f"{number}.png", number)
    put(tmp_path / name / "b" / "7.png", 7)
    put(tmp_path / name / "b" / "8.png", 8)
    train, test = load_images(str(tmp_path))
    assert train.ids == (
        "train/a/1.png",
        "train/a/3.png",
        "train/a/5.png",
        "train/b/0.png",
        "train/b/2.png",
        "train/b/4.png",
    )
    assert test.ids == (f"{name}/b/7.png", f"{name}/b/8.png")
    # The test folder has class b alone, which is 0 there and 1 among the training images.
    assert test.factors["label"].values == ("a", "b")
    assert test.factors["label"].of.tolist() == [1, 1]
    assert test.source == f"{tmp_path}, {name}"


def test_a_test_label_that_training_has_not(class_folders: Path, tmp_path: Path) -> None:
    put(tmp_path / "more" / "cat" / "1.png", 30)
    put(tmp_path / "more" / "zebra" / "1.png", 31)
    with pytest.raises(
        DataError, match=r"more: the label 'zebra' is none of the training images \(cat, dog\); name them"
    ):
        load_images(str(class_folders), test_source=str(tmp_path / "more"))


def test_a_damaged_file_is_named(class_folders: Path) -> None:
    damaged = class_folders / "cat" / "3.png"
    damaged.write_bytes(encoded(pixels(3, 60), "JPEG")[:-700])
    train, test = load_images(str(class_folders))
    images = train if "cat/3.png" in train.ids else test
    with pytest.raises(DataError, match=f"{damaged} is damaged: image file is truncated"):
        images.read(list(images.ids).index("cat/3.png"))
    damaged.unlink()
    with pytest.raises(DataError, match=rf"{damaged} cannot be read \(No such file or directory\)"):
        images.read(list(images.ids).index("cat/3.png"))


def test_the_fingerprint_of_a_folder(class_folders: Path) -> None:
    before = load_images(str(class_folders)).train.fingerprint
    assert load_images(str(class_folders)).train.fingerprint == before
    stat = (class_folders / "cat" / "0.png").stat()
    os.utime(class_folders / "cat" / "0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    touched = load_images(str(class_folders)).train.fingerprint
    (class_folders / "cat" / "0.png").rename(class_folders / "cat" / "00.png")
    assert len({before, touched, load_images(str(class_folders)).train.fingerprint}) == 3


# Parquet


def test_parquet_of_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_parquet(tmp_path / "x.parquet", 10, group=3, label=[k % 2 for k in range(10)])
    reads: list[int] = []
    original = pq.ParquetFile.read_row_group

    def read_row_group(file: Any, group: int, **options: Any) -> Any:
        reads.append(group)
        return original(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    images = image_files.read_image_parquet("x", path)
    assert reads == []
    for index in (9, 0, 1, 5, 2, 4, 9):
        assert np.array_equal(images.read(index), pixels(index))
    assert reads == [3, 0, 1]  # rows 9, 0-2 and 3-5: each group once
    # With no room to keep more than one group, each is read again when it comes back.
    monkeypatch.setattr(image_files, "MAX_CACHED_BYTES", 1)
    images = image_files.read_image_parquet("x", path)
    assert [images.read(index).tobytes() for index in (0, 2, 3, 0)] == [
        pixels(index).tobytes() for index in (0, 2, 3, 0)
    ]
    assert reads[3:] == [0, 1, 0]
    assert images.ids[:2] == ("row-000001", "row-000002")


def test_label_columns(tmp_path: Path) -> None:
    path = put_parquet(
        tmp_path / "x.parquet",
        4,
        number=[7, -1, 7, 10],
        name=["pear", "fig", None, "fig"],
        flag=[True, False, True, True],
        packed=pa.array(["u", "v", "u", "u"]).dictionary_encode(),
        weight=[0.5, 0.25, 0.5, 0.5],
    )
    images = image_files.read_image_parquet("x", path)
    factors = {name: (factor.values, factor.of.tolist()) for name, factor in images.factors.items()}
    assert factors == {
        "number": (("7", "10"), [0, -1, 0, 1]),
        "name": (("fig", "pear"), [1, 0, -1, 0]),
        "flag": (("False", "True"), [1, 0, 1, 1]),
        "packed": (("u", "v"), [0, 1, 0, 0]),
    }


def test_class_names_of_the_datasets_library(tmp_path: Path) -> None:
    rows = {"image": [Image.fromarray(pixels(k)) for k in range(4)], "label": [1, 0, -1, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog", "owl"]))
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "x.parquet")
    images = image_files.read_image_parquet("x", tmp_path / "x.parquet")
    assert images.factors["label"].values == ("cat", "dog", "owl")
    assert images.factors["label"].of.tolist() == [1, 0, -1, 1]
    assert whole(images) == [pixels(k).tobytes() for k in range(4)]
    # Declared: it stays, though hardly a class has two images.
    assert "label" in load_images(str(tmp_path / "x.parquet")).train.factors


def test_ids_and_captions_are_no_factors(tmp_path: Path) -> None:
    """30 ids; 30 captions of which two are alike; 15 pairs."""
    captions = [f"caption {max(k, 1)}" for k in range(30)]
    path = put_parquet(
        tmp_path / "x.parquet", 30, id=list(range(30)), caption=captions, pair=[f"pair {k // 2}" for k in range(30)]
    )
    train, test = load_images(str(path))
    assert list(train.factors) == list(test.factors) == ["pair"]


def test_few_test_images_have_the_factors_of_training(tmp_path: Path) -> None:
    """One image of each of two names says nothing by itself; one caption is no factor for being alone."""
    train = put_parquet(tmp_path / "train.parquet", 8, kind=["a", "b"] * 4, id=[f"{k}" for k in range(8)])
    test = put_parquet(tmp_path / "test.parquet", 2, kind=["b", "a"], id=["x", "x"])
    images = load_images(str(train), test_source=str(test)).test
    assert list(images.factors) == ["kind"]
    assert labels(images, "kind") == ["b", "a"]


def test_a_column_of_plain_bytes_and_files_beside_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": [encoded(pixels(0)), encoded(pixels(1))]}), tmp_path / "x.parquet")
    assert whole(image_files.read_image_parquet("x", tmp_path / "x.parquet")) == [pixels(k).tobytes() for k in range(2)]
    put(tmp_path / "files" / "4.png", 4)
    path = put_parquet(tmp_path / "y.parquet", 1, [{"bytes": None, "path": "files/4.png"}])
    assert whole(image_files.read_image_parquet("y", path)) == [pixels(4).tobytes()]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"bytes": encoded(pixels(3, 60), "JPEG")[:-500], "path": "c.jpg"},
            "x.parquet, row 2 is damaged: image file is tr",
        ),
        ({"bytes": None, "path": None}, "x.parquet, row 2 has no image; fill it in or remove the row"),
        (None, "x.parquet, row 2 has no image"),
        (
            {"bytes": None, "path": "no.png"},
            "x.parquet, row 2 names the file 'no.png', which cannot be read; store its",
        ),
        ({"bytes": b"", "path": None}, "x.parquet, row 2 is empty"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, value: Any, message: str) -> None:
    good = {"bytes": encoded(pixels(0)), "path": None}
    images = image_files.read_image_parquet("x", put_parquet(tmp_path / "x.parquet", 3, [good, value, good]))
    assert np.array_equal(images.read(0), pixels(0))
    with pytest.raises(DataError, match=message):
        images.read(1)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"image {index} of 3 images"):
            images.read(index)


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "x.parquet", 6, group=3)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    images = image_files.read_image_parquet("x", path)
    assert np.array_equal(images.read(2), pixels(2))
    with pytest.raises(DataError, match=r"x.parquet, row 5: its row group 2 cannot be read"):
        images.read(4)


def not_parquet(path: Path) -> None:
    path.write_text("label,image\ncat,1.png\n" * 9)


def no_images(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)


def several(path: Path) -> None:
    pq.write_table(pa.table({"left": [b"a"], "right": [b"b"]}), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_parquet, r"x.parquet cannot be read as Parquet \("),
        (lambda path: path.write_bytes(b""), r"x.parquet cannot be read as Parquet \("),
        (lambda path: put_parquet(path, 0), r"x.parquet is empty: it has no rows"),
        (
            lambda path: put_parquet(path, 1),
            r"x.parquet holds 1 image; at least 2 are needed, one to train on and one h",
        ),
        (no_images, r"no column 'img' or 'image' of images \(it has only text, label\); name the column so"),
        (several, r"no column 'img' or 'image' of images \(it has several \(left, right\)\); name the column so"),
    ],
)
def test_parquet_files_without_images(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message) as caught:
        load_images(str(tmp_path / "x.parquet"))
    assert "\n" not in str(caught.value)


def test_the_fingerprint_of_a_parquet_file(tmp_path: Path) -> None:
    """Of what is in it, wherever it lies and whenever it was copied."""
    path = put_parquet(tmp_path / "x.parquet", 4, label=[0, 1, 0, 1])
    before = load_images(str(path))
    copied = tmp_path / "y.parquet"
    copied.write_bytes(path.read_bytes())
    assert load_images(str(copied)).train.fingerprint == before.train.fingerprint
    assert before.train.fingerprint != before.test.fingerprint
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    assert load_images(str(path)).train.fingerprint != before.train.fingerprint
    put_parquet(path, 4, label=[0, 1, 1, 1])
    assert load_images(str(path)).train.fingerprint != before.train.fingerprint


# Hub data sets


@pytest.fixture
def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[datasets.DatasetDict], None]:
    def put_there(splits: datasets.DatasetDict) -> None:
        monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace())
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)

    return put_there


def hub_split(numbers: Sequence[int], **features: Any) -> datasets.Dataset:
    rows = {"img": [Image.fromarray(pixels(k)) for k in numbers], "label": [k % 2 for k in numbers]}
    kinds = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]), **features)
    return datasets.Dataset.from_dict({**rows, **{name: ["x"] * len(numbers) for name in features}}, kinds)


def test_a_hub_data_set(on_the_hub: Callable[[datasets.DatasetDict], None]) -> None:
    on_the_hub(datasets.DatasetDict(train=hub_split(range(6)), test=hub_split(range(6, 9))))
    train, test = load_images("org/name")
    assert whole(train) == [pixels(k).tobytes() for k in range(6)]
    assert whole(test) == [pixels(k).tobytes() for k in range(6, 9)]
    assert labels(test) == ["even", "odd", "even"]
    assert (train.source, test.source) == ("org/name, train", "org/name, test")
    before = train.fingerprint, test.fingerprint
    on_the_hub(datasets.DatasetDict(train=hub_split([0, 1, 2, 3, 4, 7]), test=hub_split(range(6, 9))))
    after = load_images("org/name")
    assert after.train.fingerprint != before[0]
    assert after.test.fingerprint == before[1]


def test_a_hub_data_set_with_a_training_split_alone(on_the_hub: Callable[[datasets.DatasetDict], None]) -> None:
    on_the_hub(datasets.DatasetDict(train=hub_split(range(10))))
    train, test = load_images("org/name")
    assert (len(train), len(test)) == (8, 2)
    assert sorted(whole(train) + whole(test)) == sorted(pixels(k).tobytes() for k in range(10))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"full": hub_split([1, 2])}, r"data set org/name has no split 'train' \(its splits: full\)"),
        (
            {"train": datasets.Dataset.from_dict({"text": ["a"]})},
            r"data set org/name, train: no column 'img' or 'image' of images \(it has only text\)",
        ),
        ({"train": hub_split([1, 2]).select([])}, r"data set org/name: its split 'train' is empty"),
    ],
)
def test_hub_data_sets_without_images(
    on_the_hub: Callable[[datasets.DatasetDict], None], splits: dict[str, Any], message: str
) -> None:
    on_the_hub(datasets.DatasetDict(splits))
    with pytest.raises(DataError, match=message):
        load_images("org/name")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dataset_info(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        DataError, match=r"org/name is not in the local cache .* cannot be reached \(no route to host\)"
    ):
        load_images("org/name")


# Splits and samples


@pytest.fixture
def sorted_set(tmp_path: Path) -> str:
    """A hundred images in the order of their labels."""
    return str(put_parquet(tmp_path / "x.parquet", 100, label=[k // 25 for k in range(100)]))


def test_held_out_images_are_apart_from_the_others(sorted_set: str) -> None:
    for share, n in ((0.2, 20), (0.001, 1), (0.999, 99)):
        train, test = load_images(sorted_set, test_share=share)
        assert len(test) == n
        assert not set(train.ids) & set(test.ids)
        assert len({*train.ids, *test.ids}) == 100
    assert load_images(sorted_set).test.ids == load_images(sorted_set).test.ids
    assert load_images(sorted_set, seed=1).test.ids != load_images(sorted_set).test.ids


def test_a_limit_is_a_random_sample(sorted_set: str) -> None:
    train, test = load_images(sorted_set, limit=40, test_limit=12)
    assert (len(train), len(test)) == (40, 12)
    # Of the 80 (20) left; the first 40 rows would be of two labels alone, a sample has near 10 of each.
    assert np.bincount(train.factors["label"].of).min() >= 4
    assert len(np.unique(test.factors["label"].of)) == 4
    assert list(train.ids) == sorted(train.ids)
    assert load_images(sorted_set, limit=40).train.ids == train.ids
    assert load_images(sorted_set, limit=40, seed=3).train.ids != train.ids
    everything = load_images(sorted_set)
    assert set(train.ids) < set(everything.train.ids)
    assert set(test.ids) < set(everything.test.ids)
    assert (
        len({train.fingerprint, everything.train.fingerprint, load_images(sorted_set, limit=41).train.fingerprint}) == 3
    )
    for images in (train, test):
        for index in (0, len(images) - 1):
            assert np.array_equal(images.read(index), pixels(int(images.ids[index][4:]) - 1))
        assert images.factors["label"].of.tolist() == [(int(name[4:]) - 1) // 25 for name in images.ids]


def test_a_limit_beyond_what_there_is(sorted_set: str) -> None:
    assert len(load_images(sorted_set, limit=1000).train) == 80


def test_another_test_source(sorted_set: str, tmp_path: Path) -> None:
    other = put_parquet(tmp_path / "y.parquet", 10, label=[k % 4 for k in range(10)])
    train, test = load_images(sorted_set, test_source=str(other))
    assert (len(train), len(test)) == (100, 10)
    # Of a source with a test split, that one.
    put(tmp_path / "z" / "train" / "0" / "0.png", 0)
    put(tmp_path / "z" / "test" / "3" / "1.png", 1)
    test = load_images(sorted_set, test_source=str(tmp_path / "z"), test_limit=5).test
    assert test.ids == ("test/3/1.png",)
    assert test.factors["label"].of.tolist() == [3]


def test_starter() -> None:
    train, test = load_images("starter")
    assert (len(train), len(test)) == (8000, 2000)
    assert list(train.factors) == ["shape", "hue", "texture", "size", "position", "background"]
    train, test = load_images("starter", limit=3, test_limit=9000, seed=4)
    assert (len(train), len(test)) == (3, 9000)
    # Three images say little about nine positions; the factors are there nevertheless.
    assert len(train.factors) == 6
    assert train.read(0).shape == (64, 64, 3)
    assert train.fingerprint != load_images("starter", limit=3).train.fingerprint


def test_images_can_be_fakes() -> None:
    """The protocol is what others write for their tests."""
    images: ImageSet = image_files.EncodedImages(
        "s", "f", ["a"], {"label": Factor(("x",), np.zeros(1, dtype=np.int32))}, frozenset(), lambda _: b"", str
    )
    assert len(images) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, r"limit is 0; it must be at least 1 \(leave it out for all images\)"),
        ({"test_limit": -3}, r"test limit is -3; it must be at least 1"),
        ({"test_share": 0.0}, r"test share is 0.0; it must lie between 0 and 1, such as 0.2"),
        ({"test_share": 1.0}, r"test share is 1.0"),
        ({"test_share": float("nan")}, r"test share is nan"),
        (
            {"test_source": "starter"},
            r"test source 'starter' is the source itself; leave it out to hold out a part of it",
        ),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_images("starter", **settings)


def test_the_same_source_by_another_name(sorted_set: str) -> None:
    path = Path(sorted_set)
    with pytest.raises(ConfigError, match="is the source itself"):
        load_images(sorted_set, test_source=str(path.parent / "." / ".." / path.parent.name / path.name))


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "x.parquet", "~/none", "a/b/c", "", "two words"])
def test_a_source_that_is_not_there(source: str) -> None:
    with pytest.raises(MissingInputError, match=f"images '{source}' do not exist; check the path"):
        load_images(source)


def test_sources_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        DataError, match=r"folder holds no images \(.bmp, .*\); give a folder of images, or of one folder"
    ):
        load_images(str(tmp_path / "folder"))
    put_parquet(tmp_path / "folder" / "x.parquet", 2)
    with pytest.raises(DataError, match=r"holds no images .*; give the file x.parquet in it"):
        load_images(str(tmp_path / "folder"))
    with pytest.raises(DataError, match=r"1.png is one image; give its folder"):
        load_images(str(put(tmp_path / "1.png", 1)))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"x.csv is neither a folder of images nor .parquet"):
        load_images(str(tmp_path / "x.csv"))


# Real images


@real
def test_cifar_10() -> None:
    train, test = load_images(
        str(REAL / "cifar10_train.parquet"),
        test_source=str(REAL / "cifar10_test_8k.parquet"),
        limit=2000,
        test_limit=50,
    )
    assert train.factors["label"].values[:3] == ("airplane", "automobile", "bird")
    # 200 of each class are expected, and 13 is a standard deviation.
    assert np.abs(np.bincount(train.factors["label"].of) - 200).max() < 60
    rows = pq.read_table(REAL / "cifar10_test_8k.parquet")
    for index in range(50):
        row = int(test.ids[index][4:]) - 1
        expected = Image.open(io.BytesIO(rows["img"][row].as_py()["bytes"])).convert("RGB")
        assert np.array_equal(test.read(index), np.asarray(expected))
        assert test.factors["label"].of[index] == rows["label"][row].as_py()
