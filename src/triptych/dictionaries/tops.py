"""The images on which every live latent fires most, and these images made small, for whoever looks through all latents.

    tops.parquet         latent, model, rank (from 0), row, activation, image_id; by latent, model, rank
    thumbnails.parquet   row, image: a PNG or JPEG file, at most 64 pixels a side; by row

`row` is the place of an image among the held-out ones. Not here: pictures of a few latents as models see them, with
heat maps and maximised inputs (`pictures`).
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.sparse import csr_matrix

from triptych.dictionaries.pictures import ImageSource, UInt8Image, top_images
from triptych.dictionaries.records import THUMBNAILS, TOPS
from triptych.files import atomic_path
from triptych.progress import progress

N_TOPS = 6
"""Images of a latent and model, at most."""
SIDE = 64
"""Pixels of a thumbnail's longer side, at most."""
QUALITY = 85
GROUP_ROWS = 32
"""Thumbnails that are read from the disk for one: some 100 kB."""

TOP_SCHEMA = pa.schema(
    {
        "latent": pa.int32(),
        "model": pa.string(),
        "rank": pa.int32(),
        "row": pa.int64(),
        "activation": pa.float32(),
        "image_id": pa.string(),
    }
)
THUMBNAIL_SCHEMA = pa.schema({"row": pa.int64(), "image": pa.binary()})


def write_tops(
    folder: Path,
    codes: Mapping[str, csr_matrix],
    live: Sequence[int],
    images_of_rows: npt.NDArray[np.integer],
    images: ImageSource,
    *,
    show_progress: bool = False,
) -> None:
    """Writes both files of a dictionary's folder: each is whole or absent, and thumbnails are there before `tops`.

    `codes` are [rows, latents] by model, `live` the latents in question, `images_of_rows` the image of each row.
    """
    table = top_table(codes, live, images_of_rows, images.ids)
    _write_thumbnails(folder / THUMBNAILS, np.unique(table["row"].to_numpy()).tolist(), images, show_progress)
    write_top_table(folder, table)


def write_top_table(folder: Path, table: pa.Table) -> None:
    """`tops.parquet` alone: rows that are no images have no thumbnails."""
    with atomic_path(folder / TOPS) as temporary:
        pq.write_table(table, temporary)


def top_table(
    codes: Mapping[str, csr_matrix],
    live: Sequence[int],
    images_of_rows: npt.NDArray[np.integer],
    ids: Sequence[str],
) -> pa.Table:
    """One row a latent, model and image, the strongest image first and of equals the lower row first."""
    found = {name: top_images(own, live, images_of_rows, N_TOPS) for name, own in codes.items()}
    rows = [
        (latent, name, rank, top.image, top.activation, _utf8(ids[top.image]))
        for at, latent in enumerate(live)
        for name, tops in found.items()
        for rank, top in enumerate(tops[at])
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(TOP_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, TOP_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=TOP_SCHEMA)


def _utf8(name: str) -> str:
    """The name of a file may hold bytes that are no text, and Parquet takes text alone."""
    return name.encode("utf-8", "backslashreplace").decode()


def thumbnail(pixels: UInt8Image) -> bytes:
    """An image file: PNG as it is where the image is tiny, else a JPEG of 64 pixels on the longer side."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= SIDE:
        # As small as with more effort, in half the time: what is tiny and kept whole is mostly noise.
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _write_thumbnails(path: Path, rows: Sequence[int], images: ImageSource, show_progress: bool) -> None:
    """In small groups of rows, so that one is read fast; images are small files already, and not compressed again."""
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary, THUMBNAIL_SCHEMA, compression="none", use_dictionary=False, write_statistics=["row"]
        ) as writer,
        progress(len(rows), "dictionaries", "thumbnails", enabled=show_progress) as meter,
    ):
        for group in _groups(rows):
            files = []
            for row in group:
                files.append(thumbnail(images.read(row)))
                meter.advance()
            writer.write_table(pa.table({"row": group, "image": files}, schema=THUMBNAIL_SCHEMA))


def _groups(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), GROUP_ROWS):
        yield rows[start : start + GROUP_ROWS]
