"""A whole window of bf16 tensors in one call: every step on a piece that stays in the level-2 cache.

The steps are the kernels of the other files, so the bits are theirs; only the loops over pieces and models are here.
Arrays of models hold the present ones only. REALS and FLAGS say what the rows of the scratch arrays hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..row_sums import ROW
from ..window_calls import OF_VARIANCE
from .blocks import mask_next_blocks, start_search
from .codec import read_bf16
from .compile import jit
from .cuts import count_all, count_equal, count_near, count_some, mask_top
from .outputs import BASE, REALS, SIGNS, SUM, fill, write_output
from .philox import mask_random
from .sums import add, add_square_of_difference, count_both, count_number, divide_by, moments, squares

CLAIMS, FLAGS = range(2)
"""Rows of `flags`; masks follow."""
ALL, BLOCKS, CUT, BAND, VARIANCE, RANDOM = range(6)
"""Ways to select."""
LARGEST = np.int32(0x7FFFFFFF)

RULE = 4
"""Numbers of one rule; a band has two."""


class Way(NamedTuple):
    """How a window is selected."""

    first: np.int64
    """flat index of the window's first element"""
    length: np.int64
    selection: np.int64
    kept: np.bool_
    """whether moments are those of what masks keep"""


@jit
def convert(target: Any, source: Any) -> None:
    """target = source, as numbers of the target's type."""
    kind = target.dtype.type
    for i in range(target.size):
        target[i] = kind(source[i])


@jit
def count_masks(flags: Any, models: int, length: int, kept: Any, shared: Any, lanes: Any) -> None:
    """kept[i] += ones of mask i; shared[i, j] += ones of masks i and j, i < j."""
    for i in range(models):
        mask = flags[FLAGS + i, :length]
        kept[i] += count_both(mask, mask, lanes)
        for j in range(i + 1, models):
            shared[i, j] += count_both(mask, flags[FLAGS + j, :length], lanes)


@jit
def count_claims(flags: Any, models: int, length: int, claimed: Any, lanes: Any) -> None:
    """claimed[n] += elements that n masks have, for n of at least 3: smaller numbers follow from other counts."""
    if models < claimed.size:
        claims = flags[CLAIMS, :length]
        fill(claims, np.uint8(0))
        for i in range(models):
            mask = flags[FLAGS + i, :length]
            for j in range(length):
                claims[j] += mask[j]
        for n in range(3, claimed.size):
            claimed[n] += count_number(claims, np.uint8(n), lanes)


@jit
def variance(reals: Any, models: int, length: int) -> None:
    """`Kernels.variance` of a piece into the row of signs, by way of the row of sums."""
    mean, out, count = reals[SUM, :length], reals[SIGNS, :length], np.float32(models)
    fill(mean, np.float32(0))
    fill(out, np.float32(0))
    for i in range(models):
        add(mean, reals[REALS + i, :length])
    divide_by(mean, count)
    for i in range(models):
        add_square_of_difference(out, reals[REALS + i, :length], mean)
    divide_by(out, count)


@jit
def mask_above(bits: Any, rule: Any, mask: Any, nothing: Any) -> None:
    """What lies above a cut: level, key, share of equals, equals before; the equals of the piece are added to these."""
    level, key = np.uint8(rule[0]), np.int32(rule[1])
    rule[3] += mask_top(bits, LARGEST, nothing, level, key, rule[2], rule[3], mask)


@jit
def take_out(mask: Any, other: Any) -> None:
    """mask ^= other; what is in the other is in the mask."""
    for i in range(mask.size):
        mask[i] ^= other[i]


@jit
def select(
    selection: int,
    bits: Any,
    rule: Any,
    first: int,
    claims: Any,
    mask: Any,
    words: Any,
    packed: Any,
    keys: Any,
    taken: Any,
    memory: Any,
) -> None:
    """One model's mask of a piece whose first element has the flat index `first`."""
    if selection == BLOCKS:
        n, m, never, drop = rule[0], rule[1], rule[2] != 0, rule[3] != 0
        mask_next_blocks(bits, LARGEST, n, m, claims, mask, never, drop, keys, taken, memory)
    elif selection == CUT:
        mask_above(bits, rule, mask, claims[:0])
    elif selection == BAND:
        mask_above(bits, rule, mask, claims[:0])
        mask_above(bits, rule[RULE:], claims, claims[:0])
        take_out(mask, claims)
    elif selection == RANDOM:
        mask_random(np.uint64(rule[0]), np.uint64(rule[1]), first, rule[2], mask, words, packed)


@jit
def select_by_variance(reals: Any, flags: Any, rule: Any, models: int, length: int) -> None:
    """The one mask of all models."""
    variance(reals, models, length)
    mask_above(reals[SIGNS, :length].view(np.int32), rule, flags[FLAGS, :length], flags[CLAIMS, :0])
    for i in range(1, models):
        convert(flags[FLAGS + i, :length], flags[FLAGS, :length])


@jit
def keep_masked(t: Any, mask: Any) -> None:
    """t *= mask, an infinity too."""
    for i in range(t.size):
        t[i] *= np.float32(mask[i])


@jit
def clear_others(bits: Any, mask: Any) -> None:
    """Bits of what is not in the mask = 0."""
    for i in range(bits.size):
        bits[i] &= -np.int32(mask[i])


@jit
def read_piece(inputs: Any, starts: Any, begin: int, length: int, nonfinite: Any, reals: Any) -> None:
    """Decode a piece of the base and of every model's task vector."""
    base = reals[BASE, :length]
    nonfinite[0] += read_bf16(inputs[starts[0] + begin : starts[0] + begin + length], base, False, base)
    for i in range(starts.size - 1):
        first, t = starts[1 + i] + begin, reals[REALS + i, :length]
        nonfinite[1 + i] += read_bf16(inputs[first : first + length], base, True, t)


@jit
def near_window(
    inputs: Any,
    starts: Any,
    elements: int,
    wanted: Any,
    nonfinite: Any,
    counts: Any,
    inside: Any,
    numbers: Any,
    reals: Any,
) -> None:
    """Counts near brackets: i64 counts [wanted, NEAR_COUNTS], i32 inside [wanted, room], i64 numbers [wanted].

    `wanted` is i64 [wanted, 3]: a model or OF_VARIANCE, low and high. Other arguments as those of `fold_window`.
    """
    size = reals.shape[1]
    for begin in range(0, elements, size):
        length = min(size, elements - begin)
        read_piece(inputs, starts, begin, length, nonfinite, reals)
        for j in range(wanted.shape[0]):
            if wanted[j, 0] == OF_VARIANCE:
                variance(reals, starts.size - 1, length)
            row = REALS + wanted[j, 0] if wanted[j, 0] != OF_VARIANCE else SIGNS
            bits = reals[row, :length].view(np.int32)
            low, high = np.int32(wanted[j, 1]), np.int32(wanted[j, 2])
            numbers[j] = count_near(bits, LARGEST, low, high, counts[j], inside[j], numbers[j])


@jit
def observe_window(
    inputs: Any,
    starts: Any,
    elements: int,
    wanted: Any,
    shift: int,
    width: int,
    count_zeros: bool,
    nonfinite: Any,
    histograms: Any,
    zeros: Any,
    reals: Any,
    bins: Any,
) -> None:
    """Histograms i64 [wanted, 2^width] of keys; `wanted` is i64 [wanted, 2]: a model and a prefix.

    Other arguments as those of `fold_window`.
    """
    size = reals.shape[1]
    for begin in range(0, elements, size):
        length = min(size, elements - begin)
        read_piece(inputs, starts, begin, length, nonfinite, reals)
        for j in range(wanted.shape[0]):
            bits, counts = reals[REALS + wanted[j, 0], :length].view(np.int32), histograms[j]
            if wanted[j, 1] == 0 and shift + width == 31:
                count_all(bits, LARGEST, shift, width, counts)
            else:
                nothing = reals[BASE, :0].view(np.uint8)
                count_some(bits, LARGEST, nothing, 0, shift, width, wanted[j, 1], counts, bins)
            if count_zeros:
                zeros[j] += count_equal(bits, LARGEST, reals[BASE, :0].view(np.uint8), np.uint8(0), np.int32(0))


@jit
def fold_window(
    inputs: Any,
    starts: Any,
    outs: Any,
    out_starts: Any,
    way: Any,
    rules: Any,
    choices: Any,
    factors: Any,
    rates: Any,
    rows: Any,
    kept_rows: Any,
    nonfinite: Any,
    kept: Any,
    shared: Any,
    claimed: Any,
    overflowed: Any,
    narrow: Any,
    reals: Any,
    flags: Any,
    keys: Any,
    taken: Any,
    memory: Any,
    words: Any,
    packed: Any,
    sums: Any,
    padded: Any,
    narrow_sums: Any,
    lanes: Any,
) -> None:
    """Decode, take moments, select; combine and round for each output.

    `inputs` is u16 memory that spans all sources, `starts` i64 [1 + models] where in it each has the window's first
    element, `outs` and `out_starts` i64 [outputs] are the same for outputs. `rules` are i64 [models, 2 * RULE]: of
    blocks n, m, never, drop; of a cut level, key, share of equals, equals before; of random drops two key words and a
    threshold. `choices` i64 and `factors` f32 have a row per output; `rates` are f32 [outputs, models, RATES]. `rows`
    are f64 [models, rows, 2], as `moments` gives them, `kept_rows` f64 [models, rows] as `squares` does, without
    rows where none are wanted. To the counts i64 nonfinite [1 + models], kept [models], shared [models, models],
    claimed [1 + models, empty where it is not wanted] and overflowed [outputs] is added. `narrow` is the format of
    bf16. The rest is scratch, see `window.FoldScratch`.
    """
    models, size = starts.size - 1, reals.shape[1]
    for i in range(models):
        start_search(memory[i], LARGEST)
        fill(flags[FLAGS + i], np.uint8(1))
    for begin in range(0, way.length, size):
        length = min(size, way.length - begin)
        row, row_end = begin // ROW, (begin + length + ROW - 1) // ROW
        raw, base = inputs[starts[0] + begin : starts[0] + begin + length], reals[BASE, :length]
        nonfinite[0] += read_bf16(raw, base, False, base)
        fill(flags[CLAIMS], np.uint8(0))
        for i in range(models):
            t, mask, claims = reals[REALS + i, :length], flags[FLAGS + i, :length], flags[CLAIMS, :length]
            first = starts[1 + i] + begin
            nonfinite[1 + i] += read_bf16(inputs[first : first + length], base, True, t)
            if rows.shape[1] and not way.kept:
                moments(t, rows[i, row:row_end], sums, padded)
            bits, first = t.view(np.int32), way.first + begin
            select(way.selection, bits, rules[i], first, claims, mask, words, packed, keys, taken, memory[i])
        if way.selection == VARIANCE:
            select_by_variance(reals, flags, rules[0], models, length)
        for i in range(models if way.kept else 0):
            t, mask = reals[REALS + i, :length], flags[FLAGS + i, :length]
            keep_masked(t, mask)
            moments(t, rows[i, row:row_end], sums, padded)
        for i in range(models if not way.kept and way.selection != ALL else 0):
            t, mask = reals[REALS + i, :length], flags[FLAGS + i, :length]
            clear_others(t.view(np.int32), mask)
        for i in range(models if kept_rows.shape[1] else 0):
            squares(reals[REALS + i, :length], kept_rows[i, row:row_end], padded, narrow_sums, sums[0])
        count_masks(flags, models, length, kept, shared, lanes)
        count_claims(flags, models, length, claimed, lanes)
        for target in range(out_starts.size):
            out = outs[out_starts[target] + begin : out_starts[target] + begin + length]
            overflowed[target] += write_output(
                raw, reals, models, choices[target], factors[target], rates[target], narrow, out
            )
