"""The server's own description of itself, held against what it answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Server, Servers, jsonl

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "use_after_free",
    "allow_header_conformance",
]
"""5xx, answers that are not described, and what is still there after its delete."""
KEY = "a-key-of-the-tests"


CONFIG = """
[generation]
with-security-parameters = false

[dictionaries]
versions.values = ["v1", "v1beta", "v1alpha"]
models.values = ["fake", "gemini-embedding-001"]
batches.values = {batches}
files.values = {files}
uploads.values = {uploads}

[parameters]
"path.version" = {{ dictionary = "versions", probability = 0.9 }}
"path.model" = {{ dictionary = "models", probability = 0.8 }}
"path.batch" = {{ dictionary = "batches", probability = 0.8 }}
"path.file" = {{ dictionary = "files", probability = 0.8 }}
"query.upload_id" = {{ dictionary = "uploads", probability = 0.7 }}
"""
"""Names of what is there, so that calls reach it."""


@pytest.fixture
def server(servers: Servers) -> Server:
    return servers.start("--max-batches", "1000000", key=KEY)


def configured(server: Server, folder: Path) -> Path:
    """Makes batches and files of every kind, and a configuration that names them."""
    api, source = server.api, jsonl(["a", "b", ""])
    uploads = [api.start_upload(10) for _ in range(20)]
    files = [api.upload(source) for _ in range(20)]
    inline = {"requests": {"requests": [{"request": {"content": {"parts": [{"text": "a"}]}}}]}}
    batches = [api.create(inline) for _ in range(20)]
    batches += [api.create({"fileName": file}) for file in files]
    for name in batches:
        api.finished(name)
    results = [f"batch-{name.removeprefix('batches/')}" for name in batches]
    path = folder / "schemathesis.toml"
    path.write_text(
        CONFIG.format(
            batches=[name.removeprefix("batches/") for name in batches],
            files=[name.removeprefix("files/") for name in files] + results,
            uploads=[url.partition("upload_id=")[2].partition("&")[0] for url in uploads],
        )
    )
    return path


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.soak)])
def test_schemathesis_finds_nothing(server: Server, tmp_path: Path, examples: int) -> None:
    """No 5xx and no answer but those described, over right and wrong requests of every call."""
    config = configured(server, tmp_path)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", config, "run"),
            f"{server.url}/openapi.json",
            *("--checks", ",".join(CHECKS), "--max-examples", str(examples)),
            *("--header", f"x-goog-api-key: {KEY}", "--generation-database", "none"),
            *("--seed", "20261123", "--continue-on-failure", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "NO_COLOR": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    print(done.stdout[-2500:])
    server.assert_unbroken()


def test_every_call_is_described(server: Server) -> None:
    """The description names every call, uploads and downloads too, and what lets one in."""
    described = server.api.call("GET", "/openapi.json")
    calls = {
        f"{method.upper()} {path}" for path, item in described["paths"].items() for method in item
    }
    model, batch, file = "/{version}/models", "/{version}/batches", "/{version}/files"
    assert calls >= {
        f"GET {model}",
        f"GET {model}/{{model}}",
        f"POST {model}/{{model}}:embedContent",
        f"POST {model}/{{model}}:batchEmbedContents",
        f"POST {model}/{{model}}:asyncBatchEmbedContent",
        f"POST {model}/{{model}}:countTokens",
        f"GET {batch}",
        f"GET {batch}/{{batch}}",
        f"DELETE {batch}/{{batch}}",
        f"POST {batch}/{{batch}}:cancel",
        f"PATCH {batch}/{{batch}}:updateEmbedContentBatch",
        f"GET {file}",
        f"GET {file}/{{file}}",
        f"DELETE {file}/{{file}}",
        f"GET {file}/{{file}}:download",
        f"GET /download{file}/{{file}}:download",
        f"POST /upload{file}",
        f"PUT /upload{file}",
        "GET /healthz",
        "GET /metrics",
    }
    version = described["paths"][model]["get"]["parameters"][0]["schema"]["enum"]
    assert set(version) == {"v1", "v1beta", "v1alpha"}
    assert described["components"]["securitySchemes"]
