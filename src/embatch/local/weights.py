"""Reads safetensors files in place: tensors are views of the mapped file, not copies."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embatch.errors import ConfigError

Tensor = NDArray[np.float32]

_READ_BYTES = 1 << 20
_STORED_AS: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The file's floating-point tensors as float32 by name.

    float32 tensors are views of the file, mapped copy-on-write; others are widened copies.
    ConfigError when the file is cut short or is no safetensors file.
    """
    try:
        # Mode "c": the runtime wants writable memory, though it never writes to it.
        mapped = np.memmap(path, mode="c", dtype=np.uint8)
        header_end = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(mapped[8:header_end].tobytes())
        return {
            name: _tensor(mapped[header_end:], entry)
            for name, entry in header.items()
            if name != "__metadata__" and entry["dtype"] in _STORED_AS
        }
    except (ValueError, KeyError, OverflowError) as error:
        raise ConfigError(
            f"{path} is not a whole safetensors file: fetch the model again"
        ) from error


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    stored = data[begin:end].view(_STORED_AS[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    tensor: Tensor = stored.astype(np.float32, copy=False)
    return tensor


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the files' bytes one after another, hex. Unchanged files are read once."""
    marks = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    return _sha256(marks)


@lru_cache(maxsize=32)
def _sha256(marks: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in marks:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
