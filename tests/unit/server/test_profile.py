"""What `--simulate` may ask for."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from embatch.cli import main
from embatch.errors import ConfigError
from embatch.server.simulation.presets import PRESETS
from embatch.server.simulation.profile import UNSUPPORTED, parse_fault, parse_profile
from embatch.testing.cloud.faults import FAULTS, FaultKind


def test_presets_are_combined_and_each_fault_has_an_id() -> None:
    """By commas and by several options; the same preset twice counts once."""
    profile = parse_profile(["shuffle,quota", "quota"], None)
    assert profile.names == ["shuffle", "quota"]
    assert [fault.id for fault in profile.faults] == ["shuffle-1", "quota-1", "quota-2"]
    assert profile.seed == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_fault_of_a_preset_is_valid(name: str) -> None:
    """It passes the checks that files pass."""
    for fault in PRESETS[name].faults:
        assert parse_fault(fault.to_json()) == fault


@pytest.mark.parametrize("kind", sorted(set(FaultKind) - UNSUPPORTED))
def test_every_kind_can_be_asked_for_with_its_defaults(kind: FaultKind) -> None:
    """The arguments as the fake cloud lists them."""
    assert parse_fault({"kind": kind, "args": FAULTS[kind].args}).kind == kind


def test_a_file_has_faults_and_a_seed(tmp_path: Path) -> None:
    """A list, or an object with the seed; `--seed` wins."""
    path = tmp_path / "day.json"
    path.write_bytes(orjson.dumps([{"kind": "shuffle"}, {"kind": "nan", "id": "mine"}]))
    assert [fault.id for fault in parse_profile([str(path)], None).faults] == ["day-1", "mine"]
    path.write_bytes(orjson.dumps({"seed": 7, "faults": [{"kind": "shuffle"}]}))
    assert parse_profile([str(path), "quota"], None).seed == 7
    assert parse_profile([str(path)], 9).seed == 9


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[", "no JSON"),
        (b"7", "a list of faults"),
        (b'{"faults": [], "times": 1}', "there is no times"),
        (b'{"faults": [], "seed": "x"}', "seed"),
        (b'{"faults": [], "seed": -1}', "from 0"),
        (b'["shuffle"]', "fault 1: an object"),
        (b'[{"kind": "shuffle"}, {}]', "fault 2: kind is required"),
        (b'[{"kind": "storm"}]', "no kind 'storm'"),
        (b'[{"kind": "job_partial"}]', "Vertex AI"),
        (b'[{"kind": "output_shards"}]', "Vertex AI"),
        (b'[{"kind": "shuffle", "when": 1}]', "nothing but"),
        (b'[{"kind": "shuffle", "times": 0}]', "times"),
        (b'[{"kind": "shuffle", "times": true}]', "times"),
        (b'[{"kind": "shuffle", "after": -1}]', "after"),
        (b'[{"kind": "shuffle", "probability": 2}]', "probability"),
        (b'[{"kind": "shuffle", "match": []}]', "match"),
        (b'[{"kind": "shuffle", "args": {"seconds": 1}}]', "no argument seconds"),
        (b'[{"kind": "delay", "args": {"seconds": "x"}}]', "seconds must be a number"),
        (b'[{"kind": "delay", "args": {"seconds": -1}}]', "negative"),
        (b'[{"kind": "delay", "args": {"after": 1}}]', "true or false"),
        (b'[{"kind": "server_error", "args": {"code": 418}}]', "500, 502, 503 or 504"),
        (b'[{"kind": "job_stuck", "args": {"state": "DONE"}}]', "PENDING, RUNNING"),
        (b'[{"kind": "missing_rows", "args": {"count": 1.5}}]', "whole number"),
        (b'[{"kind": "upload_drop", "args": {"every_bytes": 0}}]', "every_bytes"),
        (b'[{"kind": "nan", "id": "a"}, {"kind": "nan", "id": "a"}]', "stands twice"),
    ],
)
def test_a_bad_file_is_refused_by_what_is_wrong(tmp_path: Path, content: bytes, told: str) -> None:
    """Before the server starts, not at the first strike."""
    path = tmp_path / "day.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        parse_profile([str(path)], None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--simulate", "storm"], ["bad-day", "partial-cancel", "--simulate list"]),
        (["--simulate", "absent.json"], ["absent.json cannot be read"]),
        (["--simulate", "shuffle,"], ["no preset"]),
        (["--seed", "1"], ["--simulate"]),
        (["--simulate", "shuffle", "--seed", "-1"], ["--seed"]),
    ],
)
def test_bad_words_are_usage_errors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: list[str]
) -> None:
    """Exit 2, and the presets are told."""
    assert main(["serve", "--engine", "fake", "--port", "0", "--data", str(tmp_path), *words]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert all(word in said for word in told)


def test_the_presets_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    """One line each, without starting anything."""
    assert main(["serve", "--simulate", "list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)


def test_the_page_has_every_preset_and_what_is_not_supported() -> None:
    """docs/serve.md tells what `list` tells."""
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text()
    for name, preset in PRESETS.items():
        assert f"| `{name}` | {preset.sentence} |" in page
    assert all(f"`{kind}`" in page for kind in UNSUPPORTED)


def test_values_are_named_by_their_type_only(tmp_path: Path) -> None:
    """A wrong value of any JSON type is refused for every argument."""
    wrong: list[Any] = [{}, "x", [1], True, 1.5]
    for kind in set(FaultKind) - UNSUPPORTED:
        for name, default in FAULTS[kind].args.items():
            refused = 0
            for value in wrong:
                try:
                    parse_fault({"kind": kind, "args": {name: value}})
                except ConfigError:
                    refused += 1
            assert refused >= 3, (kind, name, default)
