"""Tensors that are computed while they are read: the plain formula, the same for any window and any size of parts."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save

from anabranch.engine.errors import InputError
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.torch.reference import TorchKernels
from anabranch.engine.models import derived
from anabranch.engine.models.checkpoint import Checkpoint, open_checkpoint
from anabranch.engine.models.derived import BlockScaled, Factor, LowRank
from anabranch.engine.models.header import DTYPES, TensorInfo
from anabranch.engine.models.location import TensorLocation
from anabranch.engine.models.row_gather import RowGather
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.reader import HeldArrays, Scratch, SourceReader
from anabranch.engine.storage.memory import MemoryStore

ROWS, COLUMNS, RANK = 37, 50, 5
DEFINED = torch.Generator().manual_seed(3)
STORED = {
    "weight": torch.randn(ROWS, COLUMNS, generator=DEFINED).bfloat16(),
    "a": torch.randn(RANK, COLUMNS, generator=DEFINED).half(),
    "b": torch.randn(ROWS, RANK, generator=DEFINED).bfloat16(),
    "a_of_rows": torch.randn(RANK, ROWS, generator=DEFINED),
    "b_of_columns": torch.randn(COLUMNS, RANK, generator=DEFINED).bfloat16(),
    "codes": torch.randn(ROWS, COLUMNS, generator=DEFINED).to(torch.float8_e4m3fn),
    "scales": torch.rand(math.ceil(ROWS / 8), math.ceil(COLUMNS / 16), generator=DEFINED),
    "other": torch.randn(9, COLUMNS, generator=DEFINED).bfloat16(),
    "wide": torch.randn(9, COLUMNS, generator=DEFINED),
}


class Opened:
    """The stored tensors in memory, and a reader that notes what it is asked for."""

    def __init__(self, kernels: CpuKernels | TorchKernels) -> None:
        self.store = MemoryStore()
        self.store.replace("model.safetensors", save(STORED))
        self.checkpoint: Checkpoint = open_checkpoint(self.store.url, self.store)
        self.held = HeldArrays(1 << 20, derived.HELD_BYTES)
        self.reader = SourceReader(
            0, self.checkpoint, self.store, kernels=kernels, held=self.held, scratch=Scratch(), meter=Meter()
        )

    def __getitem__(self, name: str) -> TensorLocation:
        return self.checkpoint.tensors[name]

    def location(self, computed: derived.Derived, rows: int = ROWS, dtype: str = "F32") -> TensorLocation:
        return TensorLocation(0, TensorInfo("result", dtype, (rows, COLUMNS), 0), computed)

    def whole(self, location: TensorLocation, window: int) -> torch.Tensor:
        """All elements, read in windows of so many elements."""
        size = DTYPES[location.info.dtype].size
        out = np.full(location.info.numel * size, 0xEE, np.uint8)
        for begin in range(0, location.info.numel, window):
            end = min(begin + window, location.info.numel)
            location.fill(begin, end, out[begin * size : end * size], self.reader)
        kind = {"F32": torch.float32, "BF16": torch.bfloat16}[location.info.dtype]
        return torch.from_numpy(out).view(kind).reshape(location.info.shape)


@pytest.fixture(params=[CpuKernels, TorchKernels], ids=["numba", "torch"])
def opened(request: pytest.FixtureRequest) -> Opened:
    return Opened(request.param())


@pytest.fixture(params=["held", "in parts"])
def parts(request: pytest.FixtureRequest, opened: Opened) -> Iterator[None]:
    """Factors that are kept whole, and such small room that they are read in parts of a few rows or columns."""
    if request.param == "held":
        yield
        return
    opened.held.most_bytes = 16
    with (
        mock.patch.object(derived, "PART_ELEMENTS", 3 * RANK),
        mock.patch.object(derived, "PIECE_ELEMENTS", 64),
        mock.patch.object(derived, "LONG_PIECE_ELEMENTS", 128),
    ):
        yield


windows = pytest.mark.parametrize("window", [1, 7, 64, 333, ROWS * COLUMNS])


def low_rank_formula(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    total = torch.zeros(left.shape[0], right.shape[1])
    for j in range(RANK):
        total = total + left[:, j : j + 1].float() * right[j : j + 1].float()
    return total * torch.tensor(scale)


@windows
def test_low_rank(opened: Opened, parts: None, window: int) -> None:
    adapter = LowRank(opened["weight"], Factor(opened["b"], 0), Factor(opened["a"], 0), 0.3)
    found = opened.whole(opened.location(adapter), window)
    product = low_rank_formula(STORED["b"], STORED["a"], 0.3)
    torch.testing.assert_close(found, STORED["weight"].float() + product, rtol=0, atol=0)
    exact = STORED["weight"].double() + 0.3 * (STORED["b"].double() @ STORED["a"].double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


@windows
def test_low_rank_of_factors_stored_the_other_way(opened: Opened, parts: None, window: int) -> None:
    left, right = Factor(opened["a_of_rows"], 1, True), Factor(opened["b_of_columns"], 0, True)
    adapter = LowRank(opened["weight"], left, right, 2.0)
    product = low_rank_formula(STORED["a_of_rows"].T, STORED["b_of_columns"].T, 2.0)
    found = opened.whole(opened.location(adapter), window)
    torch.testing.assert_close(found, STORED["weight"].float() + product, rtol=0, atol=0)


def block_scaled(opened: Opened) -> BlockScaled:
    return BlockScaled(opened["codes"], Factor(opened["scales"], 0), (8, 16), "BF16")


def block_formula() -> torch.Tensor:
    scales = STORED["scales"].repeat_interleave(8, 0).repeat_interleave(16, 1)[:ROWS, :COLUMNS]
    return STORED["codes"].float() * scales


@windows
def test_block_scales(opened: Opened, parts: None, window: int) -> None:
    found = opened.whole(opened.location(block_scaled(opened)), window)
    torch.testing.assert_close(found, block_formula(), rtol=0, atol=0)


@pytest.mark.parametrize("window", [7, 333, ROWS * COLUMNS])
def test_low_rank_on_block_scales(opened: Opened, parts: None, window: int) -> None:
    weight = opened.location(block_scaled(opened))
    adapter = LowRank(weight, Factor(opened["b"], 0), Factor(opened["a"], 0), 0.5)
    found = opened.whole(opened.location(adapter), window)
    expected = block_formula() + low_rank_formula(STORED["b"], STORED["a"], 0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert adapter.out_dtype == "BF16"


def gathered(
    opened: Opened, parts: list[str], rows: list[list[tuple[int, int]]], dtype: str, padding: int = 0
) -> TensorLocation:
    """A matrix of rows given as [(part, row), ...]."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    entries = [entry for row in rows for entry in row]
    part, row = np.array([p for p, _ in entries], np.int32), np.array([r for _, r in entries], np.int32)
    origins = (opened.checkpoint.url,) * len(parts)
    made = RowGather(tuple(opened[name] for name in parts), origins, offsets, part, row, padding, dtype, "BF16")
    return opened.location(made, len(rows) + padding, dtype)


@pytest.mark.parametrize("window", [7, 120, 10**6])
def test_gathered_rows_keep_their_bytes(opened: Opened, parts: None, window: int) -> None:
    rows = [[(0, 3)], [(0, 4)], [(0, 5)], [], [(1, 8)], [(0, 36)], [(0, 35)], [(1, 0)], [(1, 1)]]
    found = opened.whole(gathered(opened, ["weight", "other"], rows, "BF16"), window)
    weight, other = STORED["weight"], STORED["other"]
    zeros = torch.zeros(COLUMNS).bfloat16()
    expected = [weight[3], weight[4], weight[5], zeros, other[8], weight[36], weight[35], other[0], other[1]]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)


@pytest.mark.parametrize("window", [7, 120, 10**6])
def test_gathered_rows_of_several_dtypes_and_means(opened: Opened, parts: None, window: int) -> None:
    rows = [[(0, 3)], [(1, 2)], [(1, 3)], [(0, 7), (1, 4), (0, 8)], [], [(0, 0)]]
    found = opened.whole(gathered(opened, ["weight", "wide"], rows, "F32"), window)
    weight, wide = STORED["weight"].float(), STORED["wide"]
    mean = ((weight[7] + wide[4]) + weight[8]) / 3
    expected = torch.stack([weight[3], wide[2], wide[3], mean, torch.zeros(COLUMNS), weight[0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("window", [7, 120, 10**6])
def test_padding_is_the_mean_of_all_rows(opened: Opened, parts: None, window: int) -> None:
    rows = [[(0, 3)], [(1, 2)], [(0, 7), (1, 4)], []]
    found = opened.whole(gathered(opened, ["weight", "wide"], rows, "F32", padding=3), window)
    weight, wide = STORED["weight"].float(), STORED["wide"]
    plain = torch.stack([weight[3], wide[2], (weight[7] + wide[4]) / 2, torch.zeros(COLUMNS)])
    total = torch.zeros(COLUMNS, dtype=torch.float64)
    for row in plain:
        total = total + row
    mean = (total / 4).float()
    torch.testing.assert_close(found, torch.cat([plain, mean.expand(3, -1)]), rtol=0, atol=0)


def test_each_matrix_has_padding_of_its_own(opened: Opened) -> None:
    """Also beside computed ones in the same file, and where two recipes take other rows of one matrix."""
    factors = Factor(opened["b"], 0), Factor(opened["a"], 0)
    computed = [opened.location(LowRank(opened["weight"], *factors, scale)) for scale in (0.5, 2.0)]
    for rows, location in [([0, 1], opened["weight"]), ([2, 3], opened["weight"]), *(([0, 1], c) for c in computed)]:
        entries = np.array(rows, np.int32)
        offsets, part = np.arange(3, dtype=np.int32), np.zeros(2, np.int32)
        made = RowGather((location,), (opened.checkpoint.url,), offsets, part, entries, 1, "F32", "BF16")
        found = opened.whole(opened.location(made, 3), 10**6)
        mean = found[:2].double().sum(0) / 2
        torch.testing.assert_close(found[2], mean.float(), rtol=0, atol=0)


def test_rows_of_another_source_are_read_there(opened: Opened) -> None:
    other = Opened(CpuKernels())
    other.store.replace("model.safetensors", save(STORED | {"weight": STORED["weight"] + 1}))
    other.checkpoint = replace(open_checkpoint(other.store.url, other.store), url="memory://other")
    readers: list[SourceReader] = []
    for number, place in enumerate([opened, other]):
        readers.append(
            SourceReader(
                number,
                place.checkpoint,
                place.store,
                kernels=CpuKernels(),
                held=place.held,
                scratch=Scratch(),
                meter=Meter(),
                readers=readers,
            )
        )
    offsets, part, row = (np.array(values, np.int32) for values in ([0, 1, 2], [0, 1], [4, 5]))
    parts = opened["weight"], other["weight"]
    urls = opened.checkpoint.url, other.checkpoint.url
    made = RowGather(parts, urls, offsets, part, row, 0, "BF16", "BF16")
    opened.reader = readers[0]
    found = opened.whole(opened.location(made, 2, "BF16"), 10**6)
    torch.testing.assert_close(found, torch.stack([STORED["weight"][4], STORED["weight"][5] + 1]), rtol=0, atol=0)


def test_rows_that_follow_each_other_are_one_read(opened: Opened) -> None:
    location = gathered(opened, ["weight"], [[(0, i)] for i in (5, 6, 7, 8, 20, 21, 3)], "BF16")
    reads: list[int] = []
    with mock.patch.object(opened.reader, "read", lambda _file, _info, _begin, into: reads.append(len(into))):
        opened.whole(location, 10**6)
    assert reads == [4 * COLUMNS * 2, 2 * COLUMNS * 2, COLUMNS * 2]


def test_a_held_factor_is_read_once_and_a_window_reads_its_weight_in_one_request(opened: Opened) -> None:
    adapter = opened.location(LowRank(opened["weight"], Factor(opened["b"], 0), Factor(opened["a"], 0), 0.3))
    reads: list[tuple[int, int]] = []
    read = opened.reader.read

    def note(file: int, info: TensorInfo, begin: int, into: np.ndarray) -> None:
        reads.append((info.offset + begin, len(into)))
        read(file, info, begin, into)

    with mock.patch.object(opened.reader, "read", note):
        opened.whole(adapter, 500)
    sizes = [STORED[name].nbytes for name in ("weight", "a", "b")]
    assert sum(size for _, size in reads) == adapter.read_bytes == sum(sizes)
    assert len(reads) == math.ceil(ROWS * COLUMNS / 500) + 2


def test_what_the_memory_plan_counts(opened: Opened) -> None:
    factor = Factor(opened["b"], 0)
    adapter = LowRank(opened["weight"], factor, Factor(opened["a"], 0), 0.3)
    assert adapter.held_bytes(1 << 20) == 4 * RANK * (ROWS + COLUMNS)
    assert adapter.held_bytes(16) == 2 * RANK * (ROWS + COLUMNS)  # stored bytes that wait to be hashed
    assert adapter.scratch_bytes(16) > adapter.scratch_bytes(1 << 20)
    with mock.patch.object(derived, "PART_ELEMENTS", 3 * RANK):
        assert factor.at_once(16) == 3
        assert factor.scratch_bytes(16) == 3 * RANK * (2 + 4)


def test_rows_in_the_order_of_the_file_are_kept_only_of_a_small_factor(opened: Opened) -> None:
    with mock.patch.object(derived, "HELD_BYTES", 16):
        plain = LowRank(opened["weight"], Factor(opened["b"], 0), Factor(opened["a"], 0), 0.3)
        assert plain.held_bytes(1 << 20) == 2 * RANK * ROWS + 4 * RANK * COLUMNS
        turned = LowRank(opened["weight"], Factor(opened["a_of_rows"], 1, True), Factor(opened["a"], 0), 0.3)
        assert turned.held_bytes(1 << 20) == 4 * RANK * (ROWS + COLUMNS)


def test_held_arrays_stay_within_their_room() -> None:
    held, made = HeldArrays(100, 100), []

    def get(key: str) -> str:
        return held.get(key, 40, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]  # c made b go, the one used longest ago


def test_threads_wait_for_what_one_of_them_makes() -> None:
    held, started, go = HeldArrays(100, 100), threading.Event(), threading.Event()
    made: list[int] = []

    def make() -> int:
        started.set()
        go.wait(10)
        made.append(1)
        return 7

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(held.get("k", 1, make))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert (results, made) == ([7, 7, 7], [1])


def test_what_could_not_be_made_is_tried_again() -> None:
    held = HeldArrays(100, 100)

    def fail() -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        held.get("k", 1, fail)
    assert held.get("k", 1, lambda: 3) == 3


def test_a_changed_file_is_an_error(opened: Opened) -> None:
    adapter = opened.location(LowRank(opened["weight"], Factor(opened["b"], 0), Factor(opened["a"], 0), 0.3))
    opened.store.replace("model.safetensors", save(STORED | {"a": STORED["a"] + 1}))
    with pytest.raises(InputError, match="changed"):
        opened.whole(adapter, 500)


def test_a_location_without_derivation_reads_its_own_bytes(opened: Opened) -> None:
    found = opened.whole(replace(opened["weight"]), 333)
    torch.testing.assert_close(found, STORED["weight"], rtol=0, atol=0)
