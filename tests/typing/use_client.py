"""The client as users write it: checked by mypy --strict and pyright, never run."""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import embatch
from embatch import (
    AsyncClient,
    BatchEmbeddings,
    Client,
    ContentEmbedding,
    EmbedContentBatch,
    JobState,
    RowError,
)
from embatch.types.files import ModelDescription, RemoteFile
from embatch.types.results import ResultBlock


def submit_and_read(texts: list[str]) -> NDArray[np.float32]:
    with Client(auth="gemini", api_key="k") as client:
        batch = client.async_batch_embed_contents(
            texts, display_name="x", task_type="retrieval_document", output_dimensionality=768
        )
        assert_type(batch, EmbedContentBatch)
        assert_type(batch.state, JobState | str)
        assert_type(batch.batch_stats.progress_percentage, float)
        done = client.await_batch_completion(
            batch.name, timeout=None, on_progress=lambda seen: print(seen.state)
        )
        found = client.get_batch_embeddings(done)
        assert_type(found, BatchEmbeddings)
        assert_type(found.failed_responses, list[tuple[int, RowError]])
        assert_type(found.successful_responses, list[tuple[int, ContentEmbedding]])
        for one in found:
            assert_type(one, ContentEmbedding | RowError)
            if isinstance(one, RowError):
                print(one.code)
            else:
                print(one.normalize().norm)
        return found.to_numpy()


def stream(client: Client, name: str) -> int:
    rows = 0
    for block in client.read_batch_results(name):
        assert_type(block, ResultBlock)
        rows += len(block.keys)
    for batch in client.list_batches():
        assert_type(batch, EmbedContentBatch)
    for model in client.list_models():
        assert_type(model, ModelDescription)
    assert_type(client.upload_file("x.jsonl"), RemoteFile)
    assert_type(client.download_file("files/x", Path("x")), Path)
    assert_type(client.find_batch("label"), EmbedContentBatch | None)
    assert_type(client.embed_content("x"), ContentEmbedding)
    assert_type(client.embed_contents(["x"]), list[ContentEmbedding])
    assert_type(client.count_tokens("x"), int)
    return rows


async def on_a_loop(texts: list[str]) -> NDArray[np.float32]:
    async def report(batch: EmbedContentBatch) -> None:
        print(batch.state)

    async with AsyncClient(auth="vertex_ai", project="p", staging="gs://b/x") as client:
        batch = await client.async_batch_embed_contents(texts, display_name="x", keys=["a"])
        assert_type(
            await client.await_batch_completion(batch, on_progress=report), EmbedContentBatch
        )
        async for listed in client.list_batches(auth="gemini"):
            assert_type(listed, EmbedContentBatch)
        async for block in client.read_batch_results(batch):
            assert_type(block, ResultBlock)
        return (await client.get_batch_embeddings(batch.name, keys=["a"])).to_numpy()


def errors(client: Client) -> None:
    try:
        client.embed_content("x")
    except embatch.RateLimitError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.per_day, bool)
    except embatch.IndeterminateError as error:
        assert_type(error.label, str)
    except embatch.BatchTimeoutError as error:
        assert_type(error.name, str)
    except embatch.EmbatchError as error:
        assert_type(error.service_message, str | None)
