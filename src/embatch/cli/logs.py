"""The log of a command: warnings by default, everything with `--log-format`."""

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType


class TextFormat(logging.Formatter):
    """`12:00:01 warning embatch.runs: what happened`, then where an error came from."""

    def __init__(self, *, frames: bool) -> None:
        super().__init__()
        self._frames = frames

    def format(self, record: logging.LogRecord) -> str:
        """One line; with `frames`, those of the record's error below it."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        kind, frames = _error_of(record)
        if kind is None:
            return line
        return f"{line}: {kind}\n{''.join(frames)}" if self._frames else f"{line}: {kind}"


class JsonFormat(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, of events their fields, and of
    errors kind and frames."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, on one line."""
        values: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        kind, frames = _error_of(record)
        if kind is not None:
            values |= {"error": kind, "frames": frames}
        return json.dumps(values, ensure_ascii=False)


def start_logging(log_format: str | None) -> str | None:
    """Sends the logger `embatch` to standard error; its option's callback."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormat() if log_format == "json" else TextFormat(frames=log_format is not None)
    )
    logger = logging.getLogger("embatch")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if log_format is None else logging.INFO)
    logger.propagate = False
    return log_format


def _error_of(record: logging.LogRecord) -> tuple[str | None, list[str]]:
    """The name of the record's error and where it came from.

    Its message is left out: that of a foreign error may hold a user's text.
    """
    if not record.exc_info or record.exc_info[0] is None:
        return None, []
    kind: type[BaseException] = record.exc_info[0]
    frames: TracebackType | None = record.exc_info[2]
    return kind.__name__, traceback.format_tb(frames)
