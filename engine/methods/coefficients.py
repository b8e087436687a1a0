"""Coefficients of a sum of tensors: pure formulas over dot products, in fp64.

A Gram matrix f64 [k, k] holds the dot products of k flattened tensors, so norms and angles follow from it, and those
of any sum of the tensors too. No tensor is needed here. Methods that work by rows take one matrix per row at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]
Vector: TypeAlias = NDArray[np.float64]

PARALLEL = 0.9995
"""Cosines beyond this, of either sign, are interpolated linearly by slerp (mergekit)."""
COLINEAR = 2.0**-24
"""1 - cos^2 up to this is no angle that fp32 can tell from 0 or pi."""


class NoDirection(ValueError):
    """The tensors cancel each other, so that no direction lies between them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The models' own weights."""

    needs_gram: ClassVar[bool] = False

    def solve(self, gram: Matrix, weights: Sequence[float]) -> Vector:  # noqa: ARG002 (as all others)
        """One coefficient per tensor."""
        return np.array(weights, np.float64)


@dataclass(frozen=True, slots=True)
class Slerp:
    """The arc from the first tensor (t = 0) to the second (t = 1); as mergekit, angles of zero tensors are right."""

    t: float

    needs_gram: ClassVar[bool] = True

    def solve(self, gram: Matrix, weights: Sequence[float]) -> Vector:  # noqa: ARG002 (as all others)
        """[2] for Gram [2, 2]; the weights play no part."""
        norms = _norms(gram)
        norms = np.where(norms > 1e-8, norms, 1.0)
        cosine = min(max(float(gram[0, 1] / (norms[0] * norms[1])), -1.0), 1.0)
        if abs(cosine) > PARALLEL:
            return np.array([1.0 - self.t, self.t])
        return np.array(_arc(self.t, math.acos(cosine)))


@dataclass(frozen=True, slots=True)
class NuSlerp:
    """The arc between two tensors at the place that their weights choose (mergekit's nuslerp)."""

    needs_gram: ClassVar[bool] = True

    def solve(self, gram: Matrix, weights: Sequence[float]) -> Vector:
        """[..., k] for Gram [..., k, k], k = 1 or 2; a tensor alone is the result."""
        if len(weights) == 1:
            return np.ones((*gram.shape[:-2], 1))
        total = weights[0] + weights[1]
        t = 0.5 if abs(total) < 1e-6 else weights[1] / total
        norms = np.maximum(_norms(gram), 1e-7)
        cosine = np.clip(gram[..., 0, 1] / (norms[..., 0] * norms[..., 1]), -1.0, 1.0)
        bent = 1.0 - cosine * cosine > COLINEAR
        result = np.empty((*cosine.shape, 2))
        result[...] = 1.0 - t, t
        result[bent] = np.array([_arc(t, math.acos(c)) for c in cosine[bent]]).reshape(-1, 2)
        return result


def _norms(gram: Matrix) -> Vector:
    return np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))


def _arc(t: float, angle: float) -> tuple[float, float]:
    sine = math.sin(angle)
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


@dataclass(frozen=True, slots=True)
class MultiSlerp:
    """The weighted mean direction of several tensors, with their weighted mean norm (mergekit's multislerp).

    The published steps go to the tangent space at the weighted mean direction and back. The weighted mean of the
    tangent vectors there is zero, since the same weights made the direction; what is left of the way back is a factor
    cos(eps).
    """

    normalize_weights: bool
    eps: float

    needs_gram: ClassVar[bool] = True

    def solve(self, gram: Matrix, weights: Sequence[float]) -> Vector:
        """[k] for Gram [k, k]; a tensor alone is the result.

        Raises:
            NoDirection: weights or weighted directions add up to zero.
        """
        if len(weights) == 1:
            return np.ones(1)
        w = np.array(weights, np.float64)
        if self.normalize_weights:
            if math.fsum(weights) == 0:
                raise NoDirection("the weights add up to 0 and cannot be normalized")
            w = w / math.fsum(weights)
        norms = _norms(gram)
        if not norms.any():
            return w
        share = w / np.where(norms + self.eps > 0, norms + self.eps, 1.0)
        length = _norm(share, gram)
        if length < self.eps or length == 0:
            if len(w) == 2:
                return w
            raise NoDirection("the weighted directions of the models cancel each other")
        mean_norm = math.fsum(norms * w)
        return share * (mean_norm * math.cos(self.eps) / length)


MOST_STEPS = 1000
"""Of an iteration that comes closer by a factor with each: after so many nothing moves but the last bits."""


@dataclass(frozen=True, slots=True)
class Karcher:
    """The Riemannian mean of the tensors' directions on the sphere, scaled by their mean norm (arXiv 2603.04972)."""

    max_iter: int
    tol: float

    needs_gram: ClassVar[bool] = True

    def solve(self, gram: Matrix, weights: Sequence[float]) -> Vector:
        """[k] for Gram [k, k], all tensors alike; tensors whose norm is at most tol have no direction."""
        k = len(weights)
        if k == 1:
            return np.ones(1)
        norms = _norms(gram)
        chosen = np.flatnonzero(norms > self.tol)
        result = np.zeros(k)
        if chosen.size:
            units = gram[np.ix_(chosen, chosen)] / np.outer(norms[chosen], norms[chosen])
            result[chosen] = self._mean(units) / norms[chosen] * (math.fsum(norms) / k)
        return result

    def _mean(self, units: Matrix) -> Vector:
        """Coefficients of the mean over unit tensors, from their Gram matrix."""
        k = len(units)
        mean = np.full(k, 1.0 / k)
        length = _norm(mean, units)
        mean = np.eye(k)[0] if length < self.tol else mean / length
        for _ in range(min(self.max_iter, MOST_STEPS)):
            tangent = np.zeros(k)
            for i, row in enumerate(units):
                cosine = min(max(math.fsum(row * mean), -1.0), 1.0)
                angle = math.acos(cosine)
                away = min(angle, math.pi - angle)
                if away < self.tol or away == 0:
                    continue  # there already, or opposite, from where no way is the shortest
                tangent += (angle / math.sin(angle) / k) * (np.eye(k)[i] - cosine * mean)
            step = _norm(tangent, units)
            if step < self.tol or step == 0:
                break
            mean = math.cos(step) * mean + math.sin(step) * (tangent / step)
            length = _norm(mean, units)
            mean = mean / length if length > self.tol else mean
        return mean


@dataclass(frozen=True, slots=True)
class ModelStock:
    """T / k for every task vector, T from their mean pairwise cosine (arXiv 2403.19522)."""

    needs_gram: ClassVar[bool] = True

    def solve(self, gram: Matrix, weights: Sequence[float]) -> Vector:
        """[..., k] for Gram [..., k, k] of task vectors; W0 + their sum is T * mean(W_i) + (1 - T) * W0."""
        k, norms, total = len(weights), _norms(gram), np.zeros(gram.shape[:-2])
        for i, j in combinations(range(k), 2):
            total += np.clip(gram[..., i, j] / np.maximum(norms[..., i] * norms[..., j], 1e-6), -1.0, 1.0)
        cosine = total / (k * (k - 1) // 2)
        denominator = 1.0 + (k - 1) * cosine
        singular = np.abs(denominator) < 1e-6
        share = np.where(singular, 0.0, k * cosine / np.where(singular, 1.0, denominator))
        return np.repeat((share / k)[..., None], k, axis=-1)


Coefficients = Weights | Slerp | NuSlerp | MultiSlerp | Karcher | ModelStock


def _norm(coefficients: Vector, gram: Matrix) -> float:
    """Norm of the sum of coefficients times tensors; rounding may leave its square below 0."""
    return math.sqrt(max(math.fsum((np.outer(coefficients, coefficients) * gram).ravel()), 0.0))
