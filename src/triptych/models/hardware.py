"""What this machine offers: cores, CPU instructions, memory, GPUs. Read, never changed.

Cores and memory are those that this process may use (affinity and control groups), not those of the whole machine.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")


class Gpu(NamedTuple):
    """One CUDA device."""

    name: str
    memory_bytes: int
    """Total memory."""
    compute_capability: str
    """Such as `9.0`."""


class Cpu(NamedTuple):
    """The model name and instruction-set flags of the CPU, as Linux names them."""

    name: str
    flags: frozenset[str]
    """Empty where the system does not tell."""


@dataclass(frozen=True)
class Hardware:
    """What models can run on here."""

    cpu: str
    cores: float
    """Cores this process may use; a fraction under a CPU quota."""
    memory_bytes: int
    """Main memory this process may use."""
    flags: frozenset[str]
    gpus: tuple[Gpu, ...]
    has_mps: bool

    @property
    def has_avx2(self) -> bool:
        """256-bit integer vectors."""
        return "avx2" in self.flags

    @property
    def has_avx512(self) -> bool:
        """512-bit vectors."""
        return "avx512f" in self.flags

    @property
    def has_avx512_bf16(self) -> bool:
        """Dot products of bf16 pairs in 512-bit vectors."""
        return "avx512_bf16" in self.flags

    @property
    def has_amx_bf16(self) -> bool:
        """Matrix tiles of bf16."""
        return "amx_bf16" in self.flags

    @property
    def has_native_bf16(self) -> bool:
        """Whether bf16 matrix products run in hardware on the CPU: elsewhere they are emulated, slower than fp32."""
        return bool(self.flags & {"amx_bf16", "avx512_bf16", "bf16"})  # the last one is how aarch64 names it


def detect_hardware() -> Hardware:
    """Looks at this machine; takes milliseconds, and some seconds where CUDA must start."""
    cpu = parse_cpuinfo(_read(CPUINFO))
    return Hardware(
        cpu=cpu.name or platform.processor() or platform.machine(),
        cores=usable_cores(_affinity(), _read(CGROUP / "cpu.max")),
        memory_bytes=usable_memory(psutil.virtual_memory().total, _read(CGROUP / "memory.max")),
        flags=cpu.flags,
        gpus=_gpus(),
        has_mps=torch.backends.mps.is_available(),
    )


def parse_cpuinfo(text: str) -> Cpu:
    """The CPU in the text of `/proc/cpuinfo`: the first processor stands for all."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip().lower(), value.strip())
    flags = values.get("flags", values.get("features", ""))
    return Cpu(values.get("model name", ""), frozenset(flags.split()))


def usable_cores(affinity: int, cpu_max: str) -> float:
    """Cores under a control group's quota: `cpu.max` holds `quota period` in microseconds, or `max period`."""
    match cpu_max.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period) > 0:
            return min(float(affinity), int(quota) / int(period))
        case _:
            return float(affinity)


def usable_memory(total: int, memory_max: str) -> int:
    """Bytes of memory under a control group's limit: `memory.max` holds a number of bytes, or `max`."""
    limit = memory_max.strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(gpu.name, gpu.total_memory, f"{gpu.major}.{gpu.minor}") for gpu in found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
