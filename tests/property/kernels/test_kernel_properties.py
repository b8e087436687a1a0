"""What the kernels promise by themselves, checked against arithmetic that is obvious."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from anabranch.engine.kernels.cpu.philox import philox
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.protocol import host
from anabranch.engine.kernels.row_sums import fold_rows
from anabranch.engine.kernels.torch.reference import TorchKernels
from anabranch.engine.kernels.torch.selection import philox as torch_philox

from ..kernel_cases import SIZES, examples, tiles

CPU = CpuKernels()
seeds = st.integers(0, 2**32 - 1)


def select(ts, ns, m, *, overlap_never=False, drop_tail=False):
    """Masks of the models in order, and the claims they leave."""
    claims, masks = np.zeros(ts[0].size, np.uint8), []
    for t, n in zip(ts, ns, strict=True):
        mask = np.empty(t.size, np.uint8)
        CPU.mask_blocks(t, n, m, claims, mask, overlap_never, drop_tail)
        masks.append(mask)
    return masks, claims


# -- n:m selection (ALGORITHMS 2) ------------------------------------------------------------------


@examples(150)
@given(
    ts=st.integers(2, 4).flatmap(lambda k: tiles(count=k)),
    m=st.sampled_from([1, 4, 7, 32, 256]),
    data=st.data(),
)
def test_selection_is_the_sorted_order(ts, m, data):
    """Python's sort by (claims, -|t|, index) is the definition."""
    ns = [data.draw(st.integers(0, m)) for _ in ts]
    masks, claims = select(ts, ns, m)
    counts = [0] * ts[0].size
    for t, n, mask in zip(ts, ns, masks, strict=True):
        for start in range(0, t.size, m):
            block = range(start, min(start + m, t.size))
            keep = n if len(block) == m else (n * len(block) + m // 2) // m
            taken = sorted(block, key=lambda e: (counts[e], -abs(t[e]), e))[:keep]
            kept = [e for e in taken if t[e] != 0]
            for e in kept:
                counts[e] += 1
            assert kept == sorted((e for e in block if mask[e]), key=taken.index)
    assert counts == claims.tolist()


@examples(100)
@given(
    seed=seeds,
    m=st.sampled_from([1, 4, 7, 32, 256]),
    zeros=st.sampled_from([0.0, 0.3, 0.7, 0.95]),
    data=st.data(),
)
def test_masks_do_not_overlap_while_they_fit_into_the_block(seed, m, zeros, data):
    """However many exact zeros there are, of which differences of bf16 checkpoints have 30 to 95 %."""
    ns, left = [], m
    for _ in range(data.draw(st.integers(2, 5))):
        ns.append(data.draw(st.integers(0, left)))
        left -= ns[-1]
    rng = np.random.default_rng(seed)
    ts = [rng.choice([-3.0, -1.0, 1.0, 2.0], 6 * m).astype(np.float32) * (rng.random(6 * m) >= zeros) for _ in ns]
    masks, claims = select(ts, ns, m)
    assert claims.max() <= 1
    for t, n, mask in zip(ts, ns, masks, strict=True):
        kept = mask.reshape(-1, m).sum(axis=1)
        free_of_zeros = (t.reshape(-1, m) != 0).all(axis=1)
        assert (kept <= n).all()
        assert (kept[free_of_zeros] == n).all()
        assert not (mask[t == 0]).any()


@examples(60)
@given(seed=seeds, m=st.sampled_from([4, 32, 256]), data=st.data())
def test_what_exceeds_the_block_is_shared_evenly(seed, m, data):
    """In full blocks of non-zero values claims differ by at most 1, whatever the sum of n."""
    ns = data.draw(st.lists(st.integers(0, m), min_size=2, max_size=5))
    rng = np.random.default_rng(seed)
    ts = [rng.choice([-3.0, -1.0, 1.0, 2.0], 4 * m).astype(np.float32) for _ in ns]
    claims = select(ts, ns, m)[1].reshape(-1, m)
    assert (claims.max(axis=1) - claims.min(axis=1) <= 1).all()
    assert (claims.sum(axis=1) == sum(ns)).all()


@examples(100)
@given(ts=tiles(count=3), m=st.sampled_from([4, 32, 256]), data=st.data())
def test_full_blocks_keep_at_most_n(ts, m, data):
    ns = [data.draw(st.integers(0, m)) for _ in ts]
    whole = ts[0].size // m * m
    for t, n, mask in zip(ts, ns, select(ts, ns, m)[0], strict=True):
        kept = mask[:whole].reshape(-1, m).sum(axis=1)
        assert (kept <= n).all()
        assert (kept[(t[:whole].reshape(-1, m) != 0).all(axis=1)] == n).all()


@examples(60)
@given(ts=tiles(count=2), m=st.sampled_from([1, 4, 32, 256]))
def test_keeping_everything_is_task_arithmetic(ts, m):
    masks, _ = select(ts, [m, m], m)
    plain, masked = np.zeros_like(ts[0]), np.zeros_like(ts[0])
    active = np.zeros(plain.size, np.uint8)
    for t, mask in zip(ts, masks, strict=True):
        CPU.accumulate(plain, t, None, 1.0, 0.7, active)
        CPU.accumulate(masked, t, mask, 1.0, 0.7, active)
    np.testing.assert_array_equal(plain, masked)


@examples(60)
@given(ts=tiles(count=2), m=st.sampled_from([4, 32, 256]), power=st.integers(-20, 20), n=st.integers(0, 256))
def test_masks_do_not_change_under_powers_of_two(ts, m, power, n):
    with np.errstate(all="ignore"):
        scaled = [np.ldexp(t, power).astype(t.dtype) for t in ts]
        assume(all((np.ldexp(s, -power) == t).all() for s, t in zip(scaled, ts, strict=True)))
    n = min(n, m)
    for a, b in zip(select(ts, [n, n], m)[0], select(scaled, [n, n], m)[0], strict=True):
        np.testing.assert_array_equal(a, b)


@examples(60)
@given(ts=tiles(count=2), m=st.sampled_from([4, 32, 256]), n=st.integers(0, 256), data=st.data())
def test_selection_does_not_depend_on_tiles(ts, m, n, data):
    n = min(n, m)
    cut = data.draw(st.integers(0, ts[0].size // m)) * m
    assume(0 < cut < ts[0].size)
    whole = select(ts, [n, n], m)[0]
    parts = [select([t[part] for t in ts], [n, n], m)[0] for part in (slice(0, cut), slice(cut, None))]
    for i, mask in enumerate(whole):
        np.testing.assert_array_equal(mask, np.concatenate([part[i] for part in parts]))


@examples(60)
@given(ts=tiles(count=3), n=st.integers(0, 32))
def test_overlap_never_and_drop_tail(ts, n):
    masks, claims = select(ts, [n] * 3, 32, overlap_never=True, drop_tail=True)
    assert claims.max(initial=0) <= 1
    assert not any(mask[mask.size // 32 * 32 :].any() for mask in masks)


# -- whole-tensor cuts (ALGORITHMS 1.5) ------------------------------------------------------------


@examples(80)
@given(t=tiles(), share=st.floats(0, 1), data=st.data())
def test_cut_keeps_exactly_k_whatever_the_tiles(t, share, data):
    """Histograms of two or four levels find the k-th largest key; the lowest indices win among equals."""
    k = int(share * t.size)
    assume(k > 0)
    levels = [(15, 16), (0, 15)] if t.dtype == np.float32 else [(47, 16), (31, 16), (15, 16), (0, 15)]
    cut = data.draw(st.integers(0, t.size))
    parts = [part for part in (t[:cut], t[cut:]) if part.size]
    prefix, wanted = 0, k
    for shift, bits in levels:
        counts = np.zeros(1 << bits, np.int64)
        for part in parts:
            CPU.histogram(part, None, 0, shift, bits, prefix, counts)
        from_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_top, wanted))
        wanted -= int(from_top[place] - counts[::-1][place])
        prefix = (prefix << bits) | ((1 << bits) - 1 - place)
    before, masks = 0, []
    for part in parts:
        mask = np.empty(part.size, np.uint8)
        equal = CPU.mask_top(part, None, 0, prefix, wanted, before, mask)
        assert equal == CPU.count_equal(part, None, 0, prefix)
        before += equal
        masks.append(mask)
    expected = np.zeros(t.size, np.uint8)
    expected[np.lexsort((np.arange(t.size), -np.abs(t)))[:k]] = 1
    np.testing.assert_array_equal(np.concatenate(masks), expected)


# -- random drops (ALGORITHMS 1.6) -----------------------------------------------------------------

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # published with the generator (Random123, philox4x32 10)
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = np.array(counter, np.uint64)[:, None]
    philox(words, *map(np.uint64, key))
    assert (words[:, 0] & np.uint64(ONES)).tolist() == expected
    assert torch_philox([torch.tensor([word]) for word in counter], *key)[:, 0].tolist() == expected


def test_random_mask_by_hand():
    """First words of the known answer with counter 0 and key 0, as uniform numbers."""
    words = KNOWN_ANSWERS[0][2]
    for probability in (0.3, 0.4, 0.5, 0.7, 0.75, 0.9):
        mask = np.empty(3, np.uint8)
        CPU.mask_random(0, 0, 1, probability, mask)
        assert mask.tolist() == [int((word >> 8) * 2.0**-24 < probability) for word in words[1:]]


@examples(30)
@given(seed=seeds, first=st.integers(0, 2**36), cut=st.integers(1, 999))
def test_random_mask_does_not_depend_on_tiles(seed, first, cut):
    whole, left, right = (np.empty(size, np.uint8) for size in (1000, cut, 1000 - cut))
    CPU.mask_random(seed, 7, first, 0.25, whole)
    CPU.mask_random(seed, 7, first, 0.25, left)
    CPU.mask_random(seed, 7, first + cut, 0.25, right)
    np.testing.assert_array_equal(whole, np.concatenate([left, right]))
    assert 150 < whole.sum() < 350


# -- sums in one order (ALGORITHMS 1.4) ------------------------------------------------------------


def naive_sum(terms):
    """Section 1.4 word for word: windows of 2^20, 256 rows of 4096, halves, then windows one after the other."""
    total = 0.0
    for start in range(0, terms.size, 1 << 20):
        window = np.zeros(1 << 20)
        window[: min(terms.size - start, 1 << 20)] = terms[start : start + (1 << 20)]
        rows = []
        for x in window.reshape(256, 4096):
            x = x.copy()
            h = 2048
            while h >= 1:
                x[:h] += x[h : 2 * h]
                h //= 2
            rows.append(x[0])
        y, h = np.array(rows), 128
        while h >= 1:
            y[:h] += y[h : 2 * h]
            h //= 2
        total += y[0]
    return total


@pytest.mark.parametrize("size", [1, 4095, 4096, 70_001, (1 << 20) + 5, (1 << 21) + (1 << 19)])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_moments_are_the_defined_sums(size, real):
    t = np.random.default_rng(size).standard_normal(size).astype(real)
    wide = t.astype(np.float64)
    expected = [naive_sum(np.abs(wide)), naive_sum(wide * wide), naive_sum(wide * wide * (wide * wide))]
    for tile in (1 << 20, 12 * 4096):
        rows = np.empty((-(-size // 4096), 3))
        for start in range(0, size, tile):
            part = t[start : start + tile]
            CPU.moments(part, rows[start // 4096 :][: -(-part.size // 4096)])
        assert fold_rows(rows).tolist() == expected


def test_no_rows_sum_to_zero():
    assert fold_rows(np.empty((0, 3))).tolist() == [0.0, 0.0, 0.0]


# -- rounding (ALGORITHMS 1.2) ---------------------------------------------------------------------

TORCH = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def around(dtype):
    """Every finite value of a narrow dtype, every midpoint, and the neighbours of each, as float64."""
    size = SIZES[dtype]
    codes = torch.arange(1 << (8 * size)).to(torch.int16 if size == 2 else torch.uint8).view(TORCH[dtype])
    values = codes.float().double().numpy()
    values = np.unique(values[np.isfinite(values)])
    return np.concatenate([values, (values[1:] + values[:-1]) / 2])


@pytest.mark.parametrize("dtype", TORCH)
def test_float32_rounds_as_torch_does(dtype):
    points = around(dtype).astype(np.float32)  # midpoints of these formats are float32 numbers
    values = np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf)])
    if dtype == "F8_E4M3":
        values = values[np.abs(values) <= 464]  # beyond, torch releases differ
    raw = np.empty(values.size * SIZES[dtype], np.uint8)
    CPU.convert(values, dtype, False, raw)
    expected = torch.from_numpy(values).to(TORCH[dtype]).float().numpy()
    got = torch.from_numpy(raw).view(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", TORCH)
def test_float64_rounds_once(dtype):
    """Values just beside a midpoint, nearer than fp32 can tell: going by way of fp32 would round twice."""
    points = around(dtype)
    midpoints = points[points.size // 2 + 1 :]
    below, above = np.nextafter(midpoints, -np.inf), np.nextafter(midpoints, np.inf)
    results = []
    for values in (below, above):
        raw = np.empty(values.size * SIZES[dtype], np.uint8)
        assert CPU.convert(values, dtype, False, raw) == 0
        results.append(torch.from_numpy(raw).view(TORCH[dtype]).double().numpy())
    grid = points[: points.size // 2 + 1]
    np.testing.assert_array_equal(results[0], grid[:-1])
    np.testing.assert_array_equal(results[1], grid[1:])


@pytest.mark.parametrize(
    ("dtype", "largest", "tie"),
    [("F16", 65504.0, 65520.0), ("F8_E4M3", 448.0, float(np.nextafter(464, 512))), ("F8_E5M2", 57344.0, 61440.0)],
)
def test_overflow_is_counted_or_clamped(dtype, largest, tie):
    values = np.array([largest, np.nextafter(tie, 0), tie, -tie, np.inf, -np.inf, np.nan])
    for kernels in (CPU, TorchKernels()):
        for saturate, nonfinite in ((False, 5), (True, 1)):
            raw = kernels.load(np.zeros(values.size * SIZES[dtype], np.uint8))
            device_values = values if kernels is CPU else torch.from_numpy(values)
            assert kernels.convert(device_values, dtype, saturate, raw) == nonfinite
            got = torch.from_numpy(host(raw)).view(TORCH[dtype]).double().numpy()
            assert got[:2].tolist() == [largest, largest]
            if saturate:
                assert got[2:6].tolist() == [largest, -largest, largest, -largest]


def test_products_and_sums_are_not_fused():
    """1 + 2^-12 squared needs 25 bits; a fused multiply-add would keep the last one."""
    x = np.float32(1 + 2.0**-12)
    acc, t = np.full(64, -1.0, np.float32), np.full(64, x, np.float32)
    CPU.accumulate(acc, t, None, 1.0, float(x), np.zeros(64, np.uint8))
    assert (acc == x * x - np.float32(1)).all()
    assert float(acc[0]) != float(x) * float(x) - 1.0


def test_denormals_are_kept():
    tiny = np.full(64, 1e-40, np.float32)
    acc = np.zeros(64, np.float32)
    CPU.accumulate(acc, tiny, None, 2.0, 1.0, np.zeros(64, np.uint8))
    assert (acc == tiny / np.float32(2)).all()
    assert (acc > 0).all()


def test_inactive_elements_keep_the_base_bytes():
    """A -0.0 or a NaN with a payload of the base survives where nothing is added."""
    raw = np.array([0x8000, 0x7FA1, 0x3F80], np.uint16).view(np.uint8)
    base, acc = np.empty(3, np.float32), np.zeros(3, np.float32)
    CPU.decode(raw, "BF16", base)
    out = np.empty(6, np.uint8)
    assert CPU.finish(raw, "BF16", base, acc, np.array([0, 0, 1], np.uint8), "BF16", False, out) == 0
    assert out.tolist() == raw.tolist()


def test_importing_the_fast_kernels_does_not_import_torch():
    code = "import sys, anabranch.engine.kernels.cpu.tile_kernels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
