"""Which arithmetic "auto" and the other words mean on a processor."""

import pytest

from embatch.errors import ConfigError
from embatch.local import precision
from embatch.local.precision import Precision, bf16_is_slow, resolve_precision

INTEL_AMX = "vendor_id : GenuineIntel\nflags : fpu avx512_bf16 amx_bf16 amx_tile"
INTEL_PLAIN = "vendor_id : GenuineIntel\nflags : fpu avx512_bf16 avx512_vnni"
AMD = "vendor_id : AuthenticAMD\nflags : fpu avx512_bf16 avx512_vnni"


def processor(monkeypatch: pytest.MonkeyPatch, *can: str, cpuinfo: str) -> None:
    """Pretends to run on another processor."""
    monkeypatch.setattr(precision, "capabilities", lambda: frozenset(can))
    monkeypatch.setattr(precision, "_read_cpuinfo", lambda: cpuinfo)


def test_auto_is_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMD's processors and Intel's with AMX multiply bf16 faster than float32."""
    for cpuinfo in (AMD, INTEL_AMX, ""):
        processor(monkeypatch, "FP32", "BF16", cpuinfo=cpuinfo)
        assert resolve_precision("auto") is Precision.BF16


def test_auto_is_float32_where_bf16_is_missing_or_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bf16, or with Intel's slow kind of it, float32 wins."""
    processor(monkeypatch, "FP32", cpuinfo=AMD)
    assert resolve_precision("auto") is Precision.F32
    processor(monkeypatch, "FP32", "BF16", cpuinfo=INTEL_PLAIN)
    assert resolve_precision("auto") is Precision.F32


def test_bf16_asked_for_is_given_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is the user's choice; missing is an error."""
    processor(monkeypatch, "FP32", "BF16", cpuinfo=INTEL_PLAIN)
    assert resolve_precision("bf16") is Precision.BF16
    processor(monkeypatch, "FP32", cpuinfo=AMD)
    with pytest.raises(ConfigError, match="no bf16"):
        resolve_precision("bf16")


def test_only_intel_without_amx_is_slow() -> None:
    """The rule reads vendor and flags."""
    assert [bf16_is_slow(text) for text in (INTEL_AMX, INTEL_PLAIN, AMD, "")] == [
        False,
        True,
        False,
        False,
    ]
