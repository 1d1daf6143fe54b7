"""Every error that embatch raises, by what the caller can do about it.

EmbatchError
├── ConfigError                 set a variable, install a package, change a setting
├── InvalidRequestError         fix the call
├── InputError                  fix the data
│   └── DuplicateKeyError       two rows bear one key: name another key column
├── AuthenticationError         give a valid key or token
├── PermissionDeniedError       ask for the right
├── NotFoundError               name something that exists
├── RateLimitError              wait: `retry_after_s`, `per_day`
│   └── QuotaFullError          nothing was sent: the quota, as far as it is known, is in use
├── ProviderUnavailableError    try again later
├── BatchNotCompleteError       wait for the batch
├── BatchFailedError            look at the batch's error; submit again
├── BatchTimeoutError           wait longer: the batch `name` goes on
├── IndeterminateError          find out whether it happened: `label`
├── AlignmentError              results do not belong to these inputs
├── BudgetExceededError         raise the budget
├── SpaceMismatchError          vectors of two spaces must not meet
├── StorageError                the disk is full or refuses: free space, then start again
│   └── ChangedMeanwhileError   another process wrote the object in this instant
└── JournalError                the database of runs refused or broke
    ├── TransitionRefusedError  the row was not in the state expected
    └── LeaseLostError          someone else works on it now
"""


class EmbatchError(Exception):
    """Base of every error that embatch raises on purpose."""

    service_message: str | None = None
    """What the service said, word for word, when it said something. It may quote a user's text:
    it is no part of the message, and nothing of embatch logs it."""
    service_status: str | None = None
    """What the service calls it, like INVALID_ARGUMENT, when it said so."""

    def __reduce__(self) -> tuple[object, ...]:
        # Errors pass between processes, whatever their constructors ask for.
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(
    kind: type[EmbatchError], args: tuple[object, ...], facts: dict[str, object]
) -> EmbatchError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class ConfigError(EmbatchError):
    """A setting, variable, package or model is missing or wrong; the message says which."""


class InvalidRequestError(EmbatchError):
    """The call's arguments are wrong; the message says how to mend it."""


class InputError(EmbatchError):
    """The data cannot be read as asked; the message names the file, row, key or column."""


class DuplicateKeyError(InputError):
    """Two rows bear the same key; the message names the key and both rows."""


class AuthenticationError(EmbatchError):
    """The service does not accept the credentials."""


class PermissionDeniedError(EmbatchError):
    """The credentials are valid, but lack the right for this call or resource."""


class NotFoundError(EmbatchError):
    """No run, batch, file or model has this name."""


class RateLimitError(EmbatchError):
    """A quota is used up.

    `retry_after_s` is the wait in seconds that the service asked for, None when it said nothing.
    `per_day` is True when the quota turns with the day: waiting seconds will not help.
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, per_day: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.per_day = per_day

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, as the service asked; the spelling other clients know."""
        return self.retry_after_s


class QuotaFullError(RateLimitError):
    """Nothing was sent: what is in flight fills the quota, or a wait for it is not over."""


class ProviderUnavailableError(EmbatchError):
    """The service is down, overloaded or out of reach; the call is safe to repeat."""

    retry_after_s: float | None = None
    """Seconds to wait, where the service asked for a wait."""
    sent: bool = True
    """The service may have acted on the call. False where nothing of it left this machine."""


class BatchNotCompleteError(EmbatchError):
    """Results were asked for before the batch reached its end."""


class BatchFailedError(EmbatchError):
    """The batch ended without results."""


class BatchTimeoutError(EmbatchError):
    """Waiting ended before the batch did. The batch goes on under `name`."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class IndeterminateError(EmbatchError):
    """A call may or may not have taken effect. `label` is the display name to look for."""

    def __init__(self, message: str, *, label: str) -> None:
        super().__init__(message)
        self.label = label


class AlignmentError(EmbatchError):
    """Results do not match the inputs one to one: a key is unknown, foreign or doubled."""


class BudgetExceededError(EmbatchError):
    """Going on would cost more than the cap allows."""

    may_free: bool = False
    """What is under way may still cost less than it could: trying again later may help."""


class SpaceMismatchError(EmbatchError):
    """Vectors of different spaces were about to be mixed; the message names the difference."""


class StorageError(EmbatchError):
    """A file of the run cannot be written or read back: the disk is full, broken or refuses."""


class ChangedMeanwhileError(StorageError):
    """The object is not the one that a write was to replace, or is there already."""


class JournalError(EmbatchError):
    """The journal, the database of runs and batches, refused or broke."""

    transient: bool = False
    """The database could not be reached: the same call may succeed once it can."""


class TransitionRefusedError(JournalError):
    """A guarded update changed no row: the state or lease was not the one expected."""


class LeaseLostError(JournalError):
    """The lease of this step ran out or was taken over; its work must not be recorded."""


def error_named(name: str | None, message: str) -> EmbatchError:
    """The error of the class `name`, made anew from what a journal keeps of it.

    A plain EmbatchError for a name that is unknown, or whose class needs more than a message.
    """
    kind = globals().get(name or "")
    if (
        isinstance(kind, type)
        and issubclass(kind, EmbatchError)
        and kind.__init__ is EmbatchError.__init__
    ):
        return kind(message)
    return EmbatchError(message)
