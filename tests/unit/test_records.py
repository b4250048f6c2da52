import math
from typing import Any

import pytest
from pydantic import ValidationError

from triptych.records import Estimate, Prompt


def estimate(**changes: Any) -> Estimate:
    return Estimate(**{"mean": 1.0, "low": 0.5, "high": 1.5, "n": 8, "n_clusters": 4, "method": "t", **changes})


def test_a_record_is_frozen_and_knows_its_keys() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        estimate().mean = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Prompt.model_validate({"id": "1", "instruction": "Say hi.", "instructoin": ""})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        estimate(mean=value)


def test_an_interval_has_two_ordered_ends() -> None:
    with pytest.raises(ValidationError, match="give both low and high, or neither"):
        estimate(low=None)
    with pytest.raises(ValidationError, match="reversed"):
        estimate(low=2.0)
    assert estimate(low=None, high=None).low is None


def test_an_end_may_equal_the_other() -> None:
    assert estimate(low=1.5).low == 1.5


def test_no_mean_is_nan_for_plots_alone() -> None:
    assert estimate().value == 1.0
    assert math.isnan(estimate(mean=None, low=None, high=None).value)
    assert '"mean":null' in estimate(mean=None, low=None, high=None).model_dump_json()


def test_json_round_trip_is_exact() -> None:
    # 0.1 + 0.2 has no short decimal form; its shortest exact one is what JSON holds.
    record = estimate(mean=0.1 + 0.2)
    assert Estimate.model_validate_json(record.model_dump_json(), strict=True) == record
