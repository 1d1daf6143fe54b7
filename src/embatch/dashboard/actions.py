"""What a person may do from a page: change the journal. The steps that follow are taken elsewhere.

Nothing here works on a run: a worker does, or whoever types `embatch resume RUN`. Cancelling and
resolving ask the provider, as the commands of these names do.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from embatch.api import Run
from embatch.config import Settings
from embatch.dashboard.events import ASKED
from embatch.dashboard.facts import ActionName, Choice, Offer
from embatch.dashboard.rows import title_of
from embatch.dashboard.views import ConfirmPage
from embatch.environment import Environment
from embatch.errors import EmbatchError, InvalidRequestError
from embatch.hooks import Hooks
from embatch.journal.purchases import dollars
from embatch.journal.records import BatchRecord, RunRecord
from embatch.journal.store import Journal
from embatch.runs.accounts import enough, set_cap
from embatch.runs.attendance import WORKING_STATES, attendance_of
from embatch.runs.end import retry_run
from embatch.runs.start import BLOCKED, RESUMABLE, wake_run
from embatch.runs.status import RunStatus
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunState

RUN_ACTIONS: Final[tuple[ActionName, ...]] = ("resume", "budget", "retry", "cancel")
BATCH_ACTIONS: Final[tuple[ActionName, ...]] = ("adopt", "absent")
RESOLVABLE: Final = (BatchState.SUBMITTING, BatchState.SUBMITTED, BatchState.READY)
_COMPLETE: Final = (RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES)
_MOST_NAME: Final = 500
"""Characters of a job's name that are read."""
_LABELS: Final[Mapping[ActionName, str]] = {
    "resume": "Resume",
    "budget": "Raise the budget",
    "retry": "Retry failed rows",
    "cancel": "Cancel",
    "adopt": "Its job is…",
    "absent": "Its job is gone",
}
_DANGEROUS: Final = ("cancel", "absent")


def offers_of_run(run: RunRecord, status: RunStatus) -> tuple[Offer, ...]:
    """What may be done to a run, each with why it may not be now."""
    return tuple(
        _offer(name, f"/runs/{run.id}/do/{name}", _refusal(name, run, failed=status.failed))
        for name in RUN_ACTIONS
    )


def offers_of_batch(run: RunRecord, batch: BatchRecord) -> tuple[Offer, ...]:
    """What may be done to a batch."""
    refusal = _refusal_of_batch(run, batch)
    base = f"/runs/{run.id}/batches/{batch.number}/do"
    return tuple(_offer(name, f"{base}/{name}", refusal) for name in BATCH_ACTIONS)


def _offer(name: ActionName, href: str, refusal: str | None) -> Offer:
    return Offer(
        name=name,
        label=_LABELS[name],
        href=href,
        allowed=refusal is None,
        why_not=refusal,
        danger=name in _DANGEROUS,
    )


def _refusal(name: ActionName, run: RunRecord, *, failed: int) -> str | None:
    """Why an action does not apply to a run as it stands; None when it does."""
    state = run.state.replace("_", " ")
    match name:
        case "cancel" if run.state in FINAL_RUN_STATES:
            return f"the run is {state}"
        case "resume" if run.state not in (*RESUMABLE, *BLOCKED):
            if run.state in FINAL_RUN_STATES:
                return f"the run is {state}"
            return "it is not stopped; where no process works on it, type: " + _resume(run)
        case "retry" if run.state is not RunState.COMPLETED_WITH_FAILURES or not failed:
            return "there are no failed rows of a run that has ended"
        case "budget" if run.state in _COMPLETE:
            return f"the run is {state}"
        case "budget" if run.config.get("max_cost_usd") is None:
            return "the run has no budget: it spends what it takes"
        case _:
            return None


def _refusal_of_batch(run: RunRecord, batch: BatchRecord) -> str | None:
    if run.state in _COMPLETE:
        return f"the run is {run.state.replace('_', ' ')}"
    if batch.state not in RESOLVABLE:
        return f"the batch is {batch.state}: no job of it is in doubt"
    if batch.state is not BatchState.SUBMITTING and batch.blocked_reason != "person":
        return "no job of it is in doubt"
    return None


def confirmation(
    journal: Journal,
    name: ActionName,
    run: RunRecord,
    batch: BatchRecord | None,
    *,
    now: float,
    error: str | None = None,
) -> ConfirmPage:
    """The page that asks. InvalidRequestError when the action does not apply."""
    _require_applies(journal, name, run, batch)
    base = f"/runs/{run.id}" + ("" if batch is None else f"/batches/{batch.number}")
    title = title_of(run.name, run.out)
    number = None if batch is None else batch.number
    said, button, fields = _asks(journal, name, run, number)
    return ConfirmPage(
        name=name,
        title=f"{_LABELS[name].rstrip('…')}: {title}" + ("" if number is None else f", {number}"),
        run=run.id,
        run_title=title,
        batch=number,
        action=f"{base}/do/{name}",
        back=base,
        words=said,
        who="" if name == "cancel" else who_goes_on(journal, run, now=now),
        button=button,
        danger=name in _DANGEROUS,
        fields=fields,
        error=error,
    )


def who_goes_on(journal: Journal, run: RunRecord, *, now: float) -> str:
    """Who takes the run's steps once the journal says that it goes on."""
    if run.config.get("execution") == "workers":
        return "The workers of this journal take the steps from there."
    if run.state in WORKING_STATES and attendance_of(journal, run, now=now).worked:
        return "The process that works on it takes the steps from there."
    return (
        "This page takes no steps: a process that works on the journal does. If none is "
        f"running, type: {_resume(run)}"
    )


def _asks(
    journal: Journal, name: ActionName, run: RunRecord, batch: int | None
) -> tuple[str, str, tuple[Choice, ...]]:
    """What will happen, the button's words, and what has to be filled in."""
    match name:
        case "cancel":
            return (
                "Nothing new is sent, and jobs at the provider are asked to stop; those that "
                "complete all the same are paid for. What is written stays, and the run can be "
                "resumed.",
                "Cancel the run",
                (),
            )
        case "resume":
            return "The run goes on where it stopped.", "Resume the run", ()
        case "retry":
            return (
                "The failed rows whose texts were kept are sent once more; they cost again what "
                "they cost before.",
                "Retry the rows",
                (),
            )
        case "budget":
            cap = float(run.config["max_cost_usd"])
            hint = f"US dollars; more than the {dollars(cap)} of now"
            field = Choice(
                name="usd", label="Budget", value=enough(journal, run), hint=hint, kind="number"
            )
            return "The run may spend up to the new budget.", "Raise the budget", (field,)
        case "adopt":
            hint = "as the provider calls it, like batches/123"
            field = Choice(name="name", label="Name of the job", value="", hint=hint)
            said = f"Batch {batch} goes on with that job, which must bear a label of this batch."
            return said, "Go on with this job", (field,)
        case "absent":
            return (
                f"The job of batch {batch} is held to be gone, and its rows are bought again. If "
                "it is there after all, its rows are paid for twice.",
                "It is gone: send its rows again",
                (),
            )


@dataclass(frozen=True, slots=True)
class Actor:
    """Does what was confirmed. Safe to use from several threads."""

    settings: Settings
    journal: Journal
    hooks: Hooks

    def act(
        self, name: ActionName, run: RunRecord, batch: BatchRecord | None, form: Mapping[str, str]
    ) -> str:
        """Does it, and gives a sentence of what was done. Raises EmbatchError when it cannot."""
        _require_applies(self.journal, name, run, batch)
        match name:
            case "cancel":
                return self._cancel(run)
            case "resume":
                self._note(run, name)
                wake_run(self.journal, run.id, now=self.hooks.clock())
                done = "The run is set going."
            case "retry":
                self._note(run, name)
                rows = retry_run(self.journal, run.id, now=self.hooks.clock())
                if not rows:
                    return "No text of a failed row was kept: there is nothing to try again."
                done = f"{rows:,} {'row is' if rows == 1 else 'rows are'} tried again."
            case "budget":
                done = self._raise_budget(run, form.get("usd", ""))
            case "adopt" | "absent":
                assert batch is not None  # noqa: S101 - _require_applies has refused it
                done = self._resolve(run, batch, form.get("name", "") if name == "adopt" else None)
        now = self.hooks.clock()
        return f"{done} {who_goes_on(self.journal, self.journal.get_run(run.id), now=now)}"

    def _cancel(self, run: RunRecord) -> str:
        self._note(run, "cancel")
        world = self._world()
        try:
            Run(world, run.id).cancel()
        except EmbatchError as error:
            if self.journal.get_run(run.id).state is not RunState.CANCELLED:
                raise
            return (
                "The run is cancelled, but its jobs at the provider could not be asked to stop "
                f"({error}); type: embatch cancel {run.id}"
            )
        finally:
            world.close_providers()
        return "The run is cancelled; what was written stays."

    def _raise_budget(self, run: RunRecord, typed: str) -> str:
        cap, usd = float(run.config["max_cost_usd"]), _number(typed)
        if usd is None or usd <= cap:
            raise InvalidRequestError(
                f"give US dollars, more than the {dollars(cap)} that the run may spend now"
            )
        self._note(run, "budget", usd=usd)
        now = self.hooks.clock()
        set_cap(self.journal, run.id, usd, now=now)
        if self.journal.get_run(run.id).state is RunState.OVER_BUDGET:
            wake_run(self.journal, run.id, now=now)
        else:
            self.journal.ledger.wake(run.id, now=now)
        return f"The run may spend up to {dollars(usd)}."

    def _resolve(self, run: RunRecord, batch: BatchRecord, adopt: str | None) -> str:
        if adopt is not None:
            adopt = adopt.strip()
            if not adopt or len(adopt) > _MOST_NAME or not adopt.isprintable():
                raise InvalidRequestError("give the name of the job, as the provider calls it")
        world = self._world()
        try:
            Run(world, run.id).resolve(batch.number, adopt=adopt)
        finally:
            world.close_providers()
        if adopt is None:
            self._note(run, "absent", batch)
            return f"The job of batch {batch.number} is held to be gone."
        self._note(run, "adopt", batch, adopted=adopt)
        return f"Batch {batch.number} goes on with {adopt}."

    def _note(
        self,
        run: RunRecord,
        action: ActionName,
        batch: BatchRecord | None = None,
        **facts: str | float,
    ) -> None:
        about = {} if batch is None else {"batch": batch.number}
        self.journal.add_event(
            run.id,
            ASKED,
            now=self.hooks.clock(),
            batch_id=None if batch is None else batch.id,
            data={"by": "dashboard", "action": action, **about, **facts},
        )

    def _world(self) -> Environment:
        """Providers of this action alone: they are closed with it, the journal is not."""
        return Environment(self.settings, self.journal, self.hooks)


def _require_applies(
    journal: Journal, name: ActionName, run: RunRecord, batch: BatchRecord | None
) -> None:
    if (batch is None) is (name in BATCH_ACTIONS):
        raise InvalidRequestError(f"{name} is not done to a {'run' if batch is None else 'batch'}")
    if batch is not None:
        refusal = _refusal_of_batch(run, batch)
    else:
        failed = sum(group.rows for group in journal.views.failures_by_code(run.id, examples=0))
        refusal = _refusal(name, run, failed=failed)
    if refusal is not None:
        raise InvalidRequestError(f"{_LABELS[name].rstrip('…')} does not apply: {refusal}")


def _number(typed: str) -> float | None:
    try:
        value = float(typed.strip().removeprefix("$"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _resume(run: RunRecord) -> str:
    return f"embatch resume {run.id}"
