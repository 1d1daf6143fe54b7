"""What a change of a batch's state says of what was bought for it."""

from typing import Final

from sqlalchemy import Connection

from embatch.journal.jobs import STUCK
from embatch.journal.ledger import reopen, settle, settle_unseen, void
from embatch.journal.purchases import Bought, audit_ref
from embatch.journal.records import BatchRecord
from embatch.types.state import BatchEvent, BatchState

_E, _S = BatchEvent, BatchState
_NEVER_MADE: Final = frozenset({_E.UPLOAD_REFUSED, _E.SUBMIT_REFUSED, _E.HELD_ABSENT})
"""Nothing came of the attempt."""
_GIVEN_UP: Final = frozenset({_E.INPUT_LOST, _E.GAVE_WAY, _E.SENT_DIRECTLY})
"""Nothing came of it either, where the job was not asked for yet."""
_ENDED: Final = frozenset({_E.JOB_FAILED, _E.JOB_EXPIRED, _E.JOB_CANCELLED})
_READ: Final = frozenset({_E.COLLECTED, _E.GAVE_WAY})
_OF_NO_USE: Final = frozenset({_E.MISALIGNED, _E.INPUT_LOST})
_NOT_SUBMITTED: Final = frozenset({_S.PLANNED, _S.UPLOADING, _S.UPLOADED})


def record_purchase(
    connection: Connection, before: BatchRecord, after: BatchRecord, event: BatchEvent, now: float
) -> None:
    """Settles, voids or opens the line of a batch's job as `event` asks, in the same transaction.

    A job that ended without results is billed nothing. One whose results cannot be used is
    settled by its estimate, unless the step has settled it better.
    """
    label = before.label
    if label is None:
        return
    if event is _E.TWIN_ADOPTED:
        if after.label != label:
            void(connection, label, now)
            void(connection, audit_ref(label), now)
        reopen(connection, str(after.label))
        return
    if event in _NEVER_MADE or (event in _GIVEN_UP and before.state in _NOT_SUBMITTED):
        void(connection, label, now)
    elif event in _ENDED and before.state is _S.SUBMITTED:
        if after.error_code == STUCK:
            void(connection, audit_ref(label), now)
            return  # the job goes on, and may cost what was reserved
        settle(connection, label, Bought(rows=0, tokens=0), now)
    elif event in _OF_NO_USE or (event in _ENDED | _READ and before.state is _S.READY):
        settle_unseen(connection, label, now)
    else:
        return
    void(connection, audit_ref(label), now)
