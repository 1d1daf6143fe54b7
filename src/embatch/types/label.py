"""Labels: how a batch is found again, and which of its rows is which, by any process.

A label is the display name as it stands at the service. It is the user's name and a tag that no
other batch bears:

    nightly catalogue [embatch 5f0c9ab3d17e n=2000 d=768 k=9c1f02aa]

The tag holds a random number, how many rows were sent, the dimensions asked for and a digest of
the user's keys, so that a process that knows nothing but the batch's name reads its results into
the right places. Row `i` travels under the key `<hash of the label>:<i>`.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

LABEL_HASH_CHARS = 12
_TAG_BYTES = 6
_DIGEST_CHARS = 8
_LABEL = re.compile(
    r"(?P<name>.*) \[embatch (?P<tag>[0-9a-f]{12})"
    r"(?: n=(?P<rows>\d{1,12}))?(?: d=(?P<dims>\d{1,6}))?(?: k=(?P<keys>[0-9a-f]{8}))?\]",
    re.DOTALL,
)


def label_hash(label: str) -> str:
    """The short name of a label that goes before each wire key: 12 hex characters."""
    return hashlib.sha256(label.encode()).hexdigest()[:LABEL_HASH_CHARS]


def wire_key(label: str, index: int) -> str:
    """The key under which item `index` of the batch `label` travels."""
    return f"{label_hash(label)}:{index}"


def keys_digest(keys: Iterable[str]) -> str:
    """Eight hex characters that tell one list of keys from another."""
    digest = hashlib.sha256()
    for key in keys:
        data = key.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:_DIGEST_CHARS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A display name and the tag that makes it unique."""

    display_name: str
    """The name as the user gave it."""
    tag: str
    """Twelve random hex characters."""
    rows: int | None = None
    """Rows sent under our own keys; None when the file and its keys are the user's."""
    dims: int | None = None
    """Dimensions asked for; None for the model's default."""
    keys: str | None = None
    """`keys_digest` of the user's keys, None when there are none."""

    @classmethod
    def new(
        cls,
        display_name: str,
        *,
        rows: int | None = None,
        dims: int | None = None,
        keys: Iterable[str] | None = None,
    ) -> "Label":
        """A label that no other batch bears."""
        return cls(
            display_name=display_name,
            tag=secrets.token_hex(_TAG_BYTES),
            rows=rows,
            dims=dims,
            keys=None if keys is None else keys_digest(keys),
        )

    @classmethod
    def parse(cls, text: str) -> "Label | None":
        """The label that `text` spells; None when embatch did not write it."""
        found = _LABEL.fullmatch(text)
        if found is None:
            return None
        rows, dims = found["rows"], found["dims"]
        return cls(
            display_name=found["name"],
            tag=found["tag"],
            rows=None if rows is None else int(rows),
            dims=None if dims is None else int(dims),
            keys=found["keys"],
        )

    @property
    def text(self) -> str:
        """The label as the service keeps it."""
        fields = {"n": self.rows, "d": self.dims, "k": self.keys}
        told = "".join(f" {name}={value}" for name, value in fields.items() if value is not None)
        return f"{self.display_name} [embatch {self.tag}{told}]"
