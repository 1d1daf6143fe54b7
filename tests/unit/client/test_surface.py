"""The public surface: the same on both clients, documented, and free of the HTTP library."""

import ast
import inspect
import re
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


PROMISED = {
    "async_batch_embed_contents": "texts, *, display_name, model='gemini-embedding-001', "
    "task_type=None, output_dimensionality=None, title=None, priority=0, keys=None",
    "get_batch_status": "name, *",
    "get_batch_embeddings": "batch, *",
    "await_batch_completion": "name, *, poll_interval=None, timeout=600, on_progress=None",
    "list_batches": "*",
    "cancel_batch": "name, *",
    "delete_batch": "name, *",
    "update_batch": "name, *, priority",
    "create_batch_from_file": "path, *, display_name",
    "upload_file": "path, *",
    "get_file": "name, *",
    "delete_file": "name, *",
    "download_file": "name, path, *",
    "embed_content": "text, *",
    "embed_contents": "texts, *",
    "count_tokens": "texts, *",
    "list_models": "*",
}
"""Names, order and defaults that users of other languages know; arguments by name may be added."""


@pytest.mark.parametrize("name", PROMISED)
def test_signatures_are_the_promised_ones(name: str) -> None:
    """Positional arguments exactly, named ones at least, each with its default."""
    positional, _, named = PROMISED[name].partition("*")
    found = _arguments(Client, name)[1:]
    assert [one for one, kind, _ in found if kind is not inspect.Parameter.KEYWORD_ONLY] == [
        part.strip() for part in positional.split(",") if part.strip()
    ]
    # A missing display_name is an error of embatch, not Python's TypeError.
    defaults = {one: default for one, _, default in found if one != "display_name"}
    for part in filter(None, (part.strip() for part in named.split(","))):
        argument, _, default = part.partition("=")
        expected = ast.literal_eval(default) if default else inspect.Parameter.empty
        assert defaults.get(argument, inspect.Parameter.empty) == expected
        assert argument in {one for one, _, _ in found}
    assert "auth" in {one for one, _, _ in found}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_documented(name: str) -> None:
    """In the reference, and with a docstring on both."""
    assert f"`{name}(" in REFERENCE.read_text()
    assert inspect.getdoc(getattr(Client, name))
    assert inspect.getdoc(getattr(AsyncClient, name))


def test_every_argument_is_documented() -> None:
    """Each argument of opening a client, and of every call, stands in the reference."""
    told = REFERENCE.read_text()
    for name in ("__init__", *CALLS):
        for argument, _, _ in _arguments(Client, name)[1:]:
            assert re.search(rf"\b{argument}\b", told), f"{name}({argument})"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_type_of_the_http_library_is_public(kind: type) -> None:
    """No signature speaks of httpx2."""
    for name in [*CALLS, "__init__"]:
        assert "httpx" not in str(inspect.signature(getattr(kind, name)))
