"""Batches as a service runs them: submit and store, poll with statistics, mend, account, search.

    python examples/async_batch_production_demo.py [FOLDER]

FOLDER (default ./batch-demo) keeps what must outlive this process: the batch's name, the keys and
the vectors. Stopped anywhere, the same command goes on. Cloud as in async_batch_embedding_demo.py.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embatch import BatchEmbeddings, Client, EmbedContentBatch, IndeterminateError, vectors
from embatch.types.models import find_model

MODEL = "gemini-embedding-001"
DIMS = 256  # few enough for every model, those of `embatch serve` included
SIZES = ("small", "large", "folding", "outdoor", "antique")
THINGS = ("table", "lamp", "chair", "shelf", "clock", "kettle")
STUFFS = ("oak", "steel", "glass", "bamboo")
PRODUCTS = {
    f"sku-{n}": f"Product {n}: a {size} {thing} made of {stuff}"
    for n, (size, thing, stuff) in enumerate(itertools.product(SIZES, THINGS, STUFFS))
}


@contextlib.contextmanager
def open_client(folder: Path) -> Iterator[Client]:
    """A client of the real cloud when there is a way to it, else of one that lives in `folder`."""
    names = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL")
    if any(os.environ.get(name) for name in names):
        with Client() as client:
            yield client
        return
    from embatch.testing.cloud import FakeCloud, Fault

    print("no key: using a cloud on this machine, where 5 rows of the first batch fail\n")
    trouble = Fault("row_error", times=1, args={"count": 5, "transient": True})
    state = folder / "cloud"
    state.mkdir(exist_ok=True)
    with (
        FakeCloud(state=state, faults=[trouble], job_duration_s=3.0) as cloud,
        Client(api_key=cloud.api_key, base_url=cloud.gemini_url) as client,
    ):
        yield client


class Record:
    """What must outlive the process: one small JSON file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, **values: Any) -> None:
        """Stores values before the next step is taken."""
        self.values.update(values)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(self.values))
        draft.replace(self._path)


def submit(client: Client, texts: dict[str, str], display_name: str) -> EmbedContentBatch:
    """Submits once. When it is not certain whether that worked, it is looked for, not repeated."""
    try:
        return client.async_batch_embed_contents(
            list(texts.values()),
            display_name=display_name,
            model=MODEL,
            task_type="retrieval_document",
            output_dimensionality=DIMS,
            keys=list(texts),
        )
    except IndeterminateError as doubt:
        found = client.find_batch(doubt.label)
        if found is None:
            raise
        return found


def show_statistics(batch: EmbedContentBatch) -> None:
    """One line for each look at the batch."""
    stats = batch.batch_stats
    print(
        f"  {batch.state}: {stats.progress_percentage:5.1f} % done, "
        f"{stats.success_rate:5.1f} % of them well, {stats.pending_request_count} to go"
    )


def collect(client: Client, name: str, keys: list[str]) -> BatchEmbeddings:
    """Waits for a batch and reads it, in whichever process."""
    batch = client.await_batch_completion(name, timeout=None, on_progress=show_statistics)
    return client.get_batch_embeddings(batch, keys=keys)


def account(tokens: int, rows: int) -> None:
    """What it cost, what the batch saved, and what it takes to keep."""
    model = find_model(MODEL)
    batch_usd = tokens / 1e6 * (model.batch_usd_per_million or 0.0)
    now_usd = tokens / 1e6 * (model.usd_per_million or 0.0)
    print(f"\n{rows} vectors, {tokens} tokens: ${batch_usd:.6f}, interactive ${now_usd:.6f}")
    for dims, score in model.mteb.items():
        mark = "  <- stored" if dims == DIMS else ""
        print(f"  {dims:5} dims  {rows * dims * 4 / 1e3:8.1f} kB  MTEB {score}{mark}")


def main() -> None:
    """Goes on from wherever the record says."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "batch-demo")
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "record.json")
    with open_client(folder) as client:
        if "name" not in record.values:
            batch = submit(client, PRODUCTS, "products")
            record.keep(name=batch.name, keys=list(PRODUCTS))
            print(f"submitted {len(PRODUCTS)} products as {batch.name}")
        keys = record.values["keys"]
        found = collect(client, record.values["name"], keys)
        matrix, tokens = found.to_numpy().copy(), found.total_tokens or 0

        failed = {keys[index]: error for index, error in found.failed_responses}
        for key, error in failed.items():
            print(f"  failed: {key} ({error.code}, {'try again' if error.transient else 'final'})")
        again = {key: PRODUCTS[key] for key, error in failed.items() if error.transient}
        if again:
            if "retry_name" not in record.values:
                record.keep(retry_name=submit(client, again, "products, again").name)
            mended = collect(client, record.values["retry_name"], list(again))
            for key, vector in zip(again, mended.to_numpy(), strict=True):
                matrix[keys.index(key)] = vector
            tokens += mended.total_tokens or 0

        good = ~np.isnan(matrix[:, 0])  # a failed row is NaN throughout
        stored = vectors.normalize(matrix[good])
        names = [key for key, fine in zip(keys, good, strict=True) if fine]
        np.save(folder / "vectors.npy", stored)
        (folder / "keys.json").write_text(json.dumps(names))
        account(tokens, len(stored))

        query = client.embed_content(
            "something to sit on in the garden",
            task_type="retrieval_query",
            output_dimensionality=DIMS,
        )
        rows, scores = vectors.top_k(stored, query.values, k=3)
        print("\nnearest to 'something to sit on in the garden':")
        for row, score in zip(rows[0], scores[0], strict=True):
            print(f"  {score:.3f}  {names[row]}: {PRODUCTS[names[row]]}")


if __name__ == "__main__":
    main()
