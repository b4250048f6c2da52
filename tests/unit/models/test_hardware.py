import pytest
import torch

from triptych.models.hardware import Hardware, detect_hardware, parse_cpuinfo, usable_cores, usable_memory

# The shape of /proc/cpuinfo on Linux: one block a processor, tabs before the colon.
X86 = """processor\t: 0
model name\t: Example Xeon @ 2.00GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile

processor\t: 1
model name\t: another one
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd bf16 i8mm
"""


def hardware(flags: frozenset[str]) -> Hardware:
    return Hardware(cpu="x", cores=2.0, memory_bytes=2**30, flags=flags, gpus=(), has_mps=False)


def test_cpuinfo_of_x86() -> None:
    cpu = parse_cpuinfo(X86)
    assert cpu.name == "Example Xeon @ 2.00GHz"
    assert "amx_bf16" in cpu.flags


def test_cpuinfo_of_arm_has_no_name() -> None:
    assert parse_cpuinfo(ARM) == ("", frozenset({"fp", "asimd", "bf16", "i8mm"}))


def test_no_cpuinfo_is_an_unknown_cpu() -> None:
    assert parse_cpuinfo("") == ("", frozenset())


@pytest.mark.parametrize(
    ("flags", "native"),
    [({"amx_bf16"}, True), ({"avx512_bf16"}, True), ({"bf16"}, True), ({"avx512f", "avx2"}, False), (set(), False)],
)
def test_native_bf16(flags: set[str], native: bool) -> None:
    assert hardware(frozenset(flags)).has_native_bf16 is native


def test_flags_have_names() -> None:
    found = hardware(parse_cpuinfo(X86).flags)
    assert (found.has_avx2, found.has_avx512, found.has_avx512_bf16, found.has_amx_bf16) == (True, True, True, True)


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [("max 100000", 8.0), ("150000 100000", 1.5), ("1600000 100000", 8.0), ("", 8.0), ("nonsense", 8.0)],
)
def test_a_cpu_quota_limits_the_cores(cpu_max: str, cores: float) -> None:
    assert usable_cores(8, cpu_max) == cores


@pytest.mark.parametrize(("memory_max", "usable"), [("max\n", 1000), ("600\n", 600), ("5000\n", 1000), ("", 1000)])
def test_a_memory_limit_counts(memory_max: str, usable: int) -> None:
    assert usable_memory(1000, memory_max) == usable


def test_this_machine() -> None:
    found = detect_hardware()
    assert found.cpu
    assert found.cores > 0
    assert found.memory_bytes > 2**28
    assert len(found.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
