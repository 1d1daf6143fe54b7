"""A receiver of webhooks, as a process of its own, that fails as it is told to.

    python receiver.py PORT HEARD MANNERS

Answers each request by the next word of the file `MANNERS`: a status, `reset`, `hang` (no answer
for 30 s), or `slow` (200 after 0.2 s); after the last word 204. Writes each request to the file
`HEARD`, a JSON line when it came and one when it was answered. Prints its port.
"""

import base64
import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEARD, MANNERS = Path(sys.argv[2]), Path(sys.argv[3])
LOCK = threading.Lock()


def next_manner() -> str:
    """The word that the next request is answered by."""
    with LOCK:
        words = MANNERS.read_text().split()
        MANNERS.write_text(" ".join(words[1:]))
        return words[0] if words else "204"


def write(line: dict[str, object]) -> None:
    """A line of the log, on disk before the answer goes out."""
    with LOCK, HEARD.open("a") as file:
        file.write(json.dumps(line | {"at": time.monotonic()}) + "\n")


class Handler(BaseHTTPRequestHandler):
    """Hears POSTs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        manner = next_manner()
        heard = {
            "path": self.path,
            "manner": manner,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": base64.b64encode(body).decode(),
        }
        write({"when": "came", **heard})
        if manner == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            return
        if manner == "hang":
            time.sleep(30.0)
        if manner == "slow":
            time.sleep(0.2)
        write({"when": "answered", **heard})
        self.send_response(200 if manner in ("hang", "slow") else int(manner))
        if manner.startswith("3"):
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
