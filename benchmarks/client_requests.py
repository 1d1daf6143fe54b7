"""Building request rows of a batch's file: embatch, orjson, json, and google-genai's types."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import orjson

from benchmarks.measuring import Figures, Options, machine

DESCRIPTION = "building request rows against google-genai's types, orjson and json"
ROWS_PER_TEXT = 50
"""Rows for each text that the command line asks for: 100,000 unless said."""
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


def measure(options: Options) -> Figures:
    """Rows a second by route, and how often slower than embatch; rounds interleaved, medians."""
    rows = options.texts * ROWS_PER_TEXT
    texts = [f"{index} {TEXT}" for index in range(rows)]
    seconds: dict[str, list[float]] = {route.__name__: [] for route in ROUTES}
    for route in ROUTES:
        route(texts[:100])
    for _ in range(options.rounds):
        for route in ROUTES:
            start = time.perf_counter()
            route(texts)
            seconds[route.__name__].append(time.perf_counter() - start)
    figures: Figures = {**machine(), "rows": rows, "rounds": options.rounds}
    for name, taken in seconds.items():
        ratios = zip(taken, seconds["embatch_rows"], strict=True)
        figures[f"{name}_per_s"] = round(rows / statistics.median(taken))
        figures[f"{name}_times_embatch"] = round(
            statistics.median(one / other for one, other in ratios), 2
        )
    return figures


def table(figures: Figures) -> str:
    """The figures as people read them."""
    lines = [
        f"{figures['cpu']}, {figures['cores']} cores; {figures['rows']} rows, medians of "
        f"{figures['rounds']} rounds",
        f"{'':16}{'rows/s':>10}{'x embatch':>11}",
    ]
    for route in ROUTES:
        name = route.__name__
        lines.append(
            f"{name:16}{figures[f'{name}_per_s']:>10}{figures[f'{name}_times_embatch']:>11}"
        )
    return "\n".join(lines)
