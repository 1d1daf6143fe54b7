"""`embatch` over a fake engine, as a process of its own.

    python fake_cli.py DELAY_S ARGUMENTS…

`DELAY_S` is how long each call of the engine takes. Texts that contain "poison" fail.
"""

import sys

from embatch.cli import main
from embatch.hooks import Hooks
from embatch.testing.engine import FakeEngine

DIMS = 16
POISON = "poison"


def hooks(delay_s: float) -> Hooks:
    """An engine per model name, so that two names are two spaces."""

    def open_engine(model: str | None, *, precision: str = "auto") -> FakeEngine:
        _ = precision
        return FakeEngine(
            dims=DIMS,
            model=model or "fake",
            poison=POISON,
            poison_error=ValueError,
            delay_s=delay_s,
        )

    return Hooks(open_engine=open_engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], hooks=hooks(float(sys.argv[1]))))
