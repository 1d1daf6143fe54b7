"""Errors pass between processes whole."""

import pickle
from collections.abc import Iterator

import pytest

from embatch.errors import (
    BatchTimeoutError,
    EmbatchError,
    IndeterminateError,
    ProviderUnavailableError,
    RateLimitError,
)


def kinds(of: type[EmbatchError] = EmbatchError) -> Iterator[type[EmbatchError]]:
    """Every class of the tree."""
    yield of
    for below in of.__subclasses__():
        yield from kinds(below)


def passed(error: EmbatchError) -> EmbatchError:
    """What another process gets."""
    copy: EmbatchError = pickle.loads(pickle.dumps(error))
    return copy


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_class_and_message(kind: type[EmbatchError]) -> None:
    """Whatever its constructor asks for beside them."""
    more = {BatchTimeoutError: {"name": "batches/1"}, IndeterminateError: {"label": "a label"}}
    error = kind("what happened", **more.get(kind, {}))
    copy = passed(error)
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert vars(copy) == vars(error)


def test_what_an_error_knows_comes_with_it() -> None:
    """Waits, and what the service said."""
    limited = passed(RateLimitError("slow down", retry_after_s=3.5, per_day=True))
    assert isinstance(limited, RateLimitError)
    assert (limited.retry_after_s, limited.per_day) == (3.5, True)
    away = ProviderUnavailableError("later")
    away.retry_after_s = 7.0
    away.service_status = "UNAVAILABLE"
    copy = passed(away)
    assert isinstance(copy, ProviderUnavailableError)
    assert (copy.retry_after_s, copy.service_status) == (7.0, "UNAVAILABLE")
