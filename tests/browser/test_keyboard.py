"""Everything can be done without a mouse."""

from playwright.sync_api import Page, expect
from tests.browser.conftest import focused, go, settled, titled


def tab_to(page: Page, text: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if text in focused(page)[1]:
            return
    raise AssertionError(f"Tab does not reach {text}")


def test_from_the_skip_link_to_a_comparison(page: Page) -> None:
    go(page, "#/")
    page.keyboard.press("Tab")
    assert focused(page)[1] == "Skip to the content"
    page.keyboard.press("Enter")
    assert focused(page)[0] == "H1"
    assert page.url.endswith("#/"), "the skip link is no route"
    page.reload()
    settled(page)
    tab_to(page, "Generations")
    page.keyboard.press("Enter")
    titled(page, "Generations · Triptych")

    page.keyboard.press("/")
    page.keyboard.type("answer 4")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    expect(page.locator("tbody :checked")).to_have_count(2)
    page.keyboard.press("c")
    titled(page, "Comparison of 16 and 17 · Triptych")
    page.keyboard.press("u")
    page.wait_for_url("**q=answer+4**")  # the way back keeps the filters


def test_enter_opens_a_row_and_brackets_go_on(page: Page) -> None:
    go(page, "#/generations")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    titled(page, "Generation 0 · Triptych")
    page.keyboard.press("]")
    titled(page, "Generation 1 · Triptych")
    go(page, "#/concepts/1")
    page.keyboard.press("]")
    page.wait_for_url("**/concepts/2")


def test_tokens_are_walked_and_their_box_closes(page: Page) -> None:
    go(page, "#/generations/5")
    page.locator(".tokens [tabindex='0']").focus()
    box = page.get_by_role("tooltip")
    expect(box).to_contain_text("−0.10 nats (90 %)")
    page.keyboard.press("ArrowRight")
    expect(box).to_contain_text("−3.00 nats (5.0 %)")
    assert page.locator(".tokens [aria-describedby=popover]").count() == 1
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    page.keyboard.press("End")
    expect(box).to_be_visible()
    page.keyboard.press("Tab")
    expect(box).to_be_hidden()
    assert page.locator(".tokens [tabindex='0']").count() == 1


def test_help_lists_the_keys_and_can_turn_letters_off(page: Page) -> None:
    go(page, "#/generations")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Compare the two chosen")
    dialog.get_by_label("Single letters are shortcuts").uncheck()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("c")
    page.keyboard.press("?")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Help").click()
    dialog.get_by_label("Single letters are shortcuts").check()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("c")
    page.wait_for_url("**/concepts")


def test_letters_in_a_field_are_text(page: Page) -> None:
    go(page, "#/generations")
    page.get_by_label("Text contains").focus()
    page.keyboard.type("gc?/jx")
    assert page.get_by_label("Text contains").input_value() == "gc?/jx"
    assert "generations" in page.url
