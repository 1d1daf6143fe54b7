"""Building 100,000 request rows: embatch, orjson, json, and google-genai's types.

python benchmarks/client_requests.py
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import orjson

ROWS = 100_000
ROUNDS = 5
TEXT = "Batch embeddings cost half of what interactive ones do, and may take a day. " * 8


def embatch_rows(texts: list[str]) -> int:
    """What async_batch_embed_contents writes to its file."""
    from embatch.client.requests import EmbedOptions, build_lines
    from embatch.types.label import Label

    options = EmbedOptions.of("gemini-embedding-001", "retrieval_document", 768, None)
    label = Label.new("bench", rows=len(texts), dims=768)
    return sum(len(line) for line in build_lines(texts, options, label))


def _row(index: int, text: str) -> dict[str, Any]:
    return {
        "key": f"9deb9595d13a:{index}",
        "request": {
            "content": {"parts": [{"text": text}]},
            "outputDimensionality": 768,
            "taskType": "RETRIEVAL_DOCUMENT",
        },
    }


def orjson_rows(texts: list[str]) -> int:
    """A dict for each row, by orjson."""
    return sum(len(orjson.dumps(_row(index, text))) for index, text in enumerate(texts))


def json_rows(texts: list[str]) -> int:
    """A dict for each row, by json."""
    return sum(len(json.dumps(_row(index, text))) for index, text in enumerate(texts))


def genai_rows(texts: list[str]) -> int:
    """google-genai's types, as its users write such files."""
    from google.genai import types

    size = 0
    for index, text in enumerate(texts):
        content = types.Content(parts=[types.Part(text=text)])
        request = {
            "content": content.model_dump(exclude_none=True, by_alias=True),
            "outputDimensionality": 768,
            "taskType": "RETRIEVAL_DOCUMENT",
        }
        size += len(json.dumps({"key": f"9deb9595d13a:{index}", "request": request}))
    return size


ROUTES: tuple[Callable[[list[str]], int], ...] = (embatch_rows, orjson_rows, json_rows, genai_rows)


def run(*, rows: int = ROWS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Rows a second by route, and how often slower than embatch; rounds interleaved, medians."""
    texts = [f"{index} {TEXT}" for index in range(rows)]
    seconds: dict[str, list[float]] = {route.__name__: [] for route in ROUTES}
    for route in ROUTES:
        route(texts[:100])
    for _ in range(rounds):
        for route in ROUTES:
            start = time.perf_counter()
            route(texts)
            seconds[route.__name__].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        name: {
            "rows_per_s": round(rows / taken),
            "times_embatch": round(taken / medians["embatch_rows"], 2),
        }
        for name, taken in medians.items()
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
