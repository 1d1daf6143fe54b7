"""What a simulated day remembers while it lasts: each start of the server begins a new one."""

import threading

from embatch.testing.cloud.store import Doc


class Counts:
    """Documents and counters in memory. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._docs: dict[tuple[str, str], Doc] = {}
        self._counts: dict[tuple[str, bytes], int] = {}
        self._seq = 0

    def all(self, kind: str) -> list[Doc]:
        """Every document of a kind, oldest first."""
        with self._lock:
            found = [doc for (of, _), doc in self._docs.items() if of == kind]
        return sorted(found, key=lambda doc: int(doc["seq"]))

    def get(self, kind: str, name: str) -> Doc | None:
        """The document, or None."""
        with self._lock:
            return self._docs.get((kind, name))

    def put(self, kind: str, name: str, body: Doc) -> None:
        """Writes a document; a new one gets the next sequence number under "seq"."""
        with self._lock:
            if "seq" not in body:
                self._seq += 1
                body["seq"] = self._seq
            self._docs[kind, name] = body

    def delete(self, kind: str, name: str) -> bool:
        """Removes the document; False when there was none."""
        with self._lock:
            return self._docs.pop((kind, name), None) is not None

    def count(self, what: str, digest: str) -> None:
        """Adds one to the counter of a text, known by its digest in hex."""
        key = what, bytes.fromhex(digest)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def count_of(self, what: str, digest: str) -> int:
        """One counter."""
        with self._lock:
            return self._counts.get((what, bytes.fromhex(digest)), 0)
