"""The playground in a browser: tokens as they come, beside each other, the same again for the same seed, and stopped."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.browser.conftest import PHONE, Opened, served, settled
from tests.browser.test_axe import grave_violations

from triptych.errors import ModelError
from triptych.explorer.playground import Playground
from triptych.models import LanguageModel, load_language_model
from triptych.models.tiny import tiny_language_model

FORM = "#/playground?prompt=Once&template=plain&model=base&tokens={tokens}&seed={seed}{strategies}"
LONG = 180_000
"""Milliseconds: the first run after a change compiles kernels."""


def broken() -> LanguageModel:
    raise ModelError("the adapter is for <b>another</b> base")


@pytest.fixture(scope="module")
def tiny(run_dir: Path) -> Iterator[str]:
    """A run whose models are tiny; one of them cannot be loaded."""
    models = {"base": tiny_language_model, "dpo": lambda: tiny_language_model(seed=1), "<i>bad": broken}
    with served(run_dir, Playground(models, ["An <b>example</b>"])) as address:
        yield address


@pytest.fixture(scope="module")
def starter(run_dir: Path) -> Iterator[str]:
    with served(run_dir, Playground({"base": lambda: load_language_model("starter")}, [])) as address:
        yield address


def form(page: Page, *, tokens: int = 12, seed: int = 3, strategies: tuple[str, ...] = ("top_p:p=0.9",)) -> None:
    """Opens the form, filled, and waits until the models are there."""
    chosen = "".join(f"&strategy={one}" for one in strategies)
    page.goto(f"/{FORM.format(tokens=tokens, seed=seed, strategies=chosen)}")
    settled(page)
    expect(page.locator(".checks")).not_to_contain_text("loading", timeout=LONG)


def run(page: Page) -> Locator:
    """Runs to the end; what came out."""
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("button", name="Run")).to_be_enabled(timeout=LONG)
    return page.locator(".stream")


def test_tokens_have_figures_and_the_same_seed_gives_the_same_text(open_page: Opened, tiny: str) -> None:
    page = open_page(base_url=tiny)
    form(page)
    first = run(page).locator(".tokens").inner_text()
    assert re.search(r"12 tokens · .* tokens/s · first token after [\d,]+ ms", page.locator(".status").inner_text())
    tokens = page.locator(".stream .t")
    assert tokens.count() == 12
    tokens.nth(3).hover()
    box = page.get_by_role("tooltip")
    expect(box).to_contain_text("of the mass")
    expect(box).to_contain_text("drawn")
    assert box.locator(".kept").count() + box.locator(".left").count() == 10
    assert run(page).locator(".tokens").inner_text() == first
    page.get_by_role("button", name="Another sample").click()
    expect(page.locator(".status")).to_contain_text("12 tokens ·")
    expect(page.get_by_role("button", name="Run")).to_be_enabled(timeout=LONG)
    assert page.locator(".tokens").inner_text() != first
    assert "sample=1" in page.url


def test_models_and_strategies_stand_beside_each_other(open_page: Opened, tiny: str) -> None:
    page = open_page(base_url=tiny)
    form(page, strategies=("greedy", "beam:width=3,length_penalty=0.0"))
    expect(page.get_by_label("<i>bad")).to_be_disabled()
    expect(page.locator(".checks")).to_contain_text("the adapter is for <b>another</b> base")
    page.get_by_label("DPO").check()
    page.get_by_label("Add a strategy").select_option("top_k")
    streams = run(page)
    heads = streams.locator("h3").all_inner_texts()
    assert [head.split()[0] for head in heads] == ["base", "DPO"] * 3
    boxes = [streams.nth(place).bounding_box() for place in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]
    tree = page.locator(".stream", has_text="beam").first
    expect(tree.locator(".branch.won").last).to_contain_text("won")
    assert tree.locator(".pruned").count() > 0
    path = "".join(tree.locator(".branch.won .piece").all_inner_texts())
    assert len(path) > 0
    assert grave_violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert grave_violations(page, ("color-contrast",)) == []


def test_a_link_restores_the_form(open_page: Opened, tiny: str) -> None:
    page = open_page(base_url=tiny)
    form(page, strategies=("min_p:temperature=0.7,p=0.2", "nonsense:x=1"))
    page.get_by_label("Prompt", exact=True).fill("Twice <b>")
    page.get_by_label("Seed").fill("41")
    # The address follows when the typing has paused.
    expect(page).to_have_url(re.compile(r"seed=41\b"))
    page.reload()
    settled(page)
    assert page.get_by_label("Prompt", exact=True).input_value() == "Twice <b>"
    assert page.get_by_label("Seed").input_value() == "41"
    assert page.get_by_label("temperature").input_value() == "0.7"
    assert page.locator("fieldset.chip").count() == 1
    assert page.get_by_role("checkbox", name="base", exact=True).is_checked()
    assert not page.get_by_label("DPO").is_checked()


def test_stop_and_refusals(open_page: Opened, tiny: str) -> None:
    page = open_page(base_url=tiny)
    form(page, tokens=128, strategies=tuple(f"ancestral:temperature={heat / 10}" for heat in range(10, 22)))
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.locator(".stream .t").first.wait_for()
    page.keyboard.press("Escape")
    expect(page.locator(".status")).to_contain_text("Stopped after")
    expect(page.get_by_role("button", name="Run")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill("   ")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("Write a prompt first")


def test_a_phone_shows_one_column(open_page: Opened, tiny: str) -> None:
    page = open_page(base_url=tiny, size=PHONE)
    form(page, tokens=30, strategies=("greedy", "beam:width=4,length_penalty=0.0"))
    page.get_by_label("DPO").check()
    streams = run(page)
    assert streams.count() == 4
    assert page.evaluate("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth")
    assert page.evaluate("scrollY") > 0, "the view follows to where the texts grow"


@pytest.mark.real
def test_the_real_model_is_seen_writing(open_page: Opened, starter: str) -> None:
    page = open_page(base_url=starter)
    page.set_default_timeout(LONG)
    page.goto("/#/playground?prompt=What+is+the+capital+of+France%3F&strategy=top_p:p=0.9&tokens=48&seed=5")
    settled(page)
    expect(page.locator(".checks")).not_to_contain_text("loading", timeout=LONG)
    page.get_by_role("button", name="Run").click()
    page.locator(".stream .t").first.wait_for()
    assert page.locator(".output").get_attribute("aria-busy") == "true", "tokens come before the end"
    early = page.locator(".stream .t").count()
    expect(page.get_by_role("button", name="Run")).to_be_enabled(timeout=LONG)
    assert page.locator(".stream .t").count() > early
    text = page.locator(".tokens").inner_text()
    assert run(page).locator(".tokens").inner_text() == text
    page.get_by_label("At most, tokens").fill("512")
    page.get_by_role("button", name="Run").click()
    page.locator(".stream .t").nth(4).wait_for()
    page.keyboard.press("Escape")
    expect(page.locator(".status")).to_contain_text("Stopped after")
    # The engine is free again: the next answer is the same as ever.
    page.get_by_label("At most, tokens").fill("48")
    assert run(page).locator(".tokens").inner_text() == text
