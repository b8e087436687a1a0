"""A failure in any thread ends the run at once, with that failure; nothing hangs and nothing stays behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from anabranch.engine.errors import InputError, TemporaryError
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run import memory
from anabranch.engine.run.buffers import BufferPool, PoolClosed
from anabranch.engine.run.protocols import Member
from anabranch.engine.run.shard import Shard
from anabranch.engine.run.work import MergeWork
from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.retry import Fault, FaultStore

from ...merging import local_runner, write_checkpoint, write_recipe

pytestmark = pytest.mark.timeout(60)
SIZE = 500_000
"""Elements of each of three tensors: many of the smallest windows."""
METHODS = {
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25, "block": 999}},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.2}},
    "sequential": {"merge_method": "magnitude", "parameters": {"density": 0.4, "conflict": "sequential"}},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Changes of few magnitudes, so that cuts go through ties and windows wait for each other."""
    folder = tmp_path_factory.mktemp("pipeline")
    generator = torch.Generator().manual_seed(1)
    base = {f"w{i}": torch.randn(SIZE, generator=generator).bfloat16() for i in range(3)}
    write_checkpoint(folder / "base", base)
    for m in range(2):
        changes = {n: torch.randint(-2, 3, (SIZE,), generator=generator) / 8 for n in base}
        write_checkpoint(folder / f"model{m}", {n: (t.float() + changes[n]).bfloat16() for n, t in base.items()})
    return folder


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    names = [
        t.name
        for t in threading.enumerate()
        if t.name.split("-")[0].split("_")[0] in ("fold", "emit", "read", "publish")
    ]
    assert names == []


@pytest.fixture(params=METHODS)
def recipe(request, checkpoints: Path, tmp_path: Path) -> Path:
    content = METHODS[request.param] | {
        "base_model": str(checkpoints / "base"),
        "models": [{"model": str(checkpoints / f"model{m}")} for m in range(2)],
    }
    return write_recipe(tmp_path / "recipe.yml", content)


class Run:
    """A merge into memory whose parts can be replaced before it starts; 64 KiB windows."""

    def __init__(
        self, recipe: Path, threads: int = 2, kernels: CpuKernels | None = None, resident: bool = True
    ) -> None:
        self.inputs = open_inputs(load_recipe(recipe), recipe.parent)
        self.out = FaultStore(MemoryStore())
        output = OutputDirectory(self.inputs.plan, self.out)
        with mock.patch.object(memory, "LARGEST_SLAB", 64 << 10):
            members = [Member(self.inputs, output)]
            self.runner = local_runner(members, threads, kernels=kernels)
        if not resident:
            enough = (threads + memory.AHEAD) * 4
            plan = self.runner.memory
            self.runner.memory = memory.MemoryPlan(plan.limit_bytes, plan.threads, 0, 0, plan.slab_bytes, enough)
        self.output = output

    def read_from(self, stores) -> None:
        """Replace the stores of the inputs."""
        self.inputs = replace(self.inputs, stores=stores)
        self.runner._members = [Member(self.inputs, self.output)]

    def start(self) -> None:
        self.runner.run(MergeWork((None,)), [Shard(0, (0,))], lambda _index, _receipts: None)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "re-read"])
@pytest.mark.parametrize("number", [1, 9, 40])
def test_a_read_that_fails(recipe: Path, threads: int, resident: bool, number: int) -> None:
    error = TemporaryError("the disk is gone")
    run = Run(recipe, threads, resident=resident)
    run.read_from(with_faulty_source(run.inputs, Fault("read", number, times=10**6, error=error)))
    with pytest.raises(TemporaryError) as raised:
        run.start()
    assert raised.value is error
    assert run.out.list() == []


def with_faulty_source(inputs, fault):
    return [inputs.stores[0], FaultStore(inputs.stores[1], fault), *inputs.stores[2:]]


FIRST, LAST = ("task_vector", "observe_window", "near_window"), ("finish", "fold_window")
"""What looks at a window, and what writes it: tile by tile, or in one call."""


class Broken(CpuKernels):
    """Raises in the n-th call of one of some functions."""

    def __init__(self, number: int, *functions: str) -> None:
        super().__init__()
        lock, calls = threading.Lock(), 0
        self.error = ZeroDivisionError(f"{functions} number {number}")

        def failing(whole):
            def call(*arguments):
                nonlocal calls
                with lock:
                    calls += 1
                    fails = calls == number
                if fails:
                    raise self.error
                return whole(*arguments)

            return call

        for function in functions:
            setattr(self, function, failing(getattr(super(), function)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("functions", "number"),
    [(FIRST, 1), (FIRST, 70), (LAST, 3), (LAST, 20)],
    ids=["first", "later", "last", "much later"],
)
def test_arithmetic_that_fails(recipe: Path, threads: int, functions: tuple[str, ...], number: int) -> None:
    kernels = Broken(number, *functions)
    run = Run(recipe, threads, kernels)
    with pytest.raises(ZeroDivisionError) as raised:
        run.start()
    assert raised.value is kernels.error
    assert run.out.list() == []


def test_counting_ties_that_fails_wakes_the_windows_that_wait_for_the_count(checkpoints: Path, tmp_path: Path) -> None:
    content = METHODS["sequential"] | {
        "base_model": str(checkpoints / "base"),
        "models": [{"model": str(checkpoints / "model0")}],
    }
    recipe = write_recipe(tmp_path / "recipe.yml", content)
    windows = -(-SIZE // (32 << 10))
    for number in range(windows + 1, windows + 8):
        kernels = Broken(number, "count_equal")
        with pytest.raises(ZeroDivisionError):
            Run(recipe, 3, kernels).start()


@pytest.mark.parametrize("verb", ["writer", "write", "commit"])
def test_writing_that_fails(recipe: Path, verb: str) -> None:
    error = TemporaryError("the server is gone")
    run = Run(recipe, 2)
    run.out.faults.append(Fault(verb, 1 if verb != "write" else 5, error=error))
    with pytest.raises(TemporaryError) as raised:
        run.start()
    assert raised.value is error
    assert run.out.list() == []


def test_a_pass_whose_end_fails_is_not_followed_by_the_next(checkpoints: Path, tmp_path: Path) -> None:
    """NaN is reported at the end of the first pass, with the number in the whole tensor."""
    generator = torch.Generator().manual_seed(3)
    tensors = {f"w{i}": torch.randn(SIZE, generator=generator).bfloat16() for i in range(3)}
    tensors["w1"][[5, 100_000, SIZE - 1]] = float("nan")
    write_checkpoint(tmp_path / "bad", tensors)
    content = METHODS["ties"] | {"base_model": str(checkpoints / "base"), "models": [{"model": str(tmp_path / "bad")}]}
    run = Run(write_recipe(tmp_path / "recipe.yml", content), 2)
    with pytest.raises(InputError, match=r"bad: tensor 'w1' holds 3 NaN"):
        run.start()
    assert run.out.list() == []


def test_the_first_of_several_failures_is_raised(recipe: Path) -> None:
    first = TemporaryError("first")
    run = Run(recipe, 3)
    faults = [
        Fault("read", 8, error=first),
        Fault("read", 20, times=10**6, error=TemporaryError("later"), delay_seconds=0.2),
    ]
    run.read_from([run.inputs.stores[0], FaultStore(run.inputs.stores[1], *faults), *run.inputs.stores[2:]])
    with pytest.raises(TemporaryError, match="first"):
        run.start()


def test_an_interrupt_stops_everything(recipe: Path) -> None:
    run = Run(recipe, 2)
    main = threading.main_thread().ident
    slow = Fault("read", 10, delay_seconds=0.3, action=lambda: signal.pthread_kill(main, signal.SIGINT))
    run.read_from(with_faulty_source(run.inputs, slow))
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.start()
    assert time.monotonic() - begin < 20
    assert run.out.list() == []


# -- buffers -----------------------------------------------------------------------------------------------------------


def test_buffers_are_made_once_and_reused() -> None:
    pool = BufferPool(1000, 3)
    first = [pool.acquire() for _ in range(3)]
    assert [len(slab) for slab in first] == [1000] * 3
    pool.release(first[:1])
    again = pool.acquire()
    assert np.shares_memory(again, first[0])
    assert (pool.made, pool.free) == (3, 0)


def test_who_asks_too_early_waits_until_a_buffer_comes_back() -> None:
    pool = BufferPool(10, 1)
    slab = pool.acquire()
    got = []
    waiting = threading.Thread(target=lambda: got.append(pool.acquire()), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    pool.release([slab])
    waiting.join(10)
    assert got
    assert np.shares_memory(got[0], slab)


def test_a_closed_pool_wakes_those_who_wait_and_gives_nothing() -> None:
    pool = BufferPool(10, 1)
    slab = pool.acquire()
    raised = []

    def ask() -> None:
        try:
            pool.acquire()
        except PoolClosed as error:
            raised.append(error)

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    waiting.join(0.05)
    pool.close()
    waiting.join(10)
    assert len(raised) == 1
    pool.release([slab])
    with pytest.raises(PoolClosed):
        pool.acquire()
