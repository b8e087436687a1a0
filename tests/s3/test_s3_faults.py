"""Every fault of a store is survived or ends with the right kind of error, and nothing torn is visible."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from anabranch.engine.errors import InputError, ResourceError, TemporaryError
from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3_client import OTHER_ETAGS

from .fault_proxy import HttpFault, fault_proxy
from .s3_contract import PART, pattern
from .servers import bucket_of, free_port, quick_limits, quick_retry, store_of

pytestmark = [pytest.mark.s3, pytest.mark.faults]

MIB = 1 << 20
DATA_BYTES = 3 * MIB + 77
DATA = pattern(DATA_BYTES)
BUSY = [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable"), (429, "Throttling"), (502, "")]
COMPLETE = {"method": "POST", "target": r"uploadId="}
UPLOAD_PART = {"method": "PUT", "target": r"partNumber="}
numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy(moto):
    with fault_proxy(moto.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def clients(moto, proxy):
    """Without and with the proxy; both know already that this server compares no bodies, so they do not ask again."""
    both = moto.client(), moto.client(endpoint=proxy.endpoint)
    for client in both:
        upload(store_of(moto.bucket(client), "asked", client))
    return both


@pytest.fixture(scope="module")
def bucket(moto, clients):
    return moto.bucket(clients[0])


@pytest.fixture
def direct(bucket, clients):
    """The store without the proxy: what is really there."""
    return store_of(bucket, f"f{next(numbers)}", clients[0])


@pytest.fixture
def store(proxy, direct, clients):
    """The same store through the proxy."""
    proxy.script()
    return store_of(bucket_of(direct), direct._prefix.rstrip("/"), clients[1])


def through(moto, proxy, direct, **options) -> ObjectStore:
    return store_of(bucket_of(direct), direct._prefix.rstrip("/"), moto.client(endpoint=proxy.endpoint, **options))


def read(store, size=DATA_BYTES, offset=0, version=None) -> bytes:
    buffer = bytearray(size)
    store.read_into("x", offset, memoryview(buffer), version)
    return bytes(buffer)


def upload(store, data=None, name="big") -> None:
    data = pattern(2 * PART + 5) if data is None else data
    writer = store.writer(name, len(data), {"plan_id": "p"}, "run1")
    try:
        writer.write(data)
        writer.commit()
    finally:
        writer.discard()


@pytest.mark.parametrize(("status", "code"), BUSY)
def test_bursts_of_busy_answers_are_survived_by_every_request(store, direct, proxy, status, code):
    burst = {"times": 2, "status": status, "code": code}
    proxy.script(*(HttpFault(method, target, **burst) for method, target in (
        ("HEAD", ""), ("GET", "list-type"), ("GET", "/x"), ("PUT", "/x"), ("POST", "uploads"), ("PUT", "partNumber=1"),
        ("POST", "uploadId"), ("DELETE", ""), ("GET", "uploads"),
    )))  # fmt: skip
    store.replace("x", DATA)
    assert read(store, version=store.info("x").version) == DATA
    assert store.list() == ["x"]
    upload(store)
    assert direct.read_bytes("big") == pattern(2 * PART + 5)
    assert store.leftovers(["big"]) == ()
    store.delete("x")
    assert direct.list() == ["big"]
    assert all(fault.seen >= 2 for fault in proxy.faults)


def test_a_server_that_stays_busy_ends_in_a_temporary_error(store, direct, proxy):
    direct.replace("x", DATA)
    proxy.script(HttpFault(status=503, code="SlowDown", times=1000))
    for ask in (lambda: read(store, 10), lambda: store.info("x"), store.list, lambda: store.replace("y", b"1")):
        proxy.requests.clear()
        with pytest.raises(TemporaryError, match="503") as caught:
            ask()
        assert caught.value.exit_code == 75
        assert proxy.count("") == 5


def test_all_requests_share_one_retry_budget(moto, store, direct, proxy):
    direct.replace("x", DATA)
    tired = through(moto, proxy, direct, retry=quick_retry(attempts=4, retries=3))
    proxy.script(HttpFault("GET", status=503, code="SlowDown", times=1000))
    for expected in (4, 5, 6):
        with pytest.raises(TemporaryError):
            read(tired, 10)
        assert proxy.count("GET") == expected


@pytest.mark.parametrize(
    "misfortune",
    [
        {"cut_after": 0},
        {"cut_after": 100_000},
        {"stall_after": 100_000},
        {"bytes_per_second": 20_000},
        {"reset": True},
        {"lose_answer": True},
        {"edit": lambda headers: headers.update(Range="bytes=5-1048580")},
        {"edit": lambda headers: headers.update(Range="bytes=0-99")},
        {"edit": lambda headers: headers.pop("Range")},
    ],
    ids=["empty", "truncated", "stalled", "slow", "reset", "lost", "shifted", "short", "whole"],
)
def test_bad_bodies_are_asked_for_again(moto, store, direct, proxy, misfortune):
    data = pattern(4 * MIB)  # whole pieces: a short one may be over before a fault shows
    direct.replace("x", data)
    version = direct.info("x").version
    limits = quick_limits(idle_seconds=0.4, answer_seconds=1.0, slowest_bytes_per_second=10 * MIB)
    careful = through(moto, proxy, direct, limits=limits, retry=quick_retry(4))
    proxy.script(HttpFault("GET", "/x", times=2, **misfortune))
    started = time.monotonic()
    assert read(careful, len(data), version=version) == data
    assert 6 <= proxy.count("GET") <= 8
    proxy.script(HttpFault("GET", "/x", times=1000, **misfortune))
    with pytest.raises(TemporaryError, match=r"s3://.*/x"):
        read(careful, MIB, 0, version)
    assert time.monotonic() - started < 30


def test_nothing_writes_into_the_caller_s_memory_after_a_failed_read(moto, store, direct, proxy):
    direct.replace("x", DATA)
    proxy.script(
        HttpFault("GET", "/x", number=2, status=403, code="AccessDenied"),
        HttpFault("GET", "/x", times=1000, bytes_per_second=2_000_000),
    )
    buffer = bytearray(len(DATA))
    with pytest.raises(ResourceError):
        store.read_into("x", 0, memoryview(buffer))
    before = bytes(buffer)
    time.sleep(0.5)
    assert bytes(buffer) == before


def test_an_object_that_changes_between_reads_is_an_input_error(store, direct, proxy):
    direct.replace("x", DATA)
    version = store.info("x").version
    assert read(store, version=version) == DATA
    proxy.script(HttpFault("GET", "/x", number=2, action=lambda: direct.replace("x", DATA[::-1])))
    with pytest.raises(InputError, match="changed while in use"):
        read(store, version=version)


def test_a_change_is_seen_even_if_the_server_ignores_the_condition(store, direct, proxy):
    direct.replace("x", DATA)
    version = store.info("x").version
    direct.replace("x", DATA[::-1])
    proxy.script(HttpFault("GET", "/x", times=100, edit=lambda headers: headers.pop("If-Match")))
    with pytest.raises(InputError, match="changed while in use"):
        read(store, version=version)


def test_a_removed_object_is_not_found(store, direct, proxy):
    direct.replace("x", DATA)
    version = store.info("x").version
    direct.delete("x")
    with pytest.raises((FileNotFoundError, InputError)):
        read(store, version=version)
    assert proxy.count("GET") <= 4


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refusals_are_resource_errors_at_once(store, direct, proxy, code):
    proxy.script(HttpFault(status=403, code=code, times=1000))
    for ask in (lambda: read(store, 10), lambda: store.info("x"), store.list, lambda: store.create("y", b"1")):
        proxy.requests.clear()
        with pytest.raises(ResourceError) as caught:
            ask()
        assert caught.value.exit_code == 6
        assert proxy.count("") == 1
    with pytest.raises(ResourceError):
        upload(store)
    assert direct.list() == []


@pytest.mark.parametrize(
    ("status", "code"), [(400, "ExpiredToken"), (403, "ExpiredToken"), (400, "TokenRefreshRequired")]
)
def test_expired_credentials_are_renewed_once(store, direct, proxy, status, code):
    direct.replace("x", DATA)
    proxy.script(HttpFault(status=status, code=code))
    assert read(store, 100) == DATA[:100]
    proxy.script(HttpFault(status=status, code=code, times=1000))
    with pytest.raises(ResourceError, match="Renew the credentials") as caught:
        read(store, 100)
    assert proxy.count("") == 2
    assert "testsecret" not in str(caught.value)


def test_an_expired_token_on_a_bodyless_answer_is_renewed(store, direct, proxy):
    direct.replace("x", DATA)
    proxy.script(HttpFault("HEAD", status=400))
    assert store.info("x").size == len(DATA)


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "misfortune", [{"reset": True}, {"lose_answer": True}, {"status": 500, "code": "InternalError"}]
)
@pytest.mark.parametrize("request_of", [UPLOAD_PART, COMPLETE, {"method": "POST", "target": "uploads"}])
def test_uploads_survive_losses_at_every_step(store, direct, proxy, misfortune, request_of):
    proxy.script(HttpFault(**request_of, times=2, **misfortune))
    upload(store)
    assert direct.list() == ["big"]
    assert direct.read_bytes("big") == pattern(2 * PART + 5)


def test_a_lost_answer_to_completion_is_not_mistaken_for_failure(store, direct, proxy):
    proxy.script(HttpFault(**COMPLETE, lose_answer=True))
    upload(store)
    assert proxy.count("POST .*uploadId") == 2, "the second one is told that there is no such upload"
    assert direct.attributes("big") == {"plan_id": "p"}


def test_completion_that_answers_200_with_an_error_is_repeated(store, direct, proxy):
    error = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>late</Message></Error>"
    proxy.script(HttpFault(**COMPLETE, status=200, body=error))
    upload(store)
    assert proxy.count("POST .*uploadId") == 2
    assert direct.list() == ["big"]


def test_a_lost_answer_to_a_small_commit_is_repeated(store, direct, proxy):
    proxy.script(HttpFault("PUT", "/small", lose_answer=True))
    upload(store, b"123", "small")
    assert direct.read_bytes("small") == b"123"


def test_an_upload_that_fails_leaves_nothing_visible_and_is_aborted(store, direct, proxy):
    for fault in (
        HttpFault(**UPLOAD_PART, number=2, times=1000, status=503, code="SlowDown"),
        HttpFault(**UPLOAD_PART, number=3, times=1000, reset=True),
        HttpFault(**COMPLETE, times=1000, status=500, code="InternalError"),
    ):
        proxy.script(fault)
        with pytest.raises(TemporaryError):
            upload(store)
        assert direct.list() == []
        assert direct.leftovers(["big"]) == ()
        assert proxy.count("DELETE .*uploadId") == 1


@pytest.mark.parametrize(
    ("status", "code"), [(507, "InsufficientStorage"), (403, "QuotaExceeded"), (507, "XMinioStorageFull")]
)
def test_a_full_bucket_is_a_resource_error_at_once(store, direct, proxy, status, code):
    proxy.script(HttpFault(**UPLOAD_PART, number=2, times=1000, status=status, code=code))
    with pytest.raises(ResourceError, match="full"):
        upload(store)
    assert proxy.count("PUT .*partNumber") <= 3
    assert direct.list() == []
    assert direct.leftovers(["big"]) == ()


def test_what_cannot_be_aborted_is_found_and_removed_later(store, direct, proxy):
    proxy.script(
        HttpFault(**COMPLETE, times=1000, status=500, code="InternalError"),
        HttpFault("DELETE", times=1000, status=503, code="SlowDown"),
    )
    with pytest.raises(TemporaryError, match="InternalError"):
        upload(store)
    assert direct.list() == []
    (leftover,) = direct.leftovers(["big", "other"])
    direct.delete_leftover(leftover)
    assert direct.leftovers(["big"]) == ()


def test_parts_leave_while_later_bytes_are_still_written(store, proxy):
    writer = store.writer("big", 4 * PART, {}, "run1")
    writer.write(bytes(PART))
    deadline = time.monotonic() + 20
    while proxy.count("partNumber=1") == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proxy.count("partNumber=1") == 1
    assert store.list() == []
    writer.discard()


def test_only_a_few_parts_are_on_their_way(moto, store, direct, proxy):
    patient = through(moto, proxy, direct, limits=quick_limits(parts_in_flight=2))
    lock, both, on_their_way, most = threading.Lock(), threading.Event(), [0], [0]

    def slow():
        with lock:
            on_their_way[0] += 1
            most[0] = max(most[0], on_their_way[0])
            if most[0] >= 2:
                both.set()
        both.wait(10)
        time.sleep(0.1)
        with lock:
            on_their_way[0] -= 1

    proxy.script(HttpFault(**UPLOAD_PART, times=1000, action=slow))
    upload(patient, bytes(5 * PART))
    assert most == [2]


# -- exclusive creation ----------------------------------------------------------------------------------------------


def test_a_lost_answer_to_create_leaves_our_bytes_to_compare(store, direct, proxy):
    proxy.script(HttpFault("PUT", "/plan", lose_answer=True))
    store.create("plan", b"ours")
    assert direct.read_bytes("plan") == b"ours"
    assert proxy.count("PUT") == 2


def test_a_conflict_between_writers_is_repeated(store, direct, proxy):
    proxy.script(HttpFault("PUT", "/plan", status=409, code="ConditionalRequestConflict"))
    assert store.create("plan", b"ours")


def test_servers_without_conditional_writes_still_create(store, direct, proxy):
    refuse = {"status": 501, "code": "NotImplemented"}
    proxy.script(HttpFault("PUT", "/plan", **refuse))
    assert store.create("plan", b"ours")
    assert not store.create("plan", b"other")
    assert direct.read_bytes("plan") == b"ours"


def test_a_server_that_ignores_conditions_cannot_hide_an_overwritten_plan(store, direct, proxy):
    """Both look, both write; the one that is overwritten before it reads back is told."""
    proxy.script(
        HttpFault("PUT", "/plan", edit=lambda headers: headers.pop("If-None-Match")),
        HttpFault("GET", "/plan", action=lambda: direct.replace("plan", b"theirs")),
    )
    assert not store.create("plan", b"ours")
    assert direct.read_bytes("plan") == b"theirs"


# -- bits that flip on their way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_bit_that_flips_in_a_part_is_sent_again(store, direct, proxy, part):
    store.replace("first", b"known to answer with MD5")
    proxy.script(HttpFault(**UPLOAD_PART, number=part, flip_sent=3))
    upload(store)
    assert direct.read_bytes("big") == pattern(2 * PART + 5)
    assert proxy.count("PUT .*partNumber") == 4


@pytest.mark.parametrize("name", ["small", "plan", "first"])
def test_a_bit_that_flips_in_a_small_file_is_sent_again(moto, proxy, direct, name):
    """Even in the first request of a client, which does not know yet what ETags are here."""
    fresh = through(moto, proxy, direct)
    proxy.script(HttpFault("PUT", flip_sent=1))
    {
        "small": lambda: upload(fresh, b"123", "small"),
        "plan": lambda: fresh.create("plan", b"123"),
        "first": lambda: fresh.replace("first", b"123"),
    }[name]()
    assert direct.read_bytes(name) == b"123"


def test_created_with_a_flipped_bit_is_still_created_by_us(store, direct, proxy):
    store.replace("first", b"known to answer with MD5")
    proxy.script(HttpFault("PUT", "/plan", flip_sent=0))
    assert store.create("plan", b"ours")
    assert direct.read_bytes("plan") == b"ours"
    assert not store.create("plan", b"other")


def test_bits_that_keep_flipping_leave_nothing_visible(store, direct, proxy):
    store.replace("first", b"known to answer with MD5")
    proxy.script(HttpFault(**UPLOAD_PART, number=2, times=1000, flip_sent=3))
    with pytest.raises(TemporaryError, match="got other bytes than were sent") as caught:
        upload(store)
    assert caught.value.exit_code == 75
    assert direct.list() == ["first"]
    assert direct.leftovers(["big"]) == ()


def test_a_server_is_asked_once_whether_it_compares_bodies(moto, proxy, direct):
    """After an answer that says nothing, once more."""
    fresh = through(moto, proxy, direct)
    proxy.script(HttpFault(**UPLOAD_PART, status=503, code="SlowDown"))
    for name, parts in (("first", 4), ("second", 4), ("third", 3)):
        before = proxy.count("PUT .*partNumber")
        upload(fresh, name=name)
        assert proxy.count("PUT .*partNumber") - before == parts
        assert direct.read_bytes(name) == pattern(2 * PART + 5)


def test_servers_with_other_etags_are_believed(moto, proxy, direct):
    fresh = through(moto, proxy, direct)
    proxy.script(HttpFault("PUT", times=1000, etag="0123456789abcdef" * 2))
    fresh.replace("first", b"123")
    assert proxy.count("PUT") == OTHER_ETAGS
    fresh.replace("second", b"123")
    upload(fresh, b"123", "small")
    assert proxy.count("PUT") == OTHER_ETAGS + 2


def test_a_bit_that_flips_in_a_file_that_is_read_whole_is_asked_for_again(store, direct, proxy):
    direct.replace("x", DATA)
    proxy.script(HttpFault("GET", "/x", times=2, flip_answer=1000))
    assert store.read_bytes("x") == DATA
    assert proxy.count("GET") == 3
    proxy.script(HttpFault("GET", "/x", times=1000, flip_answer=1000))
    with pytest.raises(TemporaryError, match="other bytes came than the store keeps"):
        store.read_bytes("x")


# -- before a server is reached --------------------------------------------------------------------------------------


def test_no_server_is_a_temporary_error(moto):
    client = moto.client(endpoint=f"http://user:hunter2@127.0.0.1:{free_port()}", retry=quick_retry(2))
    with pytest.raises(TemporaryError, match="connection failed") as caught:
        store_of("bucket", "x", client).list()
    assert "hunter2" not in str(caught.value)


def test_no_credentials_are_a_resource_error(moto, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client = moto.client(key=None, secret=None)
    with pytest.raises(ResourceError, match="no usable credentials"):
        store_of("bucket", "x", client).list()


def test_configuration_comes_from_the_environment(moto, monkeypatch, direct):
    from anabranch.engine.storage import s3_client
    from anabranch.engine.storage.opening import open_store

    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_client, "shared_client", s3_client.S3Client)
    direct.replace("x", b"data")
    assert open_store(direct.url).read_bytes("x") == b"data"
    assert open_store(direct.url.replace("s3://", "s3a://") + "/").url == direct.url
