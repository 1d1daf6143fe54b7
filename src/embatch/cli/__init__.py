"""The command `embatch`. Nothing heavy is imported before a command needs it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embatch.hooks import Hooks

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, *, hooks: "Hooks | None" = None) -> int:
    """Runs one command and gives its exit code. `hooks` is what tests put in place of things."""
    try:
        from embatch.cli.app import app
        from embatch.cli.session import Session

        return Session(hooks).run(app, argv)
    except KeyboardInterrupt:  # before the command could say what to do with it
        return 130
