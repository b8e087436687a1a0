"""One output of a piece: the sum of task vectors, elected or not, added to the base and rounded to bf16.

The last two models are added in the loop that rounds, and most merges have no more: so sums never leave the registers.
Models before them are added one by one first. Task vectors are 0 where masks are; what is 0 changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .codec import settle, to_bf16
from .compile import jit

MAGNITUDE = np.uint32(0x7FFF)
"""Clears the sign of a bf16 code."""
ZERO, ONE, NOTHING = np.float32(0), np.float32(1), np.float32(-0.0)
"""Adding -0.0 changes no number."""
BASE, SUM, SIGNS, WEIGHTS, SEEN, REALS = range(6)
"""Rows of scratch f32 [REALS + models, length of a piece]; task vectors follow. SEEN holds bits: of magnitudes that are
not 0 in any of the models that were added first."""

BY_SUM, BY_SIGN, BY_SHARED_SIGN = range(3)
"""Ways to combine: the sum, TIES, and TIES where masks overlap."""
CONSENSUS, NORMALIZE, SATURATE, CHOICES = range(4)
"""Columns of `choices`, a row per output."""
DENOMINATOR, FACTOR, FACTORS = range(3)
"""Columns of `factors`, a row per output; FACTOR is lambda."""
WEIGHT, DIVISOR, VOTING, RATES = range(4)
"""Columns of `rates`, a row per output and model; VOTING is the weight in the sum whose sign is elected."""


@jit
def term(value: Any, divided: bool, divisor: Any, weight: Any) -> Any:
    """What a value adds to a sum."""
    return (value / divisor if divided else value) * weight


@jit
def agrees(value: Any, sign: Any) -> Any:
    """Whether a value has the sign of another; 0 counts as positive there."""
    return ((value > 0) & (sign >= 0)) | ((value < 0) & (sign < 0))


@jit
def add_term(total: Any, seen: Any, t: Any, divided: bool, divisor: Any, weight: Any) -> None:
    """Add one model."""
    bits = t.view(np.int32)
    for i in range(total.size):
        value = t[i]
        x = term(value, divided, divisor, weight)
        total[i] += x if value != 0 else NOTHING
        seen[i] |= bits[i] & np.int32(0x7FFFFFFF)


@jit
def add_agreeing(total: Any, weights: Any, signs: Any, t: Any, divided: bool, rates: Any, share: Any) -> None:
    """Add one model where it has the elected sign, and there its share to the weights."""
    divisor, weight = rates[DIVISOR], rates[WEIGHT]
    for i in range(total.size):
        x = term(t[i], divided, divisor, weight)
        keep = agrees(x, signs[i])
        total[i] += x if keep else NOTHING
        weights[i] += share if keep else NOTHING


@jit
def write_sum(
    own: Any,
    reals: Any,
    a: Any,
    b: Any,
    started: bool,
    divided: bool,
    rates_a: Any,
    rates_b: Any,
    denominator: Any,
    factor: Any,
    out: Any,
) -> Any:
    """Add the last two models, round; returns the largest magnitude of a code."""
    base, total, seen = reals[BASE, : out.size], reals[SUM, : out.size], reals[SEEN, : out.size].view(np.int32)
    divisor_a, weight_a, divisor_b, weight_b = rates_a[DIVISOR], rates_a[VOTING], rates_b[DIVISOR], rates_b[VOTING]
    worst = np.uint32(0)
    for i in range(out.size):
        value_a, value_b, kept = a[i], b[i], np.uint32(own[i])
        x, y = term(value_a, divided, divisor_a, weight_a), term(value_b, divided, divisor_b, weight_b)
        change = total[i] if started else ZERO
        change = change + (x if value_a != 0 else NOTHING)
        change = change + (y if value_b != 0 else NOTHING)
        if divided:
            change /= denominator
        active = (value_a != 0) | (value_b != 0)
        if started:
            active |= seen[i] != 0
        code = np.uint32(to_bf16(base[i] + change * factor))
        code = code if active else kept
        worst = max(worst, np.uint32(code & MAGNITUDE))
        out[i] = code
    return worst


@jit
def write_agreeing(
    own: Any,
    reals: Any,
    a: Any,
    b: Any,
    started: bool,
    divided: bool,
    rates_a: Any,
    rates_b: Any,
    share_a: Any,
    share_b: Any,
    factor: Any,
    out: Any,
) -> Any:
    """The same where models agree with the elected sign, over the sum of their shares; 0 counts as 1 there."""
    base, total, seen = reals[BASE, : out.size], reals[SUM, : out.size], reals[SEEN, : out.size].view(np.int32)
    signs, weights = reals[SIGNS, : out.size], reals[WEIGHTS, : out.size]
    divisor_a, weight_a, voting_a = rates_a[DIVISOR], rates_a[WEIGHT], rates_a[VOTING]
    divisor_b, weight_b, voting_b = rates_b[DIVISOR], rates_b[WEIGHT], rates_b[VOTING]
    worst = np.uint32(0)
    for i in range(out.size):
        value_a, value_b, kept = a[i], b[i], np.uint32(own[i])
        if started:
            sign, change, weight = signs[i], total[i], weights[i]
        else:
            vote_a, vote_b = term(value_a, divided, divisor_a, voting_a), term(value_b, divided, divisor_b, voting_b)
            sign, change, weight = ZERO + (vote_a if value_a != 0 else NOTHING), ZERO, ZERO
            sign = sign + (vote_b if value_b != 0 else NOTHING)
        x, y = term(value_a, divided, divisor_a, weight_a), term(value_b, divided, divisor_b, weight_b)
        keep_a, keep_b = agrees(x, sign), agrees(y, sign)
        change = change + (x if keep_a else NOTHING)
        change = change + (y if keep_b else NOTHING)
        weight = weight + (share_a if keep_a else NOTHING)
        weight = weight + (share_b if keep_b else NOTHING)
        change = change / (weight if weight != 0 else ONE)
        active = (value_a != 0) | (value_b != 0)
        if started:
            active |= seen[i] != 0
        code = np.uint32(to_bf16(base[i] + change * factor))
        code = code if active else kept
        worst = max(worst, np.uint32(code & MAGNITUDE))
        out[i] = code
    return worst


@jit
def share_of(choices: Any, weight: Any) -> Any:
    """What a model that agrees adds to the number that the sum is divided by."""
    if choices[CONSENSUS] == BY_SHARED_SIGN:
        return ONE
    return weight if choices[NORMALIZE] else ZERO


@jit
def fill(array: Any, value: Any) -> None:
    """array = value."""
    for i in range(array.size):
        array[i] = value


@jit
def add_first(reals: Any, last: int, choices: Any, rates: Any, divided: bool, length: int) -> None:
    """Add all models but the last two; where signs are elected, with the votes of all."""
    total, seen = reals[SUM, :length], reals[SEEN, :length].view(np.int32)
    fill(total, ZERO)
    fill(seen, np.int32(0))
    if choices[CONSENSUS] == BY_SUM:
        for i in range(last):
            add_term(total, seen, reals[REALS + i, :length], divided, rates[i, DIVISOR], rates[i, VOTING])
        return
    signs, weights = reals[SIGNS, :length], reals[WEIGHTS, :length]
    fill(signs, ZERO)
    fill(weights, ZERO)
    for i in range(last + 2):
        add_term(signs, seen, reals[REALS + i, :length], divided, rates[i, DIVISOR], rates[i, VOTING])
    for i in range(last):
        share = share_of(choices, rates[i, WEIGHT])
        add_agreeing(total, weights, signs, reals[REALS + i, :length], divided, rates[i], share)


@jit
def count_beyond(codes: Any, reals: Any, models: int, narrow: Any, saturate: bool) -> int:
    """Clamp or count what rounds beyond the largest value, where any model changes the element."""
    total = 0
    for i in range(codes.size):
        if (codes[i] & MAGNITUDE) > narrow.largest:
            changed = False
            for j in range(models):
                changed |= reals[REALS + j, i] != 0
            value = np.uint32(np.uint32(codes[i]) << np.uint32(16)).view(np.float32)
            total += settle(value, changed, narrow, saturate, codes, i)
    return total


@jit
def write_output(
    own: Any, reals: Any, models: int, choices: Any, factors: Any, rates: Any, narrow: Any, out: Any
) -> int:
    """A piece of one output; returns how many results are beyond the largest value and stay so.

    `own` are the base's codes, `narrow` is the format of bf16; `choices` i64 [CHOICES], `factors` f32 [FACTORS] and
    `rates` f32 [models, RATES] are those of the output.
    """
    last = max(models - 2, 0)
    denominator = factors[DENOMINATOR] if choices[NORMALIZE] and factors[DENOMINATOR] != ZERO else ONE
    divided = choices[CONSENSUS] == BY_SUM and denominator != ONE
    for i in range(models):
        divided |= rates[i, DIVISOR] != ONE
    if last > 0:
        add_first(reals, last, choices, rates, divided, out.size)
    elif models == 1:
        fill(reals[SUM, : out.size], ZERO)  # in place of another model
    a = reals[REALS + last if models > 1 else SUM, : out.size]
    b = reals[REALS + models - 1, : out.size]
    rates_a, rates_b, factor = rates[last], rates[models - 1], factors[FACTOR]
    # Every case has a loop of its own, made from literal arguments.
    if choices[CONSENSUS] == BY_SUM:
        if last > 0 and divided:
            worst = write_sum(own, reals, a, b, True, True, rates_a, rates_b, denominator, factor, out)
        elif last > 0:
            worst = write_sum(own, reals, a, b, True, False, rates_a, rates_b, denominator, factor, out)
        elif divided:
            worst = write_sum(own, reals, a, b, False, True, rates_a, rates_b, denominator, factor, out)
        else:
            worst = write_sum(own, reals, a, b, False, False, rates_a, rates_b, denominator, factor, out)
    else:
        share_a, share_b = share_of(choices, rates_a[WEIGHT]), share_of(choices, rates_b[WEIGHT])
        if last > 0 and divided:
            worst = write_agreeing(own, reals, a, b, True, True, rates_a, rates_b, share_a, share_b, factor, out)
        elif last > 0:
            worst = write_agreeing(own, reals, a, b, True, False, rates_a, rates_b, share_a, share_b, factor, out)
        elif divided:
            worst = write_agreeing(own, reals, a, b, False, True, rates_a, rates_b, share_a, share_b, factor, out)
        else:
            worst = write_agreeing(own, reals, a, b, False, False, rates_a, rates_b, share_a, share_b, factor, out)
    return count_beyond(out, reals, models, narrow, choices[SATURATE] != 0) if worst > narrow.largest else 0
