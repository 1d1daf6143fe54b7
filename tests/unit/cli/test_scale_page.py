"""The compose file and the units of docs/scale: their commands are ones that embatch takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from embatch.cli.app import app

PAGE = Path(__file__).parents[3] / "docs" / "scale"


def commands() -> list[list[str]]:
    services = yaml.safe_load((PAGE / "compose.yaml").read_text())["services"]
    found = [one["command"] for one in services.values() if isinstance(one["command"], list)]
    for unit in sorted(PAGE.glob("*.service")):
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        words = shlex.split(line)
        found.append(["embatch", *words[1:]])
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_worker_of_the_page_can_be_started(command: list[str]) -> None:
    """Its options are parsed by the command line itself."""
    program, name, *words = command
    assert program == "embatch"
    group = typer.main.get_command(app)
    found = group.get_command(None, name)  # type: ignore[attr-defined]
    context = found.make_context(name, list(words), resilient_parsing=False)
    assert context.params["concurrency"] >= 1
    assert set(context.params["queues"].split(",")) <= {"io", "compute"}


def test_both_kinds_of_work_have_their_workers() -> None:
    """The compose file and the units each serve both queues."""
    queues = [command[command.index("--queues") + 1] for command in commands()]
    assert sorted(queues) == ["compute", "compute", "io", "io"]
