"""Wrappers are stores, too; and retries end."""

from __future__ import annotations

import pytest

from anabranch.engine.errors import InputError, TemporaryError
from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.retry import Fault, FaultStore, Retry, RetryBudget, RetryStore

from .store_contract import RUN_ID, StoreContract


def quick(attempts: int = 4, budget: RetryBudget | None = None) -> tuple[Retry, list[float]]:
    waits: list[float] = []
    return Retry(attempts, 1.0, 4.0, budget or RetryBudget(), waits.append), waits


class TestRetryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return RetryStore(MemoryStore(), quick()[0])


class TestFaultStore(StoreContract):
    @pytest.fixture
    def store(self):
        return FaultStore(MemoryStore())


class TestStoreThatFailsEveryOtherTime(StoreContract):
    """All operations but those of a writer survive an unreliable store."""

    @pytest.fixture
    def store(self):
        verbs = ("info", "list", "read", "replace", "writer", "delete")
        faults = [Fault(verb, number, error=TemporaryError("flaky")) for verb in verbs for number in range(1, 400, 2)]
        # Threads share the count of calls: chance may give one of them every fault of a verb.
        return RetryStore(FaultStore(MemoryStore(), *faults), quick(attempts=len(faults))[0])


def test_waits_grow_are_jittered_and_bounded():
    retry, waits = quick(attempts=6)
    store = RetryStore(FaultStore(MemoryStore(), Fault("list", times=5, error=TemporaryError("busy"))), retry)
    assert store.list() == []
    means = (1.0, 2.0, 4.0, 4.0, 4.0)
    assert len(waits) == 5
    assert all(0.5 * mean <= wait <= 1.5 * mean for wait, mean in zip(waits, means, strict=True))
    assert len(set(waits)) == 5


def test_the_last_error_comes_through():
    retry, waits = quick(attempts=3)
    faults = FaultStore(MemoryStore(), Fault("list", times=9, error=TemporaryError("busy")))
    with pytest.raises(TemporaryError, match="busy"):
        RetryStore(faults, retry).list()
    assert faults.calls["list"] == 3
    assert len(waits) == 2


def test_other_errors_are_not_repeated():
    faults = FaultStore(MemoryStore(), Fault("list", error=InputError("bad")))
    with pytest.raises(InputError):
        RetryStore(faults, quick()[0]).list()
    assert faults.calls["list"] == 1


def test_all_operations_share_one_budget():
    budget = RetryBudget(retries=3)
    faults = FaultStore(MemoryStore(), Fault("list", times=99, error=TemporaryError("busy")))
    for calls in (3, 5, 6):  # two retries; one retry, and the budget is empty; none
        with pytest.raises(TemporaryError):
            RetryStore(faults, quick(3, budget)[0]).list()
        assert faults.calls["list"] == calls
    store = RetryStore(MemoryStore(), quick(3, budget)[0])
    for _ in range(11):
        store.list()
    assert budget.spend()
    assert not budget.spend()


def test_a_lost_answer_to_create_reads_as_existing():
    store = RetryStore(FaultStore(MemoryStore(), Fault("create", error=TemporaryError("lost"), after=True)), quick()[0])
    assert store.create("plan", b"ours") is False
    assert store.read_bytes("plan") == b"ours"


def test_writers_follow_the_script():
    inner = MemoryStore()
    store = FaultStore(inner, Fault("write", number=2, error=TemporaryError("cut")), Fault("commit", number=1,
        error=TemporaryError("lost"), after=True, pattern="b*"))  # fmt: skip
    writer = store.writer("a", 2, {}, RUN_ID)
    writer.write(b"1")
    with pytest.raises(TemporaryError, match="cut"):
        writer.write(b"2")
    writer.discard()
    writer = store.writer("b", 1, {}, RUN_ID)
    writer.write(b"1")
    with pytest.raises(TemporaryError, match="lost"):
        writer.commit()
    assert inner.list() == ["b"]


def test_actions_run_before_and_files_are_matched():
    inner = MemoryStore()
    inner.replace("x", b"old")
    store = FaultStore(inner, Fault("read", number=2, action=lambda: inner.replace("x", b"new"), pattern="x"))
    inner.replace("y", b"y")
    assert [store.read_bytes(name) for name in "xyx"] == [b"old", b"y", b"new"]
    assert store.calls == {"read": 3}
