"""The concepts of a hand-made run: every value can be read off `LATENTS` below.

Names are hostile throughout: a model's name is a key of JSON and a part of a column's name.
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image

from triptych.dictionaries.records import DictionaryRecord, LatentPictures, Picture
from triptych.errors import MissingInputError, TriptychError
from triptych.explorer.concept_latents import shown_names
from triptych.explorer.concepts import concepts_router
from triptych.files import write_records_json
from triptych.records import Estimate
from triptych.runs import Manifest

A, B = "a.b[0]", "__proto__\u202e<img src=x>"
SHOWN_B = "__proto__⟨U+202E⟩<img src=x>"
EVIL_VALUE = "star\u0000<b>"
SHOWN_VALUE = "star⟨U+0000⟩<b>"

LATENTS: list[dict[str, Any]] = [
    # Thresholds belong to the class in between. Number 5 and 6 are not there; 4 is dead.
    {"latent": 0, "entropy": 0.96, "co": 30, "fires": (40, 60), "confirmed": True, "label": f"shape = {EVIL_VALUE}"},
    {"latent": 1, "entropy": 0.9, "co": 20, "fires": (20, 90), "confirmed": True, "label": "hue = red"},
    {"latent": 2, "entropy": 0.1, "co": 10, "fires": (2, 90), "confirmed": False, "label": None},
    {"latent": 3, "entropy": 0.05, "co": 0, "fires": (0, 50), "confirmed": False, "label": "shape = ring"},
    {"latent": 4, "entropy": None, "co": 0, "fires": (0, 0), "confirmed": False, "label": None},
    {"latent": 7, "entropy": 1.0, "co": 5, "fires": (7, 7), "confirmed": False, "label": None},
    {"latent": 8, "entropy": 0.0, "co": 0, "fires": (9, 0), "confirmed": False, "label": None},
]
AUROCS = {0: 0.99, 1: 0.8, 3: 0.7}
AGREEMENTS = [
    (0, A, "shape", EVIL_VALUE, 0.99),
    (0, B, "shape", EVIL_VALUE, 0.6),
    (0, B, "hue", "red", 0.65),
    (1, A, "hue", "red", 0.8),
    (2, B, "hue", "blue", 0.625),
    (3, B, "shape", "ring", 0.7),
]
TOPS = [
    # Latent 2, model B: in another order than by rank. Row 99 has no thumbnail.
    (2, B, 1, 11, 1.5, "image-11"),
    (2, B, 0, 10, 2.5, "im\u202eage-10"),
    (2, B, 2, 99, 1.25, "image-99"),
    (2, B, 3, 12, 1.0, "image-12"),
    (2, B, 4, 13, 0.5, None),
    (2, A, 0, 13, 0.75, "image-13"),
    (0, A, 0, 10, 4.0, "image-10"),
    (2, "another model", 0, 10, 4.0, "image-10"),
]


def image_bytes(kind: str, shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


THUMBNAILS = {10: image_bytes("PNG", 10), 11: image_bytes("JPEG", 11), 12: image_bytes("PNG", 12), 13: b"<svg/>"}
PICTURES = ["00000-m0-top-0.png", "00000-m0-top-1.png", "00000-m0-heat-0.png", "00000-m1-max-0.jpg"]
EVIL_FILES = [
    "../../manifest.json",
    "..",
    "a/b.png",
    "\x00.png",
    "nul\x00.png",
    "x.svg",
    "x.png\n",
    "-x.png",
    "é.png",
    "",
]


def features() -> pa.Table:
    entropies = [one["entropy"] for one in LATENTS]
    columns: dict[str, Any] = {"latent": [one["latent"] for one in LATENTS]}
    for place, model in enumerate((A, B)):
        fires = [one["fires"][place] for one in LATENTS]
        columns[f"fires_{model}"] = fires
        columns[f"cofire_{model}"] = [one["co"] / n if n else None for one, n in zip(LATENTS, fires, strict=True)]
        columns[f"energy_{model}"] = [(place + 1) * 0.0001234567 for _ in LATENTS]
    columns |= {
        "firing_entropy": pa.array(entropies, pa.float64()),
        "co_fires": [one["co"] for one in LATENTS],
        "co_fire_chance": [0.25 * one["latent"] for one in LATENTS],
        "confirmed": [one["confirmed"] for one in LATENTS],
        "dead": [entropy is None for entropy in entropies],
        "label": pa.array([one["label"] for one in LATENTS], pa.string()),
        "label_auroc": pa.array([AUROCS.get(one["latent"]) for one in LATENTS], pa.float64()),
    }
    return pa.table(columns)


def write_rows(path: Path, names: str, rows: Sequence[tuple[Any, ...]], row_group_size: int | None = None) -> None:
    columns = dict(zip(names.split(), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def pictures() -> list[LatentPictures]:
    def picture(model: str, kind: Any, file: str, rank: int = 0) -> Picture:
        name = None if kind == "maximised" else "im\u200bage"
        return Picture(model=model, kind=kind, file=file, rank=rank, activation=9.0 - rank, image_id=name)

    whole = [
        picture(A, "top", PICTURES[1], rank=1),
        picture(A, "top", PICTURES[0]),
        picture(A, "heat", PICTURES[2]),
        picture(B, "maximised", PICTURES[3]),
        *(picture(B, "heat", file) for file in EVIL_FILES),
        # It is listed, and not on the disk; one is a link out of the folder, one a folder.
        *(picture(B, "heat", file) for file in ("gone.png", "link.png", "folder.png")),
    ]
    common: dict[str, Any] = {"kind": "universal", "entropy": 0.96, "fires": {}, "co_fires": 0}
    return [LatentPictures(latent=0, pictures=tuple(whole), **common), LatentPictures(latent=1, pictures=(), **common)]


def write_images(folder: Path) -> None:
    folder.mkdir()
    for place, name in enumerate(PICTURES):
        (folder / name).write_bytes(image_bytes("PNG" if name.endswith("png") else "JPEG", place))
    (folder / "unlisted.png").write_bytes(image_bytes("PNG", 0))
    (folder / "folder.png").mkdir()
    (folder.parent / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    write_records_json(folder / "index.json", pictures())


def manifest() -> Manifest:
    return Manifest(
        run_id="run",
        created="2025-01-01T00:00:00.000+00:00",
        command=("triptych",),
        config={},
        config_hash="0",
        seed=0,
        python="3.11",
        packages={},
        git=None,
        device="CPU",
        stages={},
    )


def write_run(run_dir: Path) -> Path:
    folder = run_dir / "dictionaries"
    main = folder / "universal"
    main.mkdir(parents=True)
    (folder / "shuffled").mkdir()
    (run_dir / "manifest.json").write_text(manifest().model_dump_json())
    estimate = Estimate(mean=0.5, low=0.4, high=0.6, n=10, n_clusters=10, method="test")
    r2 = [
        DictionaryRecord(role="universal", metric="r2", seed=0, source=m, target=m, estimate=estimate) for m in (A, B)
    ]
    counts = {"universal": 2.0, "universal_by_counts": 3.0, "specific": 2.0, "dead": 1.0}
    bare = {name: Estimate(mean=n, low=None, high=None, n=1, n_clusters=1, method="one") for name, n in counts.items()}
    found = [DictionaryRecord(role="universal", metric=name, seed=0, estimate=one) for name, one in bare.items()]
    write_records_json(folder / "measures.json", [*r2, *found])
    pq.write_table(features(), main / "features.parquet")
    pq.write_table(
        pa.table({"firing_entropy": [0.32, 0.34, 1.0], "dead": [False] * 3}), folder / "shuffled/features.parquet"
    )
    write_rows(main / "agreement.parquet", "latent model factor value auroc", AGREEMENTS)
    write_rows(main / "tops.parquet", "latent model rank row activation image_id", TOPS)
    write_rows(main / "thumbnails.parquet", "row image", list(THUMBNAILS.items()), row_group_size=3)
    write_images(main / "images")
    return run_dir


Get = Callable[..., Any]


def client_of(run_dir: Path) -> TestClient:
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, MissingInputError) else 400)

    app = FastAPI(exception_handlers={TriptychError: failed})
    app.include_router(concepts_router(run_dir))
    return TestClient(app)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(write_run(tmp_path_factory.mktemp("concepts") / "run"))


def get(client: TestClient, path: str = "", status: int = 200, **query: Any) -> Any:
    answer = client.get(f"/api/concepts{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def numbers(client: TestClient, **query: Any) -> list[int]:
    found = get(client, "/latents", **query)
    assert found["total"] >= len(found["rows"])
    return [row["latent"] for row in found["rows"]]


# --- The dictionary as a whole ----------------------------------------------------------------------------------------


def test_classes_have_open_thresholds_and_dead_latents_are_counted_apart(client: TestClient) -> None:
    found = get(client)
    assert found["models"] == [A, SHOWN_B]
    assert found["n"] == 7
    assert found["classes"] == {"universal": 2, "mid": 2, "specific": 2, "dead": 1}
    # Latent 1 is confirmed as well, and not universal.
    assert found["confirmed"] == 1
    assert found["thresholds"] == {"universal": 0.9, "specific": 0.1}
    assert found["pictured"] == [0]


def test_histograms_have_the_bins_of_the_report(client: TestClient) -> None:
    found = get(client)
    histogram = found["entropy_histogram"]
    assert histogram["edges"] == [round(0.05 * at, 2) for at in range(21)]
    # 0.0 | 0.05 | 0.1 | 0.9 | 0.96 and 1.0, as the last bin is closed on both sides.
    assert {at: n for at, n in enumerate(histogram["counts"]) if n} == {0: 1, 1: 1, 2: 1, 18: 1, 19: 2}
    assert {at: n for at, n in enumerate(histogram["confirmed_counts"]) if n} == {18: 1, 19: 1}
    assert {at: n for at, n in enumerate(found["null_histogram"]["shuffled"]) if n} == {6: 2, 19: 1}


def test_factors_are_what_agreements_speak_of(client: TestClient) -> None:
    assert get(client)["factors"] == [
        {"name": "hue", "values": ["blue", "red"]},
        {"name": "shape", "values": ["ring", SHOWN_VALUE]},
    ]


def test_every_sentence_of_the_summary_has_a_topic(client: TestClient) -> None:
    summary = get(client)["summary"]
    assert [one["label"] for one in summary] == [
        "What it explains",
        "What sharing costs",
        "What is universal",
        "What chance would give",
        "Intervals",
    ]
    assert "0.50" in summary[0]["text"]
    assert "\u202e" not in str(summary)


def test_the_scatter_has_live_latents_in_columns(client: TestClient) -> None:
    assert get(client, "/scatter") == {
        "latent": [0, 1, 2, 3, 7, 8],
        "entropy": [0.96, 0.9, 0.1, 0.05, 1.0, 0.0],
        "fires": {A: [40, 20, 2, 0, 7, 9], SHOWN_B: [60, 90, 90, 50, 7, 0]},
        "energy": {A: [0.0001235] * 6, SHOWN_B: [0.0002469] * 6},
        "co_fires": [30, 20, 10, 0, 5, 0],
        "class": [0, 1, 1, 2, 0, 2],
    }


# --- Lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 7, 8]),
        ({"cls": "universal"}, [0, 7]),
        ({"cls": "mid"}, [1, 2]),
        ({"cls": "specific"}, [3, 8]),
        ({"cls": "dead"}, [4]),
        ({"confirmed": "true"}, [0, 1]),
        ({"confirmed": "true", "cls": "universal"}, [0]),
        ({"confirmed": "false", "cls": "universal"}, [7]),
        ({"pictured": "true"}, [0]),
        ({"pictured": "false", "cls": "universal"}, [7]),
        ({"q": "STAR"}, [0]),
        ({"q": "star⟨U+0000⟩"}, [0]),
        ({"q": "shape"}, [0, 3]),
        ({"q": "hue"}, [0, 1, 2]),
        ({"q": "hue = red"}, [0, 1]),
        ({"q": "nothing"}, []),
        ({"factor": "hue"}, [0, 1, 2]),
        ({"factor": "hue", "value": "red"}, [0, 1]),
        # The 0.99 of latent 0 is of another factor.
        ({"factor": "hue", "min_auroc": "0.7"}, [1]),
        ({"factor": "shape", "value": SHOWN_VALUE, "min_auroc": "0.99"}, [0]),
        ({"min_auroc": "0.8"}, [0, 1]),
        ({"min_auroc": "0"}, [0, 1, 3]),
        ({"cls": "", "q": "", "confirmed": ""}, [0, 1, 2, 3, 4, 7, 8]),
    ],
)
def test_filters(client: TestClient, query: dict[str, str], expected: list[int]) -> None:
    assert numbers(client, **query) == expected


@pytest.mark.parametrize(
    ("sort", "ascending", "descending"),
    [
        ("latent", [0, 1, 2, 3, 4, 7, 8], [8, 7, 4, 3, 2, 1, 0]),
        # Of equals the lower number goes first, and what has no value last, either way.
        ("entropy", [8, 3, 2, 1, 0, 7, 4], [7, 0, 1, 2, 3, 8, 4]),
        ("co_fires", [3, 4, 8, 7, 2, 1, 0], [0, 1, 2, 7, 3, 4, 8]),
        ("label_auroc", [3, 1, 0, 2, 4, 7, 8], [0, 1, 3, 2, 4, 7, 8]),
        # Of both models: 100, 110, 92, 50, 0, 14, 9.
        ("fires", [4, 8, 7, 3, 2, 0, 1], [1, 0, 2, 3, 7, 8, 4]),
    ],
)
def test_orders(client: TestClient, sort: str, ascending: list[int], descending: list[int]) -> None:
    assert numbers(client, sort=sort) == ascending
    assert numbers(client, sort=sort, order="desc") == descending


def test_pages(client: TestClient) -> None:
    assert [numbers(client, size=3, page=page) for page in range(4)] == [[0, 1, 2], [3, 4, 7], [8], []]
    found = get(client, "/latents", size=3, page=10**9)
    assert {key: found[key] for key in ("total", "page", "size", "pages", "rows")} == {
        "total": 7,
        "page": 10**9,
        "size": 3,
        "pages": 3,
        "rows": [],
    }


def test_rows_have_up_to_three_thumbnails_a_model(client: TestClient) -> None:
    rows = {row["latent"]: row for row in get(client, "/latents")["rows"]}
    thumbnails = {latent: row["thumbnails"] for latent, row in rows.items()}
    base = "/api/concepts/thumbnails/"
    # In order of rank; row 99 has none.
    assert thumbnails[2] == {A: [f"{base}13"], SHOWN_B: [f"{base}10", f"{base}11", f"{base}12"]}
    assert thumbnails[0] == {A: [f"{base}10"], SHOWN_B: []}
    assert thumbnails[4] == {A: [], SHOWN_B: []}
    del rows[0]["thumbnails"]
    assert rows[0] == {
        "latent": 0,
        "cls": "universal",
        "specific_to": None,
        "confirmed": True,
        "entropy": 0.96,
        "co_fires": 30,
        "fires": {A: 40, SHOWN_B: 60},
        "label": f"shape = {SHOWN_VALUE}",
        "label_auroc": 0.99,
    }


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("", {"page": "0"}, 422),
        ("/scatter", {"x": "1"}, 422),
        ("/latents", {"class": "mid"}, 422),
        ("/latents", {"cls": "other"}, 422),
        ("/latents", {"size": "0"}, 422),
        ("/latents", {"size": "201"}, 422),
        ("/latents", {"page": "-1"}, 422),
        ("/latents", {"page": "9" * 30}, 422),
        ("/latents", {"min_auroc": "nan"}, 422),
        ("/latents", {"min_auroc": "2"}, 422),
        ("/latents", {"q": "x" * 201}, 422),
        ("/latents", {"sort": "label"}, 422),
        ("/latents", {"value": "red"}, 422),
        ("/latents", {"factor": "no\u202ene"}, 404),
        ("/latents", {"factor": "hue", "value": "ring"}, 404),
        ("/latents/0", {"full": "1"}, 422),
        ("/latents/5", {}, 404),
        ("/latents/-1", {}, 404),
        (f"/latents/{2**63}", {}, 404),
        (f"/latents/{10**40}", {}, 404),
        ("/latents/" + "9" * 5000, {}, 422),
        ("/latents/first", {}, 422),
        ("/thumbnails/99", {}, 404),
        ("/thumbnails/-1", {}, 404),
        (f"/thumbnails/{2**64}", {}, 404),
        ("/thumbnails/x", {}, 422),
        # What is there is no picture.
        ("/thumbnails/13", {}, 404),
    ],
)
def test_what_is_unknown_or_out_of_range(client: TestClient, path: str, query: dict[str, str], status: int) -> None:
    answer = client.get(f"/api/concepts{path}", params=query)
    assert answer.status_code == status
    assert "\u202e" not in answer.text


# --- One latent -------------------------------------------------------------------------------------------------------


def test_a_latent(client: TestClient) -> None:
    found = get(client, "/latents/0")
    assert found.pop("images").keys() == {A, SHOWN_B}
    assert found == {
        "latent": 0,
        "cls": "universal",
        "specific_to": None,
        "confirmed": True,
        "entropy": 0.96,
        "fires": {A: 40, SHOWN_B: 60},
        "co_fires": 30,
        "co_fire_chance": 0.0,
        "cofire": {A: 0.75, SHOWN_B: 0.5},
        "energy": {A: 0.0001234567, SHOWN_B: 0.0002469134},
        "label": f"shape = {SHOWN_VALUE}",
        "label_auroc": 0.99,
        "agreement": [
            {"factor": "shape", "value": SHOWN_VALUE, "auroc": 0.99, "model": A},
            {"factor": "hue", "value": "red", "auroc": 0.65, "model": SHOWN_B},
            {"factor": "shape", "value": SHOWN_VALUE, "auroc": 0.6, "model": SHOWN_B},
        ],
        "unit": "image",
        "previous": None,
        "next": 7,
    }


def test_a_dead_latent_has_no_numbers_that_were_not_measured(client: TestClient) -> None:
    found = get(client, "/latents/4")
    assert (found["cls"], found["entropy"], found["label"], found["label_auroc"]) == ("dead", None, None, None)
    assert found["cofire"] == {A: None, SHOWN_B: None}
    assert (found["previous"], found["next"], found["agreement"]) == (None, None, [])


@pytest.mark.parametrize(("latent", "around"), [(7, (0, None)), (2, (1, None)), (1, (None, 2)), (8, (3, None))])
def test_neighbours_are_of_the_same_class(
    client: TestClient, latent: int, around: tuple[int | None, int | None]
) -> None:
    found = get(client, f"/latents/{latent}")
    assert (found["previous"], found["next"]) == around


def test_pictures_go_before_thumbnails(client: TestClient) -> None:
    images = get(client, "/latents/0")["images"]
    base = "/api/concepts/images/"
    assert images[A]["top"] == [
        {"url": f"{base}{PICTURES[0]}", "activation": 9.0, "image_id": "im⟨U+200B⟩age"},
        {"url": f"{base}{PICTURES[1]}", "activation": 8.0, "image_id": "im⟨U+200B⟩age"},
    ]
    assert [one["url"] for one in images[A]["heat"]] == [f"{base}{PICTURES[2]}"]
    assert images[SHOWN_B]["maximised"] == [{"url": f"{base}{PICTURES[3]}", "activation": 9.0, "image_id": None}]
    assert {one["url"] for one in images[SHOWN_B]["heat"]} == {f"{base}{n}.png" for n in ("gone", "link", "folder")}


def test_a_latent_without_pictures_has_thumbnails(client: TestClient) -> None:
    images = get(client, "/latents/2")["images"]
    assert images[SHOWN_B]["top"] == [
        {"url": "/api/concepts/thumbnails/10", "activation": 2.5, "image_id": "im⟨U+202E⟩age-10"},
        {"url": "/api/concepts/thumbnails/11", "activation": 1.5, "image_id": "image-11"},
        {"url": "/api/concepts/thumbnails/12", "activation": 1.0, "image_id": "image-12"},
        {"url": "/api/concepts/thumbnails/13", "activation": 0.5, "image_id": None},
    ]
    assert images[A] == {
        "top": [{"url": "/api/concepts/thumbnails/13", "activation": 0.75, "image_id": "image-13"}],
        "heat": [],
        "maximised": [],
    }


# --- Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "kind"), [(10, "image/png"), (11, "image/jpeg"), (12, "image/png")])
def test_thumbnails_are_those_of_the_file(client: TestClient, row: int, kind: str) -> None:
    answer = client.get(f"/api/concepts/thumbnails/{row}")
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, kind, THUMBNAILS[row])


@pytest.mark.parametrize("name", PICTURES)
def test_listed_pictures_are_served(client: TestClient, name: str) -> None:
    answer = client.get(f"/api/concepts/images/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == ("image/jpeg" if name.endswith("jpg") else "image/png")
    assert answer.content == image_bytes("JPEG" if name.endswith("jpg") else "PNG", PICTURES.index(name))


@pytest.mark.parametrize(
    "name",
    [
        "gone.png",
        "link.png",
        "folder.png",
        "unlisted.png",
        "index.json",
        "..%2findex.json",
        "..%2f..%2f..%2fmanifest.json",
        "..%2fsecret.png",
        "..%5csecret.png",
        "%2e%2e%2fsecret.png",
        "%252e%252e%252fsecret.png",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "%00.png",
        "nul%00.png",
        "00000-m0-top-0.png%00",
        "00000-m0-top-0.png%0a",
        "00000-m0-top-0.PNG",
        "%2e%2f00000-m0-top-0.png",
        "x.svg",
        "%C3%A9.png",
        "%ff.png",
        ".",
        "%2e%2e",
        "x" * 3000 + ".png",
    ],
)
def test_no_other_name_opens_a_file(client: TestClient, name: str) -> None:
    answer = client.get(f"/api/concepts/images/{name}")
    assert answer.status_code == 404
    assert b"secret" not in answer.content.replace(b"secret.png", b"")


# --- Other runs -------------------------------------------------------------------------------------------------------


def test_a_run_without_dictionaries_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest().model_dump_json())
    client = client_of(tmp_path)
    for path in ("", "/scatter", "/latents", "/latents/0", "/images/a.png", "/thumbnails/0"):
        assert "no dictionaries" in get(client, path, 404)["error"]


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    main = write_run(tmp_path / "run") / "dictionaries" / "universal"
    client = client_of(tmp_path / "run")
    (main / "thumbnails.parquet").unlink()
    assert [row["thumbnails"][SHOWN_B] for row in get(client, "/latents")["rows"]] == [[]] * 7
    # A pictured latent has its pictures still.
    assert get(client, "/latents")["rows"][0]["thumbnails"][A] == [f"/api/concepts/images/{n}" for n in PICTURES[:2]]
    (main / "tops.parquet").unlink()
    (main / "images" / "index.json").unlink()
    get(client, f"/images/{PICTURES[0]}", 404)
    assert get(client, "/latents/0")["images"][A] == {"top": [], "heat": [], "maximised": []}
    (tmp_path / "run" / "dictionaries" / "shuffled" / "features.parquet").unlink()
    # The labels say the best agreement.
    (main / "agreement.parquet").unlink()
    found = get(client)
    assert [one["name"] for one in found["factors"]] == ["hue", "shape"]
    assert get(client, "/latents/1")["agreement"] == [{"factor": "hue", "value": "red", "auroc": 0.8, "model": None}]
    assert numbers(client, factor="shape", min_auroc=0.8) == [0]


def test_a_run_without_latents_is_empty(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (run_dir / "dictionaries" / "universal" / "features.parquet").unlink()
    client = client_of(run_dir)
    found = get(client)
    assert (found["n"], found["models"]) == (0, [A, SHOWN_B])
    assert found["classes"] == {"universal": 0, "mid": 0, "specific": 0, "dead": 0}
    assert found["pictured"] == []
    assert get(client, "/latents")["rows"] == []
    assert get(client, "/scatter")["latent"] == []


def test_a_study_that_went_on_is_seen(tmp_path: Path) -> None:
    client = client_of(write_run(tmp_path / "run"))
    assert get(client)["n"] == 7
    path = tmp_path / "run" / "dictionaries" / "universal" / "features.parquet"
    fewer = features().slice(0, 3)
    path.unlink()
    pq.write_table(fewer, path)
    assert get(client)["n"] == 3
    assert numbers(client) == [0, 1, 2]


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "features": lambda main: (main / "features.parquet").write_bytes(b"no parquet"),
    "features of texts": lambda main: pq.write_table(
        features().set_column(0, "latent", pa.array(["x"] * len(LATENTS))), main / "features.parquet"
    ),
    "a label of bytes": lambda main: pq.write_table(
        features().set_column(
            features().column_names.index("label"),
            "label",
            pa.array([b"\xff"] * len(LATENTS)).view(pa.string()),
        ),
        main / "features.parquet",
    ),
    "tops": lambda main: (main / "tops.parquet").write_bytes(b"PAR1"),
    "tops of texts": lambda main: write_rows(
        main / "tops.parquet", "latent model rank row activation image_id", [("x", A, 0, 1, 0.5, "i")]
    ),
    "tops without numbers": lambda main: write_rows(
        main / "tops.parquet",
        "latent model rank row activation image_id",
        [(0, A, 0, 1, 0.5, "i"), (0, A, 1, None, 0.5, "i")],
    ),
    "thumbnails": lambda main: write_rows(main / "thumbnails.parquet", "other image", [(1, b"")]),
    "agreement": lambda main: write_rows(
        main / "agreement.parquet", "latent model factor value auroc", [(0, A, "f", "v", "high")]
    ),
    "index": lambda main: (main / "images" / "index.json").write_text('[{"latent": 0}]'),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    run_dir = write_run(tmp_path / "run")
    DAMAGED[name](run_dir / "dictionaries" / "universal")
    assert get(client_of(run_dir), "", 400)["error"]


def test_thumbnails_of_another_type_are_none(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    path = run_dir / "dictionaries" / "universal" / "thumbnails.parquet"
    write_rows(path, "row image", [(10, "\x89PNG")])
    client = client_of(run_dir)
    get(client, "/thumbnails/10", 404)
    write_rows(path, "row data", [(10, b"\x89PNG")])
    get(client, "/thumbnails/10", 404)


def test_infinite_numbers_are_none(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    table = features()
    for name in (f"energy_{A}", "co_fire_chance"):
        table = table.set_column(table.column_names.index(name), name, pa.array([np.inf] * len(LATENTS)))
    pq.write_table(table, run_dir / "dictionaries" / "universal" / "features.parquet")
    client = client_of(run_dir)
    assert get(client, "/scatter")["energy"][A] == [None] * 6
    found = get(client, "/latents/0")
    assert (found["energy"][A], found["co_fire_chance"]) == (None, None)


def test_names_that_look_alike_are_numbered() -> None:
    assert shown_names(["a", "b"]) == {"a": "a", "b": "b"}
    long = "x" * 300
    assert shown_names([f"{long}1", f"{long}2"]) == {f"{long}1": f"1: {'x' * 200}…", f"{long}2": f"2: {'x' * 200}…"}
    assert list(shown_names(["\ud800", "⟨U+D800⟩"]).values()) == ["1: ⟨U+D800⟩", "2: ⟨U+D800⟩"]


def test_no_torch_is_loaded() -> None:
    code = "import sys, triptych.explorer.concepts; sys.exit('torch' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0


def test_recorded_kinds_go_before_entropies(tmp_path: Path) -> None:
    main = write_run(tmp_path / "run") / "dictionaries" / "universal"
    kinds = ["specific", "universal", *["partial"] * 4, "dead"]
    table = features().append_column("kind", [kinds])
    table = table.append_column("specific_to", [[B, *[None] * 6]])
    table = table.set_column(table.column_names.index("dead"), "dead", [[kind == "dead" for kind in kinds]])
    pq.write_table(table, main / "features.parquet")
    client = client_of(tmp_path / "run")
    assert get(client)["classes"] == {"universal": 1, "mid": 4, "specific": 1, "dead": 1}
    first = get(client, f"/latents/{LATENTS[0]['latent']}")
    assert (first["cls"], first["specific_to"]) == ("specific", SHOWN_B)
