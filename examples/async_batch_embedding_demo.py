"""Embed some texts in an asynchronous batch: submit, wait, read, normalise, compare, search.

    python examples/async_batch_embedding_demo.py

Goes to the Gemini API with GOOGLE_API_KEY set, to a server of yours such as `embatch serve` with
GOOGLE_GEMINI_BASE_URL, and without either to a cloud that it starts itself on this machine (its
vectors are made up: what is near to what means nothing then).
"""

import contextlib
import os
from collections.abc import Iterator

from embatch import Client, ContentEmbedding, EmbedContentBatch, vectors

TEXTS = [
    "The cat sleeps on the warm window sill.",
    "A kitten naps in the sun by the window.",
    "The stock market fell sharply on Monday.",
    "Shares lost value at the start of the week.",
    "Bread rises when yeast eats sugar.",
    "Sourdough needs flour, water, salt and time.",
]
DIMS = 256  # few enough for every model, those of `embatch serve` included


@contextlib.contextmanager
def open_client() -> Iterator[Client]:
    """A client of the real cloud when there is a way to it, else of one that lives here."""
    names = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL")
    if any(os.environ.get(name) for name in names):
        with Client() as client:
            yield client
        return
    from embatch.testing.cloud import FakeCloud

    print("no key: using a cloud on this machine; its vectors are hashes, without meaning\n")
    with (
        FakeCloud(job_duration_s=3.0) as cloud,
        Client(api_key=cloud.api_key, base_url=cloud.gemini_url) as client,
    ):
        yield client


def show_progress(batch: EmbedContentBatch) -> None:
    """One line for each look at the batch."""
    stats = batch.batch_stats
    print(f"  {batch.state}: {stats.progress_percentage:.0f} % of {stats.request_count} rows")


def main() -> None:
    """Submits, waits, reads and searches."""
    with open_client() as client:
        batch = client.async_batch_embed_contents(
            TEXTS,
            display_name="embedding demo",
            task_type="retrieval_document",
            output_dimensionality=DIMS,
        )
        print(f"submitted {len(TEXTS)} texts as {batch.name}")
        batch = client.await_batch_completion(batch.name, timeout=None, on_progress=show_progress)

        found = client.get_batch_embeddings(batch)
        print(f"read {found}; failed rows: {found.failed_responses}")
        first, second, third = found[:3]
        assert isinstance(first, ContentEmbedding)
        print(f"norm as it came {first.norm:.3f}, normalised {first.normalize().norm:.3f}")
        for name, other in (("a kitten", second), ("the market", third)):
            assert isinstance(other, ContentEmbedding)
            print(f"cosine of the cat and {name}: {first.cosine_similarity(other):.3f}")

        query = client.embed_content(
            "pets that doze", task_type="retrieval_query", output_dimensionality=DIMS
        )
        rows, scores = vectors.top_k(found.to_numpy(), query.values, k=3)
        print("\nnearest to 'pets that doze':")
        for row, score in zip(rows[0], scores[0], strict=True):
            print(f"  {score:.3f}  {TEXTS[row]}")
        client.delete_batch(batch)


if __name__ == "__main__":
    main()
