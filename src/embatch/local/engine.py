"""The engine: texts in, unit vectors out, with OpenVINO on this machine's processor."""

import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embatch.errors import ConfigError, InvalidRequestError
from embatch.local.calibration import TEXTS
from embatch.local.graph import Linear, build_graph, plain_linear
from embatch.local.lanes import Lanes
from embatch.local.models import ModelFolder, find_model
from embatch.local.packing import Pack, pack
from embatch.local.precision import Precision, cores, resolve_precision
from embatch.local.quantize import calibrate
from embatch.types.results import Embedded, Matrix
from embatch.vectors import truncate

WINDOW_TEXTS: Final = 1024
"""Texts that are sorted by length together."""
PACK_TOKENS: Final = 1024
"""Padded tokens that go through the model at once: more would leave the processor's cache, where
its AMX works in bf16 as the first (1,536 take 6 % longer there). Memory grows by 120 MB with each
1,024."""
INT8_PACK_TOKENS: Final = 1536
"""In int8 a token takes half the room: 3 % faster than packs of 1,024 with AMX."""
_WINDOWS_AHEAD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call of `embed`: where its results go."""

    embedded: Embedded
    prompt: str
    urgent: bool


class Engine:
    """A model loaded on this machine. Satisfies `embatch.types.results.TextEngine`.

    Open one with `Engine.open` and share it: it is safe to call from several threads.
    """

    def __init__(self, model: ModelFolder, precision: Precision, threads: int) -> None:
        self._folder = model
        self._precision = precision
        self._lane_count = threads
        self._pack_tokens = INT8_PACK_TOKENS if precision is Precision.INT8 else PACK_TOKENS
        self._lock = threading.Lock()
        # One thread of the runtime for each lane: cores that share a batch wait for each other.
        self._lanes = Lanes(threads)
        self._weights_sha256 = ""
        hashed = self._lanes.submit(self._hash_weights)
        try:
            self._tokenizer = _load_tokenizer(model)
            compiled = _compile(model, self._tokenizer, precision, threads)
            self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(threads):
                self._requests.put(compiled.create_infer_request())
            hashed.result()
        except BaseException:
            self._lanes.close()
            raise

    def _hash_weights(self) -> None:
        self._weights_sha256 = self._folder.check_weights()

    @classmethod
    def open(
        cls,
        model: str | Path | ModelFolder | None = None,
        *,
        precision: str = "auto",
        threads: int | None = None,
    ) -> "Engine":
        """Loads a model by name or path, all-MiniLM-L6-v2 unless said.

        `precision` is "auto", "f32", "bf16" or "int8"; `threads` is how many cores to use, all
        that this process may use unless said. ConfigError says how to mend what is missing.
        """
        resolved = resolve_precision(precision)
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, not {threads}")
        folder = model if isinstance(model, ModelFolder) else find_model(model)
        return cls(folder, resolved, threads or cores())

    @property
    def model(self) -> str:
        """Name of the model, as users type it."""
        return self._folder.name

    @property
    def dims(self) -> int:
        """Length of its full vectors."""
        return self._folder.dims

    @property
    def max_tokens(self) -> int:
        """Tokens the model reads of a text; the rest is cut and reported."""
        return self._folder.max_tokens

    @property
    def precision(self) -> str:
        """The arithmetic in use: "f32", "bf16" or "int8"."""
        return self._precision.value

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, hex."""
        return self._weights_sha256

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompt texts by task type, those the model defines."""
        return self._folder.prompts

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        dims: int | None = None,
        urgent: bool = False,
    ) -> Embedded:
        """Unit vectors of `texts`, in order. `dims` keeps the first values and normalises again.

        An `urgent` call overtakes others between two packs, that is within tenths of a second.
        InvalidRequestError names the place of a text that is no string or not valid Unicode.
        Memory beyond the result does not grow with the number of texts.
        """
        if dims is not None and not 1 <= dims <= self.dims:
            raise InvalidRequestError(f"{self.model} gives 1..{self.dims} dims, not {dims}")
        _check_texts(texts)
        call = _Call(
            embedded=Embedded(
                vectors=np.empty((len(texts), dims or self.dims), dtype=np.float32),
                tokens=np.empty(len(texts), dtype=np.int32),
                truncated=np.empty(len(texts), dtype=np.bool_),
            ),
            prompt=prompt,
            urgent=urgent,
        )
        running: deque[list[Future[None]]] = deque()
        try:
            for start in range(0, len(texts), WINDOW_TEXTS):
                # While one window is in the model, the next one is tokenised here.
                if len(running) == _WINDOWS_AHEAD:
                    _finish(running[0])
                    running.popleft()
                running.append(self._start_window(call, texts[start : start + WINDOW_TEXTS], start))
            while running:
                _finish(running[0])
                running.popleft()
        finally:
            _abandon(running)
        return call.embedded

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens and those beyond the model's limit included."""
        _check_texts(texts)
        special = self._tokenizer.num_special_tokens_to_add(False)
        return [
            len(encoding.ids) + sum(len(rest.ids) - special for rest in encoding.overflowing)
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]

    def close(self) -> None:
        """Frees the model's memory once running calls have ended. Safe to call twice."""
        with self._lock:
            self._lanes.close()
            self._requests = queue.SimpleQueue()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start_window(self, call: _Call, texts: Sequence[str], start: int) -> list[Future[None]]:
        """Tokenises a window and gives its packs to the workers."""
        prompted = [call.prompt + text for text in texts] if call.prompt else list(texts)
        encodings = self._tokenizer.encode_batch_fast(prompted)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        lengths = [len(row) for row in ids]
        window = slice(start, start + len(texts))
        call.embedded.tokens[window] = lengths
        call.embedded.truncated[window] = [bool(encoding.overflowing) for encoding in encodings]
        return [
            self._submit(call, ids, planned, start)
            for planned in pack(
                lengths, budget=self._pack_tokens, max_width=self.max_tokens, lanes=self._lane_count
            )
        ]

    def _submit(
        self, call: _Call, ids: list[NDArray[np.int32]], planned: Pack, start: int
    ) -> Future[None]:
        return self._lanes.submit(
            partial(self._infer, call, ids, planned, start), urgent=call.urgent
        )

    def _infer(self, call: _Call, ids: list[NDArray[np.int32]], planned: Pack, start: int) -> None:
        """Runs one pack and writes its vectors to their places."""
        shape = (len(planned.rows), planned.width)
        tokens = np.full(shape, self._folder.pad_token, dtype=np.int32)
        mask = np.zeros(shape, dtype=np.int32)
        for line, row in enumerate(planned.rows):
            tokens[line, : len(ids[row])] = ids[row]
            mask[line, : len(ids[row])] = 1
        request = self._requests.get()
        try:
            request.infer([tokens, mask], share_inputs=True)
            vectors: Matrix = request.get_output_tensor(0).data
            kept = call.embedded.vectors.shape[1]
            if kept != vectors.shape[1]:
                vectors = truncate(vectors, kept)
            call.embedded.vectors[start + planned.rows] = vectors
        finally:
            self._requests.put(request)


def _load_tokenizer(model: ModelFolder) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    # The file may hold a padding and a cut of its own: the model's limit is what counts.
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_tokens)
    return tokenizer


def _compile(model: ModelFolder, tokenizer: Tokenizer, precision: Precision, threads: int) -> Any:
    graph = build_graph(model, _linear(model, tokenizer, precision))
    options = {
        "INFERENCE_PRECISION_HINT": precision.runtime_hint(),
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",
    }
    return ov.Core().compile_model(graph, "CPU", options)


def _linear(model: ModelFolder, tokenizer: Tokenizer, precision: Precision) -> Linear:
    if precision is not Precision.INT8:
        return plain_linear
    if model.architecture is None:
        raise ConfigError(
            f"{model.name} is a ready graph, and int8 is made from safetensors: "
            "give precision auto, f32 or bf16"
        )
    encodings = tokenizer.encode_batch_fast(list(TEXTS))
    return calibrate(model, [np.array(encoding.ids, dtype=np.int32) for encoding in encodings])


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InvalidRequestError("texts must be a sequence of strings: put the one text in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequestError(f"text {index} is {type(text).__name__}, not a string")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidRequestError(
                    f"text {index} holds a lone surrogate, which is not valid Unicode: "
                    "mend or drop it"
                ) from None


def _finish(packs: list[Future[None]]) -> None:
    for done in packs:
        done.result()


def _abandon(running: deque[list[Future[None]]]) -> None:
    """Stops what a failed call has started, so that nothing writes behind its back."""
    left = [pending for packs in running for pending in packs if not pending.cancel()]
    wait(left)
