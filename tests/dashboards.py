"""A dashboard to visit in tests: a journal with every kind of run, and a plain HTTP client.

with visited(url) as visitor:            # a dashboard over the journal at `url`
    page = visitor.get("/runs.json")     # `.status`, `.headers`, `.text`, `.json`
"""

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from embatch.config import Secret, Settings
from embatch.dashboard.app import Dashboard
from embatch.dashboard.serve import serving
from embatch.dashboard.settings import DashboardSettings
from embatch.hooks import Hooks
from embatch.journal.purchases import Bought, Purchase
from embatch.journal.records import BatchRecord, Failure, NewBatch
from embatch.journal.store import Journal
from embatch.runs.config import RunConfig
from embatch.types.embedding import Space
from embatch.types.state import BatchEvent, RunEvent, RunState

NOW = 1_800_000_000.0
"""When the runs of `fill` were begun, seconds since 1970."""
MODEL = "gemini-embedding-001"
HTML = "<script>alert(1)</script>&\"'"
"""What must never stand on a page as it is."""
TEXT = "the text of a user"
NOTIFY = "https://hooks.example/T0/secret-part"
TOKEN = "a-token-of-a-good-length"
SENT = (
    BatchEvent.UPLOAD_STARTED,
    BatchEvent.UPLOAD_FINISHED,
    BatchEvent.SUBMIT_INTENDED,
    BatchEvent.SUBMIT_CONFIRMED,
)
DONE = (*SENT, BatchEvent.RESULTS_READY, BatchEvent.COLLECTED, BatchEvent.PUBLISHED)
ROWS = 10
"""Of each batch."""


def enter(
    journal: Journal, run_id: str, *, batches: int = 4, at: float = NOW, **values: Any
) -> list[BatchRecord]:
    """A run of `batches` planned batches, planned through; `max_cost_usd` is its cap."""
    cap = values.pop("max_cost_usd", None)
    execution = values.pop("execution", "threads")
    out = values.pop("out", f"/nowhere/{run_id}")
    config = RunConfig(
        inputs=("/nowhere/texts.jsonl",), out=out, provider="gemini", model=MODEL,
        max_cost_usd=cap, notify=(NOTIFY,), execution=execution,
    )  # fmt: skip
    journal.create_run(
        run_id=run_id, out=out, config=config.to_json(), now=at,
        space=Space(provider="gemini", model=MODEL, dims=768).to_json(), **values,
    )  # fmt: skip
    token = journal.leases.claim_planning(run_id, owner="a test", lease_s=60.0)
    assert token is not None
    made = [
        NewBatch(
            kind="embed", items=ROWS, row_min=ROWS * at, row_max=ROWS * at + ROWS - 1,
            stage=f"stage/{at}.arrow", tokens_estimated=1_000, tokens_bound=4_000, item_bound=400,
        )
        for at in range(batches)
    ]  # fmt: skip
    journal.batches.add_planned(
        run_id, token, batches=made, failures=[], plan={"phase": "done"}, now=at
    )
    journal.update_run(run_id, now=at, rows=ROWS * batches)
    journal.transition_run(
        run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=at, started_at=at
    )
    journal.leases.release_planning(run_id, token)
    return list(journal.batches.walk(run_id))


def move(journal: Journal, batch: BatchRecord, *events: BatchEvent, at: float) -> BatchRecord:
    """Takes a batch through events, ten seconds each, and gives it back."""
    claim = journal.leases.claim_batch(batch.id, owner="a test", lease_s=600.0)
    assert claim is not None
    batch = claim.batch
    for place, event in enumerate(events):
        now = at + 10.0 * place
        facts: dict[str, Any] = {}
        label = f"embatch:{journal.id}:{batch.run_id}:{batch.number}:1:00000000"
        if event is BatchEvent.UPLOAD_STARTED:
            facts = {"attempt": 1, "label": label}
            journal.ledger.reserve(
                Purchase(
                    ref=label, run_id=batch.run_id, kind="batch", rows=ROWS, tokens_bound=4_000,
                    tokens_estimated=1_000, usd_bound=0.0003, batch_id=batch.id,
                ),
                now=now,
            )  # fmt: skip
        if event is BatchEvent.SUBMIT_INTENDED:
            facts = {"submitted_at": now}
        if event is BatchEvent.SUBMIT_CONFIRMED:
            facts = {"remote_name": f"batches/{batch.number}"}
        if event is BatchEvent.RESULTS_READY:
            facts = {"succeeded": ROWS}
        if event is BatchEvent.COLLECTED:
            part = f"part-{batch.number:05d}.parquet"
            facts = {"part": part, "part_rows": ROWS, "part_bytes": 9_000, "tokens": 1_000}
            journal.ledger.settle(label, Bought(rows=ROWS, tokens=1_000), now=now)
        if event is BatchEvent.PUBLISHED:
            facts = {"finished_at": now, "audited": 2, "audit_least": 0.9991}
        batch = journal.batches.transition(
            batch, claim.token, event, now=now, scope=f"gemini/k1/{MODEL}", **facts
        )
    end = at + 10.0 * len(events)
    journal.leases.release(batch.id, claim.token, next_at=end + 40.0)
    return journal.batches.get(batch.id)


def block(journal: Journal, batch: BatchRecord, reason: str, detail: str, *, until: float) -> None:
    """Has a batch wait."""
    claim = journal.leases.claim_batch(batch.id, owner="a test", lease_s=600.0)
    assert claim is not None
    journal.leases.release(
        batch.id, claim.token, next_at=until, blocked_reason=reason, blocked_detail=detail
    )


def fill(journal: Journal) -> None:
    """A run in each plight: `r-run`, `r-person`, `r-done`, `r-failed`, `r-budget`, `r-workers`."""
    batches = enter(journal, "r-run", batches=6, name=f"live {HTML}", tags={"team": "a<b"})
    for batch in batches[:3]:
        move(journal, batch, *DONE, at=NOW + 10.0 * batch.number)
    move(journal, batches[3], *SENT, at=NOW + 60.0)
    batches = enter(journal, "r-person", at=NOW + 1.0, name="in doubt", tags={"team": "b"})
    doubtful = move(journal, batches[0], *SENT[:3], at=NOW)
    words = f"batch 0: look for it {HTML}. If you find it, type: embatch resolve r-person 0 --adopt"
    block(journal, doubtful, "person", f"{words} NAME; if not, --absent", until=NOW)
    batches = enter(journal, "r-done", at=NOW + 2.0, tags={"team": "a<b", "x": "y"})
    for batch in batches:
        move(journal, batch, *DONE, at=NOW + 5.0)
    _end(journal, "r-done", RunEvent.COMPLETED_WITH_FAILURES, at=NOW + 90.0)
    _fail_rows(journal, "r-done")
    enter(journal, "r-failed", at=NOW + 3.0, out=f"/nowhere/{HTML}")
    _end(
        journal, "r-failed", RunEvent.FAILED, at=NOW + 50.0,
        error_code="PermissionDeniedError", error=f"the key lacks a right {HTML}",
    )  # fmt: skip
    batches = enter(journal, "r-budget", at=NOW + 4.0, max_cost_usd=0.0005)
    move(journal, batches[0], *DONE, at=NOW + 5.0)
    journal.transition_run(
        "r-budget", RunEvent.BUDGET_REACHED, expected=RunState.RUNNING, now=NOW + 80.0,
        error_code="BudgetExceededError",
        error="the cap is $0.0005. Go on with: embatch resume r-budget --max-cost 0.01",
    )  # fmt: skip
    enter(journal, "r-workers", at=NOW + 5.0, execution="workers")


def _end(journal: Journal, run_id: str, event: RunEvent, *, at: float, **facts: Any) -> None:
    journal.transition_run(
        run_id, event, expected=RunState.RUNNING, now=at, finished_at=at, **facts
    )


def _fail_rows(journal: Journal, run_id: str) -> None:
    """Failures come with a change of a batch: here with one that is put aside and splits."""
    batch = journal.batches.numbered(run_id, 0)
    claim = journal.leases.claim_batch(batch.id, owner="a test", lease_s=60.0)
    assert claim is not None
    failed = [
        Failure(
            row=row, key=f"key {row} {HTML}", code="empty_text" if row % 2 else "too_long",
            message=f"the row cannot be embedded {HTML}", attempts=1, batch_id=batch.id,
            kept=bool(row % 2), kept_in="kept.arrow" if row % 2 else None,
        )
        for row in range(7)
    ]  # fmt: skip
    journal.batches.transition(
        claim.batch, claim.token, BatchEvent.MISALIGNED, now=NOW + 91.0, failures=failed
    )
    journal.leases.release(batch.id, claim.token, next_at=NOW + 91.0)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def csrf(self) -> str:
        """What the page's form must bear."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.text)
        assert found, self.text
        return found[1]


@dataclass
class Visitor:
    """A browser of few words: it keeps cookies, and follows nothing by itself."""

    url: str
    cookies: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **headers: str) -> Answer:
        """A page. Header names are given with underscores."""
        return self.call("GET", path, headers)

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        """A form."""
        form = {"content_type": "application/x-www-form-urlencoded"}
        return self.call("POST", path, form | headers, urlencode(fields).encode())

    def act(self, path: str, **fields: str) -> Answer:
        """Opens the page that asks, and says yes."""
        asked = self.get(path)
        assert asked.status == 200, asked.text
        return self.post(path, {"csrf": asked.csrf, **fields}, sec_fetch_site="same-origin")

    def call(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        where = urlsplit(self.url)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if "accept" not in {name.lower() for name in sent}:
            sent["Accept"] = "text/html"
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            made = Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()
        for cookie in made.headers.get_all("Set-Cookie") or ():
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return made


def dashboard_of(
    url: str, *, folder: Path = Path("/nowhere"), token: str | None = None, **settings: Any
) -> tuple[Dashboard, Journal]:
    """A dashboard over the journal at `url`, and the journal."""
    journal = Journal.open(url)
    base = Settings(home=folder, journal=url)
    secret = None if token is None else Secret(token)
    hooks = settings.pop("hooks", Hooks())
    return (
        Dashboard(DashboardSettings(base=base, token=secret, **settings), journal, hooks),
        journal,
    )


@contextmanager
def visited(url: str, **settings: Any) -> Iterator[Visitor]:
    """A dashboard that answers from a thread of this process, and a browser that has not been
    there yet."""
    dashboard, journal = dashboard_of(url, **settings)
    try:
        with serving(dashboard) as address:
            yield Visitor(address)
    finally:
        journal.close()
