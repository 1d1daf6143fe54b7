"""What people write with google-genai for the work of `embatch run --provider gemini`.

    python -m benchmarks.cloud_script SOURCE OUT URL BATCH_ROWS DIMS

JSONL by json, batches of rows uploaded and created, polled, downloaded, json by line, matched by
key, brought to length 1 with numpy as Google's page on embeddings asks, Parquet by pyarrow. Nothing
is kept of a crash, checked or retried.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google import genai
from google.genai import types

POLL_S = 0.2
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")


def main() -> None:
    """Embeds the column `text` of SOURCE into OUT/part-N.parquet."""
    source, out, url, batch_rows, dims = sys.argv[1:]
    warnings.simplefilter("ignore")
    table = pq.read_table(source, columns=["id", "text"])
    ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
    size, folder = int(batch_rows), Path(out)
    folder.mkdir(parents=True)
    options = types.HttpOptions(base_url=url)
    with genai.Client(api_key="a key", http_options=options) as client:
        names = [
            submit(client, folder, ids[at : at + size], texts[at : at + size], int(dims))
            for at in range(0, len(ids), size)
        ]
        for number, name in enumerate(names):
            keys = ids[number * size : (number + 1) * size]
            collect(client, name, keys, folder / f"part-{number:05d}.parquet")


def submit(client: genai.Client, folder: Path, keys: list[str], texts: list[str], dims: int) -> str:
    """Uploads the rows and creates their batch; its name."""
    path = folder / "requests.jsonl"
    with path.open("w") as file:
        for key, text in zip(keys, texts, strict=True):
            request = {
                "content": {"parts": [{"text": text}]},
                "outputDimensionality": dims,
                "taskType": "RETRIEVAL_DOCUMENT",
            }
            file.write(json.dumps({"key": key, "request": request}) + "\n")
    config = types.UploadFileConfig(mime_type="application/jsonl", display_name="requests")
    uploaded = client.files.upload(file=path, config=config)
    path.unlink()
    job = client.batches.create_embeddings(
        model="gemini-embedding-001",
        src=types.EmbeddingsBatchJobSource(file_name=uploaded.name),
        config=types.CreateEmbeddingsBatchJobConfig(display_name="requests"),
    )
    assert job.name is not None
    return job.name


def collect(client: genai.Client, name: str, keys: list[str], path: Path) -> None:
    """Waits for a batch and writes its vectors in the order of `keys`."""
    job = client.batches.get(name=name)
    while job.state is None or job.state.value not in ENDED:
        time.sleep(POLL_S)
        job = client.batches.get(name=name)
    assert job.dest is not None
    assert job.dest.file_name is not None
    content = client.files.download(file=job.dest.file_name)
    values = {}
    for line in content.splitlines():
        row = json.loads(line)
        values[row["key"]] = row["response"]["embedding"]["values"]
    vectors = np.array([values[key] for key in keys], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"key": keys, "embedding": column}), path)
    client.batches.delete(name=name)


if __name__ == "__main__":
    main()
