"""An engine without a model: its vectors are a hash of the text, so any swap shows."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from embatch.errors import InvalidRequestError
from embatch.types.results import Embedded, Matrix

SPECIAL_TOKENS = 2
"""Tokens that every text costs beside its words, as with BERT's [CLS] and [SEP]."""

CHUNK_ROWS = 2048
"""Rows expanded at once: keeps the matrices inside the cache."""

_GOLDEN = np.uint32(0x9E3779B9)
_MIX_1 = np.uint32(0x85EBCA6B)
_MIX_2 = np.uint32(0xC2B2AE35)


class FakeEngine:
    """A `TextEngine` that needs no model: fast, and bit-equal on every machine.

    The vector of a text is a hash of prompt + text, at length 1. A token is a word.
    Texts that contain `poison` make the whole call raise `poison_error`, with the text in its
    message as careless libraries do. Each call first sleeps `delay_s` seconds by `sleep`.
    """

    def __init__(
        self,
        dims: int = 64,
        model: str = "fake",
        *,
        max_tokens: int = 256,
        prompts: Mapping[str, str] | None = None,
        precision: str = "f32",
        poison: str | None = None,
        poison_error: type[Exception] = RuntimeError,
        delay_s: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = model
        self.dims = dims
        self.max_tokens = max_tokens
        self.precision = precision
        self.prompts: Mapping[str, str] = dict(prompts or {})
        self.calls = 0
        self.texts_embedded = 0
        self.closed = False
        self._poison = poison
        self._poison_error = poison_error
        self._delay_s = delay_s
        self._sleep = sleep
        self._counting = threading.Lock()

    @property
    def weights_sha256(self) -> str:
        """A SHA-256 that differs by model name and dims, as weights would."""
        return blake2b(f"{self.model}/{self.dims}".encode(), digest_size=32).hexdigest()

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        dims: int | None = None,
        urgent: bool = False,  # noqa: ARG002 - the port's signature: nothing here waits
    ) -> Embedded:
        """Unit vectors of `texts`, in order; the same text gives the same bits in any company."""
        with self._counting:
            self.calls += 1
        if self._delay_s:
            self._sleep(self._delay_s)
        if self._poison is not None:
            for text in texts:
                if self._poison in text:
                    raise self._poison_error(f"cannot embed {text!r}")
        words = np.fromiter(
            (len(text.split()) for text in texts), dtype=np.int32, count=len(texts)
        ) + np.int32(len(prompt.split()) + SPECIAL_TOKENS)
        embedded = Embedded(
            vectors=self.expected(texts, prompt=prompt, dims=dims),
            tokens=np.minimum(words, np.int32(self.max_tokens)),
            truncated=words > self.max_tokens,
        )
        with self._counting:
            self.texts_embedded += len(texts)
        return embedded

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text: its words and the special ones."""
        return [len(text.split()) + SPECIAL_TOKENS for text in texts]

    def expected(
        self, texts: Sequence[str], *, prompt: str = "", dims: int | None = None
    ) -> Matrix:
        """The vectors that `texts` must have, `[n, dims]`, without counting, delay or poison."""
        width = self.dims if dims is None else dims
        if not 1 <= width <= self.dims:
            raise InvalidRequestError(f"dims must be 1..{self.dims}, not {width}")
        seeds = _seeds(texts, prompt)
        vectors = np.empty((len(texts), width), dtype=np.float32)
        for start in range(0, len(texts), CHUNK_ROWS):
            _expand(seeds[start : start + CHUNK_ROWS], vectors[start : start + CHUNK_ROWS])
        return vectors

    def close(self) -> None:
        """Remembers in `closed` that it was called."""
        self.closed = True


def _seeds(texts: Sequence[str], prompt: str) -> NDArray[np.uint64]:
    """64 bits of hash for each prompt + text. Lone surrogates are hashed as they are."""
    hasher = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8)
    digests = []
    for text in texts:
        own = hasher.copy()
        own.update(text.encode("utf-8", "surrogatepass"))
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _expand(seeds: NDArray[np.uint64], out: Matrix) -> None:
    """Fills `out` `[n, d]` with unit vectors drawn from `seeds` `[n]` by murmur3's mixing.

    The values are odd integers below 2**16 until the last division, so that their norm is exact
    and no order of summation can change a bit.
    """
    low = seeds.astype(np.uint32)[:, None]
    high = (seeds >> np.uint64(32)).astype(np.uint32)[:, None]
    columns = np.arange(1, out.shape[1] + 1, dtype=np.uint32) * _GOLDEN
    mixed: NDArray[np.uint32] = low + columns[None, :]
    mixed ^= mixed >> np.uint32(16)
    mixed *= _MIX_1
    mixed ^= high
    mixed ^= mixed >> np.uint32(13)
    mixed *= _MIX_2
    mixed >>= np.uint32(16)
    values = mixed.view(np.int32)
    values *= 2
    values -= (1 << 16) - 1
    norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.int64).astype(np.float64))
    np.copyto(out, values, casting="same_kind")
    out /= norms.astype(np.float32)[:, None]
