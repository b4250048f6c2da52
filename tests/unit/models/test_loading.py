import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from triptych.errors import ConfigError
from triptych.models import hardware, loading
from triptych.models.loading import quiet_transformers, resolve_device, resolve_dtype

CPU = torch.device("cpu")


def machine(*flags: str) -> hardware.Hardware:
    return hardware.Hardware(cpu="x", cores=1.0, memory_bytes=1, flags=frozenset(flags), gpus=(), has_mps=False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_dtype_by_name(name: str, dtype: torch.dtype) -> None:
    assert resolve_dtype(name, CPU) == dtype


def test_a_dtype_as_torch_has_it() -> None:
    assert resolve_dtype(torch.float64, CPU) == torch.float64


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [(("amx_bf16",), torch.bfloat16), (("avx512_bf16",), torch.bfloat16), (("avx512f",), torch.float32)],
)
def test_the_automatic_dtype_follows_the_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "detect_hardware", lambda: machine(*flags))
    assert resolve_dtype("auto", CPU) == dtype


def test_the_automatic_dtype_elsewhere() -> None:
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32


def test_an_unknown_dtype_has_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="dtype 'bfloat' is unknown; did you mean 'bfloat16'"):
        resolve_dtype("bfloat", CPU)


def test_the_automatic_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda' is not on this machine; choose one of: auto, cpu"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        resolve_device("gpu")


def test_a_second_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="device 'cuda:1' is not on this machine"):
        resolve_device("cuda:1")


def test_transformers_gets_its_settings_back(capfd: pytest.CaptureFixture[str]) -> None:
    def settings() -> tuple[Any, ...]:
        bars = transformers_logging.is_progress_bar_enabled()
        return transformers_logging.get_verbosity(), bars, logging.getLogger("bitsandbytes").level

    before = settings()
    with pytest.raises(RuntimeError, match="inside"), quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()
        transformers_logging.get_logger("transformers.x").warning("advice")
        logging.getLogger("bitsandbytes.x").warning("advice")
        raise RuntimeError("inside")
    assert settings() == before
    assert capfd.readouterr().err == ""


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from triptych.models import load_language_model
    from triptych.models.tiny import save_tiny

    load_language_model(save_tiny(tmp_path), device="cpu")
    assert capfd.readouterr() == ("", "")
