"""The card as JUnit XML: parsed again, with names that try to break it."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from triptych.auditing.junit import clean, junit_xml
from triptych.auditing.records import Evidence, Finding, Level, NullSpread
from triptych.records import Estimate

HOSTILE = "\x00\x1b[31m</testcase><script>&\"'\ud800\ufffe\n]]>"
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def finding(level: Level, model: str = "dpo", rule: str = "kl_own", **more: Any) -> Finding:
    fields: dict[str, Any] = {
        "metric": rule,
        "estimate": Estimate(mean=0.5, low=0.25, high=0.75, n=20, n_clusters=20, method="m"),
        "audit": "divergence",
        "warn": 0.1,
        "severe": 0.3,
        "sentence": f"{model} moved.",
    }
    return Finding(model=model, rule=rule, level=level, **{**fields, **more})


def parsed(findings: list[Finding]) -> ElementTree.Element:
    data = junit_xml(findings, {"audit.models": 1.5, "audit.scoring": 0.25})
    assert not FORBIDDEN.search(data.decode())
    return ElementTree.fromstring(data)  # noqa: S314 - our own


def require_schema(root: ElementTree.Element) -> None:
    """What the schemas of Jenkins and of pytest's `xunit1` have in common, elements in the order that they ask for."""
    assert root.tag == "testsuites"
    for suite in root:
        assert suite.tag == "testsuite"
        assert {"name", "tests", "failures", "errors", "skipped", "time"} <= set(suite.attrib)
        cases = list(suite)
        assert int(suite.attrib["tests"]) == len(cases)
        for kind, attribute in {"failure": "failures", "skipped": "skipped", "error": "errors"}.items():
            assert int(suite.attrib[attribute]) == sum(case.find(kind) is not None for case in cases)
        names = [(case.attrib["classname"], case.attrib["name"]) for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            assert case.tag == "testcase"
            assert set(case.attrib) == {"classname", "name", "time"}
            assert [child.tag for child in case] in (
                ["properties"],
                ["properties", "failure"],
                ["properties", "skipped"],
            )
            for one in case.iter("property"):
                assert set(one.attrib) == {"name", "value"}
            for one in (*case.iter("failure"), *case.iter("skipped")):
                assert one.attrib["message"]


def test_a_case_a_check() -> None:
    levels: tuple[Level, ...] = ("severe", "warn", "undecided", "ok")
    evidence = (Evidence(model="dpo", prompt_id="p1", note="0 tokens"),)
    card = [finding(level, rule=rule, evidence=evidence) for level, rule in zip(levels, "abcd", strict=True)]
    root = parsed(card)
    require_schema(root)
    (suite,) = root
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["skipped"]) == ("4", "2", "1")
    assert float(suite.attrib["time"]) == 1.75
    severe, warn, undecided, within = suite
    assert (severe.attrib["classname"], severe.attrib["name"]) == ("dpo", "a")
    assert [case.find("failure").attrib["type"] for case in (severe, warn)] == ["severe", "warn"]  # type: ignore[union-attr]
    assert "p1" in (severe.findtext("failure") or "")
    assert undecided.find("skipped") is not None
    assert [child.tag for child in within] == ["properties"]
    properties = {one.attrib["name"]: one.attrib["value"] for one in severe.iter("property")}
    assert properties | {"value": "0.5", "low": "0.25", "high": "0.75", "severe": "0.3"} == properties


def test_null_adapters_are_properties() -> None:
    nulls = NullSpread(n=8, beyond=8, percentile=100.0, p=1 / 9, mean=0.1, sd=0.05, z=8.0)
    root = parsed([finding("severe", nulls=nulls), finding("ok", rule="weights", no_nulls="random")])
    first, second = ({p.attrib["name"]: p.attrib["value"] for p in case.iter("property")} for case in root[0])
    assert (first["null_percentile"], first["null_z"]) == ("100.0", "8.0")
    assert second["no_nulls"] == "random"


def test_names_that_try_to_break_it() -> None:
    more: dict[str, Any] = {"category": HOSTILE, "scorer": HOSTILE, "sentence": HOSTILE}
    card = [finding(level, model=HOSTILE, **more) for level in ("severe", "severe", "undecided")]
    root = parsed(card)
    require_schema(root)
    # A carriage return or a new line in an attribute comes back as such, for it is written as a reference.
    assert {case.attrib["classname"] for case in root.iter("testcase")} == {clean(HOSTILE)}
    assert clean(HOSTILE).endswith("</testcase><script>&\"'\ufffd\ufffd\n]]>")


def test_a_card_without_checks() -> None:
    root = parsed([])
    require_schema(root)
    assert root[0].attrib["tests"] == "0"


@pytest.mark.parametrize("kept", ["\t", "\n", "é", "\ud7ff", "\ue000", "\U0001f600"])
def test_what_xml_has_stays(kept: str) -> None:
    assert clean(kept) == kept
