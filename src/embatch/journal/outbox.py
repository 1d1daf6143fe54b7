"""The outbox: what is to be told of runs, entered with what it tells of, until it is delivered."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    false,
    func,
    insert,
    or_,
    select,
    text,
    update,
)

from embatch.journal.database import Database
from embatch.journal.records import RunRecord
from embatch.journal.refusals import repeated
from embatch.journal.rows import record_event, run_record
from embatch.journal.schema import (
    MARKED_EVENTS,
    batches_table,
    events_table,
    ledger_table,
    notifications_table,
    runs_table,
)
from embatch.journal.sums import count_rows
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunEvent

Way = Literal["webhook", "apprise"]
"""How a target is reached: URLs of HTTP are webhooks of our own, all others are apprise's."""
COMPLETED: Final = "run.completed"
COMPLETED_WITH_FAILURES: Final = "run.completed_with_failures"
FAILED: Final = "run.failed"
OVER_BUDGET: Final = "run.over_budget"
NEEDS_PERSON: Final = "run.needs_person"
LOW_SUCCESS_RATE: Final = "run.low_success_rate"
STUCK: Final = "run.stuck"
_KINDS: Final[Mapping[RunEvent, str]] = {
    RunEvent.COMPLETED: COMPLETED,
    RunEvent.COMPLETED_WITH_FAILURES: COMPLETED_WITH_FAILURES,
    RunEvent.FAILED: FAILED,
    RunEvent.BUDGET_REACHED: OVER_BUDGET,
    RunEvent.BLOCKED: NEEDS_PERSON,
}
_OWN_WORDS: Final = (
    *("AuthenticationError", "BudgetExceededError", "PermissionDeniedError", "RateLimitError"),
    *("ProviderUnavailableError", "SpaceMismatchError", "StorageError"),
)
"""Errors whose messages are embatch's own; all others may quote, and are told by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One message to one target, claimed by this process."""

    id: str
    """The same whenever it is sent again."""
    run_id: str
    kind: str
    target: str = field(repr=False)
    """A URL that may hold secrets."""
    payload: Mapping[str, Any]
    attempts: int
    """Times it was tried before."""
    token: str
    """The claim, under which alone its end is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCounts:
    """What stands in the outbox."""

    waiting: int
    given_up: int
    next_in_s: float | None = None
    """Seconds until the next attempt, 0.0 while one is under way; None when nothing waits."""
    error: str | None = None
    """What the last attempt met, of those that wait or were given up."""


class OutboxTable:
    """The notifications of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @repeated
    def claim(self, ways: Collection[Way], *, claim_s: float) -> Notification | None:
        """The notification that is due first, for this process alone during `claim_s` seconds.

        None when nothing is due that goes by one of `ways`.
        """
        if not ways:
            return None
        table = notifications_table.c
        with self._database.read() as connection:
            now = self._database.lease_now(connection)
            due = select(table.id).where(_is_due(now), _goes_by(ways))
            if connection.execute(due.limit(1)).first() is None:
                return None
        with self._database.write() as connection:
            now = self._database.lease_now(connection)
            found = connection.execute(
                select(table.id)
                .where(_is_due(now), _goes_by(ways))
                .order_by(table.next_at, table.at)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).scalar()
            token = secrets.token_hex(8)
            row = connection.execute(
                update(notifications_table)
                .where(table.id == found, _is_due(now))
                .values(claim_token=token, claimed_until=now + claim_s)
                .returning(
                    *(table.id, table.run_id, table.kind, table.target, table.payload),
                    table.attempts,
                )
            ).one_or_none()
        if row is None:
            return None
        return Notification(**row._mapping, token=token)  # noqa: SLF001 - public API

    def delivered(self, sent: Notification) -> bool:
        """Writes that the target has it. Gives whether the claim held until then."""
        return self._end(sent, delivered=True, error=None)

    def gave_up(self, sent: Notification, error: str) -> bool:
        """Writes that it is not tried any more, and why. Gives whether the claim held."""
        return self._end(sent, delivered=False, error=error)

    @repeated
    def failed(
        self, sent: Notification, error: str, *, again_in_s: float, others_in_s: float = 0.0
    ) -> bool:
        """Writes why it did not arrive, and has it tried again. Gives whether the claim held.

        What else waits for the same target is not tried before `others_in_s` either.
        """
        table = notifications_table.c
        with self._database.write() as connection:
            now = self._database.lease_now(connection)
            changed = connection.execute(
                update(notifications_table)
                .where(table.id == sent.id, table.claim_token == sent.token)
                .values(
                    attempts=table.attempts + 1,
                    next_at=now + again_in_s,
                    claim_token=None,
                    claimed_until=None,
                    error=error,
                )
            )
            if others_in_s:
                connection.execute(
                    update(notifications_table)
                    .where(
                        _is_open(),
                        table.target == sent.target,
                        table.id != sent.id,
                        table.next_at < now + others_in_s,
                    )
                    .values(next_at=now + others_in_s)
                )
            return changed.rowcount == 1

    def counts(
        self, run_id: str | None = None, *, ways: Collection[Way] = ("webhook", "apprise")
    ) -> OutboxCounts:
        """What waits and what was given up, of a run or of all; of what goes by `ways` alone."""
        table = notifications_table.c
        mine = [] if run_id is None else [table.run_id == run_id]
        open_ones = [table.delivered_at.is_(None), _goes_by(ways), *mine]
        with self._database.read() as connection:
            now = self._database.lease_now(connection)
            waiting, given_up, next_at = connection.execute(
                select(
                    func.count().filter(table.given_up_at.is_(None)),
                    func.count().filter(table.given_up_at.is_not(None)),
                    func.min(table.next_at).filter(table.given_up_at.is_(None)),
                ).where(*open_ones)
            ).one()
            error = connection.execute(
                select(table.error)
                .where(*open_ones, table.error.is_not(None))
                .order_by(table.at.desc())
                .limit(1)
            ).scalar()
        next_in_s = None if next_at is None else max(0.0, float(next_at) - now)
        return OutboxCounts(
            waiting=int(waiting), given_up=int(given_up), next_in_s=next_in_s, error=error
        )

    @repeated
    def tell_stuck(
        self, run_id: str, *, since: float, facts: Mapping[str, Any], now: float
    ) -> bool:
        """Tells that a run stands still since `since`, once for each time that it does.

        `facts` go into the message and into the run's history. Gives whether it is news.
        """
        with self._database.write(run_id) as connection:
            told = _last(connection, run_id, "stuck")
            if told is not None and told >= since:
                return False
            record_event(connection, run_id=run_id, at=now, kind="stuck", data=facts)
            enter(connection, _run(connection, run_id), STUCK, now, facts)
            return True

    @repeated
    def tell_low_success(self, run_id: str, *, facts: Mapping[str, Any], now: float) -> bool:
        """Tells that too few rows of a run succeed, once until it is begun anew."""
        with self._database.write(run_id) as connection:
            return _tell_low(connection, _run(connection, run_id), facts, now)

    @repeated
    def _end(self, sent: Notification, *, delivered: bool, error: str | None) -> bool:
        table = notifications_table.c
        with self._database.write() as connection:
            now = self._database.lease_now(connection)
            end = {"delivered_at": now} if delivered else {"given_up_at": now}
            changed = connection.execute(
                update(notifications_table)
                .where(table.id == sent.id, table.claim_token == sent.token)
                .values(
                    attempts=table.attempts + 1,
                    claim_token=None,
                    claimed_until=None,
                    error=error,
                    **end,
                )
            )
            return changed.rowcount == 1


def enter_transition(connection: Connection, run: RunRecord, event: RunEvent, now: float) -> None:
    """Enters what a change of a run's state is to tell, in the transaction of that change."""
    kind = _KINDS.get(event)
    if kind is None:
        return
    if kind == NEEDS_PERSON and _told_of_person(connection, run):
        return
    enter(connection, run, kind, now)
    if event is RunEvent.COMPLETED_WITH_FAILURES:
        counts = count_rows(connection, run.id)
        least = float(run.config.get("alert_below_pct") or 0.0)
        decided = counts.written + counts.failed
        if decided and 100.0 * counts.written / decided < least:
            _tell_low(connection, run, {}, now)


def enter_person(connection: Connection, batch_id: int, now: float) -> None:
    """Enters that a batch waits for a person, where it is the first of its run that does."""
    table = batches_table.c
    batch = connection.execute(select(table.run_id, table.number).where(table.id == batch_id)).one()
    others = connection.execute(
        select(table.id)
        .where(
            table.run_id == batch.run_id,
            table.id != batch_id,
            table.blocked_reason == "person",
            table.state != BatchState.SPLIT.value,
        )
        .limit(1)
    ).first()
    run = _run(connection, batch.run_id)
    if others is None and run.state not in FINAL_RUN_STATES:
        # What happened may be told in the words of a service: they stay in the journal.
        waiting = f"batch {batch.number} waits for a person: embatch status {run.id} says why"
        enter(connection, run, NEEDS_PERSON, now, {"batch": batch.number, "waiting": waiting})


def enter(
    connection: Connection,
    run: RunRecord,
    kind: str,
    now: float,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Enters one message for each target of the run."""
    targets = dict.fromkeys(run.config.get("notify") or ())
    if not targets:
        return
    payload = _payload(connection, run, kind, now, facts or {})
    connection.execute(
        insert(notifications_table),
        [
            {
                "id": f"msg_{secrets.token_hex(12)}",
                "run_id": run.id,
                "kind": kind,
                "target": target,
                "payload": payload,
                "at": now,
                "attempts": 0,
                "next_at": 0.0,
            }
            for target in targets
        ],
    )


def _payload(
    connection: Connection, run: RunRecord, kind: str, now: float, facts: Mapping[str, Any]
) -> dict[str, Any]:
    counts = count_rows(connection, run.id)
    decided = counts.written + counts.failed
    data: dict[str, Any] = {
        "run": run.id,
        "name": run.name,
        "state": run.state.value,
        "out": run.out,
        "provider": run.space.get("provider"),
        "model": run.space.get("model"),
        "tags": dict(run.tags),
        "rows": run.rows,
        "written": counts.written,
        "failed": counts.failed,
        "success_pct": round(100.0 * counts.written / decided, 3) if decided else None,
        "alert_below_pct": run.config.get("alert_below_pct"),
        "spent_usd": _spent(connection, run.id),
        "max_cost_usd": run.config.get("max_cost_usd"),
        "elapsed_s": round(now - run.created_at, 3),
        "error_code": run.error_code,
        "error": run.error if run.error_code in _OWN_WORDS else None,
    }
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    return {"type": kind, "timestamp": at.replace("+00:00", "Z"), "data": {**data, **facts}}


def _spent(connection: Connection, run_id: str) -> float | None:
    """Dollars of what is settled; None where nothing was bought that has a price."""
    table = ledger_table.c
    usd: float | None = connection.execute(
        select(func.sum(table.usd)).where(table.run_id == run_id, table.state == "settled")
    ).scalar()
    return None if usd is None else float(usd)


def _tell_low(connection: Connection, run: RunRecord, facts: Mapping[str, Any], now: float) -> bool:
    begun = max(
        _last(connection, run.id, kind) or 0.0 for kind in (RunEvent.RESUMED, RunEvent.RETRIED)
    )
    told = _last(connection, run.id, "low_success_rate")
    if told is not None and told >= begun:
        return False
    record_event(connection, run_id=run.id, at=now, kind="low_success_rate", data=facts)
    enter(connection, run, LOW_SUCCESS_RATE, now, facts)
    return True


def _told_of_person(connection: Connection, run: RunRecord) -> bool:
    """A batch of the run called for one already, since someone last set the run going."""
    table = notifications_table.c
    told = connection.execute(
        select(func.max(table.at)).where(table.run_id == run.id, table.kind == NEEDS_PERSON)
    ).scalar()
    return told is not None and told >= (_last(connection, run.id, RunEvent.RESUMED) or 0.0)


def _last(connection: Connection, run_id: str, kind: str) -> float | None:
    """When a run's history last had an event of a kind that `MARKED_EVENTS` names."""
    table = events_table.c
    found: float | None = connection.execute(
        select(func.max(table.at)).where(
            text(MARKED_EVENTS), table.kind == str(kind), table.run_id == run_id
        )
    ).scalar()
    return found


def _run(connection: Connection, run_id: str) -> RunRecord:
    return run_record(connection.execute(select(runs_table).where(runs_table.c.id == run_id)).one())


def _is_open() -> ColumnElement[bool]:
    table = notifications_table.c
    return and_(table.delivered_at.is_(None), table.given_up_at.is_(None))


def _is_due(now: float) -> ColumnElement[bool]:
    table = notifications_table.c
    free = or_(table.claimed_until.is_(None), table.claimed_until < now)
    return and_(_is_open(), table.next_at <= now, free)


def _goes_by(ways: Collection[Way]) -> ColumnElement[bool]:
    target = func.lower(notifications_table.c.target)
    webhook = or_(target.like("http://%"), target.like("https://%"))
    wanted = {"webhook": webhook, "apprise": ~webhook}
    return or_(false(), *(wanted[way] for way in ways))
