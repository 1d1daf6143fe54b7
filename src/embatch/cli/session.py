"""One command under way: where it writes, which journal it speaks to, and how it ends."""

import errno
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TextIO, cast

import typer
from rich.console import Console
from rich.markup import escape

from embatch.cli.exits import ExitCode, code_of_error
from embatch.config import prefer_plain_allocator
from embatch.errors import EmbatchError, JournalError

if TYPE_CHECKING:
    from embatch.environment import Environment
    from embatch.hooks import Hooks
    from embatch.journal.records import RunRecord


PIPE_WIDTH = 200
"""Columns of a table that is written to a file or another program."""
AGAIN_S = 1.0
"""Seconds between two tries to reach a journal that is away."""
_PADDING: Final = re.compile(r" +$", re.MULTILINE)


class Session:
    """What the commands share. Typer carries it as the context's object."""

    def __init__(self, hooks: "Hooks | None" = None) -> None:
        self.hooks = hooks
        self.journal: str | None = None
        self.as_json = False
        self.show_traceback = False

    @classmethod
    def of(
        cls, context: typer.Context, *, journal: str | None = None, as_json: bool = False
    ) -> "Session":
        """The session of a command, told what the command was told."""
        session: Session = context.obj
        session.journal, session.as_json = journal, as_json
        return session

    def run(self, app: Callable[..., Any], argv: Sequence[str] | None) -> int:
        """Runs a command line; every end of it becomes an exit code here."""
        prefer_plain_allocator()
        try:
            app(args=None if argv is None else list(argv), prog_name="embatch", obj=self)
        except SystemExit as end:
            return int(end.code or 0)
        except EmbatchError as error:
            return self._fail(error, str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                return ExitCode.FAILED
            where = f"{error.filename}: " if error.filename else ""
            return self._fail(error, f"{where}{error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - the outer edge: shown, and told by the exit code
            return self._fail(error, _defect(error))
        return ExitCode.DONE

    @cached_property
    def out(self) -> Console:
        """Standard output: results."""
        if sys.stdout.isatty():
            return Console(highlight=False)
        return Console(highlight=False, width=PIPE_WIDTH, file=cast(IO[str], _Trimmed(sys.stdout)))

    @cached_property
    def err(self) -> Console:
        """Standard error: progress, warnings and errors."""
        return Console(stderr=True, highlight=False)

    def say(self, text: str, style: str | None = None) -> None:
        """A line of result, as it is: no markup is read in it, no line is broken."""
        if not self.as_json:
            self.out.print(text, style=style, markup=False, soft_wrap=True)

    def note(self, text: str, style: str | None = None) -> None:
        """A line beside the result, on standard error; nothing with `--json` unless it is read."""
        if not self.as_json or self.err.is_terminal:
            self.err.print(text, style=style, markup=False, soft_wrap=True)

    def busy(self, words: str) -> AbstractContextManager[object]:
        """Says on a terminal what takes a moment, until it is over."""
        return self.err.status(words) if self.err.is_terminal else nullcontext()

    def emit(self, value: dict[str, Any]) -> None:
        """The one object that `--json` prints, last."""
        import orjson

        option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
        if self.out.is_terminal:
            option |= orjson.OPT_INDENT_2
        sys.stdout.write(orjson.dumps(value, default=str, option=option).decode())
        sys.stdout.flush()

    def environment(self, *, wait_s: float = 0.0) -> "Environment":
        """Opens the journal; close what comes back. One that is away is waited for so long."""
        from embatch.environment import Environment
        from embatch.process import give_memory_back

        give_memory_back()
        ends_at, told = time.monotonic() + wait_s, False
        while True:
            try:
                return Environment.open(journal=self.journal, hooks=self.hooks)
            except JournalError as error:
                if not error.transient or time.monotonic() >= ends_at:
                    raise
                if not told:
                    self.note(f"{error}: tried again for {wait_s:.0f} s", style="yellow")
                    told = True
                time.sleep(AGAIN_S)

    def _fail(self, error: BaseException, message: str) -> ExitCode:
        code = code_of_error(error)
        line = " ".join(message.split())
        self.err.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)
        if self.show_traceback:
            # Frames alone: the message of a foreign error may hold a user's text.
            frames = "".join(traceback.format_tb(error.__traceback__))
            self.err.print(f"{frames}{type(error).__name__}", markup=False, soft_wrap=True)
        if self.as_json:
            self.emit({"error": line, "error_code": type(error).__name__, "exit_code": int(code)})
        return code


class _Trimmed:
    """A stream that leaves out the spaces with which tables fill their lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        self._stream.write(_PADDING.sub("", text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()


def find_run(environment: "Environment", name: str | None) -> "RunRecord":
    """The run with this id, beginning of an id, name or output; None means the latest."""
    from embatch.runs import lookup

    return lookup.find_run(environment.journal, name)


def _defect(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return (
        f"{type(error).__name__}{place}: this is a defect of embatch; "
        "embatch --traceback COMMAND shows how it came about"
    )
