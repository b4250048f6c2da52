"""Requests made up from the explorer's own OpenAPI: no input makes it fail, and every answer is as declared."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from triptych.explorer.app import create_app

load_all_checks()
HEADERS = {"host": "localhost"}
NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
SETTINGS = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_declared(run_dir: Path, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(run_dir), headers=HEADERS)
    checks = CHECKS.get_by_names(NAMES)
    n_operations = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        n_operations += 1
        parameters = [parameter.definition for parameter in operation.iter_parameters()]
        can_be_wrong = operation.body or any(one["schema"].get("type") != "string" for one in parameters)
        if mode.is_negative and not can_be_wrong:
            continue

        @SETTINGS
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=checks, headers=HEADERS)  # type: ignore[arg-type]

        ask()
    assert n_operations >= 15
