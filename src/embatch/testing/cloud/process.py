"""The fake cloud in a process of its own, so that a test can kill it, or be killed beside it."""

import http.client
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

from embatch.testing.cloud.cloud import CloudAddress
from embatch.testing.cloud.control import CONTROL_PATH
from embatch.testing.cloud.core import CloudSettings
from embatch.testing.cloud.faults import Facts, Fault
from embatch.testing.cloud.models import CHARS_PER_TOKEN

_STOP_S = 30.0


class ControlRefusedError(AssertionError):
    """A control call failed inside the cloud; the message says how."""


class CloudProcess(CloudAddress):
    """A fake cloud that runs as `python -m embatch.testing.cloud`, with the same controls.

        with CloudProcess(state=folder) as cloud:
            cloud.kill()
            cloud.restart()     # same port, same state

    `state` is required for a restart that remembers.
    """

    def __init__(
        self,
        *,
        state: Path | str | None = None,
        faults: Iterable[Fault] = (),
        port: int = 0,
        seed: int = 0,
        job_duration_s: float = 0.05,
        manual_clock: bool = False,
        bytes_per_token: int = CHARS_PER_TOKEN,
    ) -> None:
        super().__init__(self._ask)
        self.settings = CloudSettings(
            seed=seed,
            job_duration_s=job_duration_s,
            manual_clock=manual_clock,
            bytes_per_token=bytes_per_token,
        )
        self._state = state
        self._faults = list(faults)
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None  # noqa: S101 # between start and stop
        return self._process.pid

    def start(self) -> None:
        """Starts the process and waits until it listens; faults given at first stand from then."""
        command = [sys.executable, "-m", "embatch.testing.cloud"]
        command += ["--port", str(self._port), "--seed", str(self.settings.seed)]
        command += ["--job-duration", str(self.settings.job_duration_s)]
        command += ["--bytes-per-token", str(self.settings.bytes_per_token)]
        if self._state is not None:
            command += ["--state", str(self._state)]
        if self.settings.manual_clock:
            command.append("--manual-clock")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 # our own module
        assert self._process.stdout is not None  # noqa: S101 # it is a pipe
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise ControlRefusedError("The fake cloud did not start; its stderr says why.")
        self.url = orjson.loads(line)["url"]
        self._port = urlsplit(self.url).port or 0
        for fault in self._faults:
            self.add_fault(fault)
        self._faults.clear()

    def kill(self) -> None:
        """Ends the process as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def stop(self) -> None:
        """Ends the process in peace; safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            self._end()

    def restart(self) -> None:
        """Starts again on the same port with the same state."""
        self.stop()
        self.start()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.wait(_STOP_S)
        if process.stdout is not None:
            process.stdout.close()

    def _ask(self, verb: str, arguments: Facts) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            connection.request("POST", CONTROL_PATH + verb, orjson.dumps(arguments))
            answer = connection.getresponse()
            told = orjson.loads(answer.read())
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ControlRefusedError(f"{verb}: {told['error']['message']}")
        return told["value"]
