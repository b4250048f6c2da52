"""report.html of a run with all panels in a browser: no complaint, no script, legible in both schemes and on a phone."""

import copy
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from tests.browser.conftest import PHONE, WIDE, Complaints
from tests.browser.test_axe import grave_violations
from tests.unit.reports.auditing.conftest import MakeAudit, make_audit
from tests.unit.reports.conftest import TRAINING_CONFIG, MakeRun, MakeTraining, make_run, make_training
from tests.unit.reports.dictionaries.conftest import MakeDictionaries, make_dictionaries

from triptych.reports import build_report

__all__ = ["make_audit", "make_dictionaries", "make_run", "make_training"]  # fixtures that others wrote


THIN = """() => {
    for (const e of document.querySelectorAll('.completions li ~ li, tbody tr ~ tr ~ tr ~ tr, svg g')) e.remove()
}"""
"""What repeats is looked at once, and drawings as one image each: all of it would take a minute."""


OVERFULL = """() => [...document.querySelectorAll('tbody th')]
    .filter((cell) => cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.textContent)"""
"""Row headers whose text is wider than they are."""


@pytest.fixture(scope="module")
def report(
    make_run: MakeRun,
    make_training: MakeTraining,
    make_audit: MakeAudit,
    make_dictionaries: MakeDictionaries,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    run_dir = make_run(tmp_path_factory.mktemp("report") / "run", n_prompts=2, samples=1, temperatures=(0.8,))
    make_training(run_dir, runs=("dpo",))
    make_audit(run_dir, n_prompts=3)
    make_dictionaries(run_dir)
    manifest = run_dir / "manifest.json"
    recorded, trained = json.loads(manifest.read_text()), copy.deepcopy(TRAINING_CONFIG)
    trained["alignment"]["dpo"]["gradient_checkpointing"] = False
    manifest.write_text(json.dumps({**recorded, "config": {**recorded["config"], **trained}}))
    build_report(run_dir)
    return run_dir / "report.html"


@pytest.fixture
def shown(browser: Browser, report: Path, complaints: Complaints) -> Page:
    page = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]}, color_scheme="light")
    complaints.watch(page)
    page.goto(report.as_uri())
    return page


def test_nothing_grave_is_found(shown: Page, complaints: Complaints) -> None:
    shown.evaluate(THIN)
    assert grave_violations(shown) == []
    shown.emulate_media(color_scheme="dark")
    assert grave_violations(shown, ("color-contrast",)) == []
    assert complaints == []
    shown.context.close()


def test_it_fits_a_phone(shown: Page) -> None:
    shown.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert shown.evaluate("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth")
    # Names of settings are long words: one must not run into the value beside it.
    shown.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
    assert shown.evaluate(OVERFULL) == []
    shown.context.close()
