"""The fast kernels and the readable ones give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.torch.reference import TorchKernels
from anabranch.engine.kernels.window_calls import NEAR_COUNTS

from ..kernel_cases import DTYPES, REALS, SIZES, codes, examples, tiles

CPU, TORCH = CpuKernels(), TorchKernels()
seeds = st.integers(0, 2**32 - 1)


def both(operation, *arrays):
    """Run one operation on copies of the arrays under both implementations; returns results and arrays of each."""
    outcomes = []
    for kernels, wrap in ((CPU, lambda a: a), (TORCH, torch.from_numpy)):
        copies = [None if a is None else a.copy() for a in arrays]
        result = operation(kernels, *(None if a is None else wrap(a) for a in copies))
        outcomes.append((result, copies))
    return outcomes


def assert_same(operation, *arrays):
    """The same result and the same bits in every array; returns what the fast kernels left."""
    (result, fast), (expected, slow) = both(operation, *arrays)
    assert result == expected
    for a, b in zip(fast, slow, strict=True):
        if a is not None:
            assert_bits(a, b)
    return fast


def assert_bits(a, b):
    assert a.dtype == b.dtype
    if a.dtype.kind == "f":  # the payload of a NaN is nobody's promise until it is written by finish or convert
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        a, b = np.where(np.isnan(a), 0, a), np.where(np.isnan(b), 0, b)
    np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))


def random_mask(rng, size):
    return rng.integers(0, 2, size).astype(np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("real", ["f32", "f64"])
@examples(20)
@given(seed=seeds, size=st.integers(1, 300), finite=st.booleans())
def test_decode_and_task_vector(dtype, real, seed, size, finite):
    if dtype == "F64" and real == "f32":
        return
    rng = np.random.default_rng(seed)
    raw = codes(rng, dtype, size, finite)
    out = np.empty(size, REALS[real])
    base = rng.standard_normal(size).astype(REALS[real])
    assert_same(lambda k, r, o: k.decode(r, dtype, o), raw, out)
    assert_same(lambda k, r, b, o: k.task_vector(r, dtype, b, o), raw, base, out)


@pytest.mark.parametrize("offset", [1, 3])
def test_bytes_may_be_unaligned_and_read_only(offset):
    raw = np.random.default_rng(0).integers(0, 64, 4 * 100 + offset).astype(np.uint8)
    raw.flags.writeable = False
    out, aligned = np.empty(100, np.float32), np.empty(100, np.float32)
    for dtype in ("F32", "BF16"):
        part = raw[offset : offset + 100 * SIZES[dtype]]
        CPU.decode(part, dtype, out)
        CPU.decode(part.copy(), dtype, aligned)
        assert_bits(out, aligned)
        unaligned = np.empty(400 + offset, np.uint8)[offset:][: part.size]
        CPU.convert(out, dtype, False, unaligned)
        assert_bits(unaligned, np.asarray(part))


@examples(60)
@given(arrays=tiles(count=2), seed=seeds)
def test_zero_nonfinite(arrays, seed):
    t, base = arrays
    rng = np.random.default_rng(seed)
    for array in arrays:
        array[rng.random(array.size) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    assert_same(lambda k, t, b: k.zero_nonfinite(t, b), t, base)


@examples(40)
@given(t=tiles(max_size=9000), numbers=st.sampled_from([2, 3]))
def test_moments(t, numbers):
    with np.errstate(over="ignore"):
        assert_same(lambda k, t, rows: k.moments(t, rows), t, np.empty((-(-t.size // 4096), numbers)))


WIDTHS = st.sampled_from([1, 2, 3, 24, 100, 700, 4096, 4097, 9000])


@examples(60)
@given(width=WIDTHS, rows=st.integers(1, 4), seed=seeds, real=st.sampled_from(["f32", "f64"]), data=st.data())
def test_rows(width, rows, seed, real, data):
    rng = np.random.default_rng(seed)
    scale = data.draw(st.sampled_from([0.02, 1.0, 300.0]))
    a, b = (scale * rng.standard_normal(rows * width) for _ in range(2))
    b = np.where(rng.random(rows * width) < 0.5, a, b)
    a, b = a.astype(REALS[real]), b.astype(REALS[real])
    out = np.empty(rows)
    assert_same(lambda k, a, b, o: k.row_dots(a, b, width, o), a, b, out)
    found = assert_same(lambda k, a, b, o: k.row_divergence(a, b, width, o), a, b, out)[-1]
    np.testing.assert_allclose(found, divergences(a.reshape(rows, -1), b.reshape(rows, -1)), rtol=1e-9, atol=1e-14)
    assert_same(lambda k, t, f, o: k.scale_rows(t, f, width, o), a - b, found, np.empty_like(a))
    active = np.zeros(a.size, np.uint8)
    assert_same(lambda k, t, f, acc, on: k.accumulate_rows(acc, t, f, width, on), a - b, found, b, active)


@examples(60)
@given(width=WIDTHS, height=st.integers(1, 7), rows=st.integers(1, 5), seed=seeds, real=st.sampled_from(["f32", "f64"]))
def test_columns(width, height, rows, seed, real):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(height * width).astype(REALS[real]) for _ in range(2))
    a[rng.random(a.size) < 0.2] = 0.0
    out = np.empty((-(-height // rows), width))
    found = assert_same(lambda k, a, b, o: k.column_dots(a, b, width, rows, o), a, b, out)[-1]
    np.testing.assert_allclose(found.sum(axis=0), (a * b).reshape(-1, width).sum(axis=0), rtol=1e-4, atol=1e-5)
    active = np.zeros(a.size, np.uint8)
    assert_same(lambda k, acc, t, f, on: k.accumulate_columns(acc, t, f, on), b, a, rng.standard_normal(width), active)


def divergences(w, base):
    """The divergence of softmax rows by way of the library's functions."""
    with np.errstate(under="ignore"):
        p, q = (np.exp(x - x.max(axis=1, keepdims=True)) for x in (w.astype(np.float64), base.astype(np.float64)))
    p, q = p / p.sum(axis=1, keepdims=True) + 1e-8, q / q.sum(axis=1, keepdims=True) + 1e-8
    return (p * np.log(p / q)).sum(axis=1)


@pytest.mark.parametrize("width", [(1 << 20) + 4097])
def test_rows_longer_than_a_window(width):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(2 * width).astype(np.float32) for _ in range(2))
    assert_same(lambda k, a, b, o: k.row_dots(a, b, width, o), a, b, np.empty(2))
    assert_same(lambda k, a, b, o: k.row_divergence(a, b, width, o), a, b, np.empty(2))


@examples(60)
@given(t=tiles(), bound=st.sampled_from([0.0, 1e-7, 1e-6, 0.003, 0.1, 2.0, -1.0, 1e30]))
def test_shorten(t, bound):
    assert_same(lambda k, t: k.shorten(t, bound), t)


@examples(40)
@given(arrays=tiles(max_size=9000, count=2))
def test_squares(arrays):
    for t in arrays:
        rows = np.empty(-(-t.size // 4096))
        [*_, found] = assert_same(lambda k, t, rows: k.squares(t, rows), t, rows)
        with np.errstate(over="ignore"):
            exact = np.add.reduceat(t.astype(np.float64) ** 2, range(0, t.size, 4096))
        sure = (exact > 1e-20) & (exact < 1e38)
        np.testing.assert_allclose(np.asarray(found)[sure], exact[sure], rtol=1e-6)


@examples(40)
@given(arrays=tiles(max_size=9000, count=2))
def test_dots(arrays):
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same(lambda k, a, b, rows: k.dots(a, b, rows), *arrays, np.empty(-(-arrays[0].size // 4096)))
        assert_same(lambda k, a, rows: k.dots(a, a, rows), arrays[0], np.empty(-(-arrays[0].size // 4096)))


@examples(80)
@given(arrays=tiles(count=2), row=st.integers(1, 800), first=st.integers(0, 1 << 40))
def test_score(arrays, row, first):
    t, factors = arrays
    with np.errstate(all="ignore"):
        assert_same(lambda k, t, f, out: k.score(t, f, first, out), t, np.abs(factors[:row]), np.empty_like(t))


@examples(60)
@given(arrays=tiles(count=5), count=st.integers(1, 3))
def test_variance(arrays, count):
    with np.errstate(all="ignore"):
        assert_same(lambda k, *a: k.variance(a[2 : 2 + count], a[0], a[1]), *arrays)


@examples(120)
@given(t=tiles(), seed=seeds, with_claims=st.booleans(), level=st.integers(0, 2), data=st.data())
def test_histogram_and_count_equal(t, seed, with_claims, level, data):
    claims = np.random.default_rng(seed).integers(0, 3, t.size).astype(np.uint8) if with_claims else None
    level = level if with_claims else 0
    levels = [(15, 16), (0, 15)] if t.dtype == np.float32 else [(47, 16), (31, 16), (15, 16), (0, 15)]
    shift, bits = data.draw(st.sampled_from(levels))
    keys = np.abs(t).view(np.int32 if t.dtype == np.float32 else np.int64).astype(object)
    key = int(data.draw(st.sampled_from(list(keys))))
    counts = np.random.default_rng(seed).integers(0, 5, 1 << bits)
    assert_same(lambda k, t, c, n: k.histogram(t, c, level, shift, bits, key >> (shift + bits), n), t, claims, counts)
    assert_same(lambda k, t, c: k.count_equal(t, c, level, key), t, claims)


@examples(200)
@given(t=tiles(max_size=5000), room=st.integers(0, 5000), data=st.data())
def test_count_near(t, room, data):
    t = t.astype(np.float32)
    keys = np.abs(t).view(np.int32)
    ends = st.sampled_from([0, 0x7FFFFFFF, *keys.tolist()])
    low, high = sorted((data.draw(ends), data.draw(ends)))
    between = keys[(low < keys) & (keys < high)]
    expected = [3 + np.count_nonzero(chosen) for chosen in (keys > high, keys == high, keys == low, keys == 0)]
    for kernels, values in ((CPU, t), (TORCH, torch.from_numpy(t))):
        counts, inside = np.full(NEAR_COUNTS, 3), np.full(room, -1, np.int32)
        assert kernels.count_near(values, low, high, counts, inside) == len(between)
        assert counts.tolist() == expected
        fit = min(len(between), room)
        np.testing.assert_array_equal(inside[:fit], between[:fit])


def test_a_list_that_is_just_full_keeps_its_last_key():
    keys = np.array([1, 50, 60, 1, 100, 0, 7], np.int32)
    for kernels, t in ((CPU, keys.view(np.float32)), (TORCH, torch.from_numpy(keys.view(np.float32)))):
        inside = np.zeros(2, np.int32)
        assert kernels.count_near(t, 10, 100, np.zeros(NEAR_COUNTS, np.int64), inside) == 2
        assert inside.tolist() == [50, 60]


@examples(200)
@given(t=tiles(), seed=seeds, with_claims=st.booleans(), level=st.integers(0, 2), data=st.data())
def test_mask_top(t, seed, with_claims, level, data):
    claims = np.random.default_rng(seed).integers(0, 4, t.size).astype(np.uint8) if with_claims else None
    level = level if with_claims else 0
    keys = np.abs(t).view(np.int32 if t.dtype == np.float32 else np.int64)
    key = int(keys[data.draw(st.integers(0, t.size - 1))])
    before = data.draw(st.sampled_from([0, 1, 5, 1 << 40]))
    keep = data.draw(st.sampled_from([0, before, before + 1, before + 7, before + t.size, 1 << 62]))
    mask = np.full(t.size, 7, np.uint8)
    assert_same(lambda k, t, c, m: k.mask_top(t, c, level, key, keep, before, m), t, claims, mask)


@examples(400)
@given(
    t=tiles(),
    seed=seeds,
    m=st.one_of(st.sampled_from([1, 2, 3, 4, 16, 31, 32, 64, 128, 200, 256, 300, 512]), st.integers(1, 320)),
    share=st.floats(0, 1),
    claimed=st.sampled_from(["nothing", "some", "all", "much"]),
    overlap_never=st.booleans(),
    drop_tail=st.booleans(),
)
def test_mask_blocks(t, seed, m, share, claimed, overlap_never, drop_tail):
    high = {"nothing": 1, "some": 2, "all": 3, "much": 6}[claimed]
    claims = np.random.default_rng(seed).integers(int(claimed == "all"), high, t.size).astype(np.uint8)
    mask = np.full(t.size, 7, np.uint8)
    n = round(share * m)
    assert_same(lambda k, t, c, s: k.mask_blocks(t, n, m, c, s, overlap_never, drop_tail), t, claims, mask)


@examples(60)
@given(
    seed=seeds,
    models=st.integers(1, 4),
    tail=st.integers(0, 255),
    n=st.integers(1, 256),
    real=st.sampled_from([np.float32, np.float64]),
)
def test_mask_blocks_of_long_tiles(seed, models, tail, n, real):
    """Thousands of elements, so that what a block learns from the one before is exercised too."""
    rng = np.random.default_rng(seed)
    size, decades = 20 * 256 + tail, 30 if real is np.float32 else 290
    scale = np.repeat(10.0 ** rng.integers(-decades, decades, 21), 256)[:size]  # neighbouring blocks differ wildly
    claims = np.zeros(size, np.uint8)
    base = rng.standard_normal(size).astype(np.float32).view(np.uint32) & 0xFFFF0000
    for i in range(models):
        moved = base + (rng.integers(-40, 40, size) << 16) * rng.integers(0, 2, size)
        t = (moved.astype(np.uint32).view(np.float32) - base.view(np.float32)) * (scale if i % 2 else 1.0)
        t = np.where(np.isfinite(t), t, 0).astype(real)
        claims = assert_same(
            lambda k, t, c, s: k.mask_blocks(t, n, 256, c, s, False, False), t, claims, np.empty(size, np.uint8)
        )[1]


@examples(60)
@given(
    key0=st.integers(0, 2**32 - 1),
    key1=st.integers(0, 2**32 - 1),
    first=st.one_of(st.integers(0, 100), st.integers(2**34 - 50, 2**34 + 50), st.integers(0, 2**60)),
    size=st.integers(1, 300),
    probability=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.25, 1 - 2.0**-24, 1 - 2.0**-25])),
)
def test_mask_random(key0, key1, first, size, probability):
    mask = np.full(size, 7, np.uint8)
    assert_same(lambda k, m: k.mask_random(key0, key1, first, probability, m), mask)


@examples(150)
@given(
    t=tiles(max_size=3000),
    row=st.integers(1, 700),
    first=st.integers(0, 50),
    low=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    span=st.sampled_from([0.0, 0.3, 2 / 3]),
    how=st.sampled_from(["mask", "itself", "other"]),
)
def test_mask_ranked(t, row, first, low, span, how):
    row = min(row, t.size)
    t = t[: t.size // row * row].copy()
    mask, other = np.full(t.size, 7, np.uint8), t[::-1].copy()

    def run(k, t, m, other):
        k.mask_ranked(t, row, 17, 2**31 + 3, first * row, low, span, m, {"itself": t, "other": other}.get(how))

    with np.errstate(all="ignore"):
        assert_same(run, t, mask, other)


weights = st.sampled_from([1.0, 0.0, -0.7, 0.3, 1e-40, 1e30])
divisors = st.sampled_from([1.0, 0.3, 0.1, 3.0])


@examples(150)
@given(arrays=tiles(count=2), seed=seeds, masked=st.booleans(), divisor=divisors, weight=weights)
def test_accumulate(arrays, seed, masked, divisor, weight):
    rng = np.random.default_rng(seed)
    acc, t = arrays
    mask, active = random_mask(rng, t.size) if masked else None, random_mask(rng, t.size)
    with np.errstate(all="ignore"):
        assert_same(lambda k, acc, t, m, a: k.accumulate(acc, t, m, divisor, weight, a), acc, t, mask, active)


@examples(150)
@given(arrays=tiles(count=4), seed=seeds, masked=st.booleans(), divisor=divisors, weight=weights)
def test_accumulate_agreeing(arrays, seed, masked, divisor, weight):
    rng = np.random.default_rng(seed)
    acc, weight_sum, signs, t = arrays
    mask = random_mask(rng, t.size) if masked else None
    count = rng.integers(0, 9, t.size).astype(np.uint8)
    assert_same(
        lambda k, acc, total, n, s, t, m: k.accumulate_agreeing(acc, total, n, s, t, m, divisor, weight),
        acc, weight_sum, count, signs, t, mask,
    )  # fmt: skip


@examples(150)
@given(arrays=tiles(count=2), seed=seeds, weight=weights)
def test_accumulate_shared(arrays, seed, weight):
    rng = np.random.default_rng(seed)
    acc, t = arrays
    mask, active = random_mask(rng, t.size), random_mask(rng, t.size)
    claims = rng.integers(0, 4, t.size).astype(np.uint8) + mask
    with np.errstate(all="ignore"):
        assert_same(
            lambda k, acc, t, m, c, a: k.accumulate_shared(acc, t, m, c, weight, a), acc, t, mask, claims, active
        )


@examples(100)
@given(arrays=tiles(count=2), seed=seeds, number=st.sampled_from([0.0, 1.0, -3.0, 0.1, 1e-300, 7e20]))
def test_divide_and_scale(arrays, seed, number):
    acc, denominator = arrays
    counts = np.random.default_rng(seed).integers(0, 4, acc.size).astype(np.uint8)
    with np.errstate(all="ignore"):
        assert_same(lambda k, a, d: k.divide(a, d), acc, denominator)
        assert_same(lambda k, a, d: k.divide(a, d), acc, counts)
        assert_same(lambda k, a: k.divide(a, number), acc)
        assert_same(lambda k, a: k.scale(a, number), acc)


@pytest.mark.parametrize("out_dtype", DTYPES)
@examples(40)
@given(
    arrays=tiles(count=2),
    seed=seeds,
    same=st.booleans(),
    saturate=st.booleans(),
    bad=st.booleans(),
    finite=st.booleans(),
)
def test_finish_and_convert(out_dtype, arrays, seed, same, saturate, bad, finite):
    base, acc = arrays
    if out_dtype == "F64" and base.dtype == np.float32:
        same = False
    rng = np.random.default_rng(seed)
    if bad:
        base[rng.random(base.size) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
        acc[rng.random(base.size) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    raw = codes(rng, out_dtype, base.size, finite)
    if same:
        CPU.decode(raw, out_dtype, base)
    active, out = random_mask(rng, base.size), np.zeros_like(raw)
    base_dtype = out_dtype if same else "F32" if out_dtype != "F32" else "BF16"
    with np.errstate(all="ignore"):
        assert_same(
            lambda k, raw, b, acc, act, o: k.finish(raw, base_dtype, b, acc, act, out_dtype, saturate, o),
            raw, base, acc, active, out,
        )  # fmt: skip
        assert_same(lambda k, v, o: k.convert(v, out_dtype, saturate, o), base, out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finish_may_write_over_the_base(dtype):
    rng = np.random.default_rng(1)
    raw = codes(rng, dtype, 500, finite=True)
    base = np.empty(500, np.float64)
    CPU.decode(raw, dtype, base)
    acc, active, out = base * 0.01, random_mask(rng, 500), np.empty_like(raw)
    CPU.finish(raw, dtype, base, acc, active, dtype, False, out)
    CPU.finish(raw, dtype, base, acc, active, dtype, False, raw)
    assert_bits(raw, out)


@examples(30)
@given(seed=seeds, size=st.integers(1, 1000))
def test_counts_of_masks(seed, size):
    rng = np.random.default_rng(seed)
    a, b = random_mask(rng, size), random_mask(rng, size)
    assert_same(lambda k, a, b: k.pair_overlap(a, b), a, b)
    assert_same(lambda k, a: k.count(a), a)


@examples(60)
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3000)),
    block=st.tuples(st.integers(1, 50), st.integers(1, 200)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_scale_blocks(seed, shape, block, part):
    rng = np.random.default_rng(seed)
    start, end = flat_part(shape, part)
    values = rng.standard_normal(end - start).astype(np.float32)
    blocks = [-(-size // step) for size, step in zip(shape, block, strict=True)]
    scales = (rng.standard_normal(blocks) * 2.0 ** rng.integers(-140, 120, blocks)).astype(np.float32)
    first = start // shape[1] // block[0]
    assert_same(lambda k, v, s: k.scale_blocks(v, start, shape[1], s[first:], first, block), values, scales)


@examples(60)
@given(
    seed=seeds,
    shape=st.sampled_from([(20, 2500), (150, 70), (3, 1100), (67, 513)]).flatmap(
        lambda most: st.tuples(*(st.integers(1, size) for size in most))
    ),
    ranks=st.tuples(st.integers(0, 5), st.integers(1, 37), st.integers(0, 5)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    columns=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_add_products(seed, shape, ranks, part, columns):
    """Against the definition as well: each element's products in order, whatever blocks they come in."""
    rng = np.random.default_rng(seed)
    start, end = flat_part(shape, part)
    low, high = flat_part((1, shape[1]), columns)
    first, (before, rank, _) = start // shape[1], ranks
    sums = rng.standard_normal(end - start).astype(np.float32)
    left = rng.standard_normal((shape[0] - first, sum(ranks))).astype(np.float32)
    right = (rng.standard_normal((rank, high - low)) * 2.0 ** rng.integers(-30, 30, (rank, 1))).astype(np.float32)

    def operation(kernels, sums, b, a):
        kernels.add_products(sums, start, shape[1], b, first, a, low, before)

    found = assert_same(operation, sums, left, right)[0]
    whole = np.zeros((shape[0] - first) * shape[1], np.float32)
    skip = start - first * shape[1]
    whole[skip : skip + sums.size] = sums
    matrix = whole.reshape(-1, shape[1])
    for j in range(rank):
        matrix[:, low:high] += left[:, before + j, None] * right[j]
    assert_bits(found, whole[skip : skip + sums.size])


@examples(60)
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 20), st.integers(1, 2500)),
    rank=st.integers(1, 9),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    columns=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_add_low_rank(seed, shape, rank, part, columns):
    rng = np.random.default_rng(seed)
    start, end = flat_part(shape, part)
    low, high = flat_part((1, shape[1]), columns)
    first = start // shape[1]
    values = rng.standard_normal(end - start).astype(np.float32)
    left = rng.standard_normal((shape[0] - first, rank)).astype(np.float32)
    right = (rng.standard_normal((rank, high - low)) * 2.0 ** rng.integers(-30, 30, (rank, 1))).astype(np.float32)

    def operation(kernels, v, b, a):
        kernels.add_low_rank(v, start, shape[1], b, first, a, low, 0.7)

    assert_same(operation, values, left, right)


@examples(30)
@given(seed=seeds, size=st.integers(1, 3000))
def test_add_scaled(seed, size):
    rng = np.random.default_rng(seed)
    values, sums = rng.standard_normal((2, size)).astype(np.float32)
    assert_same(lambda k, v, s: k.add_scaled(v, s, 0.7), values, sums)


def flat_part(shape, part):
    """A non-empty range of flat indices of a matrix."""
    count = shape[0] * shape[1]
    start = min(int(part[0] * count), count - 1)
    return start, min(count, start + 1 + int(part[1] * (count - start)))


# -- election ----------------------------------------------------------------------------------------------------------


@examples(60)
@given(arrays=tiles(count=3), seed=seeds)
def test_elections(arrays, seed):
    t, other, signs = arrays
    rng = np.random.default_rng(seed)
    signs[rng.random(signs.size) < 0.2] = 0.0
    elected = np.zeros_like(t)
    for vector in (t, other):
        elected = assert_same(lambda k, e, s, v: k.elect(e, s, v), elected, signs, vector)[0]
    mask = assert_same(lambda k, v, e, m: k.mask_agreeing(v, e, m), t, elected, random_mask(rng, t.size))[2]
    np.testing.assert_array_equal(mask, np.sign(t) * np.sign(elected) > 0)


@examples(60)
@given(size=st.integers(1, 5000), skip=st.integers(0, 17), seed=seeds)
def test_packed_bits(size, skip, seed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, skip + size)
    bits = rng.integers(0, 256, -(-mask.size // 8)).astype(np.uint8)
    bits = assert_same(lambda k, m, b: k.pack_bits(m, b), mask, bits)[1]
    np.testing.assert_array_equal(bits, np.packbits(mask, bitorder="little"))
    values, change = rng.standard_normal((2, size)).astype(np.float32)
    factor = float(rng.standard_normal())
    found = assert_same(lambda k, v, c, b: k.add_where(v, c, b, skip, factor), values, change, bits)[0]
    expected = np.where(mask[skip:] == 1, values + change * np.float32(factor), values)
    assert_bits(found, expected)
