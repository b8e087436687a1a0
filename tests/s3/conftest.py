from __future__ import annotations

import pytest

from .ceph import ceph_server, missing_programs
from .servers import Server, moto_server


@pytest.fixture(scope="session")
def moto(tmp_path_factory) -> Server:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory) -> Server:
    if missing := missing_programs():
        pytest.skip(f"{', '.join(missing)} not installed; `make setup-s3` installs Ceph's object gateway")
    with ceph_server(tmp_path_factory.mktemp("ceph")) as server:
        yield server
