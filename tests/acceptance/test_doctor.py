"""`embatch doctor` at the clouds, as a process: each thing has its line, and what to do."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from embatch.testing.cloud import CloudProcess, Fault

STAGING = "gs://bucket/staged"
GEMINI = ["credentials", "service", "clock", "access", "model", "batches", "vector"]
VERTEX = ["credentials", "service", "clock", "location", "access", "vector", "bucket"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    """One cloud for all; faults are lifted after each test."""
    with CloudProcess(state=tmp_path_factory.mktemp("cloud")) as process:
        yield process


@pytest.fixture(autouse=True)
def _calm(cloud: CloudProcess) -> Iterator[None]:
    yield
    cloud.clear_faults()


@cache
def private_key() -> str:
    """Of the service account that the fake cloud gives tokens to."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def account(folder: Path, token_url: str) -> str:
    """A service account's file."""
    path = folder / "account.json"
    values = {
        "type": "service_account",
        "project_id": "a-project",
        "private_key_id": "1",
        "private_key": private_key(),
        "client_email": "robot@a-project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_url,
    }
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture
def doctor(shell, cloud: CloudProcess) -> Callable[..., Any]:
    """Types `doctor --provider ON`; keywords change the environment, None takes a variable out."""

    def type_it(on: str, *flags: str, **changed: str | None) -> Any:
        if on == "gemini":
            variables = {
                "GOOGLE_API_KEY": cloud.api_key,
                "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
            }
        else:
            variables = {
                "GOOGLE_APPLICATION_CREDENTIALS": account(shell.folder, cloud.token_url),
                "GOOGLE_CLOUD_PROJECT": "a-project",
                "GOOGLE_CLOUD_LOCATION": "us-central1",
                "GOOGLE_VERTEX_BASE_URL": cloud.vertex_url,
                "STORAGE_EMULATOR_HOST": cloud.storage_url,
                "EMBATCH_STAGING": STAGING,
            }
        shell.variables.clear()
        asked = variables | changed
        shell.variables.update({name: value for name, value in asked.items() if value is not None})
        ended = shell.type("doctor", "--provider", on, *flags, real=True)
        assert cloud.api_key not in ended.out + ended.err
        assert "PRIVATE" not in ended.out + ended.err
        assert "Traceback" not in ended.err
        return ended

    return type_it


def wells(ended: Any) -> dict[str, bool | None]:
    """What was looked at, and whether it is well."""
    return {one["what"]: one["well"] for one in ended.json["findings"]}


def detail(ended: Any, what: str) -> str:
    found: str = next(one["detail"] for one in ended.json["findings"] if one["what"] == what)
    return found


def amiss(ended: Any) -> list[str]:
    """What is not well; the command must say so by its exit code."""
    found = [what for what, well in wells(ended).items() if well is False]
    assert ended.code == (1 if found else 0)
    assert ended.json["well"] is not found
    return found


@pytest.mark.parametrize(("on", "whats"), [("gemini", GEMINI), ("vertex", VERTEX)])
def test_all_is_well(doctor, cloud: CloudProcess, on: str, whats: list[str]) -> None:
    """Every look passes, one text is paid for, and nothing is left at the provider."""
    paid = cloud.bill().interactive_rows
    ended = doctor(on, "--dims", "256", "--json")
    assert ended.code == 0, ended.out
    assert list(wells(ended)) == ["python", *whats, "journal", "disk"]
    assert set(wells(ended).values()) == {True}
    assert cloud.bill().interactive_rows == paid + 1
    assert "256 dims" in detail(ended, "vector")
    assert cloud.jobs() == []


def test_the_staging_folder_is_left_as_it_was(doctor, cloud: CloudProcess) -> None:
    """What was written there is removed again."""
    doctor("vertex", "--json")
    bill = cloud.bill()
    assert bill.requests["storage.put"] == bill.requests["storage.delete"] > 0


def test_people_get_ticks(doctor) -> None:
    """A line each: a tick, a cross with what to do, a dash for what was not looked at."""
    well = doctor("gemini")
    assert well.code == 0
    assert "✓ vector" in well.out
    assert "✗" not in well.out
    ill = doctor("gemini", GOOGLE_API_KEY="not-the-key")
    lines = {line.split()[1]: line for line in ill.out.splitlines()}
    assert lines["access"].startswith("✗ access")
    assert "GOOGLE_API_KEY" in lines["access"]
    assert lines["vector"].startswith("· vector")
    assert "not-the-key" not in ill.out + ill.err


def test_no_key(doctor) -> None:
    """The variables are named; the rest is not looked at."""
    ended = doctor("gemini", "--json", GOOGLE_API_KEY=None, GOOGLE_GEMINI_BASE_URL=None)
    assert amiss(ended) == ["credentials"]
    assert "GEMINI_API_KEY" in detail(ended, "credentials")
    assert wells(ended)["vector"] is None
    assert wells(ended)["disk"] is True


def test_no_google_credentials(doctor) -> None:
    """Application default credentials that are not there: the command to type is named."""
    nothing = {"GOOGLE_APPLICATION_CREDENTIALS": None, "NO_GCE_CHECK": "true", "HOME": "/nowhere"}
    ended = doctor("vertex", "--json", **nothing)
    assert amiss(ended) == ["credentials"]
    assert "gcloud auth application-default login" in detail(ended, "credentials")


def test_credentials_that_the_service_refuses(doctor, cloud: CloudProcess) -> None:
    """401 for every call: access is amiss, and the bucket tells it too."""
    cloud.add_fault(Fault("unauthenticated", {"api": "vertex"}))
    ended = doctor("vertex", "--json")
    assert amiss(ended) == ["access"]
    assert "log in again" in detail(ended, "access")
    assert wells(ended)["vector"] is None
    assert wells(ended)["bucket"] is True


def test_a_key_without_the_right_to_batches(doctor, cloud: CloudProcess) -> None:
    """403 for the list of batches alone."""
    cloud.add_fault(Fault("server_error", {"route": "batches.list"}, args={"code": 403}))
    ended = doctor("gemini", "--json")
    assert amiss(ended) == ["batches"]
    assert "403" in detail(ended, "batches")


def test_an_unknown_model(doctor) -> None:
    """Its name is wrong: those that exist are listed, and the vector fails as a run's would."""
    ended = doctor("gemini", "--model", "gemini-embedding-7", "--json")
    assert amiss(ended) == ["model", "vector"]
    assert "gemini-embedding-001" in detail(ended, "model")


def test_dims_that_the_service_ignores(doctor, cloud: CloudProcess) -> None:
    """No harm: what came is told."""
    cloud.add_fault(Fault("dims_ignored"))
    ended = doctor("gemini", "--dims", "256", "--json")
    assert amiss(ended) == []
    assert "3072 values came and are cut here" in detail(ended, "vector")


def test_a_region_without_batches(doctor) -> None:
    """The regions that have them are listed."""
    ended = doctor("vertex", "--json", GOOGLE_CLOUD_LOCATION="europe-north1")
    assert amiss(ended) == ["location"]
    assert "us-central1" in detail(ended, "location")
    assert "GOOGLE_CLOUD_LOCATION" in detail(ended, "location")


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("storage.put", "cannot write to"),
        ("storage.delete", "cannot remove from"),
    ],
)
def test_a_bucket_without_a_right(doctor, cloud: CloudProcess, route: str, words: str) -> None:
    """403 at one of the steps: the step, the place and the role to grant are named."""
    cloud.add_fault(Fault("server_error", {"route": route}, args={"code": 403}))
    ended = doctor("vertex", "--json")
    assert amiss(ended) == ["bucket"]
    told = detail(ended, "bucket")
    assert told.startswith(words)
    assert STAGING in told
    assert "Storage Object Admin" in told


def test_no_staging_folder(doctor) -> None:
    """Batches on Vertex AI need one: both ways to name it are told."""
    ended = doctor("vertex", "--json", EMBATCH_STAGING=None)
    assert amiss(ended) == ["bucket"]
    assert "EMBATCH_STAGING" in detail(ended, "bucket")
    named = doctor("vertex", "--staging", STAGING, "--json", EMBATCH_STAGING=None)
    assert amiss(named) == []


def test_a_service_out_of_reach(doctor) -> None:
    """A wrong address: the host is named, and nothing behind it is looked at."""
    ended = doctor("gemini", "--json", GOOGLE_GEMINI_BASE_URL="http://127.0.0.1:9")
    assert amiss(ended) == ["service"]
    assert "127.0.0.1:9" in detail(ended, "service")
    assert wells(ended)["access"] is None


def test_an_unknown_provider(doctor) -> None:
    """It is a usage error."""
    assert doctor("clouds").code == 2
