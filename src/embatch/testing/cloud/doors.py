"""Which faults strike at a call, before and after its effect, and what they answer. Pure."""

from dataclasses import dataclass, field

from embatch.testing.cloud.answers import Answer, ApiError
from embatch.testing.cloud.board import FaultBoard
from embatch.testing.cloud.faults import Facts, Fault, FaultKind
from embatch.testing.cloud.quota import rate_limit_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """What strikes a call before its effect, in this order."""

    wait_s: float = 0.0
    reset: bool = False
    """The connection breaks, and nothing happens."""
    error: ApiError | None = None
    """The answer, in place of any effect."""
    late: list[Fault] = field(default_factory=list)
    """Faults that strike after the effect."""


def strike_door(board: FaultBoard, facts: Facts) -> Struck:
    """Lets faults strike that stand between a call and its effect."""
    late: list[Fault] = []
    wait_s = 0.0
    for fault in board.strike_all([FaultKind.DELAY], facts):
        if fault.arg("after"):
            late.append(fault)
        else:
            wait_s += float(fault.arg("seconds"))
    if board.strike(FaultKind.RESET_BEFORE, facts):
        return Struck(wait_s=wait_s, reset=True)
    error = None
    if board.strike(FaultKind.UNAUTHENTICATED, facts):
        error = ApiError(401, "Request had invalid authentication credentials.")
    elif limited := board.strike(FaultKind.RATE_LIMITED, facts):
        error = rate_limit_error(limited, facts.get("model"))
    elif broken := board.strike(FaultKind.SERVER_ERROR, facts):
        if broken.arg("after"):
            late.append(broken)
        else:
            error = server_error(broken)
    return Struck(wait_s=wait_s, error=error, late=late)


def server_error(fault: Fault) -> ApiError:
    """The 5xx that a fault asks for."""
    code = int(fault.arg("code"))
    if fault.arg("html"):
        return _ProxyPageError(code)
    messages = {
        500: "An internal error has occurred. Please retry or report.",
        503: "The model is overloaded. Please try again later.",
        504: "The request timed out. Please try again.",
    }
    return ApiError(code, messages.get(code, "The service is not available."))


class _ProxyPageError(ApiError):
    """An error page of something that stands before the service."""

    def __init__(self, code: int) -> None:
        super().__init__(code, "")

    def answer(self) -> Answer:
        """The page."""
        page = f"<html><head><title>{self.code}</title></head><body>Server Error</body></html>"
        return Answer(self.code, {"Content-Type": "text/html; charset=UTF-8"}, [page.encode()])


def drop_within(board: FaultBoard, facts: Facts, at: int, size: int) -> tuple[Fault, int] | None:
    """The fault that breaks an upload within `size` bytes from `at` on, and the byte it does at."""
    for fault in board.peek(FaultKind.UPLOAD_DROP, facts):
        every = fault.arg("every_bytes")
        byte = (at // int(every) + 1) * int(every) if every else int(fault.arg("at_byte"))
        if at < byte <= at + size:
            struck = board.strike(FaultKind.UPLOAD_DROP, facts)
            if struck is not None:
                return struck, byte
    return None
