"""Shards that workers of a real Ray cluster upload to Google Cloud Storage in parts: the bytes of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..cluster.conftest import Nodes
from ..killed_uploads import kill_an_uploading_worker
from ..parted_shards import LARGEST
from .servers import GcsServer, store

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def nodes(gcs_parts: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Each node finds the server by itself: Ray starts with this environment."""
    for name, value in gcs_parts.environment().items():
        monkeypatch.setenv(name, value)
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


def test_a_worker_that_is_killed_while_it_uploads_a_part_costs_that_part(
    gcs_parts: GcsServer, nodes: Nodes, tmp_path: Path
) -> None:
    out = store(gcs_parts.bucket(), "out")
    kill_an_uploading_worker(tmp_path, nodes, out, lambda: bool(out.leftovers([LARGEST])), 240)
