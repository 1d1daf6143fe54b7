"""The control route: what a test asks of a cloud that runs as a process of its own."""

from collections.abc import Callable
from typing import Any, Final

from embatch.testing.cloud.answers import Answer, ApiError, Request, json_answer
from embatch.testing.cloud.bill import Bill
from embatch.testing.cloud.core import Core, Route, route
from embatch.testing.cloud.faults import Facts, Fault

CONTROL_PATH: Final = "/control/"
Ask = Callable[[str, Facts], Any]
"""Asks a verb with its arguments and gives the answer's plain values."""


class Controls:
    """The controls of a fake cloud, wherever it runs: in this process or in another."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def add_fault(self, fault: Fault) -> str:
        """Puts a fault in force and gives its id."""
        return str(self.ask("add_fault", fault.to_json()))

    def clear_faults(self, word: str | None = None) -> None:
        """Lifts all faults, those of a kind, or the one with an id."""
        self.ask("clear_faults", {"word": word})

    def faults(self) -> list[Facts]:
        """Faults in force, with how often each `matched` and `struck`."""
        return list(self.ask("faults", {}))

    def now(self) -> float:
        """The cloud's time, seconds since the epoch."""
        return float(self.ask("now", {}))

    def advance(self, seconds: float) -> None:
        """Moves the clock; on return every job that became due has ended."""
        self.ask("advance", {"seconds": seconds})

    def finish(self, name: str) -> None:
        """Brings a job to its end now, whatever the clock says."""
        self.ask("finish", {"name": name})

    def jobs(self) -> list[Facts]:
        """Every job with what the cloud knows of it, oldest first."""
        return list(self.ask("jobs", {}))

    def bill(self) -> Bill:
        """What was charged so far."""
        return Bill.from_json(self.ask("bill", {}))

    def times_billed(self, text: str, model: str | None = None) -> int:
        """How many batch rows were charged for a text, for one model or all."""
        return int(self.ask("times_billed", {"text": text, "model": model}))

    def rows_by_digest(self) -> dict[str, int]:
        """Batch rows charged by hex SHA-256 of the text."""
        return dict(self.ask("rows_by_digest", {}))

    def revoke_tokens(self) -> None:
        """Makes every token that `/token` issued run out."""
        self.ask("revoke_tokens", {})

    def prepare_batch(
        self, path: str, *, rows: int, display_name: str = "prepared", model: str | None = None
    ) -> str:
        """A finished batch whose result file is the file at `path`; gives its name.

        The file is not copied: it must stay where it is.
        """
        return str(
            self.ask(
                "prepare_batch",
                {"path": path, "rows": rows, "display_name": display_name, "model": model},
            )
        )

    def crashes(self) -> list[str]:
        """Tracebacks of failures of the cloud itself; empty when it is sound."""
        return list(self.ask("crashes", {}))


def control_route(verbs: dict[str, Callable[..., Any]]) -> Route:
    """The route that serves these verbs."""

    def serve(core: Core, request: Request) -> Answer:
        del core
        verb = verbs.get(request.names["verb"])
        if verb is None:
            raise ApiError(404, f"No control {request.names['verb']!r}.")
        try:
            return json_answer({"value": verb(**request.json())})
        except ApiError:
            raise
        except Exception as error:  # the asking test sees it
            raise ApiError(400, f"{type(error).__name__}: {error}") from error

    return route("POST", CONTROL_PATH + "{verb}", "control", serve, "control", keyless=True)
