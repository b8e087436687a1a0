"""A shard that several workers write to a cloud in parts: the bytes and receipt of one worker."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..merging import merge
from ..parted_shards import METHODS, Writing, write
from .servers import AzureServer, GcsServer, store

pytestmark = pytest.mark.faults

NAME = "model.safetensors"


@pytest.fixture(params=["azure", "gcs_parts"])
def server(request: pytest.FixtureRequest) -> AzureServer | GcsServer:
    """Of each cloud, on the emulator that keeps its conditions."""
    made: AzureServer | GcsServer = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside it, in `expected`, what one worker makes of it."""
    folder = tmp_path_factory.mktemp("surveyed")
    made = write(folder, METHODS["surveyed"])
    merge(made, folder / "expected")
    return made


@pytest.mark.parametrize("heads", [0, 2])
def test_parts_give_the_object_and_receipt_of_one_worker(
    server: AzureServer | GcsServer, recipe: Path, heads: int
) -> None:
    chance, out = random.Random(heads), store(server.bucket(), f"out{heads}")
    writing = Writing(recipe, out)
    cut = writing.cut_near([chance.random() for _ in range(6)])
    assert len(cut) > 2
    receipt = writing.receipt(cut, set(chance.sample(range(1, len(cut)), heads)))
    assert receipt.name == NAME
    for name in (NAME, f".anabranch/receipts/{NAME}.json", f".anabranch/receipts/{NAME}.parquet"):
        assert out.read_bytes(name) == (recipe.parent / "expected" / name).read_bytes(), name
    assert out.leftovers([NAME]) == ()


def test_twins_of_a_part_and_of_the_end(server: AzureServer | GcsServer, recipe: Path) -> None:
    out = store(server.bucket(), "out")
    writing = Writing(recipe, out)
    cut = writing.cut_near([0.4])
    first = writing.worker().make(cut[0], None)
    with ThreadPoolExecutor(2) as pool:
        last = [each.result() for each in [pool.submit(writing.worker().make, cut[1], first) for _ in range(2)]]
        ends = [pool.submit(writing.worker().finish, [first, record]) for record in last]
        receipts = [end.result() for end in ends]
    assert receipts[0] == receipts[1]
    assert out.read_bytes(NAME) == (recipe.parent / "expected" / NAME).read_bytes()
    assert out.leftovers([NAME]) == ()
