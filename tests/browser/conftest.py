"""Debian's Chromium before the explorer of a small hostile run, and what it complains of.

The browser lives as long as one file of tests: Playwright keeps an event loop in its thread, which tests of other files
may need. Not here: the run's files, which the unit tests of the explorer write.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright
from tests.unit.explorer.conftest import write_run

from triptych.explorer.app import create_app
from triptych.explorer.playground import Playground

CHROMIUM = shutil.which("chromium")
REQUIRED = "TRIPTYCH_REQUIRE_BROWSER"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 15_000
"""Milliseconds: the machine may be busy with other tests."""
WIDE, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Skips where there is none, unless it is required."""
    if CHROMIUM is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"no chromium in the PATH, and {REQUIRED} is set")
        pytest.skip("no chromium in the PATH")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@contextmanager
def served(run_dir: Path, playground: Playground | None = None) -> Iterator[str]:
    """The address of a run's explorer, in a thread of its own."""
    config = uvicorn.Config(create_app(run_dir, playground=playground), port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all panels, full of text that tries to break a page."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    write_run(folder)
    return folder


@pytest.fixture(scope="session")
def address(run_dir: Path) -> Iterator[str]:
    with served(run_dir) as found:
        yield found


class Complaints(list[str]):
    """What a careful reader of the browser's console would object to."""

    def watch(self, page: Page) -> None:
        page.on("console", lambda line: self._note(line.type in ("error", "warning"), f"console: {line.text}"))
        page.on("pageerror", lambda error: self._note(True, f"page: {error}"))
        page.on("response", lambda answer: self._note(answer.status >= 400, f"{answer.status}: {answer.url}"))
        # A question that is no longer wanted is given up: that is no failure.
        page.on(
            "requestfailed",
            lambda request: self._note(
                "ERR_ABORTED" not in (request.failure or ""), f"{request.failure}: {request.url}"
            ),
        )

    def _note(self, bad: bool, what: str) -> None:
        if bad:
            self.append(what)


class Opened(Protocol):
    def __call__(self, **settings: Any) -> Page: ...


@pytest.fixture
def complaints() -> Complaints:
    """Empty at the end of every test, unless the test has cleared it."""
    return Complaints()


@pytest.fixture
def open_page(browser: Browser, address: str, complaints: Complaints) -> Iterator[Opened]:
    """A fresh browser profile before the explorer; `settings` are Playwright's own."""
    contexts: list[BrowserContext] = []

    def make(*, size: tuple[int, int] = WIDE, base_url: str = address, **settings: Any) -> Page:
        viewport = ViewportSize(width=size[0], height=size[1])
        contexts.append(browser.new_context(base_url=base_url, viewport=viewport, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        complaints.watch(page)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def page(open_page: Opened) -> Page:
    return open_page()


def go(page: Page, route: str) -> None:
    """Opens a route and waits until it is there."""
    page.goto(f"/{route}")
    settled(page)


def settled(page: Page) -> None:
    """Until the page in view is complete, lists included."""
    page.wait_for_selector("main:not([aria-busy]) h1")
    page.wait_for_selector(".results[aria-busy]", state="detached")


def titled(page: Page, title: str) -> None:
    """Until the page of this title is in view and complete: a key is not waited for, as a click is."""
    expect(page).to_have_title(title, timeout=30_000)
    settled(page)


def focused(page: Page) -> Any:
    """Tag, text and address of what has the focus."""
    script = (
        "() => { const e = document.activeElement; return [e.tagName, e.textContent.trim(), e.getAttribute('href')] }"
    )
    return page.evaluate(script)
