"""A real S3 server on this machine, and commands that work on it."""

import hashlib
import io
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import forking
from embatch.testing.engine import FakeEngine

HERE = Path(__file__).parent
KILLABLE = HERE.parent / "killable.py"
DIMS = 16
POISON = "poison"
BATCH_ITEMS = 16
ROWS = 90
DEADLINE_S = 120
_NUMBERS = itertools.count()


@dataclass
class S3:
    """The server. Each test has a bucket of its own."""

    url: str

    def environ(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """Amazon's own client: what another program sees."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="an-id",
            aws_secret_access_key="a-secret-that-nobody-may-see",
        )


@dataclass
class Bucket:
    """One bucket, and a machine that types commands about it."""

    s3: S3
    name: str
    folder: Path
    texts: dict[str, str | None] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return f"s3://{self.name}/{path}"

    def put(self, path: str, data: bytes) -> None:
        self.s3.client().put_object(Bucket=self.name, Key=path, Body=data)

    def get(self, path: str) -> bytes:
        body: bytes = self.s3.client().get_object(Bucket=self.name, Key=path)["Body"].read()
        return body

    def table(self, path: str) -> Any:
        """A Parquet file's rows."""
        return pq.read_table(io.BytesIO(self.get(path)))

    def names(self, prefix: str) -> list[str]:
        """Every object whose name begins so."""
        pages = self.s3.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.name, Prefix=prefix)
        return sorted(entry["Key"] for page in found for entry in page.get("Contents", ()))

    def put_texts(self, path: str = "in/texts.jsonl") -> None:
        """Rows of every kind: copies, empty texts, one that the engine cannot take."""
        for row in range(ROWS):
            text: str | None = f"text number {row}"
            if row % 6 == 5:
                text = f"text number {row // 2}"
            if row % 17 == 0:
                text = None if row % 2 else ""
            if row == 43:
                text = f"a {POISON} text"
            self.texts[f"key-{row}"] = text
        lines = [json.dumps({"id": key, "text": text}) for key, text in self.texts.items()]
        self.put(path, ("\n".join(lines) + "\n").encode())

    def start(
        self,
        *arguments: str,
        kill_at: str = "-",
        trace: str = "-",
        home: str = "home",
        stdin: int | None = None,
        fake_models: str = "",
        **more: str,
    ) -> subprocess.Popen[str]:
        """`embatch` on a machine whose own things lie in `home`; `more` are variables.

        With `fake_models` each model name is a space of its own.
        """
        script = [str(KILLABLE), kill_at, trace, POISON, "--"]
        if fake_models:
            script = [str(KILLABLE.with_name("fake_cli.py")), "0"]
        environ = {"EMBATCH_HOME": str(self.folder / home), "PATH": "/usr/bin:/bin"}
        return forking.Popen(
            [sys.executable, *script, *arguments],
            env=environ | self.s3.environ() | more,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, *arguments: str, code: int = 0, **more: str) -> str:
        """A command that ends with `code`; what it printed, errors last."""
        process = self.start(*arguments, **more)
        output, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, output + errors
        assert self.s3.environ()["AWS_SECRET_ACCESS_KEY"] not in output + errors
        return output + errors

    def run(self, out: str, *flags: str, **more: Any) -> str:
        """`embatch run` on the texts; the failed rows make it exit 3."""
        code = more.pop("code", 3)
        return self.type(*self.run_command(out, flags), code=code, **more)

    def run_command(self, out: str, flags: Sequence[str] = ()) -> list[str]:
        command = ["run", self.url("in/*.jsonl"), "-o", self.url(out), "--key", "id", "--json"]
        return [*command, "--max-batch-items", str(BATCH_ITEMS), "--poll-interval", "0.02", *flags]

    def killed(self, out: str, kill_at: str, *, flags: Sequence[str] = (), **more: str) -> None:
        """A run that dies at a checkpoint."""
        process = self.start(*self.run_command(out, flags), kill_at=kill_at, **more)
        output, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == -signal.SIGKILL, f"{kill_at}: {output}{errors}"

    def manifest(self, out: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.get(f"{out}/manifest.json"))
        return values

    def check(self, out: str) -> None:
        """Every key once, every vector that of its text, and nothing beside what counts."""
        wanted = {key: text for key, text in self.texts.items() if text and POISON not in text}
        parts = self.manifest(out)["parts"]
        found = [pq.read_table(io.BytesIO(self.get(f"{out}/{part['name']}"))) for part in parts]
        self.check_rows(found, wanted)
        for part in parts:
            body = self.get(f"{out}/{part['name']}")
            assert hashlib.sha256(body).hexdigest() == part["sha256"]
        lines = [json.loads(line) for line in self.get(f"{out}/failures.jsonl").splitlines()]
        assert sorted(line["key"] for line in lines) == sorted(self.texts.keys() - wanted.keys())
        known = {f"{out}/{part['name']}" for part in parts}
        known |= {f"{out}/.published/{part['name'][5:10]}/{part['name']}" for part in parts}
        known |= {f"{out}/manifest.json", f"{out}/failures.jsonl"}
        kept = [name for name in self.names(f"{out}/.work/") if "/failed/" in name]
        assert self.names(f"{out}/") == sorted(known | set(kept))

    def check_rows(self, tables: list[Any], wanted: dict[str, str]) -> None:
        keys = [key for table in tables for key in table["key"].to_pylist()]
        assert sorted(keys) == sorted(wanted)
        vectors = [table["embedding"].combine_chunks().flatten().to_numpy() for table in tables]
        matrix: NDArray[np.float32] = np.concatenate(vectors).reshape(-1, DIMS)
        truth = FakeEngine(dims=DIMS).expected([wanted[key] for key in keys])
        assert np.array_equal(matrix, truth)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """The server, for all tests of a process."""
    command = [sys.executable, str(HERE / "s3_server.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield S3(url=f"http://127.0.0.1:{int(process.stdout.readline())}")
        process.kill()


@pytest.fixture
def bucket(s3: S3, tmp_path: Path) -> Bucket:
    """A bucket with the texts in it."""
    name = f"bucket-{next(_NUMBERS)}"
    s3.client().create_bucket(Bucket=name)
    made = Bucket(s3=s3, name=name, folder=tmp_path)
    made.put_texts()
    return made
