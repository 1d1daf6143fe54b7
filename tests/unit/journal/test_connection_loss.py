"""A server that restarts, and a connection that is cut at the worst moment."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from embatch.errors import JournalError, TransitionRefusedError
from embatch.journal.connecting import parse_url
from embatch.journal.leases import Claim
from embatch.journal.records import NewBatch
from embatch.journal.store import Journal
from embatch.types.state import BatchEvent, BatchState
from postgres import PostgresServer

NOW = 1_000.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of this file's own, to restart and crash."""
    with PostgresServer() as own:
        yield own


class Wire:
    """A wire to a server that can be cut as soon as it has carried a COMMIT, its answer lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut_at_commit = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            gone = threading.Event()
            threading.Thread(target=self._carry, args=(near, far, gone), daemon=True).start()
            threading.Thread(target=self._answer, args=(far, near, gone), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket, gone: threading.Event) -> None:
        while data := _received(near):
            if self.cut_at_commit and b"COMMIT" in data:
                self.cut_at_commit = False
                self.cuts += 1
                gone.set()  # the answer goes nowhere
            far.sendall(data)
        far.close()

    def _answer(self, far: socket.socket, near: socket.socket, gone: threading.Event) -> None:
        while (data := _received(far)) and not gone.is_set():
            near.sendall(data)
        with suppress(OSError):  # the client has hung up already
            near.shutdown(socket.SHUT_RDWR)
        near.close()


def _received(from_: socket.socket) -> bytes:
    try:
        return from_.recv(65536)
    except OSError:
        return b""


def start(journal: Journal) -> Claim:
    journal.create_run(run_id="r1", out="out", config={}, space={}, now=NOW)
    token = journal.leases.claim_planning("r1", owner="me", lease_s=60)
    assert token is not None
    new = NewBatch(kind="embed", items=10, row_min=0, row_max=9, stage="s")
    journal.batches.add_planned("r1", token, batches=[new], failures=[], plan={}, now=NOW)
    claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=NOW, max_in_flight=9)
    assert claim is not None
    return claim


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_a_server_that_restarts_is_away_and_then_back(how: str, server: PostgresServer) -> None:
    """While it is down each call says that it may pass; afterwards the same journal goes on."""
    journal = Journal.open(server.create_journal())
    claim = start(journal)
    if how == "crash":
        server.crash()
    else:
        server.stop()
    with pytest.raises(JournalError) as caught:
        journal.batches.get(claim.batch.id)
    assert caught.value.transient
    server.start()
    moved = journal.batches.transition(
        claim.batch, claim.token, BatchEvent.UPLOAD_STARTED, now=NOW, label="a label"
    )
    assert moved.state is BatchState.UPLOADING
    journal.close()


def test_a_transaction_that_the_server_ended_is_not_kept(server: PostgresServer) -> None:
    """The connection was ended within it: nothing of it stands, and it may be tried again."""
    journal = Journal.open(server.create_journal())
    claim = start(journal)

    def end_all(_: object) -> None:
        with server.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'embatch'"
            )

    with pytest.raises(JournalError) as caught:
        journal.batches.transition(
            *(claim.batch, claim.token, BatchEvent.UPLOAD_STARTED), now=NOW, also=[end_all]
        )
    assert caught.value.transient
    assert journal.batches.get(claim.batch.id).state is BatchState.PLANNED
    journal.close()


def test_a_change_whose_answer_was_lost_is_kept_once(server: PostgresServer) -> None:
    """The caller is told that it is not known; the same change again is refused, for it stands."""
    wire = Wire(server.port)
    journal = Journal.open(
        parse_url(server.create_journal()).set(port=wire.port).render_as_string(hide_password=False)
    )
    claim = start(journal)
    move = (claim.batch, claim.token, BatchEvent.UPLOAD_STARTED)

    def cut(_: object) -> None:
        wire.cut_at_commit = True

    with pytest.raises(JournalError, match="did not say whether it kept") as caught:
        journal.batches.transition(*move, now=NOW, label="a label", also=[cut])
    assert caught.value.transient
    assert wire.cuts == 1
    with pytest.raises(TransitionRefusedError, match="is uploading, not planned"):
        journal.batches.transition(*move, now=NOW, label="a label")
    kinds = [event.kind for event in journal.events("r1")]
    assert kinds.count("upload_started") == 1
    journal.close()
    wire.close()
