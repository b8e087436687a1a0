"""Faults between us and a cloud are survived or end with the right kind of error, and nothing torn is visible."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from anabranch.engine.errors import InputError, ResourceError, TemporaryError
from anabranch.engine.storage.object_store import ObjectStore

from ..s3.fault_proxy import FaultProxy, HttpFault, fault_proxy
from ..s3.s3_contract import pattern
from ..s3.servers import free_port
from .servers import PART, store

pytestmark = pytest.mark.faults

DATA = pattern(3 * PART + 77)
WHOLE = pattern(4 * PART)
"""Whole pieces: a short one may be over before a fault shows."""
numbers = itertools.count()


@dataclass
class Site:
    """A prefix of a bucket, seen directly and through a proxy that goes wrong as its script says."""

    server: Any
    proxy: FaultProxy
    name: str

    def __post_init__(self) -> None:
        self.proxy.script()  # it is shared by tests: what the last one let go wrong is over
        self.prefix = f"f{next(numbers)}"
        self.direct = store(self.server.bucket(self.name), self.prefix)
        self.store = self.through()

    def through(self, **options: Any) -> ObjectStore:
        return store(self.server.bucket(self.name, self.proxy.endpoint, **options), self.prefix)

    def read(self, version: str | None = None, through: ObjectStore | None = None, size: int = len(DATA)) -> bytes:
        buffer = bytearray(size)
        (through or self.store).read_into("x", 0, memoryview(buffer), version)
        return bytes(buffer)

    def upload(self, data: bytes = DATA, name: str = "big") -> None:
        writer = self.store.writer(name, len(data), {"plan_id": "p"}, "run1")
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.discard()


def sites(server: Any) -> Any:
    name = server.create()
    with fault_proxy(server.endpoint) as proxy:
        yield lambda: Site(server, proxy, name)


@pytest.fixture(scope="module")
def azure_sites(azure: Any) -> Any:
    yield from sites(azure)


@pytest.fixture(scope="module")
def gcs_sites(gcs: Any) -> Any:
    yield from sites(gcs)


@pytest.fixture(scope="module")
def upload_sites(gcs_uploads: Any) -> Any:
    yield from sites(gcs_uploads)


@pytest.fixture(params=["azure_sites", "gcs_sites"])
def site(request: pytest.FixtureRequest) -> Site:
    """Of each cloud."""
    make: Callable[[], Site] = request.getfixturevalue(request.param)
    return make()


@pytest.fixture(params=["azure_sites", "upload_sites"])
def uploading(request: pytest.FixtureRequest) -> Site:
    """Of each cloud, on the emulator that knows its uploads."""
    make: Callable[[], Site] = request.getfixturevalue(request.param)
    return make()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_bursts_of_busy_answers_are_survived_by_every_request(site: Site, status: int) -> None:
    def burst() -> None:
        site.proxy.script(HttpFault(times=2, status=status))

    for ask, expected in (
        (lambda: site.store.replace("x", DATA), None),
        (lambda: site.store.info("x").size, len(DATA)),
        (site.read, DATA),
        (site.store.list, ["x"]),
        (lambda: site.store.create("plan", b"1"), True),
        (lambda: site.store.delete("x"), None),
    ):
        burst()
        assert ask() == expected
        assert site.proxy.faults[0].seen >= 3
    assert site.direct.list() == ["plan"]


def test_a_server_that_stays_busy_ends_in_a_temporary_error(site: Site) -> None:
    site.direct.replace("x", DATA)
    site.proxy.script(HttpFault(status=503, times=1000))
    for ask in (lambda: site.store.info("x"), site.store.list, lambda: site.store.replace("y", b"1")):
        site.proxy.requests.clear()
        with pytest.raises(TemporaryError, match="503") as caught:
            ask()
        assert caught.value.exit_code == 75
        assert site.proxy.count("") == 5, "one place retries"


@pytest.mark.parametrize(
    "misfortune",
    [
        pytest.param({"cut_after": 0}, marks=pytest.mark.slow),
        {"cut_after": 100_000},
        {"stall_after": 100_000},
        {"reset": True},
        {"lose_answer": True},
    ],
    ids=["empty", "truncated", "stalled", "reset", "lost"],
)
def test_bad_bodies_are_asked_for_again(site: Site, misfortune: dict[str, Any]) -> None:
    site.direct.replace("x", WHOLE)
    version = site.direct.info("x").version
    careful = site.through(idle_seconds=0.4)
    site.proxy.script(HttpFault("GET", times=2, **misfortune))
    assert site.read(version, careful, len(WHOLE)) == WHOLE
    assert 6 <= site.proxy.count("GET") <= 8
    site.proxy.script(HttpFault("GET", times=1000, **misfortune))
    with pytest.raises(TemporaryError, match="x: "):
        site.read(version, site.through(idle_seconds=0.4, attempts=2))


def test_nothing_writes_into_the_caller_s_memory_after_a_failed_read(site: Site) -> None:
    site.direct.replace("x", DATA)
    site.proxy.script(HttpFault("GET", number=2, status=403), HttpFault("GET", times=1000, bytes_per_second=2_000_000))
    buffer = bytearray(len(DATA))
    with pytest.raises(ResourceError, match="credentials"):
        site.store.read_into("x", 0, memoryview(buffer))
    before = bytes(buffer)
    time.sleep(0.5)
    assert bytes(buffer) == before


def test_an_object_that_changes_between_pieces_is_an_input_error(site: Site) -> None:
    site.direct.replace("x", DATA)
    version = site.store.info("x").version
    assert site.read(version) == DATA
    site.proxy.script(HttpFault("GET", number=2, action=lambda: site.direct.replace("x", DATA[::-1])))
    with pytest.raises(InputError, match="changed while in use"):
        site.read(version)


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_name_credentials_at_once(site: Site, status: int) -> None:
    site.proxy.script(HttpFault(status=status, times=1000))
    for ask in (lambda: site.store.info("x"), site.store.list, lambda: site.store.create("y", b"1")):
        site.proxy.requests.clear()
        with pytest.raises(ResourceError, match="credentials") as caught:
            ask()
        assert caught.value.exit_code == 6
        assert site.proxy.count("") == 1


def test_no_server_is_a_temporary_error(site: Site) -> None:
    nowhere = store(site.server.bucket(site.name, f"http://127.0.0.1:{free_port()}", attempts=2), "x")
    with pytest.raises(TemporaryError, match="connection failed"):
        nowhere.list()


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misfortune", [{"reset": True}, {"lose_answer": True}, {"status": 500}])
@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_uploads_survive_losses_at_every_step(uploading: Site, misfortune: dict[str, Any], number: int) -> None:
    uploading.proxy.script(HttpFault("PUT", number=number, times=1, **misfortune))
    uploading.upload()
    assert uploading.direct.list() == ["big"]
    assert uploading.direct.read_bytes("big") == DATA
    assert uploading.direct.attributes("big") == {"plan_id": "p"}


def test_a_lost_answer_to_a_small_commit_is_repeated(uploading: Site) -> None:
    uploading.proxy.script(HttpFault("PUT|POST", lose_answer=True))
    uploading.upload(b"123", "small")
    assert uploading.direct.read_bytes("small") == b"123"


def test_an_upload_that_fails_shows_nothing(uploading: Site) -> None:
    for number in (2, 3):
        uploading.proxy.script(HttpFault("PUT", number=number, times=1000, status=503))
        with pytest.raises(TemporaryError):
            uploading.upload()
        assert uploading.direct.list() == []


def test_a_full_bucket_is_a_resource_error_at_once(uploading: Site) -> None:
    uploading.proxy.script(HttpFault("PUT", number=2, times=1000, status=507))
    with pytest.raises(ResourceError, match="507"):
        uploading.upload()
    assert uploading.direct.list() == []


def test_a_session_that_the_server_forgot_is_a_file_to_look_for(upload_sites: Callable[[], Site]) -> None:
    site = upload_sites()
    site.proxy.script(HttpFault("PUT", number=2, times=1000, status=410))
    with pytest.raises(FileNotFoundError, match="was removed"):
        site.upload()
    assert site.direct.list() == []


# -- exclusive creation ----------------------------------------------------------------------------------------------


def test_a_lost_answer_to_create_leaves_our_bytes_to_compare(site: Site) -> None:
    site.proxy.script(HttpFault("PUT|POST", lose_answer=True))
    site.store.create("plan", b"ours")
    assert site.direct.read_bytes("plan") == b"ours"
    assert site.proxy.count("PUT|POST") == 2


def test_a_server_that_ignores_conditions_cannot_hide_an_overwritten_plan(upload_sites: Callable[[], Site]) -> None:
    """Both look, both write; the one that is overwritten before it reads back is told."""
    site = upload_sites()
    site.proxy.script(HttpFault("GET", "alt=media", action=lambda: site.direct.replace("plan", b"theirs")))
    assert not site.store.create("plan", b"ours")
    assert site.direct.read_bytes("plan") == b"theirs"
