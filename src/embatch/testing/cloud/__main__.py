"""The fake cloud as a process: `python -m embatch.testing.cloud --port 0 --state DIR`."""

import argparse
import signal
import sys
import threading
from pathlib import Path

import orjson

from embatch.testing.cloud.cloud import FakeCloud
from embatch.testing.cloud.core import CloudSettings
from embatch.testing.cloud.faults import Fault


def _arguments() -> argparse.Namespace:
    defaults = CloudSettings()
    parser = argparse.ArgumentParser(prog="python -m embatch.testing.cloud", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--state", type=Path, help="folder to keep and to go on from")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--faults", type=Path, help="JSON file with a list of faults")
    parser.add_argument("--job-duration", type=float, default=defaults.job_duration_s)
    parser.add_argument("--manual-clock", action="store_true", help="time stands until moved")
    parser.add_argument("--bytes-per-token", type=int, default=defaults.bytes_per_token)
    parser.add_argument("--api-key", default=defaults.api_key)
    return parser.parse_args()


def main() -> int:
    """Runs until SIGTERM or SIGINT; prints where it listens as one line of JSON."""
    asked = _arguments()
    listed = orjson.loads(asked.faults.read_bytes()) if asked.faults else []
    cloud = FakeCloud(
        faults=[Fault(**fault) for fault in listed],
        state=asked.state,
        port=asked.port,
        seed=asked.seed,
        job_duration_s=asked.job_duration,
        manual_clock=asked.manual_clock,
        bytes_per_token=asked.bytes_per_token,
        api_key=asked.api_key,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with cloud:
        where = {
            "url": cloud.url,
            "storage_url": cloud.storage_url,
            "api_key": cloud.api_key,
            "access_token": cloud.access_token,
        }
        sys.stdout.write(orjson.dumps(where).decode() + "\n")
        sys.stdout.flush()
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
