"""Which arithmetic the engine calculates in, and what this processor is good at."""

import os
from enum import StrEnum
from functools import cache
from pathlib import Path

import openvino as ov

from embatch.errors import ConfigError

_CPUINFO = Path("/proc/cpuinfo")


class Precision(StrEnum):
    """The arithmetic of a loaded model."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"

    def runtime_hint(self) -> str:
        """What OpenVINO is told to calculate everything else in."""
        if self is Precision.INT8:
            return Precision.BF16 if bf16_is_fast() else Precision.F32
        return self.value


@cache
def capabilities() -> frozenset[str]:
    """What OpenVINO says this processor calculates in: "FP32", "BF16", "INT8", …"""
    return frozenset(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_precision(wanted: str) -> Precision:
    """The precision that `wanted` ("auto", "f32", "bf16" or "int8") means on this processor."""
    if wanted == "auto":
        return Precision.BF16 if bf16_is_fast() else Precision.F32
    try:
        precision = Precision(wanted)
    except ValueError:
        raise ConfigError(
            f"precision {wanted!r} is unknown: give auto, f32, bf16 or int8"
        ) from None
    if precision is Precision.BF16 and "BF16" not in capabilities():
        raise ConfigError("this processor has no bf16 arithmetic: give precision auto or f32")
    return precision


def bf16_is_fast() -> bool:
    """True where bf16 matrix products run faster than float32 ones.

    Intel's processors need AMX for that: their AVX-512 bf16 instruction alone does 0.6 times the
    float32 rate (measured 2026-11-23 on an Emerald Rapids whose AMX was hidden). On AMD's Zen 5
    bf16 runs the engine 1.8 times as fast as float32.
    """
    return "BF16" in capabilities() and not bf16_is_slow(_read_cpuinfo())


def _read_cpuinfo() -> str:
    return _CPUINFO.read_text(errors="replace") if _CPUINFO.is_file() else ""


def bf16_is_slow(cpuinfo: str) -> bool:
    """True for an Intel processor without AMX, by Linux's /proc/cpuinfo."""
    return "GenuineIntel" in cpuinfo and "amx_bf16" not in cpuinfo
