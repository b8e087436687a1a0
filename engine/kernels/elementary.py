"""Numbers that both implementations of the row kernels share: elementary functions from IEEE operations alone.

Library functions differ in their last bits between machines and devices, and such a bit may decide what a mask keeps.
So exp and log are series here, summed in one order, with scaling by exact powers of two.
"""

from __future__ import annotations

import math

from .row_sums import ROW, SUM_ROWS

WINDOW = ROW * SUM_ROWS
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
HALVINGS = tuple(2.0**i for i in range(9, -1, -1))
"""512, 256, ... 1: any whole number below 1024 is a sum of some of them."""
FACTORS = tuple(2.0**-step for step in HALVINGS)
"""2^-512, 2^-256, ... 2^-1: products with them are exact, as long as nothing is smaller than 2^-1022."""
LOG_SHIFT = 27.0
"""Quotients of probabilities lie above 2^-27 and below 2^27."""
LOG_SCALE = 2.0**27
LOG_STEP = HALVINGS.index(32.0)
"""Scaled quotients lie below 2^54, so this is the first step that they may need."""
SQRT_2 = math.sqrt(2.0)
