"""The public surface: the same on both clients, documented, and free of the HTTP library."""

import inspect
from pathlib import Path

import pytest

from embatch.client import AsyncClient, Client

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "client.md"
CALLS = sorted(
    name for name, value in vars(Client).items() if callable(value) and not name.startswith("_")
)


def _arguments(kind: type, name: str) -> list[tuple[str, object, object]]:
    signature = inspect.signature(getattr(kind, name))
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize("name", [*CALLS, "__init__"])
def test_both_clients_take_the_same(name: str) -> None:
    """Same names, same arguments, same defaults."""
    assert _arguments(Client, name) == _arguments(AsyncClient, name)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_documented(name: str) -> None:
    """In the reference, and with a docstring on both."""
    assert f"`{name}(" in REFERENCE.read_text()
    assert inspect.getdoc(getattr(Client, name))
    assert inspect.getdoc(getattr(AsyncClient, name))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_type_of_the_http_library_is_public(kind: type) -> None:
    """No signature speaks of httpx2."""
    for name in [*CALLS, "__init__"]:
        assert "httpx" not in str(inspect.signature(getattr(kind, name)))
