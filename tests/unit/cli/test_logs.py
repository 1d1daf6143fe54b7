"""The log never shows the message of a foreign error: it may hold a user's text."""

import json
import logging
import sys

import pytest

from embatch.cli.logs import JsonFormat, TextFormat, start_logging


def broken(message: str) -> logging.LogRecord:
    try:
        raise ValueError(message)
    except ValueError:
        return logging.LogRecord(
            "embatch.x", logging.ERROR, "f", 1, "run %s: a step broke", ("r1",), sys.exc_info()
        )


@pytest.mark.parametrize("form", [TextFormat(frames=True), TextFormat(frames=False), JsonFormat()])
def test_errors_are_named_without_their_message(form: logging.Formatter) -> None:
    """The class, and where it came from, but not what it said."""
    line = form.format(broken("words of a user"))
    assert "ValueError" in line
    assert "run r1: a step broke" in line
    assert "words of a user" not in line


def test_json_lines_are_objects() -> None:
    """One object a line, with frames apart."""
    values = json.loads(JsonFormat().format(broken("x")))
    assert values["level"] == "error"
    assert values["error"] == "ValueError"
    assert "broken" in values["frames"][0]


@pytest.mark.parametrize(
    ("log_format", "level"),
    [(None, logging.WARNING), ("text", logging.INFO), ("json", logging.INFO)],
)
def test_silence_by_default(log_format: str | None, level: int) -> None:
    """Warnings alone unless a format is asked for."""
    logger = logging.getLogger("embatch")
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        assert start_logging(log_format) == log_format
        assert (logger.level, len(logger.handlers)) == (level, 1)
    finally:
        logger.handlers, logger.level, logger.propagate = before
