"""README's section on the clouds works as it stands, against the fake cloud that it names."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[list[str]]:
    """The shell commands of the section, in order."""
    text = README.read_text()
    section = text[text.index("## On the clouds") : text.index("## Formats")]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def exported() -> dict[str, str]:
    """What the section sets for the fake cloud."""
    (line,) = [words for words in commands() if words[0] == "export" and "fake" in words[1]]
    return dict(word.split("=", 1) for word in line[1:])


@pytest.fixture
def fake_cloud(tmp_path: Path) -> Iterator[str]:
    """The fake cloud, started as the section says but on a free port; gives its address."""
    (line,) = [words for words in commands() if "embatch.testing.cloud" in words]
    assert line[0] == "python"
    assert line[-1] == "&"
    line[line.index("--port") + 1] = "0"
    process = subprocess.Popen(
        [sys.executable, *line[1:-1]], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        where = json.loads(process.stdout.readline())
        assert where["api_key"] == exported()["GOOGLE_API_KEY"]
        yield where["url"]
    finally:
        process.terminate()
        process.communicate()


def test_the_section_on_the_clouds_works(shell, fake_cloud: str) -> None:
    """doctor, plan, run and migrate, typed one after the other, each end with 0."""
    shell.variables.update(exported() | {"GOOGLE_GEMINI_BASE_URL": fake_cloud})
    rows = [{"id": f"animal-{n}", "text": f"An animal of the {n}th kind."} for n in range(300)]
    shell.write_rows("animals.jsonl", rows)
    typed = [words[1:] for words in commands() if words[0] == "embatch" and "vertex" not in words]
    assert [words[0] for words in typed] == ["doctor", "plan", "run", "migrate"]
    for words in typed:
        ended = shell.type(*words, real=True, stdin="y\n")
        assert ended.code == 0, (words, ended.out, ended.err)
    for out, model in (("cloud-vectors", "gemini-embedding-001"), ("new-vectors", None)):
        manifest = json.loads((shell.folder / out / "manifest.json").read_text())
        assert manifest["space"]["model"] == (model or "gemini-embedding-2")
        assert manifest["counts"]["written"] == len(rows)


def test_the_command_for_vertex_is_one_that_the_parser_takes(shell) -> None:
    """Without a login it ends at the credentials, not at a flag."""
    (words,) = [
        words[1:] for words in commands() if words[:2] == ["embatch", "run"] and "vertex" in words
    ]
    shell.variables.update(NO_GCE_CHECK="true", HOME="/nowhere")
    shell.write_rows("animals.jsonl", [{"id": "a", "text": "b"}])
    ended = shell.type(*words, real=True)
    assert ended.code == 2
    assert "gcloud auth application-default login" in ended.err
