"""docs/cli.md names every command and option, and no other."""

import re
from pathlib import Path

import pytest
import typer

from embatch.cli.app import app

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"
COMMANDS = typer.main.get_command(app).commands


def section(name: str) -> str:
    found = re.search(
        rf"^## embatch {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/cli.md has no section for embatch {name}"
    return found[1]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented(name: str) -> None:
    """Each option of each command has its line in the command's section."""
    wanted = {
        option
        for parameter in COMMANDS[name].params
        for option in parameter.opts
        if option.startswith("-") and option != "--help"
    }
    cells = re.findall(r"^\| (`-[^|]*)\|", section(name), re.MULTILINE)
    documented = {option for cell in cells for option in re.findall(r"`(-{1,2}[a-z-]+)", cell)}
    assert documented == wanted


def test_no_command_is_documented_that_does_not_exist() -> None:
    """The page's sections are the commands."""
    named = set(re.findall(r"^## embatch ([a-z]+)$", PAGE.read_text(), re.MULTILINE))
    assert named == set(COMMANDS)
