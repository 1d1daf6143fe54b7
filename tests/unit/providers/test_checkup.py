"""A look at a cloud tells what a run would meet there."""

import time
from collections.abc import Iterator

import pytest

from embatch.client.open import Auth
from embatch.config import CloudSettings, Secret
from embatch.errors import AlignmentError, ConfigError, NotFoundError, ProviderUnavailableError
from embatch.providers.checkup import MOST_SKEW_S, CloudCheckup
from embatch.testing.cloud import UNLISTED_MODEL, FakeCloud, Fault


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud() as fake:
        yield fake


@pytest.fixture
def look(cloud: FakeCloud) -> Iterator:
    """Makes checkups of the fake Gemini API; `ahead_s` is how far the local clock is off."""
    made: list[CloudCheckup] = []

    def make(*, ahead_s: float = 0.0, url: str | None = None, **asked) -> CloudCheckup:
        settings = CloudSettings(
            api_key=Secret(cloud.api_key), gemini_base_url=url or cloud.gemini_url
        )
        checkup = CloudCheckup(
            Auth.GEMINI, settings=settings, clock=lambda: time.time() + ahead_s, **asked
        )
        made.append(checkup)
        return checkup

    yield make
    for checkup in made:
        checkup.close()


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(3 * MOST_SKEW_S, "s ahead"), (-3 * MOST_SKEW_S, "s behind")]
)
def test_a_clock_that_is_wrong_is_told_with_its_side(look, ahead_s: float, words: str) -> None:
    """Three minutes off, against the Date of the service's answer."""
    checkup = look(ahead_s=ahead_s)
    checkup.credentials()
    checkup.service()
    with pytest.raises(ConfigError, match=words) as raised:
        checkup.clock()
    assert "NTP" in str(raised.value)
    assert "18" in str(raised.value) or "179" in str(raised.value)


def test_a_clock_that_is_right_passes(look) -> None:
    """The same machine's clock."""
    checkup = look()
    checkup.credentials()
    checkup.service()
    assert checkup.clock().startswith("within ")


def test_a_service_out_of_reach_is_named(look) -> None:
    """Nobody listens: the host is named, and what to look at."""
    checkup = look(url="http://127.0.0.1:9")
    checkup.credentials()
    with pytest.raises(ProviderUnavailableError, match=r"127\.0\.0\.1:9: .*check the network"):
        checkup.service()


def test_dims_that_the_service_ignored_are_told(look, cloud: FakeCloud) -> None:
    """What came is told beside what will be written."""
    cloud.add_fault(Fault("dims_ignored"))
    checkup = look(dims=256)
    checkup.credentials()
    told = checkup.vector()
    assert told.startswith("256 dims, ")
    assert "3072 values came and are cut here" in told


def test_dims_that_are_kept_say_nothing_of_it(look, cloud: FakeCloud) -> None:
    """Short vectors of the first model have not length 1, and a run brings them there."""
    checkup = look(dims=256)
    checkup.credentials()
    told = checkup.vector()
    assert "a run brings it to 1" in told
    assert "cut" not in told
    assert cloud.bill().interactive_rows == 1
    assert f"{cloud.bill().interactive_tokens} tokens" in told


def test_a_model_without_known_dims_tells_them(look) -> None:
    """A model that embatch has never heard of is looked at all the same."""
    checkup = look(model=UNLISTED_MODEL)
    checkup.credentials()
    checkup.model_access()
    assert "takes batches" in checkup.model()
    assert checkup.vector().startswith("1024 dims")


def test_a_model_with_other_dims_than_usual_says_what_to_give(look, monkeypatch) -> None:
    """A server of one's own may answer to a known name with a model of its own."""
    from embatch.testing.cloud import embeds

    monkeypatch.setattr(
        embeds,
        "write_vectors",
        lambda _seeds, _model, _dims: [f"[{','.join(['0.5'] * 384)}]".encode()],
    )
    checkup = look()
    checkup.credentials()
    with pytest.raises(ConfigError, match=r"gives 384 values here, not 3072: say --dims 384"):
        checkup.vector()


def test_a_model_that_does_not_exist_lists_those_that_do(look) -> None:
    """The names to choose from stand in the message."""
    checkup = look(model="gemini-embedding-7")
    checkup.credentials()
    checkup.model_access()
    with pytest.raises(NotFoundError, match=r"gemini-embedding-001, gemini-embedding-2, "):
        checkup.model()


def test_a_model_that_does_not_embed_lists_those_that_do(look) -> None:
    """A model for chats has other calls."""
    checkup = look(model="gemini-2.5-flash")
    checkup.credentials()
    checkup.model_access()
    with pytest.raises(ConfigError, match=r"no asyncBatchEmbedContent.*gemini-embedding-001"):
        checkup.model()


def test_a_vector_of_zeros_is_amiss(look, cloud: FakeCloud, monkeypatch) -> None:
    """A service that answers, but with nothing in it."""
    from embatch.testing.cloud import embeds

    monkeypatch.setattr(
        embeds,
        "write_vectors",
        lambda seeds, _model, dims: [f"[{','.join(['0'] * dims)}]".encode()],
    )
    checkup = look(dims=128)
    checkup.credentials()
    with pytest.raises(AlignmentError, match="zeros"):
        checkup.vector()
