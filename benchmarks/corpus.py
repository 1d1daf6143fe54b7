"""Real texts for measurements: documentation found on this machine, cut into chunks.

    python -m benchmarks.corpus --count 20000 -o texts.jsonl

The same Python and packages give the same texts every time.
"""

import argparse
import ast
import gzip
import json
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from embatch.local.models import find_model

MIN_TOKENS, MODE_TOKENS, MAX_TOKENS = 20, 78, 300
"""With documents that end early the mean is about 122 tokens."""
SEED = 20
SYSTEM_DOCS = Path("/usr/share/doc")
DOC_BYTES = 200_000
DOC_SUFFIXES = (".txt", ".md", ".rst", ".txt.gz", ".md.gz", "README.gz", "README")


def chunks(count: int) -> list[str]:
    """`count` distinct texts of 20 to 300 tokens, 122 on average, always the same ones."""
    tokenizer = Tokenizer.from_file(str(find_model(None).path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found: dict[str, None] = {}
    for cut in range(16):
        lengths = random.Random(SEED + cut)
        for document in _documents():
            for text in _cut(document, tokenizer, lengths):
                found.setdefault(text)
                if len(found) == count:
                    texts = list(found)
                    random.Random(SEED).shuffle(texts)
                    return texts
    raise SystemExit(f"only {len(found)} different texts on this machine, not {count}")


def _cut(document: str, tokenizer: Tokenizer, lengths: random.Random) -> Iterator[str]:
    offsets = tokenizer.encode(document, add_special_tokens=False).offsets
    start = 0
    while len(offsets) - start >= MIN_TOKENS:
        wanted = round(lengths.triangular(MIN_TOKENS, MAX_TOKENS, MODE_TOKENS))
        end = min(start + wanted, len(offsets))
        while end < len(offsets) and offsets[end][0] == offsets[end - 1][1]:
            end += 1  # never inside a word
        if end - start <= MAX_TOKENS:
            yield document[offsets[start][0] : offsets[end - 1][1]]
        start = end


def _documents() -> Iterator[str]:
    """The docstrings of each module, standard library first, then the system's documentation."""
    packages = Path(sysconfig.get_path("purelib"))
    for root in (Path(sysconfig.get_path("stdlib")), packages):
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if {"test", "tests", "site-packages"}.isdisjoint(parts):
                yield from _docstrings(path)
    for path in sorted(SYSTEM_DOCS.rglob("*")):
        if path.name.endswith(DOC_SUFFIXES) and path.is_file():
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield file.read(DOC_BYTES).decode(errors="ignore")


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    text = "\n\n".join(docstring for docstring in found if docstring)
    if text:
        yield text


def write(texts: list[str], path: Path) -> None:
    """Writes columns `id` and `text` as Parquet or, by the name's ending, as JSONL."""
    ids = [f"chunk-{number:06d}" for number in range(len(texts))]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": ids, "text": texts}), path)
        return
    with path.open("w", encoding="utf-8") as file:
        for key, text in zip(ids, texts, strict=True):
            file.write(json.dumps({"id": key, "text": text}) + "\n")


def main() -> None:
    """Writes the corpus to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path, required=True, help=".jsonl or .parquet")
    arguments = parser.parse_args()
    write(chunks(arguments.count), arguments.output)
    print(f"{arguments.count} texts in {arguments.output}")


if __name__ == "__main__":
    main()
