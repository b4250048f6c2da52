from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    # TRL reports each trainer to the hub but for where it takes itself to be in continuous integration.
    monkeypatch.setenv("CI", "1")


@pytest.fixture(autouse=True)
def _same_draws_after() -> Iterator[None]:
    """TRL sets torch's global generator; nobody else's draws may move by that."""
    with torch.random.fork_rng(devices=[]):
        yield
