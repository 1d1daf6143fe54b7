"""What batches will not bring before the deadline is embedded at once, at the interactive price.

A batch that is not submitted leaves the queue and is embedded call by call. What each call brought
is on disk before the next one: a crash buys again no more than the call that was under way.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import median
from typing import Final

import numpy as np
import pyarrow as pa

from embatch.datasets.durable import write_whole
from embatch.errors import AlignmentError, InvalidRequestError
from embatch.journal.gates import DIRECT
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.providers.base import label_hash, wire_key
from embatch.runs.audit import CALLS
from embatch.runs.collect import finish_part
from embatch.runs.context import RunContext
from embatch.runs.cost import CALL_TEXTS, embed_now, price_of, was_billed
from embatch.runs.gathered import gathered
from embatch.runs.outcomes import Outcome
from embatch.runs.step import Step
from embatch.runs.verify import Join
from embatch.storage.places import Place, local_copy, remove_tree
from embatch.types.embedding import RowError
from embatch.types.results import Embedded, ResultBlock
from embatch.types.state import FINAL_RUN_STATES, BatchEvent, RunState

log = logging.getLogger("embatch.runs")

ROWS_PER_S: Final = 50.0
"""Pace of the interactive API that is counted on, so that there is time left for it."""
SLACK: Final = 1.1
"""Jobs are taken to need so many times what they needed of late."""


def is_late(context: RunContext) -> bool:
    """A batch that is sent now will not be back by the deadline, as far as can be told.

    Told by the jobs that ended, and by how long those under way have been: while none has ended,
    one more is taken to need at least as long as they have waited.
    """
    deadline = context.config.deadline
    if deadline is None or not context.provider.limits.billed:
        return False
    cap = context.config.max_cost_usd
    if cap is not None and sum(context.journal.ledger.committed(context.run_id)) >= cap:
        return False  # there is no money for calls
    now, outlook = context.now(), context.journal.batches.outlook(context.run_id)
    waited = [now - moment for moment in outlook.since]
    expected = max(
        median(outlook.durations) if outlook.durations else 0.0, median(waited) if waited else 0.0
    )
    return now + expected * SLACK + outlook.unsent_rows / ROWS_PER_S > deadline


def missed_deadline(journal: Journal, run: RunRecord, *, now: float) -> str | None:
    """What a deadline that has passed does to rows that are not sent yet, in one sentence; None
    where it does nothing."""
    deadline: float | None = run.config.get("deadline")
    free = run.space["provider"] == "local"
    if deadline is None or now <= deadline or free or run.state in FINAL_RUN_STATES:
        return None
    if run.state is not RunState.PLANNING and not journal.batches.outlook(run.id).unsent_rows:
        return None
    until = datetime.fromtimestamp(deadline).astimezone().strftime("%Y-%m-%d %H:%M")
    return (
        f"its deadline, {until}, has passed: what is not sent yet is bought at the interactive "
        "price; to have it in batches, type the run's command again with a later --deadline, or "
        "without"
    )


def send_directly(step: Step) -> bool:
    """Takes a batch that is not submitted out of the queue, to be embedded at once, when only
    that meets the deadline and the budget bears it. Gives whether it did."""
    context, batch = step.context, step.batch
    if not is_late(context):
        return False
    if not _affordable(step):
        log.info("batch %d will be late: the budget bears no interactive calls", batch.number)
        return False
    attempt = batch.attempt + (batch.input_ref is None)
    step.move(
        BatchEvent.SENT_DIRECTLY,
        attempt=attempt,
        label=DIRECT + step.label(attempt),
        remote_name=None,
        input_ref=None,
        submitted_at=context.now(),
        succeeded=0,
        failed=0,
    )
    context.checkpoint("direct.chosen")
    if batch.input_ref is not None:
        context.provider.discard(None, batch.input_ref)
    return True


def _affordable(step: Step) -> bool:
    """The cap bears the batch at once, and what is left besides it as batches."""
    context, batch = step.context, step.batch
    cap, price = context.config.max_cost_usd, price_of(context.space)
    if cap is None:
        return True
    if price is None:
        return False
    others = context.journal.batches.outlook(batch.run_id).unsent_bound - batch.tokens_bound
    wanted = price.of_calls(batch.tokens_bound) + price.of_batch(max(0, others))
    return sum(context.journal.ledger.committed(batch.run_id)) + wanted <= cap


def is_direct(step: Step) -> bool:
    """The batch is embedded at once: there is no job of it."""
    return (step.batch.label or "").startswith(DIRECT)


def collect_directly(step: Step) -> Outcome:
    """Embeds the batch call by call, and writes its part."""
    batch, context = step.batch, step.context
    stage, label = step.stage(), str(batch.label)
    with gathered(context.paths.scratch, step.token, batch.items, context.space.dims) as matrix:
        join = Join(label=label, items=batch.items, space=context.space, into=matrix)
        errors: dict[int, RowError] = {}
        calls = _Calls(step)
        done = 0
        for texts in _in_calls(stage.read()):
            step.check_lease()
            answer = calls.answer(done, texts)
            join.add(
                ResultBlock(
                    keys=[wire_key(label, done + place) for place in answer.places],
                    vectors=answer.embedded.vectors,
                    tokens=answer.embedded.tokens,
                    truncated=answer.embedded.truncated,
                    errors=[
                        (wire_key(label, done + place), error)
                        for place, error in answer.errors.items()
                    ],
                )
            )
            done += len(texts)
            step.note(succeeded=done)
        joined = join.finish()
        errors |= joined.errors
        truncated = joined.truncated.copy()
        truncated[list(errors)] = False
        counts = {
            "tokens": joined.tokens,
            "truncated": int(truncated.sum()),
            "repeated": joined.repeated,
        }
        context.checkpoint("direct.joined")
        outcome = finish_part(step, stage, joined.vectors, errors, counts)
    calls.forget()
    return outcome


def _in_calls(batches: Iterator[pa.RecordBatch]) -> Iterator[list[str]]:
    for batch in batches:
        texts = batch["text"].to_pylist()
        yield from (texts[start : start + CALL_TEXTS] for start in range(0, len(texts), CALL_TEXTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one call brought."""

    places: list[int]
    """Of the texts that have a vector, in the order of `embedded`."""
    embedded: Embedded
    errors: dict[int, RowError]
    """Of the other texts, by place."""

    @property
    def billed(self) -> int:
        """Texts that were paid for, as far as is known."""
        return len(self.places) + sum(map(was_billed, self.errors.values()))


class _Calls:
    """The calls of one batch, each kept on disk once it is answered."""

    def __init__(self, step: Step) -> None:
        self._step = step
        name = f"{step.batch.number:05d}-{label_hash(str(step.batch.label))}"
        self._folder = step.context.paths.work / "stage" / f"direct-{name}"
        self._used = 0
        """Texts that were paid for and whose answers are in hand."""

    def answer(self, start: int, texts: Sequence[str]) -> _Answer:
        """What a call for these texts brought, by this process or an earlier one."""
        path = self._folder / f"{start:09d}.npz"
        if path.exists():
            answer = _load(path)
            self._used += answer.billed
            return answer
        answer = self._ask(texts, tries=CALLS)
        self._step.context.checkpoint("direct.answered")
        _save(path, answer)
        self._step.context.checkpoint("direct.kept")
        return answer

    def _ask(self, texts: Sequence[str], *, tries: int = 1) -> _Answer:
        """One call; one that is refused, or whose answers are unsound in all its tries, is made in
        halves, until the texts at fault stand alone."""
        step = self._step
        for _ in range(tries):
            step.check_lease()
            try:
                embedded = embed_now(
                    step.context, texts, kind="direct", batch=step.batch, used=self._used
                )
            except InvalidRequestError as error:
                fault = RowError(code="refused", message=str(error))
                break
            except AlignmentError as error:
                fault = RowError(code="no_vector", message=str(error), transient=True)
            else:
                places = list(range(len(texts)))
                return self._noted(_Answer(places=places, embedded=embedded, errors={}))
        if len(texts) == 1:
            nothing = _nothing(step.context.space.dims)
            return self._noted(_Answer(places=[], embedded=nothing, errors={0: fault}))
        middle = len(texts) // 2
        return _joined(self._ask(texts[:middle]), self._ask(texts[middle:]), middle)

    def _noted(self, answer: _Answer) -> _Answer:
        self._used += answer.billed
        return answer

    def forget(self) -> None:
        """Removes what was kept: the part holds it."""
        remove_tree(self._folder)


def _nothing(dims: int) -> Embedded:
    return Embedded(
        vectors=np.empty((0, dims), dtype=np.float32),
        tokens=np.empty(0, dtype=np.int32),
        truncated=np.empty(0, dtype=np.bool_),
    )


def _joined(first: _Answer, second: _Answer, offset: int) -> _Answer:
    one, two = first.embedded, second.embedded
    return _Answer(
        places=first.places + [offset + place for place in second.places],
        embedded=Embedded(
            vectors=np.concatenate([one.vectors, two.vectors]),
            tokens=np.concatenate([one.tokens, two.tokens]),
            truncated=np.concatenate([one.truncated, two.truncated]),
        ),
        errors=first.errors | {offset + place: one for place, one in second.errors.items()},
    )


def _save(path: Place, answer: _Answer) -> None:
    errors = {str(place): asdict(error) for place, error in answer.errors.items()}
    with write_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            places=np.array(answer.places, dtype=np.int64),
            vectors=answer.embedded.vectors,
            tokens=answer.embedded.tokens,
            truncated=answer.embedded.truncated,
            errors=np.array(json.dumps(errors)),
        )


def _load(path: Place) -> _Answer:
    with local_copy(path) as file, np.load(file) as kept:
        return _Answer(
            places=kept["places"].tolist(),
            embedded=Embedded(
                vectors=np.ascontiguousarray(kept["vectors"]),
                tokens=kept["tokens"],
                truncated=kept["truncated"],
            ),
            errors={
                int(place): RowError(**error)
                for place, error in json.loads(str(kept["errors"])).items()
            },
        )
