"""The environment, read in one place, under the names of Google's own tools."""

from embatch.config import CloudSettings, Secret


def test_first_key_wins() -> None:
    """GOOGLE_API_KEY outweighs GEMINI_API_KEY; blank ones do not count."""
    both = CloudSettings.from_environment({"GOOGLE_API_KEY": "a", "GEMINI_API_KEY": "b"})
    blank = CloudSettings.from_environment({"GOOGLE_API_KEY": " ", "GEMINI_API_KEY": "b"})
    assert both.api_key is not None
    assert both.api_key.reveal() == "a"
    assert blank.api_key is not None
    assert blank.api_key.reveal() == "b"


def test_vertex_is_asked_for_in_words() -> None:
    """1, true or yes, in any case."""
    for word, meant in (("true", True), ("TRUE", True), ("1", True), ("0", False), ("no", False)):
        found = CloudSettings.from_environment({"GOOGLE_GENAI_USE_VERTEXAI": word})
        assert found.use_vertex is meant


def test_empty_environment() -> None:
    """Nothing set is nothing known."""
    assert CloudSettings.from_environment({}) == CloudSettings()


def test_secrets_are_not_shown() -> None:
    """Neither alone nor inside settings."""
    settings = CloudSettings(api_key=Secret("canary"))
    assert "canary" not in f"{settings!r} {settings} {Secret('canary')} {Secret('canary')!r}"
