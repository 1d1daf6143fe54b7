"""One run on a fake cloud that does as a line of the matrix says, killed and judged."""

import contextlib
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from faults import BRITTLE, POISON, SETTLE_S, Line, On
from google.oauth2.credentials import Credentials

import forking
from embatch.client import Client
from embatch.config import CloudSettings
from embatch.testing.cloud import Bill, CloudProcess, expected_vectors
from embatch.vectors import normalize

KILLABLE: Final = Path(__file__).parents[1] / "killable.py"
DIMS: Final = 128
DEADLINE_S: Final = 120
STAGING: Final = "gs://bucket/staged"
IN_BATCHES: Final = (
    *("upload.intended", "upload.done", "submit.intended", "submit.done", "submit.journaled"),
    *("results.ready", "results.joined", "part.written", "part.journaled", "part.renamed"),
    *("part.published", "batch.cleared"),
)
"""Named places of a kill, in what each batch goes through."""
AT_THE_END: Final = ("finish.failures", "finish.assembled", "finish.manifest", "finish.journaled")
PASSED: Final = 80
"""Checkpoints that all kills by lot of one run may see passed together: the run goes on."""
FAILED_ROWS: Final = 3
"""Exit code of a run that finished with failed rows: each holds an empty text."""
_WATCH_S: Final = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is embedded."""

    rows: int
    batch_items: int
    kills: int
    probe: bool = True
    """The first small batch of every run goes alone; without it there is less to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A line of the table."""

    name: str
    on: On
    seed: int
    kills: int
    """That hit a living process."""
    rows: int
    failures: int
    billed: int
    twice: int
    again: int | None
    """Rows bought again as the run reports; None where it does not report."""
    requests: int
    problems: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """What came of it."""
        return "; ".join(self.problems) or "ok"


@cache
def private_key() -> str:
    """Of the service account that the fake cloud gives tokens to."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@dataclass
class Proof:
    """A run in a home of its own; the cloud is shared, one run after the other."""

    folder: Path
    line: Line
    on: On
    seed: int
    size: Size
    cloud: CloudProcess
    problems: list[str] = field(default_factory=list)
    killed: int = 0
    starts: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed} {self.on} {self.line.name}")
        lines = [json.dumps({"id": key, "text": text}) for key, text in self.texts.items()]
        (self.folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
        if self.on == "vertex":
            account = {
                "type": "service_account",
                "project_id": "a-project",
                "private_key_id": "1",
                "private_key": private_key(),
                "client_email": "robot@a-project.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": self.cloud.token_url,
            }
            (self.folder / "account.json").write_text(json.dumps(account))

    @cached_property
    def texts(self) -> dict[str, str]:
        """By key: texts that no other run has, a few of them twice, empty, or in for trouble."""
        made: dict[str, str] = {}
        for row in range(self.size.rows):
            number = row - 5 if row % 25 == 24 else row
            trouble = {17: POISON, 23: BRITTLE}.get(number % 60, "plain")
            text = f"{self.line.name} {self.on} {self.seed} number {number}, a {trouble} text"
            made[f"key-{row}"] = "" if row % 120 == 50 else text
        return made

    @cached_property
    def wanted(self) -> dict[str, str]:
        """The keys that must have a vector, and their texts."""
        spared = POISON if self.line.poisoned else "\0"
        return {key: text for key, text in self.texts.items() if text and spared not in text}

    # The run.

    def judged(self) -> Verdict:
        """Runs under the line's faults, killed again and again, to its end; what came of it."""
        self.cloud.clear_faults()
        before, there = self.cloud.bill(), self._jobs()
        for number, one in enumerate(self.line.strikes):
            self.cloud.add_fault(one.fault(self.on, self._fault_id(number)))
        alive = True
        for turn in range(self.size.kills):
            alive = alive and self._kill(turn)
        if alive:
            self._finish()
        faults = self.cloud.faults()
        self.cloud.clear_faults()
        status = self._status()
        requests = sum(self.cloud.bill().requests.values()) - sum(before.requests.values())
        self._check_output()
        billed, twice = self._check_bill(before, faults)
        again = self._reported(status)
        # A batch that is split hands on how many of its rows were bought before, not which.
        if again is not None and (again < twice or (again > twice and self.line.alone)):
            self.problems.append(f"{twice} rows were bought twice, {again} are reported")
        if left := [name for name in self._jobs() if name not in there]:
            self.problems.append(f"{len(left)} jobs are left at the service")
        return Verdict(
            name=self.line.name,
            on=self.on,
            seed=self.seed,
            kills=self.killed,
            rows=self.size.rows,
            failures=len(self.failures()),
            billed=billed,
            twice=twice,
            again=again,
            requests=requests,
            problems=tuple(self.problems),
        )

    def _start(self, kill_at: str = "-", *, arguments: tuple[str, ...] = ()) -> forking.Popen:
        self.starts += 1
        asked = arguments or (
            *("run", "texts.jsonl", "-o", "out", "--provider", self.on, "--key", "id"),
            *("--dims", str(DIMS), "--task-type", "retrieval_document", "--log-format", "text"),
            *("--max-batch-items", str(self.size.batch_items), "--poll-interval", "0.1"),
            *("--settle", f"{SETTLE_S:g}", "--json", *self.line.flags),
            *(() if self.size.probe or self.line.probe else ("--no-probe",)),
            *(("--staging", STAGING) if self.on == "vertex" else ()),
        )
        trace = str(self._trace)
        said, log = self.folder / "said", self.folder / f"log-{self.starts}"
        with said.open("wb") as output, log.open("wb") as errors:
            return forking.Popen(
                [sys.executable, str(KILLABLE), kill_at, trace, "-", "--", *asked],
                cwd=self.folder,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    @property
    def _trace(self) -> Path:
        return self.folder / f"trace-{self.starts}"

    def _environ(self) -> dict[str, str]:
        variables = {"EMBATCH_HOME": str(self.folder / "home"), "PATH": "/usr/bin:/bin"}
        if self.on == "gemini":
            return variables | {
                "GOOGLE_API_KEY": self.cloud.api_key,
                "GOOGLE_GEMINI_BASE_URL": self.cloud.gemini_url,
            }
        return variables | {
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.folder / "account.json"),
            "GOOGLE_CLOUD_PROJECT": "a-project",
            "GOOGLE_CLOUD_LOCATION": "us-central1",
            "GOOGLE_VERTEX_BASE_URL": self.cloud.vertex_url,
            "STORAGE_EMULATOR_HOST": self.cloud.storage_url,
        }

    def _kill(self, turn: int) -> bool:
        """A start that dies at a checkpoint or by lot; False when the run ended before that."""
        if turn < len(self.line.kill_at) or turn % 2:
            process = self._start(self._place(turn))
            code = _end(process)
        else:
            steps, pause_s = (
                self.chance.randint(1, PASSED // self.size.kills),
                self.chance.uniform(0.0, 0.05),
            )
            process = self._start()
            code = self._watch(process, steps)
            if code is None:
                time.sleep(pause_s)  # the moment of the kill is the point
                process.kill()
                code = _end(process)
        self.killed += code == -signal.SIGKILL
        if self.line.sweeps:
            self._sweep()
        return self._goes_on(process, code)

    def _place(self, turn: int) -> str:
        """Where a start dies; at the end of a run only when no other kill is to come."""
        if turn < len(self.line.kill_at):
            return self.line.kill_at[turn]
        last = turn == self.size.kills - 1
        return f"{self.chance.choice((*IN_BATCHES, *AT_THE_END) if last else IN_BATCHES)}:1"

    def _sweep(self) -> None:
        """Removes the inputs at the service, as time does."""
        asked: dict[str, Any] = {"settings": CloudSettings()}
        if self.on == "gemini":
            asked |= {"api_key": self.cloud.api_key, "base_url": self.cloud.gemini_url}
        else:
            asked |= {
                "auth": "vertex_ai",
                "credentials": Credentials(token=self.cloud.access_token),
                "project": "a-project",
                "location": "us-central1",
                "base_url": self.cloud.vertex_url,
                "storage_base_url": self.cloud.storage_url,
                "staging": STAGING,
            }
        with Client(**asked) as client:
            for file in list(client.list_files()):
                if self.on == "gemini" or file.name.endswith("/input.jsonl"):
                    client.delete_file(file.name)

    def _watch(self, process: forking.Popen, steps: int) -> int | None:
        """Waits until the process has passed so many checkpoints; its code if it ended first."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            if self._trace.exists() and self._trace.read_bytes().count(b"\n") >= steps:
                return None
            if (code := _end(process, _WATCH_S)) is not None:
                return code
        return None

    def _finish(self) -> None:
        process = self._start()
        code = _end(process)
        if self._goes_on(process, code):
            self.problems.append("the last start was killed by another")

    def _goes_on(self, process: forking.Popen, code: int | None) -> bool:
        """Whether another start is needed; notes an end that is not the one wanted."""
        if code is None:
            process.kill()
            _end(process)
            self.problems.append(f"no end after {DEADLINE_S} s: {self._last_words()}")
            return False
        if code not in (FAILED_ROWS, -signal.SIGKILL):
            self.problems.append(f"exit {code}: {self._last_words()}")
            return False
        return code != FAILED_ROWS

    def _jobs(self) -> list[str]:
        return [job["name"] for job in self.cloud.jobs()]

    def _last_words(self) -> str:
        lines = (self.folder / f"log-{self.starts}").read_text().splitlines()
        said = [line for line in lines if " info " not in line]
        told = (self.folder / "said").read_text()
        error = json.loads(told).get("error") if told.startswith("{") else None
        return " | ".join([*said[-3:], str(error)])

    def _status(self) -> dict[str, Any]:
        process = self._start(arguments=("status", "out", "--json"))
        if _end(process) != 0:
            return {}
        told: dict[str, Any] = json.loads((self.folder / "said").read_text())
        return told

    # The judgement.

    @staticmethod
    def _reported(status: dict[str, Any]) -> int | None:
        cost = status.get("cost") or {}
        again = cost.get("rows_again")
        return None if again is None else int(again)

    def failures(self) -> list[dict[str, Any]]:
        """The lines of failures.jsonl."""
        path = self.folder / "out" / "failures.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _check_output(self) -> None:
        keys: list[str] = []
        found = [np.empty((0, DIMS), dtype=np.float32)]
        for path in sorted((self.folder / "out").glob("part-*.parquet")):
            table = pq.read_table(path)
            keys += table["key"].to_pylist()
            found.append(table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS))
        written, wanted = Counter(keys), Counter(list(self.wanted))
        if written != wanted:
            lost, more = (wanted - written).total(), (written - wanted).total()
            self.problems.append(f"{lost} keys are missing, {more} are too many")
        known = [key for key in keys if self.texts.get(key)]
        if len(known) == len(keys) and keys:
            made = expected_vectors(
                [self.texts[key] for key in keys], dims=DIMS, task_type="retrieval_document"
            )
            wrong = int((np.concatenate(found) != normalize(made)).any(axis=1).sum())
            if wrong:
                self.problems.append(f"{wrong} vectors are not those of their texts")
        failed = Counter(failure["key"] for failure in self.failures())
        if failed != Counter(self.texts.keys() - self.wanted.keys()):
            codes = Counter(failure["code"] for failure in self.failures())
            self.problems.append(f"failures.jsonl holds {dict(codes)}")

    def _check_bill(self, before: Bill, faults: list[dict[str, Any]]) -> tuple[int, int]:
        """Rows billed, and rows billed twice: none, but where the line allows it."""
        bill, charged = self.cloud.bill(), self.cloud.rows_by_digest()
        digests = {hashlib.sha256(text.encode()).hexdigest() for text in self.texts.values()}
        counts = [charged[digest] for digest in digests if digest in charged]
        billed, twice = sum(counts), sum(counts) - len(counts)
        unpaid = len(set(self.wanted.values())) - len(counts)
        if unpaid > 0:
            self.problems.append(f"{unpaid} texts were never embedded")
        allowed = self._allowed(faults)
        if twice > allowed or (allowed and not twice):
            self.problems.append(f"{twice} rows were billed twice, {allowed} are to be expected")
        if doubled := bill.duplicate_jobs.keys() - before.duplicate_jobs.keys():
            self.problems.append(f"{len(doubled)} labels were submitted twice")
        idle = [fault["id"] for fault in faults if not fault["struck"]]
        if idle and not self.line.mixed:
            self.problems.append(f"these faults never struck: {', '.join(idle)}")
        if crashes := self.cloud.crashes():
            self.problems.append(f"the fake cloud broke: {crashes[-1].splitlines()[-1]}")
        return billed, twice

    def _allowed(self, faults: list[dict[str, Any]]) -> int:
        """Rows that the service charged and gave in no usable form."""
        struck = {fault["id"]: fault["struck"] for fault in faults}
        return sum(
            struck.get(self._fault_id(number), 0) * one.wasted_rows(self.size.batch_items)
            for number, one in enumerate(self.line.strikes)
        )

    def _fault_id(self, number: int) -> str:
        return f"{self.line.name} {self.on} {number}"


def _end(process: forking.Popen, timeout_s: float = DEADLINE_S) -> int | None:
    """The return code, negative for a signal; None while it still runs after so long."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout_s)
    return None
