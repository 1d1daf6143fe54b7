"""This process and others: who holds a lease and still lives, and what memory is kept."""

import ctypes
import os
import secrets
import socket
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = "/proc/self/ns/pid"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
_LARGE_BYTES = 4 << 20
"""At 1 MB, and with nothing kept, writing vectors takes a third more processor time: all pages of
a block are new each time."""
_KEPT_BYTES = 16 << 20
"""Free memory at the end of a heap that is not given back."""
_ARENAS = 2


def give_memory_back() -> None:
    """Has every large block go back to the system when it is freed, and threads share the rest.

    glibc raises its threshold to 32 MB as blocks are freed, and then keeps what threads let go of,
    for each thread apart: the peak then grows with how long a run goes on. For processes that are
    embatch's own; other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


@cache
def host_identity() -> str:
    """Names this host, this boot and this PID namespace: within one, a PID means one process."""
    try:
        boot = _BOOT_ID.read_text().strip()[:8]
        namespace = str(Path(_PID_NAMESPACE).readlink()).strip("pid:[]")
    except OSError:
        boot, namespace = "?", "?"
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _start_ticks(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def owner_identity() -> str:
    """`host/boot/namespace:pid:start:token`, a name that no other holder has ever had."""
    pid = os.getpid()
    return f"{host_identity()}:{pid}:{_start_ticks(pid) or '?'}:{secrets.token_hex(4)}"


def is_known_dead(owner: str) -> bool:
    """True when `owner` was a process of this host that has ended; False when it may live."""
    host, pid, start, _ = owner.rsplit(":", 3)
    if host != host_identity():
        return False
    if not Path("/proc/self/stat").exists():
        return not _pid_exists(int(pid))
    return _start_ticks(int(pid)) != start


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
