"""Parts of shards in Google Cloud Storage are objects: what is lost, garbled, in the way or left over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.engine.errors import ResourceError, TemporaryError
from anabranch.engine.storage import PartedStore, UnjoinableError, gcs_ranges
from anabranch.engine.storage.gcs import checksum
from anabranch.engine.storage.gcs_ranges import MOST_SOURCES, part_key
from anabranch.engine.storage.object_store import ObjectStore

from ..contract.bucket_contract import pattern
from ..contract.range_contract import ATTRIBUTES
from ..contract.range_contract import write as write_range
from ..contract.store_contract import RUN_ID
from ..merging import merge
from ..parted_shards import METHODS, Writing, write
from ..s3.fault_proxy import FaultProxy, HttpFault, fault_proxy
from .servers import PART, GcsServer, store

pytestmark = pytest.mark.faults

NAME = "model.safetensors"
DATA = pattern(2 * PART + 77)
SEND = {"method": "POST", "target": "uploadType=multipart"}
LIST = {"method": "GET", "target": r"prefix=.*timeCreated|prefix=.*crc32c"}
COMPOSE = {"method": "POST", "target": "/compose"}
REMOVE = {"method": "DELETE", "target": "parts"}
numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy(gcs_parts: GcsServer) -> Iterator[FaultProxy]:
    with fault_proxy(gcs_parts.endpoint) as running:
        yield running


@pytest.fixture
def name(gcs_parts: GcsServer) -> str:
    """Of a fresh bucket."""
    return gcs_parts.create()


@pytest.fixture
def direct(gcs_parts: GcsServer, name: str) -> ObjectStore:
    return store(gcs_parts.bucket(name))


@pytest.fixture
def through(gcs_parts: GcsServer, name: str, proxy: FaultProxy) -> ObjectStore:
    """The same store, and what goes wrong on the way to it."""
    proxy.script()
    return store(gcs_parts.bucket(name, proxy.endpoint))


def uploaded(parted: PartedStore, data: bytes = DATA) -> str:
    """An upload in two ranges that waits to be completed."""
    token = parted.begin("big", len(data), ATTRIBUTES, RUN_ID)
    middle = len(data) // 2
    write_range(parted, token, data, 0, middle)
    write_range(parted, token, data, middle, len(data))
    return token


def complete(parted: PartedStore, token: str, data: bytes = DATA) -> None:
    parted.complete("big", token, len(data), ATTRIBUTES)


def objects(parted: ObjectStore) -> list[str]:
    """All keys of the bucket."""
    found = parted._client.run(parted._bucket._objects.items("", "name"))  # type: ignore[attr-defined]
    return [item["name"] for item in found]


def put(parted: ObjectStore, key: str, data: bytes = b"x") -> None:
    parted._client.run(parted._bucket.put(key, data, {}, exclusive=False))


# -- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misfortune", [{"reset": True}, {"lose_answer": True}, {"status": 503}])
@pytest.mark.parametrize("request_of", [SEND, LIST, COMPOSE, REMOVE], ids=["send", "list", "compose", "remove"])
def test_losses_at_every_step_are_survived(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy, request_of: dict[str, str], misfortune: dict[str, int]
) -> None:
    proxy.script(HttpFault(**request_of, times=2, **misfortune))  # type: ignore[arg-type]
    complete(through, uploaded(through))
    assert proxy.faults[0].seen >= 1
    assert direct.read_bytes("big") == DATA
    assert direct.attributes("big") == ATTRIBUTES
    assert objects(direct) == ["models/out/big"]


def test_a_lost_answer_of_the_request_that_composes_is_no_second_generation(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy
) -> None:
    token = uploaded(through)
    proxy.script(HttpFault(**COMPOSE, lose_answer=True))
    complete(through, token)
    assert proxy.count("POST .*compose") == 1
    version = direct.info("big").version
    complete(through, token)
    assert direct.info("big").version == version


def test_bytes_that_were_garbled_on_the_way_are_sent_again(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy
) -> None:
    proxy.script(HttpFault(**SEND, flip_sent=400_000))
    complete(through, uploaded(through))
    assert proxy.count("POST .*multipart") == 5
    assert direct.read_bytes("big") == DATA


def test_a_server_that_stays_busy_leaves_the_parts_to_the_next_try(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy
) -> None:
    token = uploaded(through)
    proxy.script(HttpFault(**COMPOSE, times=1000, status=503))
    with pytest.raises(TemporaryError):
        complete(through, token)
    assert direct.list() == []
    proxy.script()
    complete(through, token)
    assert direct.read_bytes("big") == DATA


def test_parts_that_cannot_be_removed_are_left_over(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy
) -> None:
    token = uploaded(through)
    proxy.script(HttpFault(**REMOVE, times=1000, status=403))
    complete(through, token)
    assert direct.read_bytes("big") == DATA
    (left,) = through.leftovers(["big"])
    with pytest.raises(ResourceError, match="rights"):
        through.delete_leftover(left)
    direct.delete_leftover(left)
    assert objects(direct) == ["models/out/big"]


# -- twins -----------------------------------------------------------------------------------------------------------


def test_a_twin_that_composes_at_the_same_time_is_not_undone(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy
) -> None:
    token = uploaded(through)
    versions: list[str] = []

    def twin() -> None:
        complete(direct, token)
        versions.append(direct.info("big").version)

    proxy.script(HttpFault(**COMPOSE, action=twin))
    complete(through, token)
    assert [direct.info("big").version] == versions
    assert objects(direct) == ["models/out/big"]


def test_a_part_that_is_sent_again_stays_the_first_one(direct: ObjectStore) -> None:
    token = uploaded(direct)
    keys = objects(direct)
    versions = [direct._client.run(direct._bucket.head(key)).version for key in keys]
    write_range(direct, token, DATA, 0, len(DATA) // 2)
    assert [direct._client.run(direct._bucket.head(key)).version for key in objects(direct)] == versions


def test_an_object_that_is_in_the_way_is_replaced(direct: ObjectStore) -> None:
    """Of the same plan, too: a shard that was found damaged is made again under its name."""
    writer = direct.writer("big", len(DATA), ATTRIBUTES, RUN_ID)
    writer.write(bytes(len(DATA)))
    writer.commit()
    complete(direct, uploaded(direct))
    assert direct.read_bytes("big") == DATA


def test_an_object_that_another_plan_put_there_meanwhile_is_not_touched(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy
) -> None:
    token = uploaded(through)
    proxy.script(HttpFault(**COMPOSE, action=lambda: direct.replace("big", b"theirs")))
    with pytest.raises(FileNotFoundError):
        complete(through, token)
    assert direct.read_bytes("big") == b"theirs"


# -- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "most"), [(MOST_SOURCES, MOST_SOURCES), (MOST_SOURCES + 1, MOST_SOURCES), (17, 4)])
def test_more_parts_than_one_request_composes(
    gcs_parts: GcsServer, monkeypatch: pytest.MonkeyPatch, count: int, most: int
) -> None:
    monkeypatch.setattr(gcs_ranges, "MOST_SOURCES", most)
    many = store(gcs_parts.bucket(part_bytes=100))
    data = pattern(100 * count)
    complete(many, uploaded(many, data), data)
    assert many.read_bytes("big") == data
    assert objects(many) == ["models/out/big"]


def test_a_part_that_is_not_what_was_sent_is_noticed(direct: ObjectStore) -> None:
    token = uploaded(direct)
    damaged = objects(direct)[1]
    size = direct._client.run(direct._bucket.head(damaged)).size
    put(direct, damaged, bytes(size))
    with pytest.raises(UnjoinableError, match=r"at byte \d+ is not what was sent"):
        complete(direct, token)
    assert direct.list() == []


def test_two_parts_of_one_place_are_noticed(direct: ObjectStore) -> None:
    token = uploaded(direct)
    put(direct, part_key("models/out/big", token, 0, checksum(b"other")), b"other")
    with pytest.raises(UnjoinableError, match="at byte"):
        complete(direct, token)


def test_parts_are_no_files_and_only_ours_are_left_over(direct: ObjectStore) -> None:
    tokens = [uploaded(direct), uploaded(direct)]
    foreign = ["models/out/.anabranch-parts/big/theirs", "models/out/.anabranch-parts/bigger/00000000/0"]
    for key in foreign:
        put(direct, key)
    assert direct.list() == []
    (left,) = direct.leftovers(["big", "bigger", "absent"])
    assert (left.name, left.size, left.age_seconds < 600) == ("big", 2 * len(DATA), True)
    assert direct.leftovers(["big"], older_than_seconds=3600) == ()
    direct.give_up("big", tokens[0])
    assert [found.size for found in direct.leftovers(["big"])] == [len(DATA)]
    for _ in range(2):
        direct.delete_leftover(left)
    assert objects(direct) == foreign


# -- shards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside it, in `expected`, what one worker makes of it."""
    folder = tmp_path_factory.mktemp("cabs")
    made = write(folder, METHODS["cabs"])
    merge(made, folder / "expected")
    return made


def test_a_server_that_does_not_compose_gets_a_whole_shard(
    direct: ObjectStore, through: ObjectStore, proxy: FaultProxy, recipe: Path
) -> None:
    writing = Writing(recipe, through)
    cut = writing.cut_near([0.5])
    proxy.script(HttpFault(**COMPOSE, times=1000, status=400))
    writing.receipt(cut, set())
    for name in (NAME, f".anabranch/receipts/{NAME}.json"):
        assert direct.read_bytes(name) == (recipe.parent / "expected" / name).read_bytes(), name


def test_parts_of_a_killed_run_are_found_by_gc_and_the_next_run_needs_none(direct: ObjectStore, recipe: Path) -> None:
    killed = Writing(recipe, direct)
    record = killed.worker().make(killed.cut_near([0.5])[0], None)
    (left,) = direct.leftovers([NAME])
    assert (left.name, left.size) == (NAME, killed.size_of(record.part))
    again = Writing(recipe, direct)
    again.receipt(again.cut_near([0.3]), set())
    assert direct.read_bytes(NAME) == (recipe.parent / "expected" / NAME).read_bytes()
    assert [found.size for found in direct.leftovers([NAME])] == [left.size]
    direct.delete_leftover(left)
    assert direct.leftovers([NAME]) == ()
    assert direct.list() == [NAME]
