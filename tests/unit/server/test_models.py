"""Models under all their names."""

import numpy as np
import pytest

from embatch.errors import ConfigError
from embatch.server.models import Catalogue, ContentEngine, open_catalogue
from embatch.testing import FakeEngine
from embatch.types.task import TaskType
from embatch.vectors import truncate


def test_empty_texts_are_left_out() -> None:
    """Their vectors are no numbers, the others are what the engine gives."""
    inner = FakeEngine(8)
    engine = ContentEngine(inner)
    made = engine.embed(["a", "", "b"], dims=4)
    assert np.isnan(made.vectors[1]).all()
    assert np.array_equal(made.vectors[[0, 2]], truncate(inner.expected(["a", "b"]), 4))
    assert made.tokens.tolist() == [3, 0, 3]
    assert np.isnan(engine.embed(["", ""]).vectors).all()
    assert (engine.texts, engine.tokens, inner.texts_embedded) == (2, 6, 2)


def test_default_names_stand_for_the_servers_model() -> None:
    """Names of the real service lead to the model at hand."""
    catalogue = Catalogue({"fake": FakeEngine(8)}, {})
    for name in ("fake", "gemini-embedding-001", "gemini-embedding-2", "gemini-embedding-2-preview",
                 "text-embedding-004"):  # fmt: skip
        assert catalogue.find(name) is catalogue.own
    assert catalogue.find("gemini-pro") is None


def test_an_alias_may_name_another_model() -> None:
    """It is opened once, however many aliases it has; the server's own is not opened again."""
    opened: list[str | None] = []

    def open_engine(model: str | None) -> FakeEngine:
        opened.append(model)
        return FakeEngine(8, model or "fake")

    aliases = {"gemini-embedding-2": "other", "mine": "fake", "theirs": "other"}
    catalogue = open_catalogue(None, aliases, open_engine)
    assert opened == [None, "other"]
    assert catalogue.find("mine") is catalogue.find("gemini-embedding-001") is catalogue.own
    other = catalogue.find("gemini-embedding-2")
    assert other is not None
    assert other is catalogue.find("theirs") is catalogue.find("other")
    assert other.key != catalogue.own.key
    assert catalogue.engine_for(other.key) is other.engine


def test_a_name_fits_into_a_url() -> None:
    """An alias that does not is refused, and what was opened is closed."""
    opened: list[FakeEngine] = []

    def open_engine(model: str | None) -> FakeEngine:
        opened.append(FakeEngine(8, model or "fake"))
        return opened[-1]

    with pytest.raises(ConfigError, match="a/b"):
        open_catalogue(None, {"a/b": "other"}, open_engine)
    assert [engine.closed for engine in opened] == [True, True]


def test_a_folder_is_called_by_its_last_part() -> None:
    """So that it fits into a URL."""
    catalogue = Catalogue({"/models/my model": FakeEngine(8, "/models/my model")}, {})
    assert catalogue.own.name == "my-model"


def test_prompts_go_before_texts_of_their_task() -> None:
    """Where the model has one; an empty text stays empty."""
    engine = FakeEngine(8, prompts={"retrieval_query": "query: "})
    own = Catalogue({"fake": engine}, {}).own
    assert own.prompted("a", TaskType.RETRIEVAL_QUERY) == "query: a"
    assert own.prompted("a", TaskType.CLUSTERING) == "a"
    assert own.prompted("", TaskType.RETRIEVAL_QUERY) == ""
