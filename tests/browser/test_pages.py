"""Every page and deep link opens without a complaint, says where one is, fits a phone and shows hostile text as text."""

import itertools
import re

import pytest
from playwright.sync_api import Page, expect
from tests.browser.conftest import PHONE, Complaints, Opened, focused, go, served, settled
from tests.browser.routes import ROUTES
from tests.unit.explorer.conftest import write_manifest

HANDLERS = (
    "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).map(a => a.name).filter(n => /^on/.test(n))"
)
SPELLED_OUT = re.compile("[\u202a-\u202e\x00\x1b\ud800-\udfff]")
"""Direction overrides and their kind, which the server spells out."""


@pytest.mark.parametrize("route", ROUTES)
def test_a_deep_link_opens_without_a_complaint_and_hostile_text_is_text(page: Page, route: str) -> None:
    page.add_init_script("window.alert = () => { window.__pwned = true }")
    go(page, route)
    assert page.title() == ROUTES[route]
    assert page.locator("h1").count() == 1
    levels = page.eval_on_selector_all("main :is(h1,h2,h3,h4)", "all => all.map(e => Number(e.tagName[1]))")
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    address = page.url
    page.reload()
    settled(page)
    assert (page.url, page.title()) == (address, ROUTES[route])
    assert page.evaluate("window.__pwned") is None
    assert page.evaluate(HANDLERS) == []
    assert page.locator("main script, main img[src=x], main b").count() == 0
    assert not SPELLED_OUT.search(page.locator("body").inner_text())


@pytest.mark.parametrize("route", ROUTES)
def test_no_page_is_wider_than_a_phone(open_page: Opened, route: str) -> None:
    page = open_page(size=PHONE)
    go(page, route)
    assert page.evaluate("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth")
    for control in page.locator(
        "main button:visible, main select:visible, main input:visible:not([type=checkbox])"
    ).all():
        box = control.bounding_box()
        assert box is not None
        assert box["height"] >= 40, control.evaluate("e => e.outerHTML")


def test_a_script_in_a_completion_is_read(page: Page) -> None:
    go(page, "#/generations")
    expect(page.locator("tbody")).to_contain_text("<script>alert(1)</script>")
    go(page, "#/generations/1")
    page.locator("summary", has_text="As post-processed").click()
    expect(page.locator("details[open]")).to_contain_text("⟨U+202E⟩gnp.exe")
    go(page, "#/audits/finding/0")
    expect(page.locator("h1")).to_contain_text("<b>severe</b>")


def test_a_perturbation_is_marked(page: Page) -> None:
    go(page, "#/audits/finding/0")
    assert "<b>also</b>" in "".join(page.locator(".evidence mark").all_inner_texts())
    expect(page.locator(".evidence table")).to_contain_text("2.5")


def test_the_words_that_differ_are_marked(page: Page) -> None:
    go(page, "#/compare/4/5")
    marked = page.locator(".side mark").all_inner_texts()
    assert [text.strip() for text in marked] == ["1.0", "1.1"]


def test_back_and_forward(page: Page) -> None:
    go(page, "#/")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Generations").click()
    settled(page)
    page.get_by_label("Strategy").select_option(label="beam 4 (6)")
    settled(page)
    page.get_by_role("link", name="#9").click()
    settled(page)
    assert page.title() == "Generation 9 · Triptych"
    assert focused(page)[0] == "H1"
    page.go_back()
    settled(page)
    assert "strategy=beam" in page.url
    assert page.locator("tbody tr").count() == 6
    assert page.get_by_label("Strategy").input_value().startswith("beam")
    assert focused(page)[2] == "#/generations/9", "one is where one was"
    page.go_back()
    settled(page)
    assert page.get_by_label("Strategy").input_value() == ""
    assert page.locator("tbody tr").count() == 24
    page.go_back()
    settled(page)
    assert page.title() == "Triptych"
    page.go_forward()
    page.go_forward()
    settled(page)
    assert page.locator("tbody tr").count() == 6


def test_a_search_is_in_the_address(page: Page) -> None:
    go(page, "#/generations")
    page.get_by_label("Text contains").fill("ANSWER 3.2")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert "q=ANSWER+3.2" in page.url
    page.get_by_label("Reward to").fill("2")
    expect(page.get_by_text("No generation passes these filters")).to_be_visible()
    page.reload()
    settled(page)
    assert page.get_by_label("Text contains").input_value() == "ANSWER 3.2"


def test_sorting_turns_and_paging_goes_on(page: Page) -> None:
    go(page, "#/concepts?size=25")
    assert page.locator("tbody tr").count() == 25
    page.get_by_role("button", name="Next page").click()
    settled(page)
    assert page.locator("tbody tr").count() == 5
    page.get_by_role("button", name="Entropy").click()
    settled(page)
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Entropy")
    assert page.locator("tbody tr").first.inner_text().startswith("28")
    page.get_by_role("button", name="Entropy").click()
    settled(page)
    assert page.locator("tbody tr").first.inner_text().startswith("0")
    assert focused(page)[1].startswith("Entropy")


def test_a_bar_and_a_tile_filter_by_class(page: Page) -> None:
    go(page, "#/concepts")
    page.locator(".histogram .column").last.click()
    page.wait_for_url("**cls=universal")
    settled(page)
    assert set(page.locator("tbody .cls").all_inner_texts()) == {"● universal"}
    page.get_by_role("button", name="universal", pressed=True).click()
    page.wait_for_url("**/concepts")


def test_a_point_opens_its_latent(page: Page) -> None:
    go(page, "#/concepts")
    box = page.locator("canvas").bounding_box()
    assert box is not None
    # Latent n fires n + 1 times in both models: the last live one, 28, is in the corner.
    corner = (box["x"] + box["width"] - 14, box["y"] + 14)
    page.mouse.move(*corner)
    expect(page.get_by_role("tooltip")).to_contain_text("Latent 28")
    page.mouse.click(*corner)
    page.wait_for_url("**/concepts/28")


def test_what_does_not_exist_is_said(page: Page, complaints: Complaints) -> None:
    for route, says in {
        "#/nowhere": "no page has the address /nowhere",
        "#/generations/999": "999",
        "#/concepts/999": "999",
        "#/audits/finding/999": "999",
    }.items():
        go(page, route)
        expect(page.get_by_role("alert")).to_contain_text(says)
    go(page, "#/generations?order=sideways")
    expect(page.get_by_role("alert")).to_contain_text("order")
    assert all("404" in one or "422" in one for one in complaints)
    complaints.clear()


def test_a_panel_that_is_missing_is_named(open_page: Opened, tmp_path_factory: pytest.TempPathFactory) -> None:
    bare = tmp_path_factory.mktemp("bare")
    write_manifest(bare)
    with served(bare) as address:
        page = open_page(base_url=address)
        for panel in ("generations", "audits", "concepts"):
            go(page, f"#/{panel}")
            expect(page.get_by_role("note")).to_contain_text("This run has no")
        nav = page.get_by_role("navigation", name="Pages")
        expect(nav).to_contain_text("not in this run")
        assert nav.get_by_role("link").all_inner_texts() == ["Overview", "Playground"]


def test_colours_are_kept(page: Page) -> None:
    go(page, "#/")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    toggle = page.get_by_role("button", name="Colours")
    toggle.click()
    assert page.evaluate(background) == light
    toggle.click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    settled(page)
    assert page.evaluate(background) == dark


def test_the_page_works_without_storage(page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('forbidden') } })")
    go(page, "#/generations")
    page.get_by_role("button", name="Colours").click()
    assert page.locator("html").get_attribute("data-theme") == "light"


def test_a_late_answer_does_not_replace_a_newer_one(page: Page) -> None:
    go(page, "#/generations")

    def late(route: object) -> None:
        page.wait_for_timeout(600)
        route.continue_()  # type: ignore[attr-defined]

    page.route("**/api/generations?*category=*", late)
    page.get_by_label("Category").select_option("factual")
    page.get_by_label("Category").select_option("")
    page.wait_for_timeout(900)
    settled(page)
    assert page.locator("tbody tr").count() == 24


def test_the_report_is_a_download(page: Page) -> None:
    go(page, "#/")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download report.html").click()
    assert waiting.value.suggested_filename == "report.html"
