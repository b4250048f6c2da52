import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from triptych.reports.dictionaries_inputs import Dictionaries, Latents, class_of, read_dictionaries
from triptych.reports.figures import DICTIONARY_FIGURES, render, style
from triptych.reports.figures.dictionaries import CLASS_LOOKS, DictionarySpec, _shade, figure_11, figure_r2, shortened
from triptych.reports.figures.features import figure_energy, figure_factors
from triptych.reports.figures.latents import BUDGET, MAX_TOP, _side, bands_of, draw_latent, read_picture

MakeDictionaries = Callable[..., Path]
SPECS = {spec.name: spec for specs in DICTIONARY_FIGURES.values() for spec in specs}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
LIMIT = 600_000
"""Bytes of one figure."""


@pytest.fixture(scope="module")
def run(make_dictionaries: MakeDictionaries, tmp_path_factory: pytest.TempPathFactory) -> Dictionaries:
    return read(make_dictionaries(tmp_path_factory.mktemp("figures") / "run"))


@pytest.fixture(scope="module")
def three(make_dictionaries: MakeDictionaries, tmp_path_factory: pytest.TempPathFactory) -> Dictionaries:
    """Three models with heat maps, whose pictures are noise: what PNG shrinks least."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    return read(make_dictionaries(folder, models=("resnet", "vit", "dino"), side=224, seeds=(0,)))


def read(folder: Path) -> Dictionaries:
    found = read_dictionaries(folder)
    assert found is not None
    return found


def changed(run: Dictionaries, **fields: Any) -> Dictionaries:
    names = ("run_dir", "manifest", "measures", "trained", "latents", "null_entropies", "pictures", "backbones")
    return Dictionaries(**{**{name: getattr(run, name) for name in names}, **fields})


def latents_of(run: Dictionaries) -> Latents:
    assert run.latents is not None
    return run.latents


def words(all_axes: list[Axes]) -> list[str]:
    return [text.get_text().replace("\n", " ") for axes in all_axes for text in axes.texts]


# --- All figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_figure_is_drawn_and_described(run: Dictionaries, spec: DictionarySpec) -> None:
    drawn = render(spec, run)
    assert drawn.absent is None
    assert drawn.png.startswith(b"\x89PNG")
    root = ElementTree.fromstring(drawn.svg)  # noqa: S314
    assert root.findtext(f"{SVG}desc") == drawn.alt
    assert "currentColor" in drawn.svg
    assert style.INK not in drawn.svg
    assert re.search(r"\d", drawn.alt)
    assert len(drawn.alt.split()) > 10
    assert "nan" not in f"{drawn.alt} {drawn.caption}".lower().split()
    assert len(drawn.svg.encode()) < LIMIT
    targets = [text for element in root.iter() for name, text in element.attrib.items() if name == f"{XLINK}href"]
    assert all(text.startswith((f"#{spec.name}-", "data:image/png;base64,")) for text in targets)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_figure_is_as_wide_as_a_phone_and_readable(run: Dictionaries, spec: DictionarySpec) -> None:
    figure = spec.draw(run)
    assert figure.get_figwidth() == style.WIDTH
    texts = [t for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts)]
    assert min((float(text.get_fontsize()) for text in texts), default=style.SMALL) >= style.SMALL


def test_the_papers_numbering() -> None:
    assert [name for name in SPECS if re.fullmatch(r"figure_\d\d", name)] == ["figure_11", "figure_12", "figure_13"]


@pytest.mark.parametrize("name", ["figure_12", "figure_13"])
def test_pictures_of_three_models_keep_to_the_limit(three: Dictionaries, name: str) -> None:
    drawn = render(SPECS[name], three)
    assert 100_000 < len(drawn.svg.encode()) < LIMIT


# --- Figure 11 --------------------------------------------------------------------------------------------------------


def test_bars_are_the_live_latents_by_class(run: Dictionaries) -> None:
    (axes,) = figure_11(run).axes
    heights = {bars.get_label(): sum(bar.get_height() for bar in bars) for bars in axes.containers}
    latents = latents_of(run)
    assert heights == {
        "universal (> 0.9)": latents.of_class("universal").sum(),
        "in between": latents.of_class("mid").sum(),
        "specific (< 0.1)": latents.of_class("specific").sum(),
    }


def test_thresholds_are_the_papers() -> None:
    entropies = np.array([0.0, 0.1, 0.5, 0.9, 0.90001, np.nan])
    # Above 0.9 and below 0.1, neither included; a dead latent has no entropy and no class.
    assert class_of(entropies, "universal").tolist() == [False, False, False, False, True, False]
    assert class_of(entropies, "specific").tolist() == [True, False, False, False, False, False]
    assert class_of(entropies, "mid").tolist() == [False, True, True, True, False, False]


def test_nulls_are_outlines_and_a_high_one_is_cut_off(run: Dictionaries) -> None:
    (axes,) = figure_11(run).axes
    outlines = {patch.get_label(): patch.get_data().values for patch in axes.patches if hasattr(patch, "get_data")}
    assert set(outlines) == {"null: images shuffled", "null: a model and itself"}
    assert outlines["null: a model and itself"][-1] == 370  # 400 latents, 30 dead
    assert axes.get_ylim()[1] < 370
    assert words([axes]) == ["a model and itself: 370 ↑"]
    assert "30 dead latents without an entropy are left out" in SPECS["figure_11"].caption(run)


def test_nulls_that_were_not_kept_are_named(run: Dictionaries) -> None:
    some = changed(run, null_entropies={})
    caption = SPECS["figure_11"].caption(some)
    assert "no features of the null: images shuffled or null: a model and itself" in caption
    assert "Outlines" not in caption
    (axes,) = figure_11(some).axes
    assert not any(hasattr(patch, "get_data") for patch in axes.patches)


# --- R² ---------------------------------------------------------------------------------------------------------------


def test_r2_is_printed_by_source_and_target(run: Dictionaries) -> None:
    panels = {axes.get_title(loc="left"): words([axes]) for axes in figure_r2(run).axes}
    assert panels == {
        "update = source": ["0.759", "0.618", "0.718", "0.771"],
        "update = all": ["0.759", "0.648", "0.748", "0.771"],
        "independent": ["0.809", "–", "–", "0.821"],  # 0.05 above the shared ones
        "paper": ["0.759", "0.618", "0.718", "0.771"],
    }


def test_shades_stay_within_their_ends() -> None:
    assert _shade(-3.0) == _shade(0.0) == "#e8f1fb"
    assert _shade(1.0) == "#0b3d78"
    # Half-way: (0xe8 + 0x0b) / 2 = 121.5, (0xf1 + 0x3d) / 2 = 151, (0xfb + 0x78) / 2 = 185.5, rounded to even.
    assert _shade(0.5) == "#7a97ba"


def test_long_names_leave_room_and_stay_apart() -> None:
    assert shortened(["resnet", "vit"]) == ["resnet", "vit"]
    assert shortened(["microsoft/resnet", "vit"]) == ["microsoft…", "vit"]
    assert shortened(["microsoft/resnet-18", "microsoft/resnet-50"]) == ["1: microsoft…", "2: microsoft…"]


# --- Co-firing, factors -----------------------------------------------------------------------------------------------


def test_a_point_is_a_latent_that_the_model_fires(run: Dictionaries) -> None:
    latents = latents_of(run)
    for axes, model in zip(figure_energy(run).axes, run.models, strict=True):
        points = [line for line in axes.lines if line.get_marker() in {look.marker for look in CLASS_LOOKS.values()}]
        assert sum(np.size(line.get_xdata()) for line in points) == int((latents.fires[model] > 0).sum())
        (chance,) = [line for line in axes.lines if line.get_label() == "by chance"]
        fired = latents.fires[model] > 0
        expected = np.median(latents.chances[fired] / latents.fires[model][fired])
        assert chance.get_xdata()[0] == pytest.approx(expected)  # type: ignore[index]


def test_latents_without_energy_are_counted(run: Dictionaries) -> None:
    latents = latents_of(run)
    energies = dict(latents.energies)
    fired = np.flatnonzero(latents.fires["vit"] > 0)[:3]
    energies["vit"] = energies["vit"].copy()
    energies["vit"][fired] = 0.0
    assert "3 latents of no energy left out" in SPECS["figure_energy"].caption(
        changed(run, latents=latents._replace(energies=energies))
    )


def test_axes_of_energy_have_plain_text(run: Dictionaries) -> None:
    figure = figure_energy(run)
    figure.canvas.draw()
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert any(label.startswith("10⁻") for label in labels)
    assert not any("$" in label for label in labels)


def test_factors_have_two_points_with_intervals(run: Dictionaries) -> None:
    (axes,) = figure_factors(run).axes
    universal, specific = axes.containers
    assert [round(float(x), 3) for x in universal[0].get_xdata()] == [0.95, 0.85, 0.75]
    assert [round(float(x), 3) for x in specific[0].get_xdata()] == [0.8, 0.75, 0.7]
    assert universal.has_xerr  # type: ignore[attr-defined]
    assert "the best of many lies above it even so" in SPECS["figure_factors"].caption(run)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_bands_are_those_of_the_models(run: Dictionaries) -> None:
    latent = run.pictured("universal")
    assert latent is not None
    bands = bands_of(run, latent)
    assert [band.model for band in bands] == ["resnet", "vit"]
    assert all(band.maximised is not None and len(band.top) == len(band.heat) == MAX_TOP for band in bands)
    assert [picture.rank for picture in bands[0].top] == [0, 1, 2, 3]


def test_a_model_that_never_fires_says_so(run: Dictionaries) -> None:
    assert "fires on no held-out row" in words(draw_latent(run, "specific").axes)
    caption = SPECS["figure_13"].caption(run)
    assert "Latent 3 (specific, whose firings are those of resnet): firing entropy 0.000" in caption
    assert "it fires on 81 of resnet and 0 of vit held-out rows" in caption


def test_captions_claim_no_likeness(run: Dictionaries) -> None:
    for name in ("figure_12", "figure_13"):
        caption = SPECS[name].caption(run)
        assert "Nothing here measures whether pictures are alike" in caption
        assert not re.search(r"\b(agree|similar|same pattern|consensus|platonic)", caption.lower())


def test_without_inputs_or_heat_maps_the_figure_says_so(run: Dictionaries) -> None:
    latent = run.pictured("universal")
    assert latent is not None
    tops = tuple(picture for picture in latent.pictures if picture.kind == "top")
    some = changed(run, pictures=(latent.model_copy(update={"pictures": tops, "best": None}),))
    assert words(draw_latent(some, "universal").axes) == ["no maximised input"] * 2
    caption = SPECS["figure_12"].caption(some)
    assert "No input was maximised for resnet or vit." in caption
    assert "no label was compared with it" in caption
    assert "Second line" not in caption
    absent = SPECS["figure_13"].absent(some)
    assert absent is not None
    assert "no pictures of a specific latent" in absent


def test_pictures_that_cannot_be_read_are_missing(run: Dictionaries, tmp_path: Path) -> None:
    gone = changed(run, run_dir=tmp_path)
    assert words(draw_latent(gone, "universal").axes).count("picture missing") == 2 * (1 + 4 + 4)


def test_reading_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (10, 6), (1, 2, 3)).save(tmp_path / "secret.png")
    Image.new("L", (300, 150), 7).save(tmp_path / "images/grey.png")
    Image.new("RGB", (5000, 2)).save(tmp_path / "images/huge.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images/jpeg.png", format="JPEG")
    (tmp_path / "images/torn.png").write_bytes((tmp_path / "images/grey.png").read_bytes()[:40])
    folder = tmp_path / "images"
    grey = read_picture(folder, "grey.png", 100)
    assert grey is not None
    assert grey.shape == (50, 100, 3)  # shrunk to 100 wide, and RGB
    assert grey[0, 0].tolist() == [7, 7, 7]
    for name in ("../secret.png", str(tmp_path / "secret.png"), "huge.png", "jpeg.png", "torn.png", "none.png", ""):
        assert read_picture(folder, name, 100) is None, name


@pytest.mark.parametrize(("n", "side"), [(1, 224), (27, 63), (1000, 10)])
def test_pictures_share_a_budget(n: int, side: int) -> None:
    # √(110,000 / 27) = 63.8 and √110 = 10.5 pixels; a single picture is cut at 224.
    assert _side(n) == side
    assert n * _side(n) ** 2 <= BUDGET
