"""What a program over google-genai sees of a server, as one JSON object on standard output.

    python python_client.py BASE_URL API_VERSION API_KEY MODEL FOLDER

Runs under any version of the official package and imports nothing of embatch. It judges nothing:
the test that starts it does.
"""

import asyncio
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.genai
from google.genai import errors, types

TEXTS = [f"text {n}" for n in range(5)]
DIMS = 16
BIG_BYTES = 9_600_000
"""More than one chunk of an upload."""
LONG_ROWS = 8_000
DEADLINE_S = 60.0


def job_source(**source: Any) -> Any:
    """Where a batch's requests are."""
    return types.EmbeddingsBatchJobSource(**source)


def inline_source() -> Any:
    """The five texts in the call itself."""
    config = types.EmbedContentConfig(output_dimensionality=DIMS, task_type="CLUSTERING")
    return job_source(inlined_requests=types.EmbedContentBatch(contents=TEXTS, config=config))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(key: str, text: str, **config: Any) -> dict[str, Any]:
    """A line of a batch's file."""
    return {"key": key, "request": {"content": {"parts": [{"text": text}]}, **config}}


def refusal(call: Callable[[], object]) -> dict[str, Any]:
    """How a call was refused."""
    try:
        call()
    except errors.APIError as error:
        return {
            "kind": type(error).__name__,
            "code": error.code,
            "status": error.status,
            "message": error.message,
        }
    return {"kind": "none"}


class Tour:
    """Calls everything once."""

    def __init__(self, base_url: str, version: str, key: str, model: str, folder: Path) -> None:
        options = types.HttpOptions(base_url=base_url, api_version=version)
        self.client = google.genai.Client(api_key=key, http_options=options)
        self.model = model
        self.folder = folder

    def finished(self, job: Any) -> Any:
        """The job at its end, by polling."""
        deadline = time.monotonic() + DEADLINE_S
        while not job.done:
            if time.monotonic() > deadline:
                raise SystemExit(f"{job.name} is still {job.state} after {DEADLINE_S} s")
            time.sleep(0.02)
            job = self.client.batches.get(name=job.name)
        return job

    def upload(self, path: Path, **config: Any) -> Any:
        """An uploaded JSONL file."""
        return self.client.files.upload(
            file=path, config={"mime_type": "application/jsonl", **config}
        )

    def create(self, source: Any, name: str | None, model: str | None = None) -> Any:
        """A new batch."""
        config = {"display_name": name} if name else None
        return self.client.batches.create_embeddings(
            model=model or self.model, src=source, config=config
        )

    def models(self) -> dict[str, Any]:
        """models.list and get."""
        listed = list(self.client.models.list())
        found = self.client.models.get(model=self.model)
        return {
            "listed": [model.name for model in listed],
            "paged": [m.name for m in self.client.models.list(config={"page_size": 1})],
            "name": found.name,
            "input_token_limit": found.input_token_limit,
            "actions": found.supported_actions,
            "unknown": refusal(lambda: self.client.models.get(model="no-such-model")),
        }

    def now(self) -> dict[str, Any]:
        """models.embed_content and count_tokens."""
        embed = self.client.models.embed_content
        config = types.EmbedContentConfig(output_dimensionality=DIMS, task_type="RETRIEVAL_QUERY")
        one = embed(model=self.model, contents="x", config=config)
        many = embed(model=self.model, contents=TEXTS)
        merged = embed(model="gemini-embedding-2", contents=["a", "b"])
        wide = types.EmbedContentConfig(output_dimensionality=100_000)
        return {
            "one": [found.values for found in one.embeddings],
            "many": [found.values for found in many.embeddings],
            "merged": len(merged.embeddings),
            "tokens": self.client.models.count_tokens(
                model=self.model, contents="hello world"
            ).total_tokens,
            "too_many": refusal(lambda: embed(model=self.model, contents=["x"] * 101)),
            "too_wide": refusal(lambda: embed(model=self.model, contents="x", config=wide)),
            "unknown": refusal(lambda: embed(model="no-such-model", contents="x")),
        }

    def files(self) -> dict[str, Any]:
        """files.upload, get, list, delete."""
        path = self.folder / "big.jsonl"
        path.write_bytes(b"0123456789abcde\n" * (BIG_BYTES // 16))
        big = self.upload(path, display_name="big")
        got = self.client.files.get(name=big.name)
        named = self.client.files.upload(
            file=io.BytesIO(b"{}\n"), config={"mime_type": "text/plain", "name": "files/my-own-id"}
        )
        again = refusal(
            lambda: self.client.files.upload(
                file=io.BytesIO(b"{}\n"), config={"mime_type": "text/plain", "name": "my-own-id"}
            )
        )
        listed = [file.name for file in self.client.files.list(config={"page_size": 1})]
        not_generated = refusal(lambda: self.client.files.download(file=named.name))
        self.client.files.delete(name=big.name)
        self.client.files.delete(name=named.name)
        return {
            "big": big.model_dump(mode="json"),
            "got": got.model_dump(mode="json"),
            "named": named.name,
            "again": again,
            "listed": listed,
            "left": [file.name for file in self.client.files.list()],
            "gone": refusal(lambda: self.client.files.get(name=big.name)),
            "deleted_twice": refusal(lambda: self.client.files.delete(name=big.name)),
            "not_generated": not_generated,
        }

    def inline_batch(self) -> dict[str, Any]:
        """batches.create_embeddings with contents."""
        created = self.create(inline_source(), "inline")
        job = self.finished(created)
        items = job.dest.inlined_embed_content_responses
        unnamed = self.finished(self.create(inline_source(), None))
        return {
            "name": job.name,
            "created_state": created.state.value,
            "state": job.state.value,
            "display_name": job.display_name,
            "model": job.model,
            "times": [str(job.create_time), str(job.update_time), str(job.end_time)],
            "values": [item.response.embedding.values for item in items],
            "unnamed": unnamed.state.value,
        }

    def file_batch(self) -> dict[str, Any]:
        """batches.create_embeddings with a file, and the download of its results."""
        rows = [row(f"k{n}", text, output_dimensionality=DIMS) for n, text in enumerate(TEXTS)]
        rows.append(row("empty", "", output_dimensionality=DIMS))
        file = self.upload(write_rows(self.folder / "rows.jsonl", rows))
        job = self.finished(self.create(job_source(file_name=file.name), "file"))
        whole = self.client.files.download(file=job.dest.file_name)
        facts = {
            "state": job.state.value,
            "result_file": job.dest.file_name,
            "name": job.name,
            "lines": [json.loads(line) for line in whole.splitlines()],
        }
        self.client.batches.delete(name=job.name)
        name = job.dest.file_name
        facts["gone"] = refusal(lambda: self.client.files.download(file=name))
        return facts

    def refused_batches(self) -> dict[str, Any]:
        """Creates that must fail, and make nothing."""
        before = len(list(self.client.batches.list()))
        bad = self.upload(write_rows(self.folder / "bad.jsonl", [row("a", "a"), {"content": "b"}]))
        facts = {
            "bad_row": refusal(lambda: self.create(job_source(file_name=bad.name), "bad")),
            "no_file": refusal(
                lambda: self.create(job_source(file_name="files/abcdefghijkl"), "none")
            ),
            "no_model": refusal(lambda: self.create(inline_source(), "x", model="no-such-model")),
            "long_name": refusal(lambda: self.create(inline_source(), "n" * 513)),
        }
        facts["made"] = len(list(self.client.batches.list())) - before
        return facts

    def list_cancel_delete(self) -> dict[str, Any]:
        """batches.list over pages, cancel of one under way, delete."""
        batches = self.client.batches
        path = write_rows(
            self.folder / "long.jsonl", [row(str(n), f"text {n}") for n in range(LONG_ROWS)]
        )
        long = self.create(job_source(file_name=self.upload(path).name), "long")
        names = [self.create(inline_source(), f"job-{n}").name for n in range(4)]
        listed = [job.name for job in batches.list(config={"page_size": 2})]
        batches.cancel(name=long.name)
        ended = self.finished(batches.get(name=long.name))
        after = [self.finished(batches.get(name=name)).state.value for name in names]
        batches.cancel(name=names[0])
        batches.delete(name=long.name)
        batches.delete(name=names[0])
        left = [job.name for job in batches.list()]
        return {
            "made": [long.name, *names],
            "listed": listed,
            "cancelled": ended.state.value,
            "after": after,
            "left": [name for name in left if name in (long.name, *names)],
            "gone": refusal(lambda: batches.get(name=long.name)),
            "deleted_twice": refusal(lambda: batches.delete(name=long.name)),
        }

    async def in_async(self) -> dict[str, Any]:
        """The same calls of the asynchronous client."""
        aio = self.client.aio
        rows = [row(f"k{n}", text) for n, text in enumerate(TEXTS)]
        file = await aio.files.upload(
            file=write_rows(self.folder / "async.jsonl", rows), config={"mime_type": "jsonl"}
        )
        many = await aio.models.embed_content(model=self.model, contents=TEXTS)
        job = await aio.batches.create_embeddings(
            model=self.model, src=job_source(file_name=file.name), config={"display_name": "aio"}
        )
        deadline = time.monotonic() + DEADLINE_S
        while not job.done and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            job = await aio.batches.get(name=job.name)
        content = await aio.files.download(file=job.dest.file_name)
        listed = [one.name async for one in await aio.batches.list(config={"page_size": 2})]
        models = [one.name async for one in await aio.models.list()]
        await aio.batches.cancel(name=job.name)
        await aio.batches.delete(name=job.name)
        files = [one.name async for one in await aio.files.list()]
        await aio.files.delete(name=file.name)
        return {
            "many": [found.values for found in many.embeddings],
            "state": job.state.value,
            "keys": [json.loads(line)["key"] for line in content.splitlines()],
            "listed": job.name in listed,
            "models": models,
            "files": file.name in files,
        }


def wrong_key(base_url: str, version: str) -> dict[str, Any]:
    """What a wrong key gets."""
    options = types.HttpOptions(base_url=base_url, api_version=version)
    client = google.genai.Client(api_key="wrong", http_options=options)
    return refusal(lambda: list(client.models.list()))


def main() -> None:
    """Makes the tour and prints what it saw."""
    warnings.simplefilter("ignore")
    base_url, version, key, model, folder = sys.argv[1:6]
    tour = Tour(base_url, version, key, model, Path(folder))
    facts: dict[str, Any] = {"version": google.genai.__version__}
    for part in (
        *(tour.models, tour.now, tour.files, tour.inline_batch, tour.file_batch),
        *(tour.refused_batches, tour.list_cancel_delete),
    ):
        facts[part.__name__] = part()
    facts["in_async"] = asyncio.run(tour.in_async())
    facts["wrong_key"] = wrong_key(base_url, version)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
