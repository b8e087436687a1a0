"""Tiles that find mistakes: ties, zeros of both signs, denormals, extreme magnitudes, odd sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

REALS = {"f32": np.float32, "f64": np.float64}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPES = tuple(SIZES)


def examples(count):
    """So many examples where a profile has 50, and more or fewer in others; no deadline, as first calls compile."""
    return settings(max_examples=count * settings().max_examples // 50, deadline=None)


def _bfloat16(x):
    return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def _checkpoint(rng, size):
    """Differences of two bf16 checkpoints: half of them zero, few distinct magnitudes."""
    base = _bfloat16(rng.standard_normal(size))
    return _bfloat16(base + rng.standard_normal(size) * 0.004) - base


def _ties(rng, size):
    return rng.choice([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0], size)


def _near_ties(rng, size):
    """One exponent and high mantissa, distinct only in the lowest bits."""
    bits = 0x3F800000 + rng.integers(0, 7, size) + rng.integers(0, 2, size) * 0x8000
    return bits.astype(np.uint32).view(np.float32)


def _denormals(rng, size):
    return rng.integers(0, 1 << 20, size).astype(np.uint32).view(np.float32) * rng.choice([-1, 1], size)


def _extremes(rng, size):
    return rng.choice([3e38, -3e38, 1e-38, -1e-45, 1e-45, 0.0, -0.0, 1.0], size)


def _patterns(rng, size):
    """Any finite bit pattern."""
    x = rng.integers(0, 1 << 32, size).astype(np.uint32).view(np.float32).copy()
    x[~np.isfinite(x)] = 0
    return x


def _normal(rng, size):
    return rng.standard_normal(size)


STYLES = (_checkpoint, _ties, _near_ties, _denormals, _extremes, _patterns, _normal)


@st.composite
def tiles(draw, max_size=700, count=1):
    """`count` arrays of one length and one real type, each in one of the styles."""
    real = REALS[draw(st.sampled_from(("f32", "f64")))]
    size = draw(st.integers(1, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = [draw(st.sampled_from(STYLES))(rng, size).astype(real) for _ in range(count)]
    if real is np.float64 and draw(st.booleans()):
        arrays = [a * (1 + rng.integers(0, 3, size) * 2.0**-50) for a in arrays]  # distinct beyond fp32
    return arrays[0] if count == 1 else arrays


def codes(rng, dtype, size, finite=False):
    """Bytes of `size` elements of a dtype: random patterns, or finite values of ordinary size."""
    raw = rng.integers(0, 256, size * SIZES[dtype]).astype(np.uint8)
    if finite:  # an exponent field that is all ones needs its lowest bits; clearing one bit keeps values finite
        raw.reshape(-1, SIZES[dtype])[:, -1] &= 0xBF
    return raw
