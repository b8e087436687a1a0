"""Shards that several workers upload to S3 in parts: the bytes and receipts of whole shards, whatever is lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anabranch.cluster.leftovers import find_leftovers
from anabranch.engine.errors import InputError, IntegrityError, TemporaryError
from anabranch.engine.plan import Receipt
from anabranch.engine.storage import UnjoinableError
from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3_client import S3Client

from ..contract.range_contract import ATTRIBUTES
from ..contract.range_contract import write as write_range
from ..merging import merge
from ..parted_shards import METHODS, Writing, write
from .fault_proxy import FaultProxy, HttpFault, fault_proxy
from .s3_contract import PART, pattern
from .servers import Server, store_of

pytestmark = [pytest.mark.s3, pytest.mark.faults]

NAME = "model.safetensors"
COMPLETE = {"method": "POST", "target": r"uploadId="}
LIST_PARTS = {"method": "GET", "target": r"uploadId="}
ROWS = 6000
"""Of the large tensor: 25 MB, of which no range is below 5 MiB."""
numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy(moto: Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def client(moto: Server, proxy: FaultProxy) -> S3Client:
    return moto.client(endpoint=proxy.endpoint)


@pytest.fixture(scope="module")
def bucket(moto: Server, client: S3Client) -> str:
    return moto.bucket(client)


@pytest.fixture
def store(bucket: str, client: S3Client, proxy: FaultProxy) -> ObjectStore:
    proxy.script()
    return store_of(bucket, f"out{next(numbers)}", client)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By method; beside each, in `expected`, what one worker makes of it."""
    made = {}
    for name in ("cabs", "surveyed"):
        folder = tmp_path_factory.mktemp(name)
        made[name] = write(folder, METHODS[name], rows=ROWS)
        merge(made[name], folder / "expected")
    return made


def assert_same(store: ObjectStore, recipe: Path, receipt: Receipt) -> None:
    expected = recipe.parent / "expected"
    assert receipt.name == NAME
    for name in (NAME, f".anabranch/receipts/{NAME}.json", f".anabranch/receipts/{NAME}.parquet"):
        assert store.read_bytes(name) == (expected / name).read_bytes(), name
    assert store.attributes(NAME) == {"anabranch_plan": receipt.plan_id}


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("method", ["cabs", "surveyed"])
def test_parts_give_the_object_and_receipt_of_one_worker(
    store: ObjectStore, recipes: dict[str, Path], method: str, heads: int
) -> None:
    chance = random.Random(f"{method}{heads}")
    writing = Writing(recipes[method], store)
    cut = writing.cut_near([chance.random() for _ in range(6)])
    assert len(cut) > 2
    apart = set(chance.sample(range(1, len(cut)), min(heads, len(cut) - 1)))
    assert_same(store, recipes[method], writing.receipt(cut, apart))
    assert store.leftovers([NAME]) == ()


def test_twins_of_a_part_and_of_the_end(store: ObjectStore, recipes: dict[str, Path]) -> None:
    writing = Writing(recipes["cabs"], store)
    cut = writing.cut_near([0.4])
    first = writing.worker().make(cut[0], None)
    with ThreadPoolExecutor(2) as pool:
        twins = [pool.submit(writing.worker().make, cut[1], first) for _ in range(2)]
        last = [twin.result() for twin in twins]
        ends = [pool.submit(writing.worker().finish, [first, record]) for record in last]
        receipts = [end.result() for end in ends]
    assert receipts[0] == receipts[1]
    assert_same(store, recipes["cabs"], receipts[0])


def test_a_finisher_that_died_between_object_and_receipt(store: ObjectStore, recipes: dict[str, Path]) -> None:
    writing = Writing(recipes["cabs"], store)
    cut = writing.cut_near([0.5])
    records = [writing.worker().make(cut[0], None)]
    records.append(writing.worker().make(cut[1], records[0]))
    attributes = {"anabranch_plan": writing.plan.plan_id}
    store.complete(NAME, writing.token, writing.size, attributes)
    assert writing.output.receipt(0) is None
    assert_same(store, recipes["cabs"], writing.worker().finish(records))


def test_a_lost_answer_to_the_request_that_completes(
    store: ObjectStore, recipes: dict[str, Path], proxy: FaultProxy
) -> None:
    writing = Writing(recipes["cabs"], store)
    cut = writing.cut_near([0.5])
    proxy.script(HttpFault(**COMPLETE, lose_answer=True))
    assert_same(store, recipes["cabs"], writing.receipt(cut, set()))
    assert proxy.count("POST .*uploadId") == 1


def test_a_server_that_wants_equal_parts_gets_a_whole_shard(
    store: ObjectStore, recipes: dict[str, Path], proxy: FaultProxy
) -> None:
    writing = Writing(recipes["surveyed"], store)
    cut = writing.cut_near([0.5])
    proxy.script(HttpFault(**COMPLETE, times=3, status=400, code="InvalidPart"))
    assert_same(store, recipes["surveyed"], writing.receipt(cut, set()))
    assert proxy.count("POST .*uploadId") == 4
    (left,) = find_leftovers(store, 0.0)
    assert left.token == writing.token


def test_an_upload_that_was_abandoned_is_found_by_gc(store: ObjectStore, recipes: dict[str, Path]) -> None:
    writing = Writing(recipes["cabs"], store)
    cut = writing.cut_near([0.5])
    record = writing.worker().make(cut[0], None)
    (left,) = find_leftovers(store, 0.0)
    assert (left.name, left.token) == (NAME, writing.token)
    store.delete_leftover(left)
    assert find_leftovers(store, 0.0) == ()
    with pytest.raises((FileNotFoundError, TemporaryError)):  # moto answers 500
        writing.worker().make(cut[1], record)
    assert store.list() == []


def test_an_object_of_another_plan_gets_no_receipt(store: ObjectStore, recipes: dict[str, Path]) -> None:
    writing = Writing(recipes["cabs"], store)
    (cut,) = writing.cut_near([])
    record = writing.worker().make(cut, None)
    store.give_up(NAME, writing.token)
    store.replace(NAME, bytes(writing.size))
    with pytest.raises(FileNotFoundError, match="NoSuchUpload"):
        writing.worker().finish([record])
    assert writing.output.receipt(0) is None


def test_parts_on_ceph(ceph: Server, recipes: dict[str, Path]) -> None:
    store = ceph.store()
    writing = Writing(recipes["surveyed"], store)
    cut = writing.cut_near([0.3, 0.6])
    first = writing.worker().make(cut[0], None)
    with ThreadPoolExecutor(2) as pool:
        twins = [pool.submit(writing.worker().make, cut[1], first) for _ in range(2)]
        apart = pool.submit(writing.worker().make, cut[2], None)
        records = [first, twins[0].result(), apart.result()]
        assert twins[1].result().state == records[1].state
    assert_same(store, recipes["surveyed"], writing.worker().finish(records))
    assert store.leftovers([NAME]) == ()


def test_a_value_that_cannot_be_merged_makes_nothing_visible(store: ObjectStore, tmp_path: Path) -> None:
    writing = Writing(write(tmp_path, METHODS["cabs"], nan=True, rows=ROWS), store)
    with pytest.raises(InputError, match="NaN or Inf"):
        writing.receipt(writing.cut_near([0.5]), set())
    assert store.list() == []


# -- the request that completes --------------------------------------------------------------------------------------


DATA = pattern(2 * PART + 77)


@pytest.fixture
def token(store: ObjectStore) -> str:
    """Of an upload of which all parts are there."""
    token = store.begin("big", len(DATA), ATTRIBUTES, "r1")
    write_range(store, token, DATA, 0, PART + 5)
    write_range(store, token, DATA, PART + 5, len(DATA))
    return token


def complete(store: ObjectStore, token: str) -> None:
    store.complete("big", token, len(DATA), ATTRIBUTES)


def test_a_part_whose_etag_changed_after_the_list_is_listed_again(
    store: ObjectStore, token: str, proxy: FaultProxy
) -> None:
    proxy.script(HttpFault(**COMPLETE, times=2, status=400, code="InvalidPart"))
    complete(store, token)
    assert proxy.count("GET .*uploadId") == proxy.count("POST .*uploadId") == 3
    assert store.read_bytes("big") == DATA


@pytest.mark.parametrize("code", ["InvalidPart", "EntityTooSmall"])
def test_a_server_that_never_joins_the_parts_says_so(
    store: ObjectStore, token: str, proxy: FaultProxy, code: str
) -> None:
    proxy.script(HttpFault(**COMPLETE, times=1000, status=400, code=code))
    with pytest.raises(UnjoinableError, match=code):
        complete(store, token)
    assert store.list() == []


def test_without_the_right_to_list_parts_they_cannot_be_joined(
    store: ObjectStore, token: str, proxy: FaultProxy
) -> None:
    proxy.script(HttpFault(**LIST_PARTS, times=1000, status=403, code="AccessDenied"))
    with pytest.raises(UnjoinableError, match="AccessDenied"):
        complete(store, token)


@pytest.mark.parametrize("target", [COMPLETE, LIST_PARTS])
@pytest.mark.parametrize("misfortune", [{"reset": True}, {"lose_answer": True}, {"status": 503, "code": "SlowDown"}])
def test_losses_on_the_way_are_survived(
    store: ObjectStore, token: str, proxy: FaultProxy, target: dict[str, str], misfortune: dict[str, object]
) -> None:
    proxy.script(HttpFault(**target, times=2, **misfortune))  # type: ignore[arg-type]
    complete(store, token)
    assert store.read_bytes("big") == DATA


def test_a_completion_that_stays_busy_leaves_the_upload_to_the_next_try(
    store: ObjectStore, token: str, proxy: FaultProxy
) -> None:
    proxy.script(HttpFault(**COMPLETE, times=1000, status=500, code="InternalError"))
    with pytest.raises(TemporaryError):
        complete(store, token)
    assert store.list() == []
    assert [left.token for left in store.leftovers(["big"])] == [token]
    proxy.script()
    complete(store, token)
    assert store.read_bytes("big") == DATA


def test_an_object_that_the_server_cut_short_is_noticed(store: ObjectStore, token: str, proxy: FaultProxy) -> None:
    proxy.script(HttpFault("HEAD", "/big", action=lambda: store.replace("big", b"1")))
    with pytest.raises(IntegrityError, match="the server holds 1 bytes"):
        complete(store, token)


@pytest.mark.parametrize(
    ("endpoint", "takes"),
    [
        ("https://0123.r2.cloudflarestorage.com", False),
        ("https://0123.eu.r2.cloudflarestorage.com", False),
        ("https://s3.eu-central-1.s4.mega.io", False),
        ("https://s3.eu-central-1.amazonaws.com", True),
        ("http://127.0.0.1:9000", True),
    ],
)
def test_servers_that_want_equal_parts_are_known_by_their_names(moto: Server, endpoint: str, takes: bool) -> None:
    assert store_of("b", "x", moto.client(endpoint=endpoint)).takes_ranges is takes
