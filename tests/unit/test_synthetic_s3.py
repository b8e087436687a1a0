"""The S3 server of the large measurements: ranges of files that nobody stores, and digests of what it forgets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.storage.object_store import ObjectStore
from benchmarks.synthetic.objects import catalog, checkpoint_files
from benchmarks.synthetic.pool import Pool
from benchmarks.synthetic.server import BUCKET, REPORT, model_server
from benchmarks.synthetic.uploads import KEPT_BYTES, Refused, Upload

from ..merging import merge, write_recipe
from ..s3.s3_contract import S3Contract
from ..s3.servers import Server, store_of

FAMILY_BYTES = 1 << 16
SHARD_BYTES = 7_000_000


class Running(Server):
    """The server as a thread of this process."""

    def bucket(self, client: Any) -> str:
        del client
        return BUCKET

    def report(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.endpoint + REPORT) as answer:
            report: dict[str, Any] = json.load(answer)
        return report


@contextlib.contextmanager
def serving(size: str) -> Iterator[Running]:
    server = model_server(size, 2, shard_bytes=SHARD_BYTES, family_bytes=FAMILY_BYTES)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Running(server.endpoint, "any", "any")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving("small") as server:
        yield server


def store(running: Running, prefix: str) -> ObjectStore:
    return store_of(BUCKET, prefix, running.client())


class TestContract(S3Contract):
    """What every S3 server must give our store."""

    checks_credentials = False

    @pytest.fixture
    def server(self, running):
        return running


def test_files_have_the_same_bytes_in_any_ranges(running):
    inputs = store(running, "model-1")
    [name, *_] = [each for each in inputs.list() if each.startswith("model-00002")]
    info = inputs.info(name)
    whole = inputs.read_bytes(name, info.size)
    assert len(whole) == info.size > 3 * FAMILY_BYTES
    chance = random.Random(0)
    for _ in range(50):
        begin = chance.randrange(info.size)
        into = bytearray(chance.randrange(1, info.size - begin + 1))
        inputs.read_into(name, begin, memoryview(into), info.version)
        assert into == whole[begin : begin + len(into)]
    with pytest.raises(InputError, match="changed"):
        inputs.read_into(name, 0, memoryview(bytearray(8)), "another-version")


def test_the_same_seed_gives_the_same_files_and_another_gives_others():
    content = catalog("small")

    def digest(seed: int) -> str:
        pool = Pool(content.kinds, 2, seed, FAMILY_BYTES)
        found = hashlib.sha256()
        for name, file in checkpoint_files(content, 1, seed, SHARD_BYTES).items():
            found.update(f"{name} {file.version}".encode())
            for piece in file.pieces(pool, 0, file.size):
                found.update(piece if isinstance(piece, bytes) else pool.read(piece))
        pool.close()
        return found.hexdigest()

    assert digest(3) == digest(3)
    assert digest(3) != digest(4)


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled", "twice"])
def test_an_upload_has_the_digest_of_the_whole_in_any_order_of_parts(order):
    parts = [random.Random(number).randbytes(1000 + number) for number in range(1, 30)]
    numbers = list(range(1, 30))
    if order == "backward":
        numbers.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(numbers)
    elif order == "twice":
        numbers = [*numbers[::2], *numbers]
    upload = Upload("key", {})
    listed = {number: upload.add(number, memoryview(parts[number - 1])).version for number in numbers}
    assert upload.early_bytes == 0
    done = upload.finish(sorted(listed.items()))
    assert (done.size, done.sha256) == (sum(map(len, parts)), hashlib.sha256(b"".join(parts)).hexdigest())
    assert done.data == b"".join(parts)


def test_an_upload_refuses_other_bytes_for_a_part_that_is_hashed_and_a_list_that_lacks_one():
    upload = Upload("key", {})
    first, second = (upload.add(number, memoryview(b"abc")).version for number in (1, 2))
    with pytest.raises(Refused, match="InvalidPart"):
        upload.add(1, memoryview(b"abd"))
    for listed in ([(1, first)], [(1, first), (2, "other")], []):
        with pytest.raises(Refused, match="InvalidPart"):
            upload.finish(listed)
    with pytest.raises(Refused, match="InvalidPart"):
        upload.finish([(1, first), (2, second), (4, first)])


@pytest.mark.parametrize("numbers", [(1, 3, 4, 7), (7, 4, 1, 3), (3, 1, 7, 4, 4)])
def test_numbers_of_parts_may_have_gaps(numbers):
    upload, parts = Upload("key", {}), {number: bytes([number]) * 1000 for number in numbers}
    listed = {number: upload.add(number, memoryview(parts[number])).version for number in numbers}
    done = upload.finish(sorted(listed.items()))
    assert done.sha256 == hashlib.sha256(b"".join(parts[number] for number in sorted(parts))).hexdigest()


def test_large_objects_are_hashed_and_forgotten(running):
    data = random.Random(5).randbytes(KEPT_BYTES + 1)
    out = store(running, "forgotten")
    writer = out.writer("large", len(data), {"plan_id": "p"}, "run")
    writer.write(data)
    writer.commit()
    assert running.report()["objects"]["forgotten/large"] == {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert dict(out.attributes("large") or {}) == {"plan_id": "p"}
    with pytest.raises(Exception, match="Forgotten"):
        out.read_bytes("large", len(data))


@pytest.mark.parametrize(("size", "kind", "dtype"), [("tiny", "weight", "<u2"), ("405b-fp8", "fp8", "u1")])
def test_about_half_of_the_weights_of_a_fine_tune_are_those_of_the_base(size, kind, dtype):
    pool = Pool(catalog(size).kinds, 2, 0, FAMILY_BYTES)
    base, tuned = (
        np.frombuffer(b"".join(map(pool.read, pool.spans("x", kind, number, 0, FAMILY_BYTES))), dtype)
        for number in range(2)
    )
    pool.close()
    assert 0.35 < np.mean(base == tuned) < 0.6
    assert kind != "fp8" or not np.any((tuned & 0x7F) == 0x7F), "NaN"


@pytest.mark.parametrize("size", ["small", "small-fp8"])
def test_a_merge_from_and_to_the_server_has_the_bytes_of_one_of_the_same_files_on_the_disk(size, tmp_path):
    def recipe(name: str, root: str) -> Path:
        content = {
            "merge_method": "cabs",
            "base_model": f"{root}/base",
            "models": [{"model": f"{root}/model-{number}"} for number in (1, 2)],
            "parameters": {"density": {"tadrop": {"mean": 0.25}}},
            "output": {"shard_size": 9_000_000},  # more than a part of an upload
        }
        return write_recipe(tmp_path / name, content)

    with serving(size) as running:
        for folder in ("base", "model-1", "model-2"):
            (tmp_path / folder).mkdir()
            inputs = store(running, folder)
            for name in inputs.list():
                (tmp_path / folder / name).write_bytes(inputs.read_bytes(name, 1 << 30))
        remote = recipe("remote.yml", f"s3://{BUCKET}")
        command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(remote), f"s3://{BUCKET}/merged"]
        subprocess.run(command, check=True, env=os.environ | running.environment(), timeout=120, capture_output=True)
        objects = running.report()["objects"]
    merge(recipe("local.yml", str(tmp_path)), tmp_path / "expected")
    expected = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "expected").glob("model*")
    }
    assert len(expected) == 3, "two shards and their index"
    assert {name: objects[f"merged/{name}"]["sha256"] for name in expected} == expected
