import pytest

from triptych.errors import (
    ConfigError,
    DataError,
    InputError,
    MissingInputError,
    ModelError,
    OutputError,
    TriptychError,
    WorkError,
    suggestion,
)


@pytest.mark.parametrize(
    ("error", "family", "standard"),
    [
        (ConfigError, InputError, ValueError),
        (DataError, InputError, ValueError),
        (ModelError, InputError, ValueError),
        (MissingInputError, InputError, FileNotFoundError),
        (OutputError, InputError, OSError),
        (WorkError, TriptychError, RuntimeError),
    ],
)
def test_every_error_is_also_a_standard_one(
    error: type[TriptychError], family: type[Exception], standard: type[Exception]
) -> None:
    assert issubclass(error, family)
    assert issubclass(error, standard)
    # OSError and its kind take several arguments apart; one sentence must stay one sentence.
    assert str(error("pair 17: no prompt")) == "pair 17: no prompt"


def test_the_work_failing_is_no_fault_of_the_input() -> None:
    assert not issubclass(WorkError, InputError)


def test_a_close_name_is_suggested() -> None:
    assert suggestion("bata", ["beta", "tau"]) == "; did you mean 'beta'?"


def test_without_a_close_name_all_are_listed_in_order() -> None:
    assert suggestion("zzz", ["tau", "beta"]) == "; known: beta, tau"
