"""A journal as some days of work leave it: runs of every kind, for the dashboard's pages.

Each batch's life is laid out in time and cut off at the present, so that states, events, jobs and
the ledger agree as they do in a journal that runs have written.
"""

import json
import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plots import HOUR, PLOTS, Plot

from embatch.journal.store import Journal
from embatch.journal.workers import Doing
from embatch.runs.config import RunConfig
from embatch.runs.quota import Belief, Ceiling
from embatch.types.embedding import Space
from embatch.types.state import BatchState

MODEL = "gemini-embedding-001"
SCOPE = f"gemini/3f9a1c/{MODEL}"
TOKENS_A_ROW = 82
USD_A_TOKEN = 0.075e-6
LIFE = (
    ("upload_started", BatchState.PLANNED, BatchState.UPLOADING, 0.0),
    ("upload_finished", BatchState.UPLOADING, BatchState.UPLOADED, 3.0),
    ("submit_intended", BatchState.UPLOADED, BatchState.SUBMITTING, 4.0),
    ("submit_confirmed", BatchState.SUBMITTING, BatchState.SUBMITTED, 5.5),
    ("results_ready", BatchState.SUBMITTED, BatchState.READY, None),
    ("collected", BatchState.READY, BatchState.COLLECTED, 9.0),
    ("published", BatchState.COLLECTED, BatchState.PUBLISHED, 4.0),
)
"""Event, from, to, and seconds: up to the job since the start, after it since the last."""
REASONS = (
    ("empty_text", "the text is empty", 0, False),
    ("invalid_argument", "the service refuses the text: it cannot be read", 3, True),
    ("too_long", "the text is over the model's limit of 2,048 tokens", 1, True),
)


@dataclass(kw_only=True)
class Scene:
    """A journal that is told, and where to look in it."""

    url: str
    journal_id: str
    now: float
    labels: dict[tuple[str, int], str] = field(default_factory=dict)
    """Label of a batch's job, by run and number."""


def tell(path: Path, plots: Sequence[Plot] = PLOTS, *, now: float | None = None) -> Scene:
    """Fills a new SQLite journal at `path`."""
    url = f"sqlite:///{path}"
    moment = time.time() if now is None else now
    journal = Journal.open(url)
    scene = Scene(url=url, journal_id=journal.id, now=moment)
    for worker, doing in ((("embed-1", 4_411), True), (("embed-2", 902), False)):
        name = journal.workers.register(
            host=worker[0],
            pid=worker[1],
            version="0.1.0",
            execution="workers",
            queues=("io",),
            concurrency=4,
        )
        steps = [Doing(run_id="c9d2047be86f", batch=385, step="uploading", since=moment - 2.0)]
        journal.workers.beat(name, steps=18_822 if doing else 7_310, doing=steps if doing else [])
    journal.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous=OFF")
    teller = _Teller(scene, connection, random.Random(11))
    for plot in plots:
        teller.tell(plot)
    _lose_worker(connection, moment)
    connection.commit()
    connection.close()
    return scene


def _lose_worker(connection: sqlite3.Connection, now: float) -> None:
    started = now - 26 * HOUR
    connection.execute("UPDATE workers SET started_at = ?", (started,))
    connection.execute("UPDATE workers SET seen_at = ? WHERE pid = 902", (now - 540.0,))
    # The other one is alive for as long as somebody looks.
    connection.execute("UPDATE workers SET seen_at = ? WHERE pid = 4411", (now + HOUR,))


class _Teller:
    def __init__(self, scene: Scene, connection: sqlite3.Connection, chance: random.Random) -> None:
        self.scene, self.connection, self.chance = scene, connection, chance
        self.batch_id = 0
        self.events: list[tuple[float, dict[str, Any]]] = []

    def tell(self, plot: Plot) -> None:
        """One run with its batches, events, jobs, ledger and failures."""
        begun, end = self.scene.now - plot.ago_s, self.scene.now - plot.stops_s
        self.events = []
        count = -(-plot.rows // plot.items)
        self._event(plot, begun, "created", None, None, None)
        share = plot.failed / max(1, plot.rows)
        last = begun
        for number in range(count):
            last = max(last, self._batch(plot, number, begun, end, share))
        ended = last + 8.0 if plot.state.startswith("completed") else None
        if count:
            self._event(plot, begun + 20.0, "planned", None, "planning", "running")
        if plot.state not in ("running", "planning"):
            kind = {"needs_person": "blocked", "over_budget": "budget_reached"}
            self._event(
                plot, ended or end, kind.get(plot.state, plot.state), None, "running", plot.state
            )
        self._run(plot, begun, ended)
        self._failures(plot)
        for at, event in sorted(self.events, key=lambda one: one[0]):
            self._insert("events", {**event, "at": at})

    def _batch(self, plot: Plot, number: int, begun: float, end: float, share: float) -> float:
        self.batch_id += 1
        start = begun + 30.0 + number * plot.gap_s * self.chance.uniform(0.97, 1.03)
        job_s = plot.job_s * self.chance.uniform(0.5, 1.5)
        state, at, moments = BatchState.PLANNED, start, {}
        for kind, source, target, after in LIFE:
            at = at + job_s if after is None else (start + after if after < 6 else at + after)
            if kind == "published":
                at = max(at, moments["collected"] + 1.0)
            stops = "submit_confirmed" if plot.state == "needs_person" else "upload_started"
            held = number in plot.blocked and kind == stops
            if at > end or held or (number in plot.odd and kind == "collected"):
                break
            moments[kind] = at
            state = target
            data = {"remote_name": self._remote(plot, number)} if kind == "submit_confirmed" else {}
            if kind == "collected":
                data = {"succeeded": plot.items}
            self._event(plot, at, kind, self.batch_id, source, target, data)
        if number in plot.odd:
            state = plot.odd[number]
        items = min(plot.items, plot.rows - number * plot.items)
        failed = round(items * share) if state is BatchState.PUBLISHED else 0
        self._insert("batches", self._row(plot, number, state, items, failed, begun, moments))
        if "submit_intended" in moments or state is BatchState.SUBMITTING:
            self._bought(plot, number, items, moments, state, start)
        return max(moments.values(), default=begun)

    def _row(
        self,
        plot: Plot,
        number: int,
        state: BatchState,
        items: int,
        failed: int,
        begun: float,
        moments: Mapping[str, float],
    ) -> dict[str, Any]:
        published = state is BatchState.PUBLISHED
        reason, detail = plot.blocked.get(number, (None, None))
        sent = "submit_intended" in moments or state is BatchState.SUBMITTING
        wait = self.chance.uniform(30.0, 240.0)
        done = 0
        if state is BatchState.SUBMITTED:
            gone = self.scene.now - plot.stops_s - moments["submit_confirmed"]
            done = int(items * min(0.9, gone / plot.job_s / 2))
        return {
            "id": self.batch_id,
            "run_id": plot.id,
            "number": number,
            "kind": "embed",
            "state": str(state),
            "attempt": 1 if sent else 0,
            "items": items,
            "tokens_estimated": items * TOKENS_A_ROW,
            "tokens_bound": items * 400,
            "item_bound": 2_048,
            "bought": 0,
            "text_bytes": items * 340,
            "row_min": number * plot.items,
            "row_max": number * plot.items + items - 1,
            "label": self._label(plot, number) if sent else None,
            "remote_name": self._remote(plot, number) if "submit_confirmed" in moments else None,
            "remote_state": "processing" if state is BatchState.SUBMITTED else None,
            "succeeded": items - failed if published else done,
            "failed": failed,
            "tokens": items * TOKENS_A_ROW if published else 0,
            "truncated": 1 if published and number % 9 == 0 else 0,
            "repeated": 0,
            "part": f"part-{number:05d}.parquet" if published else None,
            "part_rows": items - failed if published else None,
            "part_bytes": (items - failed) * 3_180 if published else None,
            "part_row_min": number * plot.items if published else None,
            "part_row_max": number * plot.items + items - 1 if published else None,
            "blocked_reason": reason,
            "blocked_detail": detail,
            "next_at": moments["published"] if published else self._next(plot, wait),
            "polls": 2 if state is BatchState.SUBMITTED else 0,
            "absences": 0,
            "created_at": begun,
            "updated_at": max(moments.values(), default=begun),
            "submitted_at": moments.get("submit_confirmed"),
            "finished_at": moments.get("published"),
            "audited": 8 if published and plot.provider != "local" else None,
            "audit_least": 0.99981 if published else None,
        }

    def _next(self, plot: Plot, wait: float) -> float:
        """When the batch is due: long ago where nobody works on the run."""
        return (self.scene.now if plot.worked else self.scene.now - plot.stops_s) + wait

    def _bought(
        self,
        plot: Plot,
        number: int,
        items: int,
        moments: Mapping[str, float],
        state: BatchState,
        start: float,
    ) -> None:
        label, ended = self._label(plot, number), "results_ready" in moments
        intended = moments.get("submit_intended", start)
        tokens = items * TOKENS_A_ROW
        job_state = (
            "ended" if ended else "running" if "submit_confirmed" in moments else "submitting"
        )
        self._insert(
            "jobs",
            {
                "label": label,
                "run_id": plot.id,
                "batch_id": self.batch_id,
                "attempt": 1,
                "scope": SCOPE,
                "items": items,
                "tokens": tokens,
                "state": job_state,
                "occupies": not ended and plot.worked and state is BatchState.SUBMITTED,
                "remote_name": self._remote(plot, number)
                if "submit_confirmed" in moments
                else None,
                "intended_at": intended,
                "ended_at": moments.get("results_ready"),
            },
        )
        settled = moments.get("collected")
        for kind, ref, rows, price in (
            ("batch", label, items, USD_A_TOKEN),
            ("audit", f"audit:{label}", 8, 2 * USD_A_TOKEN),
        ):
            size = tokens * rows // items
            self._insert(
                "ledger",
                {
                    "ref": ref,
                    "run_id": plot.id,
                    "batch_id": self.batch_id,
                    "kind": kind,
                    "state": "settled" if settled else "reserved",
                    "rows": rows,
                    "rows_failed": 0,
                    "rows_again": 0,
                    "tokens_bound": rows * 400,
                    "tokens_estimated": size,
                    "tokens": size if settled else None,
                    "usd_bound": rows * 400 * price,
                    "usd": size * price if settled else None,
                    "estimated": False,
                    "at": intended,
                    "settled_at": settled,
                },
            )

    def _run(self, plot: Plot, begun: float, ended: float | None) -> None:
        config = RunConfig(
            inputs=(f"/data/{plot.name}.parquet",),
            out=f"/data/vectors/{plot.name}",
            provider=plot.provider,
            model=MODEL,
            dims=768,
            max_cost_usd=plot.cap_usd,
        )
        config = replace(config, execution="workers" if plot.execution == "workers" else "threads")
        space = Space(provider=plot.provider, model=MODEL, dims=768)
        leased = plot.worked and ended is None and plot.state in ("running", "planning", "parked")
        self._insert(
            "runs",
            {
                "id": plot.id,
                "name": plot.name,
                "state": plot.state,
                "out": config.out,
                "config": json.dumps(config.to_json()),
                "space": json.dumps(space.to_json()),
                "tags": json.dumps(dict(plot.tags)),
                "priority": 0,
                "plan": json.dumps({}),
                "rows": plot.rows or None,
                "error_code": "BudgetExceededError" if plot.state == "over_budget" else None,
                "error": plot.error,
                "created_at": begun,
                "updated_at": ended or self.scene.now,
                "started_at": begun,
                "finished_at": ended,
                "resume_at": self.scene.now + plot.resume_in_s if plot.resume_in_s else None,
                "twins": 0,
                "lease_owner": "embed-1:4411" if leased else None,
                "lease_token": "0" * 32 if leased else None,
                "lease_expires_at": self.scene.now + 24 * HOUR if leased else None,
            },
        )
        belief = Belief(
            tokens=Ceiling(most=42_600_000, proven=41_200_000),
            accepted=1_204,
            refused=17,
            accepted_at=self.scene.now - 12.0,
            refused_at=self.scene.now - 340.0,
        )
        self.connection.execute(
            "INSERT OR REPLACE INTO quotas (scope, belief, updated_at) VALUES (?, ?, ?)",
            (SCOPE, json.dumps(belief.to_json()), self.scene.now),
        )

    def _failures(self, plot: Plot) -> None:
        for place in range(plot.failed):
            code, message, attempts, kept = REASONS[0 if place % 10 < 7 else 1 + place % 2]
            self._insert(
                "failures",
                {
                    "run_id": plot.id,
                    "row": place * max(1, plot.rows // plot.failed),
                    "key": f"{plot.name[:3]}-{self.chance.randrange(10**6):06d}",
                    "code": code,
                    "message": message,
                    "attempts": attempts,
                    "batch_id": self.batch_id,
                    "kept": kept,
                },
            )

    def _event(
        self,
        plot: Plot,
        at: float,
        kind: str,
        batch: int | None,
        source: str | None,
        target: str | None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        event = {
            "run_id": plot.id,
            "batch_id": batch,
            "kind": kind,
            "source": source,
            "target": target,
            "data": json.dumps(data) if data else None,
        }
        self.events.append((at, event))

    def _label(self, plot: Plot, number: int) -> str:
        nonce = f"{number * 2654435761 % 2**32:08x}"
        label = f"embatch:{self.scene.journal_id}:{plot.id}:{number}:1:{nonce}"
        self.scene.labels[plot.id, number] = label
        return label

    @staticmethod
    def _remote(plot: Plot, number: int) -> str:
        return f"batches/{int(plot.id[:6], 16) + number:x}"

    def _insert(self, table: str, values: Mapping[str, Any]) -> None:
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        self.connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values())
        )
