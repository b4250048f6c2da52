"""axe-core finds nothing serious or critical on any page, in light and in dark colours."""

from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page
from tests.browser.conftest import PHONE, WIDE, Opened, go
from tests.browser.routes import ROUTES

GRAVE = ("serious", "critical")


def grave_violations(page: Page, rules: tuple[str, ...] = ()) -> list[Any]:
    """Rule, what it asks for, and where it is broken; `rules` are all that is looked at, if any are given."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": list(rules)}
    found = Axe().run(page, options=options).response["violations"]
    return [
        (one["id"], one["help"], [node["html"][:200] for node in one["nodes"]])
        for one in found
        if one["impact"] in GRAVE
    ]


@pytest.mark.parametrize("route", [route for route in ROUTES if "sort=" not in route])
def test_pages(open_page: Opened, route: str) -> None:
    page = open_page(color_scheme="light", reduced_motion="reduce")
    go(page, route)
    assert grave_violations(page) == []
    # Between light and dark only colours differ.
    page.emulate_media(color_scheme="dark")
    assert grave_violations(page, ("color-contrast",)) == []


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")])
def test_what_opens_above_a_page(open_page: Opened, size: tuple[int, int], scheme: Literal["light", "dark"]) -> None:
    page = open_page(size=size, color_scheme=scheme)
    go(page, "#/generations/5")
    page.locator(".tokens [tabindex='0']").focus()
    assert grave_violations(page) == []
    page.get_by_role("button", name="Help").click()
    assert grave_violations(page) == []
    page.keyboard.press("Escape")
    go(page, "#/nowhere")
    assert grave_violations(page) == []
