"""What is said of a cloud's URL before any server is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from anabranch.engine.errors import InputError, ResourceError
from anabranch.engine.storage import client_bytes
from anabranch.engine.storage.azure import shared_connection
from anabranch.engine.storage.opening import open_store

from .servers import ACCOUNT, ACCOUNT_KEY

VARIABLES = ("ACCOUNT_NAME", "ACCOUNT_KEY", "CONNECTION_STRING", "SAS_TOKEN", "CLIENT_ID", "ANON")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    shared_connection.cache_clear()


@pytest.mark.parametrize(
    ("url", "ours", "package", "extra"),
    [
        ("gs://bucket/x", ("gcs", "gcs_client"), "gcsfs.core", "gcs"),
        ("gcs://bucket/x", ("gcs", "gcs_client"), "gcsfs.core", "gcs"),
        ("az://container/x", ("azure",), "adlfs", "azure"),
        ("abfss://container/x", ("azure",), "adlfs", "azure"),
    ],
)
def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, ours: Sequence[str], package: str, extra: str
) -> None:
    for module in ours:
        monkeypatch.delitem(sys.modules, f"anabranch.engine.storage.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, package.partition(".")[0], None)
    with pytest.raises(ResourceError, match="package") as caught:
        open_store(url)
    assert f"pip install 'anabranch[{extra}]'" in caught.value.hint


@pytest.mark.parametrize("scheme", ["az", "abfs", "abfss"])
def test_no_account_is_missing_credentials_and_no_missing_package(scheme: str) -> None:
    with pytest.raises(ResourceError, match="credentials") as caught:
        open_store(f"{scheme}://container/x")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in caught.value.hint
    assert "pip" not in str(caught.value)


def test_a_key_file_that_is_not_there_is_missing_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch.engine.storage.gcs_client import GcsConnection

    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    with pytest.raises(ResourceError, match="credentials") as caught:
        GcsConnection(options={"token": "google_default"})
    assert "gcloud auth application-default login" in caught.value.hint


def test_urls_of_one_container_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "models")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
    for url in ("az://c/a/b", "abfs://c//a/b/", "ABFSS://c/a/b"):
        assert open_store(url).url == "az://c/a/b"
    named = "abfss://c@models.dfs.core.windows.net/a"
    assert open_store(named).url == named
    assert client_bytes([named]) == client_bytes(["az://c"])


def test_an_account_that_the_credentials_do_not_belong_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net",
    )
    with pytest.raises(ResourceError, match=f"of the account {ACCOUNT}, the URL names other"):
        open_store("abfss://c@other.dfs.core.windows.net/a")


@pytest.mark.parametrize(
    "url",
    ["az://user:secret@container/x", "abfss://c@secret.example.com/x", "gs://secret@bucket/x", "gs://b/x?k=secret"],
)
def test_urls_with_secrets_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
