"""`Kernels.fold_window` on the CPU: what `window_fold` is handed, and the scratch that it works in."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..row_sums import ROW
from ..window_calls import (
    BandRule,
    BlockRule,
    CutRule,
    KeepAll,
    LookCounts,
    MaskRules,
    NearCounts,
    RandomRule,
    Rule,
    WindowCounts,
    WindowFold,
    WindowInputs,
    WindowLook,
    WindowNear,
)
from . import blocks, cuts, outputs, philox, sums, window_fold
from .codec import NARROW
from .compile import Kernel, address_of

PIECE_ELEMENTS = 1 << 13
"""Elements at once: an fp32 array of them is 32 KiB, and those of a few models stay in a level-2 cache."""
LANES = 1 << 9
"""Masks are counted in so many bytes at once, each of which holds the count of a largest piece."""
LARGEST_PIECE = 1 << 16
"""Pieces are whole rows and blocks; where these only meet in larger ones, windows are folded tile by tile."""

BRIEF_ELEMENTS = 1 << 14
"""Elements of task vectors that are folded in some ten microseconds."""

SELECTIONS: dict[type[Rule], int] = {
    KeepAll: window_fold.ALL,
    BlockRule: window_fold.BLOCKS,
    CutRule: window_fold.CUT,
    BandRule: window_fold.BAND,
    RandomRule: window_fold.RANDOM,
}
CONSENSUSES = {"sum": outputs.BY_SUM, "ties": outputs.BY_SIGN, "overlap_ties": outputs.BY_SHARED_SIGN}

Numbers = npt.NDArray[Any]


def fold_window(
    fold: WindowFold, inputs: WindowInputs, outs: Sequence[npt.NDArray[np.uint8]], local: threading.local
) -> WindowCounts | None:
    """See `Kernels.fold_window`; for tensors and outputs in bf16. `local` keeps each thread's scratch."""
    last: _BriefFold | None = getattr(local, "last", None)
    if last is not None and last.is_for(fold, inputs, outs):
        return last.run(inputs.raws, outs)
    models, selection = len(fold.divisors), _selection(fold.masks)
    if selection is None or not {each.consensus for each in fold.sums} <= CONSENSUSES.keys():
        return None
    bf16 = _in_bf16(inputs) and {each.out_dtype for each in fold.sums} <= {"BF16"}
    if not bf16 or any(_is_odd(out) for out in outs):
        return None
    m = next((rule.m for rule in fold.masks.rules if isinstance(rule, BlockRule)), 1)
    elements = math.lcm(ROW, m)
    if elements > LARGEST_PIECE:
        return None
    elements *= max(1, PIECE_ELEMENTS // elements)
    size = len(inputs.raws[0]) // 2
    way = window_fold.Way(np.int64(inputs.first), np.int64(size), np.int64(selection), np.bool_(fold.moments == "kept"))
    scratch = _scratch(local, models, elements, m)
    if models * size <= BRIEF_ELEMENTS:
        brief = local.last = _brief(local, fold, way, len(outs), scratch)
        return brief.run(inputs.raws, outs)
    counts = _nothing_counted(fold, size, len(outs))
    window_fold.fold_window(
        *_spanning(inputs.raws), *_spanning(outs), way, _rules(fold.masks), *_targets(fold),
        *_numbers(counts), NARROW["BF16"], *scratch,
    )  # fmt: skip
    return counts


def _nothing_counted(fold: WindowFold, size: int, outs: int) -> WindowCounts:
    """What a call for so many elements counts into."""
    models, rows = len(fold.divisors), -(-size // ROW)
    return WindowCounts(
        nonfinite=np.zeros(1 + models, np.int64),
        kept=np.zeros(models, np.int64),
        shared=np.zeros((models, models), np.int64),
        rows=np.empty((models, rows if fold.moments != "none" else 0, 2)),
        overflowed=np.zeros(outs, np.int64),
        kept_rows=np.empty((models, rows if fold.kept_squares else 0)),
        claimed=np.zeros(1 + models if fold.counts_claims else 0, np.int64),
    )


def _numbers(counts: WindowCounts) -> tuple[Numbers, ...]:
    """In the order in which `window_fold.fold_window` takes them; the first two are written, others added to."""
    return (
        counts.rows, counts.kept_rows, counts.nonfinite, counts.kept, counts.shared, counts.claimed, counts.overflowed,
    )  # fmt: skip


def _selection(masks: MaskRules) -> int | None:
    """What `window_fold` calls the selection, or None where it has none of that kind."""
    if masks.scored or not masks.rules:
        return None
    kind = type(masks.rules[0])
    if kind is CutRule and masks.claims != "ignored":
        return None
    return window_fold.VARIANCE if masks.of_variance else SELECTIONS.get(kind)


def _rules(masks: MaskRules) -> Numbers:
    """The rules as numbers, i64 [models, 2 * RULE]."""
    numbers = np.zeros((len(masks.rules), 2 * window_fold.RULE), np.int64)
    for row, rule in zip(numbers, masks.rules, strict=True):
        match rule:
            case BlockRule() | CutRule():
                row[: len(rule)] = rule
            case BandRule(lower, upper):
                row[:] = *lower, *upper
            case RandomRule(key0, key1, probability):
                row[:3] = key0, key1, philox.threshold(probability)
    return numbers


def observe_window(look: WindowLook, inputs: WindowInputs, local: threading.local) -> LookCounts | None:
    """See `Kernels.observe_window`; for tensors in bf16."""
    models = len(inputs.raws) - 1
    if not _in_bf16(inputs) or not models:
        return None
    memory, starts = _spanning(inputs.raws)
    wanted = np.array([*zip(look.models, look.prefixes, strict=True)], np.int64).reshape(-1, 2)
    counts = LookCounts(
        nonfinite=np.zeros(1 + models, np.int64),
        histograms=np.zeros((len(wanted), 1 << look.bits), np.int64),
        zeros=np.zeros(len(wanted), np.int64),
    )
    scratch = _scratch(local, models, PIECE_ELEMENTS, 1)
    _call(window_fold.observe_window, models * len(inputs.raws[0]) // 2)(
        memory, starts, len(inputs.raws[0]) // 2, wanted, look.shift, look.bits, look.zeros,
        counts.nonfinite, counts.histograms, counts.zeros, scratch.reals, np.empty(cuts.CHUNK, np.uint16),
    )  # fmt: skip
    return counts


def near_window(near: WindowNear, inputs: WindowInputs, local: threading.local) -> NearCounts | None:
    """See `Kernels.near_window`; for tensors in bf16."""
    models = len(inputs.raws) - 1
    if not _in_bf16(inputs) or not models:
        return None
    memory, starts = _spanning(inputs.raws)
    wanted = np.array(near.near, np.int64).reshape(-1, 3)
    found = NearCounts.empty(models, len(wanted), near.room)
    scratch = _scratch(local, models, PIECE_ELEMENTS, 1)
    _call(window_fold.near_window, models * len(inputs.raws[0]) // 2)(
        memory, starts, len(inputs.raws[0]) // 2, wanted,
        found.nonfinite, found.counts, found.inside, found.numbers, scratch.reals,
    )  # fmt: skip
    return found


def _in_bf16(inputs: WindowInputs) -> bool:
    """Whether all are whole numbers of bf16 that begin where such numbers may."""
    return {*inputs.dtypes} == {"BF16"} and not any(_is_odd(raw) for raw in inputs.raws)


def _is_odd(array: Numbers) -> bool:
    return bool((address_of(array) or 0) % 2)


def _call(kernel: Kernel, elements: int) -> Callable[..., Any]:
    """How a kernel is called that folds so many elements of task vectors."""
    return kernel.briefly if elements <= BRIEF_ELEMENTS else kernel


def _scratch(local: threading.local, *sizes: int) -> FoldScratch:
    """This thread's scratch, made again only where sizes change."""
    if getattr(local, "sizes", None) != sizes:
        local.sizes, local.scratch, local.brief, local.last = sizes, fold_scratch(*sizes), {}, None
    scratch: FoldScratch = local.scratch
    return scratch


class _BriefFold:
    """Windows of one size and kind, folded by one thread: laying out its 28 arguments takes longer than the call.

    Args:
        fold: of the first one.
        way: of all of them.
        outs: how many.
        scratch: of the thread.
    """

    def __init__(self, fold: WindowFold, way: window_fold.Way, outs: int, scratch: FoldScratch) -> None:
        models = len(fold.divisors)
        self._first, self._size_bytes, self._outs = int(way.first), 2 * int(way.length), outs
        self._dtypes = ["BF16"] * (1 + models)
        self._fold = fold
        self._tells_apart = _has_no_zero(fold)
        self._counts = _nothing_counted(fold, int(way.length), outs)
        self._rules = _rules(fold.masks)
        self._own_rules = self._rules.copy()
        """What the kernel gets: it counts on in them how many equals of a cut came before."""
        self._targets = _targets(fold)
        self._starts = np.empty(1 + models, np.int64), np.empty(outs, np.int64)
        memory = np.empty(0, np.uint16)
        self._call = window_fold.fold_window.prepared(
            memory, self._starts[0], memory, self._starts[1], way, self._own_rules, *self._targets,
            *_numbers(self._counts), NARROW["BF16"], *scratch,
        )  # fmt: skip
        self._added = _numbers(self._counts)[2:]

    def is_for(self, fold: WindowFold, inputs: WindowInputs, outs: Sequence[npt.NDArray[np.uint8]]) -> bool:
        """Whether such a window is folded by this call as it is."""
        return (
            len(inputs.raws[0]) == self._size_bytes
            and inputs.first == self._first
            and inputs.dtypes == self._dtypes
            and len(outs) == self._outs
            and self._tells_apart
            and fold == self._fold
            and not any(map(_is_odd, (*inputs.raws, *outs)))
        )

    def set(self, fold: WindowFold) -> None:
        """Fold like this from now on: rules and factors may differ from those before, what else it says may not."""
        self._rules = _rules(fold.masks)
        for target, other in zip(self._targets, _targets(fold), strict=True):
            target[:] = other
        self._fold, self._tells_apart = fold, _has_no_zero(fold)

    def run(self, raws: Sequence[npt.NDArray[np.uint8]], outs: Sequence[npt.NDArray[np.uint8]]) -> WindowCounts:
        """See `fold_window`; the counts are valid until the next run."""
        for number, arrays in enumerate((raws, outs)):
            if arrays:
                address, size, starts = _span(arrays)
                self._call.place(2 * number, address, size)
                self._starts[number][:] = starts
        self._own_rules[:] = self._rules
        for array in self._added:
            array.fill(0)
        self._call()
        return self._counts


def _has_no_zero(fold: WindowFold) -> bool:
    """Whether no factor is 0: then what equals this has the same bits, while -0 equals 0."""
    factors = [number for each in fold.sums for number in (*each.weights, *each.voting, each.denominator, each.factor)]
    return all(factors) and all(fold.divisors)


MOST_BRIEF = 64
"""Sizes of small windows that a thread keeps calls for; a model has a handful."""


def _brief(
    local: threading.local, fold: WindowFold, way: window_fold.Way, outs: int, scratch: FoldScratch
) -> _BriefFold:
    """This thread's call for such windows; it lives as long as the scratch."""
    known: dict[Hashable, _BriefFold] = local.brief
    key = (*way, outs, len(fold.sums), fold.moments, fold.kept_squares, fold.counts_claims)
    found = known.get(key)
    if found is not None:
        found.set(fold)
        return found
    if len(known) == MOST_BRIEF:
        known.clear()
    found = known[key] = _BriefFold(fold, way, outs, scratch)
    return found


class FoldScratch(NamedTuple):
    """What `window_fold.fold_window` works in: one piece of a window with all its models."""

    reals: Numbers
    flags: Numbers
    keys: Numbers
    taken: Numbers
    memory: Numbers
    words: Numbers
    packed: Numbers
    sums: Numbers
    padded: Numbers
    narrow_sums: Numbers
    lanes: Numbers


def fold_scratch(models: int, elements: int, m: int) -> FoldScratch:
    """Scratch for pieces of so many elements and blocks of m; some 100 bytes for each model and element."""
    return FoldScratch(
        np.empty((outputs.REALS + models, elements), np.float32),
        np.empty((window_fold.FLAGS + models, elements), np.uint8),
        np.empty((2, m), np.int32),
        np.empty((2, -(-m // 8) * 8), np.uint8),
        np.empty((models, blocks.LEVELS, 3), np.int64),
        np.empty((4, philox.COUNTERS), np.uint64),
        np.empty(philox.COUNTERS, np.uint32),
        np.empty((2, sums.EIGHTH)),
        np.empty(ROW, np.float32),
        np.empty(sums.EIGHTH, np.float32),
        np.empty(LANES, np.uint8),
    )


def _targets(fold: WindowFold) -> tuple[Numbers, Numbers, Numbers]:
    """What `window_fold.fold_window` calls choices, factors and rates."""
    choices = np.empty((len(fold.sums), outputs.CHOICES), np.int64)
    factors = np.empty((len(fold.sums), outputs.FACTORS), np.float32)
    rates = np.empty((len(fold.sums), len(fold.divisors), outputs.RATES), np.float32)
    for i, each in enumerate(fold.sums):
        choices[i] = CONSENSUSES[each.consensus], each.normalize, each.saturate
        factors[i] = each.denominator, each.factor
        rates[i] = [*zip(each.weights, fold.divisors, each.voting, strict=True)]
    return choices, factors, rates


WRITABLE = 0x200
"""PyBUF_WRITE of Python's C interface."""
_memory_at = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)
"""Memory by its address, without a new ctypes type for every length."""


def _spanning(arrays: Sequence[npt.NDArray[np.uint8]]) -> tuple[Numbers, Numbers]:
    """Memory from the first of these arrays of bytes to the end of the last as u16, and where in it each begins."""
    if not arrays:
        return np.empty(0, np.uint16), np.empty(0, np.int64)
    first, size, starts = _span(arrays)
    return np.frombuffer(_memory_at(first, 2 * size, WRITABLE), np.uint16), np.array(starts, np.int64)


def _span(arrays: Sequence[npt.NDArray[np.uint8]]) -> tuple[int, int, list[int]]:
    """As `_spanning`: an address, and how many u16 there and where each array begins."""
    places = [address_of(array) or 0 for array in arrays]
    first, end = min(places), max([place + len(array) for place, array in zip(places, arrays, strict=True)])
    return first, (end - first) // 2, [(place - first) // 2 for place in places]
