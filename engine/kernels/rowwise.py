"""Numbers that both implementations of the row kernels share: elementary functions from IEEE operations alone.

Library functions differ in their last bits between machines and devices, and such a bit may decide what a mask keeps.
So exp and log are series here, summed in one order, with scaling by exact powers of two.
"""

from __future__ import annotations

import math

import numpy as np

from . import ROW, WINDOW_ROWS

WINDOW = ROW * WINDOW_ROWS
"""Elements of one window of the defined order of sums."""
EPSILON = 1e-8
"""Added to every probability (mergekit's arcee_fusion)."""
LOWEST = -700.0
"""exp of less counts as 0; EPSILON is far above what that leaves out."""
LOG2_E = 1.4426950408889634
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
"""LN2_HIGH + LN2_LOW is ln 2 to 85 bits; products of LN2_HIGH with small whole numbers are exact."""
TO_WHOLE = 1.5 * 2.0**52
"""Added and subtracted, it rounds to the nearest whole number."""
EXP_SERIES = tuple(1.0 / math.factorial(i) for i in range(13, -1, -1))
"""1/13! ... 1/0!: exp of at most ln 2 / 2, to 2^-57."""
LOG_SERIES = tuple(1.0 / i for i in range(21, 0, -2))
"""1/21 ... 1/1: log m = 2 (s + s^3/3 + ...) with s = (m - 1) / (m + 1), for m from 0.7 to 1.42."""
POWERS = 2.0 ** -np.arange(1024.0)
"""2^-i, exactly."""
LOG_SHIFT = 27
"""Quotients of probabilities lie above 2^-27 and below 2^27."""
