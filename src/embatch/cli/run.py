"""Commands that make runs, and that work on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from embatch.cli import options
from embatch.cli.session import Session, find_run
from embatch.errors import InputError, InvalidRequestError, error_named
from embatch.types.state import IN_FLIGHT_BATCH_STATES, BatchState, RunState

if TYPE_CHECKING:
    from embatch.api import Run
    from embatch.environment import Environment
    from embatch.journal.records import BatchRecord
    from embatch.runs.status import RunStatus


def run(
    context: typer.Context,
    inputs: options.Inputs,
    out: options.Out,
    provider: options.Provider = None,
    model: options.Model = None,
    text: options.Text = None,
    key: options.Key = None,
    keep: options.Keep = None,
    dims: options.Dims = None,
    task_type: options.TaskType = None,
    precision: options.Precision = "auto",
    max_batch_items: options.MaxBatchItems = None,
    max_batch_tokens: options.MaxBatchTokens = None,
    max_cost: options.MaxCost = None,
    audit: options.Audit = "8",
    poll_interval: options.PollInterval = None,
    timeout: options.Timeout = None,
    deadline: options.Deadline = None,
    priority: options.Priority = None,
    reuse: options.Reuse = None,
    too_long: options.TooLong = "send",
    staging: options.Staging = None,
    settle: options.Settle = None,
    stuck_after: options.StuckAfter = "24h",
    no_probe: options.NoProbe = False,
    keep_remote: options.KeepRemote = False,
    alert_below: options.AlertBelow = 95.0,
    notify: options.Notify = None,
    name: options.Name = None,
    tag: options.Tags = None,
    journal: options.Journal = None,
    execution: options.Execution = "threads",
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    no_wait: options.NoWait = False,
    as_json: options.Json = False,
) -> None:
    """Embed a dataset into OUT; the same command again resumes it."""
    session = Session.of(context, journal=journal, as_json=as_json)
    tags = options.parse_tags(tag)
    with session.environment() as environment:
        handle = _submit(
            environment,
            inputs,
            out,
            provider=provider,
            model=options.absolute_model(model),
            text=text,
            key=key,
            keep=options.split_columns(keep),
            dims=dims,
            task_type=task_type,
            precision=precision,
            reuse=reuse,
            name=name,
            tags=tags,
            priority=priority,
            max_batch_items=max_batch_items,
            max_batch_tokens=max_batch_tokens,
            poll_interval_s=poll_interval,
            too_long=too_long,
            staging=staging,
            settle_s=settle,
            max_cost_usd=max_cost,
            audit=options.parse_audit(audit),
            deadline=options.parse_moment(deadline, "--deadline", now=environment.now()),
            stuck_after_s=options.parse_duration(stuck_after, "--stuck-after"),
            probe=not no_probe,
            keep_remote=keep_remote,
            alert_below_pct=alert_below,
            notify=notify,
            execution=execution,
        )
        if no_wait:
            submit_and_leave(session, environment, handle, timeout=timeout)
        else:
            work_on(session, environment, handle, timeout=timeout)


def plan(
    context: typer.Context,
    inputs: options.Inputs,
    provider: options.Provider = None,
    model: options.Model = None,
    text: options.Text = None,
    key: options.Key = None,
    keep: options.Keep = None,
    dims: options.Dims = None,
    task_type: options.TaskType = None,
    precision: options.Precision = "auto",
    max_batch_items: options.MaxBatchItems = None,
    max_batch_tokens: options.MaxBatchTokens = None,
    max_cost: options.MaxCost = None,
    audit: options.Audit = "8",
    poll_interval: options.PollInterval = None,  # noqa: ARG001 - taken: every flag of run is
    timeout: options.Timeout = None,  # noqa: ARG001
    deadline: options.Deadline = None,  # noqa: ARG001
    priority: options.Priority = None,  # noqa: ARG001
    reuse: options.Reuse = None,
    too_long: options.TooLong = "send",  # noqa: ARG001
    staging: options.Staging = None,  # noqa: ARG001
    settle: options.Settle = None,  # noqa: ARG001
    stuck_after: options.StuckAfter = "24h",  # noqa: ARG001
    no_probe: options.NoProbe = False,
    keep_remote: options.KeepRemote = False,  # noqa: ARG001
    alert_below: options.AlertBelow = 95.0,  # noqa: ARG001
    notify: options.Notify = None,  # noqa: ARG001
    name: options.Name = None,  # noqa: ARG001
    tag: options.Tags = None,
    out: options.OptionalOut = None,
    journal: options.Journal = None,
    execution: options.Execution = "threads",  # noqa: ARG001
    log_format: options.LogFormat = None,  # noqa: ARG001
    no_wait: options.NoWait = False,  # noqa: ARG001
    as_json: options.Json = False,
) -> None:
    """Quote a run: rows, tokens, batches, cost, time and space. Submits nothing.

    Takes every flag of run, so that a command line can be quoted before it is typed for good.
    """
    from embatch.cli.quote import print_quote, quote_inputs, room_at
    from embatch.storage.places import absolute

    session = Session.of(context, journal=journal, as_json=as_json)
    options.parse_tags(tag)
    quoted = quote_inputs(
        session,
        inputs,
        keep=options.split_columns(keep),
        provider=provider,
        model=options.absolute_model(model),
        text=text,
        key=key,
        dims=dims,
        task_type=task_type,
        precision=precision,
        max_batch_items=max_batch_items,
        max_batch_tokens=max_batch_tokens,
        reuse=None if reuse is None else absolute(reuse),
        max_cost_usd=max_cost,
        audit=options.parse_audit(audit),
        probe=not no_probe,
    )
    print_quote(session, quoted, free=room_at(out or "."), max_cost_usd=max_cost)


def resume(
    context: typer.Context,
    run: options.RunName,
    max_cost: options.MaxCost = None,
    timeout: options.Timeout = None,
    notify: options.Notify = None,
    journal: options.Journal = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: options.Json = False,
) -> None:
    """Go on with a run that was stopped, cancelled or failed, under another cap if it has one."""
    from embatch.api import Run

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        handle = Run(environment, find_run(environment, run).id)
        handle.resume(max_cost_usd=max_cost, notify=notify)
        work_on(session, environment, handle, timeout=timeout)


def retry(
    context: typer.Context,
    run: options.RunName,
    timeout: options.Timeout = None,
    no_wait: options.NoWait = False,
    journal: options.Journal = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: options.Json = False,
) -> None:
    """Send the failed rows of a finished run once more."""
    from embatch.api import Run

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        handle = Run(environment, find_run(environment, run).id)
        rows = handle.retry()
        if not rows:
            raise InvalidRequestError(
                f"run {handle.id} keeps no text that could be tried again: "
                f"embatch failures {handle.id} tells why its rows failed"
            )
        if no_wait:
            submit_and_leave(session, environment, handle, timeout=timeout)
        else:
            work_on(session, environment, handle, timeout=timeout)


def cancel(
    context: typer.Context,
    run: options.RunName,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Stop a run; what is written stays, and resume goes on with it."""
    from embatch.api import Run

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        status = Run(environment, find_run(environment, run).id).cancel()
    if session.as_json:
        session.emit(status.to_json())
    session.say(f"run {status.id} is cancelled; go on with: embatch resume {status.id}")


def work_on(
    session: Session, environment: "Environment", handle: "Run", *, timeout: float | None
) -> None:
    """Works on a run, reports its end and leaves with the exit code of it.

    A run that was refused for its data before anything was sent is taken back: nothing is left.
    """
    from embatch.cli.work import report, wait_for
    from embatch.cli.workers import warn_without_workers

    stood = handle.status().complete
    warn_without_workers(session, environment, handle.id)
    status, interrupted = wait_for(session, handle, timeout=timeout)
    _refuse(environment, status)
    by_workers = handle.by_workers
    raise typer.Exit(report(session, status, interrupted, stood=stood, by_workers=by_workers))


def submit_and_leave(
    session: Session, environment: "Environment", handle: "Run", *, timeout: float | None
) -> None:
    """Plans the run, sends what the provider takes at once, and says how to go on."""
    from embatch.cli.work import report, wait_for
    from embatch.cli.workers import leave_to_workers
    from embatch.runs.config import RunConfig

    if (stands := handle.status()).complete:
        raise typer.Exit(report(session, stands, None, stood=True))
    if environment.journal.get_run(handle.id).config.get("execution") == "workers":
        leave_to_workers(session, environment, stands)
        return
    config = RunConfig.from_json(environment.journal.get_run(handle.id).config)
    in_flight, now = environment.provider(config).limits.max_in_flight_batches, environment.now

    def sent(status: "RunStatus") -> bool:
        if status.state is RunState.PLANNING:
            return False
        flying = sum(status.batches.get(state.value, 0) for state in IN_FLIGHT_BATCH_STATES)
        if flying >= in_flight or (flying and environment.journal.leases.is_probing(handle.id)):
            return True
        walk = environment.journal.batches.walk(handle.id, states=_UNSENT)
        unsent = [batch for batch in walk if batch.kind == "embed"]
        held = _waits_for_quota(unsent, now()) or _waits_for_money(unsent, now())
        return not unsent or status.state is RunState.PARKED or held

    status, _ = wait_for(session, handle, timeout=timeout, enough=sent)
    _refuse(environment, status)
    if status.state is RunState.OVER_BUDGET:
        raise typer.Exit(report(session, status, None))
    if session.as_json:
        session.emit(status.to_json() | {"exit_code": 0})
    what = "is submitted"
    if environment.journal.leases.is_probing(handle.id):
        what = "has sent its probe, and sends the rest when that is right"
    session.say(f"run {status.id} {what}; work on it with: embatch resume {status.id}")
    session.say(f"or leave it to a worker (embatch worker), and look: embatch watch {status.id}")


def _waits_for_quota(unsent: "Sequence[BatchRecord]", now: float) -> bool:
    """All that may be uploaded is, and none of it may be created for a while.

    A batch that only waits for the create of another is sent in a moment: it does not count.
    """
    from embatch.runs.admission import AHEAD
    from embatch.runs.quota import TRIAL_LOOK_S

    uploaded = [batch for batch in unsent if batch.state is not BatchState.PLANNED]
    until = now + TRIAL_LOOK_S
    held = [
        batch for batch in uploaded if batch.blocked_reason == "quota" and batch.next_at > until
    ]
    full = len(held) >= AHEAD or len(uploaded) == len(unsent)
    return full and len(held) == len(uploaded)


def _waits_for_money(unsent: "Sequence[BatchRecord]", now: float) -> bool:
    """What is begun is sent, and the next batch finds no money before some of it has ended."""
    planned = [batch for batch in unsent if batch.state is BatchState.PLANNED]
    short = any(batch.blocked_reason == "budget" and batch.next_at > now for batch in planned)
    return short and len(planned) == len(unsent)


_UNSENT = (BatchState.PLANNED, BatchState.UPLOADING, BatchState.UPLOADED)


def _refuse(environment: "Environment", status: "RunStatus") -> None:
    """Takes a run back whose data was refused before any batch was made, and raises its error."""
    from embatch.runs.end import take_back

    if status.state is not RunState.FAILED or status.batches:
        return
    error = error_named(status.error_code, str(status.error))
    if isinstance(error, InputError):
        take_back(environment.journal, status.id)
        raise error


def _submit(environment: "Environment", inputs: Sequence[str], out: str, **settings: Any) -> "Run":
    from embatch.api import enter
    from embatch.storage.places import named

    return enter([named(name) for name in inputs], out, environment=environment, **settings)
