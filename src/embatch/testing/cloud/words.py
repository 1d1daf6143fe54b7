"""Names that the cloud makes up, and which dialect a job's rows are spelled in."""

import hashlib
from typing import Final

from embatch.testing.cloud.dialects import (
    Dialect,
    GeminiFile,
    GeminiInline,
    VertexGemini,
    VertexLegacy,
)
from embatch.testing.cloud.models import MODELS
from embatch.testing.cloud.store import Doc

JOB_ID_CHARS: Final = 36
FILE_ID_CHARS: Final = 12
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def made_id(seed: int, kind: str, number: int, chars: int) -> str:
    """An id of `chars` characters [a-z0-9] that depends on the seed and a running number."""
    value = int.from_bytes(hashlib.sha256(f"{seed} {kind} {number}".encode()).digest(), "big")
    made = ""
    for _ in range(chars):
        value, at = divmod(value, len(_ALPHABET))
        made += _ALPHABET[at]
    return made


def dialect_of(job: Doc) -> Dialect:
    """The spelling of a job's result rows."""
    if job["api"] == "vertex":
        return VertexLegacy() if MODELS[job["model"]].legacy else VertexGemini()
    return GeminiInline() if job["extra"].get("inline") else GeminiFile()
