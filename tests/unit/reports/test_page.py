import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from triptych.reports import build_report
from triptych.reports.inputs import GENERATIONS
from triptych.reports.page import SECTIONS

PAGES = ("report.html", "completions.html")
Page = Any
"""What `read_page` gives."""
ReadPage = Callable[[Path], Page]


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, built: Path, read_page: ReadPage) -> Page:
    return read_page(built / request.param)


@pytest.fixture(scope="module")
def report(built: Path, read_page: ReadPage) -> Page:
    return read_page(built / "report.html")


@pytest.fixture(scope="module")
def bare(built_bare: Path, read_page: ReadPage) -> Page:
    return read_page(built_bare / "report.html")


def test_pages_are_well_formed(page: Page) -> None:
    assert page.mistakes == []


def test_nothing_is_executed(page: Page) -> None:
    assert page.all("script") == []
    assert [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)] == []
    assert not any(value.strip().lower().startswith("javascript:") for _, a in page.tags for value in a.values())


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "data", "poster", "action", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        href = attributes.get("href", "#")
        assert href.startswith(("#", "data:,", "figures/", "tables/")) or href in (*PAGES, "citation.bib"), (tag, href)
    styles = [attributes.get("style", "") for _, attributes in page.tags]
    assert not any("url(" in style and "url(#" not in style for style in styles)
    assert page.all("img") == []


def test_the_policy_forbids_what_is_not_needed(page: Page) -> None:
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_links_within_the_page_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")]
    labels = [label for _, a in page.tags for label in a.get("aria-labelledby", "").split()]
    assert set(targets) | set(labels) <= set(ids)
    assert "main" in targets  # the skip link


def test_links_to_files_lead_to_files(built: Path, report: Page) -> None:
    files = [a["href"] for a in report.all("a") if not a["href"].startswith("#")]
    assert len(files) > 20
    assert all((built / name).is_file() for name in files)


def test_headings_do_not_skip_a_level(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_are_tables_for_every_reader(report: Page) -> None:
    assert all("scope" in attributes for attributes in report.all("th"))
    assert len(report.all("caption")) == len(report.all("table"))
    assert all(attributes.get("role") == "table" for attributes in report.all("table"))


def test_every_figure_is_inline_and_named(report: Page) -> None:
    drawings = report.all("svg")
    assert len(drawings) == 11
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 80 for a in drawings)


def test_all_parts_are_there(report: Page) -> None:
    for word in (
        "Summary",
        "Settings",
        "Claims tested",
        "Frontier",
        "All measures",
        "Completions side by side",
        "Methods",
    ):
        assert word in report.text
    for word in ("Costs", "Provenance", "agrees", "disagrees", "undecided", "not tested", "configuration hash"):
        assert word in report.text
    assert "triptych study --recipe smoke --out 'runs/<b>smoke</b>'" in report.text


@pytest.mark.parametrize("name", PAGES)
def test_hostile_text_is_shown_and_does_nothing(built: Path, name: str) -> None:
    raw = (built / name).read_bytes()
    text = raw.decode("utf-8")  # strict: no lone surrogate got out
    assert b"\x00" not in raw
    assert "\u202e" not in text
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(3)&lt;/script&gt;" in text
    assert "⟨U+202E⟩" in text
    assert "⟨U+0000⟩" in text
    assert "\U0001f600" in text  # joined from the bytes of two tokens
    assert "{{ 7 * 7 }}" in text or name == "report.html"  # no template in a template


def test_a_megabyte_on_one_line_stays_out(built: Path, built_bare: Path) -> None:
    for folder in (built, built_bare):
        assert all(len(line) < 300_000 for line in (folder / "report.html").read_text("utf-8").splitlines())
        assert (folder / "report.html").stat().st_size < 1_500_000


def test_the_same_run_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    made = ("figures", "tables", "citation.bib", "findings.json", *PAGES)
    shutil.copytree(built, copy, ignore=shutil.ignore_patterns(*made))
    assert build_report(copy) == copy / "report.html"
    files = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    for name in files:
        assert (copy / name).read_bytes() == (built / name).read_bytes(), name


def test_no_temporary_file_is_left(built: Path) -> None:
    assert not list(built.rglob(".partial-*"))


def test_an_unscored_run_says_so(bare: Page) -> None:
    assert "No completion was scored by a reward model" in bare.text
    assert "Unscored: no reward model available." in bare.text
    assert "nothing here is a reward" in bare.text
    assert "none: unscored" in bare.text


def test_one_prompt_has_no_interval(bare: Page) -> None:
    assert "no interval: one prompt" in bare.text
    assert "nan" not in bare.text.lower().split()
    assert bare.mistakes == []


def test_what_the_run_lacks_is_left_out_or_named(bare: Page) -> None:
    assert "Claims tested" not in bare.text
    assert "Not drawn: this run has no decoding/frontier.json" in bare.text
    assert "Tokens are not shaded: this run has no file decoding/pieces.json" in bare.text


def test_every_section_makes_nothing_of_nothing(tmp_path: Path) -> None:
    assert [make(tmp_path) for make in SECTIONS] == [None] * len(SECTIONS)


def test_the_report_needs_only_the_run_directory(built: Path) -> None:
    # Rebuilding is from records: no model, no tokenizer, no network. The page names the file its texts come from.
    assert (built / GENERATIONS).is_file()
    assert "made from the files of the run directory" in (built / "report.html").read_text("utf-8")


def test_styles_work_without_scripts_on_phone_dark_and_paper(built: Path) -> None:
    text = (built / "report.html").read_text("utf-8")
    for rule in (
        "prefers-color-scheme: dark",
        "max-width: 40rem",
        "@media print",
        ":focus-visible",
        "overflow-x: auto",
    ):
        assert rule in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


def test_text_has_contrast_in_light_and_dark(built: Path) -> None:
    text = (built / "report.html").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{([^}]*)\}", text)[:2]
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for ink in ("ink", "muted", "accent", "good", "bad", "open"):
            assert min(_contrast(scheme[ink], scheme[page]) for page in ("bg", "card")) >= 4.5, ink
        assert min(_contrast(scheme["ink"], scheme[f"t{shade}"]) for shade in range(1, 6)) >= 4.5


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
