from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .scratch import SCRATCH


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """What is durable when is tested elsewhere, by system calls: here only bytes count."""
    with tempfile.TemporaryDirectory(prefix="anabranch-", dir=SCRATCH) as folder:
        yield Path(folder)
