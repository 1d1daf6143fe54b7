"""Which store is spoken to, with which credentials, and when without encryption."""

from pathlib import Path

import pytest

from embatch.config import StorageSettings
from embatch.errors import ConfigError
from embatch.storage.stores import cloud_storage

AWS = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that has no cloud's settings."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_the_environment_is_read_as_each_clouds_tools_read_it(tmp_path: Path) -> None:
    """The store's own variable before the common one."""
    settings = StorageSettings.from_environment(
        {
            "EMBATCH_CACHE": str(tmp_path),
            "EMBATCH_CACHE_MB": "3",
            "AWS_ENDPOINT_URL": "https://common.example",
            "AWS_ENDPOINT_URL_S3": "https://s3.example",
            "AWS_DEFAULT_REGION": "eu-west-3",
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
        }
    )
    assert settings == StorageSettings(
        cache=tmp_path,
        cache_bytes=3 << 20,
        s3_endpoint="https://s3.example",
        s3_region="eu-west-3",
        azure_account="account",
    )
    with pytest.raises(ConfigError, match="EMBATCH_CACHE_MB"):
        StorageSettings.from_environment({"EMBATCH_CACHE_MB": "much"})


def test_a_profile_gives_region_endpoint_and_keys(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `aws configure` writes it."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        "[profile lab]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:1\n"
        "aws_access_key_id = an-id\naws_secret_access_key = a-secret\n"
    )
    storage = cloud_storage(StorageSettings(cache=tmp_path))
    with pytest.raises(ConfigError, match="no AWS credentials for s3://lab"):
        storage.look_at("s3://lab/x")
    bare.setenv("AWS_PROFILE", "lab")
    from embatch.storage.stores import _open_s3

    store = _open_s3("lab", StorageSettings(cache=tmp_path))
    assert store.config["region"] == "eu-north-1"
    assert store.config["endpoint"] == "http://127.0.0.1:1"
    assert "a-secret" not in repr(store)
    bare.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        cloud_storage(StorageSettings(cache=tmp_path)).look_at("s3://lab/x")


@pytest.mark.parametrize(
    ("settings", "url", "variable"),
    [
        ({"s3_endpoint": "http://storage.example:9000", "s3_unsigned": True}, "s3://b/x", "AWS_"),
        ({"azure_account": "a", "azure_endpoint": "http://10.0.0.1/a"}, "az://c/x", "AZURE_"),
    ],
)
def test_plain_http_is_for_this_machine(
    bare: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, object], url: str, variable: str
) -> None:
    """Unless it is asked for."""
    bare.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    storage = cloud_storage(StorageSettings(cache=tmp_path, **settings))
    with pytest.raises(ConfigError, match=f"without encryption.*{variable}ALLOW_HTTP"):
        storage.look_at(url)


def test_azure_without_an_account_says_what_to_set(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variables of Azure's own tools."""
    _ = bare
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        cloud_storage(StorageSettings(cache=tmp_path)).look_at("az://container/x")
