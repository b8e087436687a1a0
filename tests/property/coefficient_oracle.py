"""Coefficients from the matrix of dot products as the documentation defines them, written apart from the engine."""

from __future__ import annotations

import math

import numpy as np


class NoDirection(Exception):
    """The tensors cancel each other."""


def arc(t, cosine):
    angle = math.acos(cosine)
    return [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def clipped(cosine):
    return min(max(float(cosine), -1.0), 1.0)


def slerp(gram, _weights, p):
    a, b = (n if n > 1e-8 else 1.0 for n in (math.sqrt(gram[0, 0]), math.sqrt(gram[1, 1])))
    cosine = clipped(gram[0, 1] / (a * b))
    return [1.0 - p["t"], p["t"]] if abs(cosine) > 0.9995 else arc(p["t"], cosine)


def nuslerp(gram, weights, _p):
    t = 0.5 if abs(weights[0] + weights[1]) < 1e-6 else weights[1] / (weights[0] + weights[1])
    cosine = clipped(gram[0, 1] / (max(math.sqrt(gram[0, 0]), 1e-7) * max(math.sqrt(gram[1, 1]), 1e-7)))
    return [1.0 - t, t] if 1.0 - cosine * cosine <= 2.0**-24 else arc(t, cosine)


def length(c, gram):
    squares = [c[i] * c[j] * gram[i, j] for i in range(len(c)) for j in range(len(c))]
    return math.sqrt(max(math.fsum(squares), 0.0))


def multislerp(gram, weights, p):
    k, total = len(weights), math.fsum(weights)
    if p["normalize_weights"] and total == 0:
        raise NoDirection
    w = [x / total for x in weights] if p["normalize_weights"] else list(weights)
    norms = [math.sqrt(gram[i, i]) for i in range(k)]
    if not any(norms):
        return w
    share = [w[i] / (norms[i] + p["eps"]) for i in range(k)]
    mean = length(share, gram)
    if mean < p["eps"]:
        if k == 2:
            return w
        raise NoDirection
    scale = math.fsum(n * x for n, x in zip(norms, w, strict=True)) * math.cos(p["eps"]) / mean
    return [x * scale for x in share]


def karcher(gram, weights, p):
    k, tol = len(weights), p["tol"]
    norms = [math.sqrt(gram[i, i]) for i in range(k)]
    used = [i for i in range(k) if norms[i] > tol]
    units = np.array([[gram[i, j] / (norms[i] * norms[j]) for j in used] for i in used])
    n = len(used)
    x = [1.0 / n for _ in used]
    size = length(x, units) if n else 0.0
    x = [float(i == 0) for i in range(n)] if size < tol else [value / size for value in x]
    for _ in range(p["max_iter"]):
        tangent = [0.0] * n
        for i in range(n):
            cosine = clipped(math.fsum(units[i, j] * x[j] for j in range(n)))
            angle = math.acos(cosine)
            if angle >= tol and math.pi - angle >= tol:
                pull = angle / math.sin(angle) / n
                tangent = [tangent[j] + pull * ((1.0 if i == j else 0.0) - cosine * x[j]) for j in range(n)]
        step = length(tangent, units) if n else 0.0
        if step < tol:
            break
        x = [math.cos(step) * a + math.sin(step) * (b / step) for a, b in zip(x, tangent, strict=True)]
        size = length(x, units)
        x = [value / size for value in x] if size > tol else x
    result = [0.0] * k
    for value, i in zip(x, used, strict=True):
        result[i] = value / norms[i] * (math.fsum(norms) / k)
    return result


def model_stock(gram, weights, _p):
    k = len(weights)
    norms = [math.sqrt(gram[i, i]) for i in range(k)]
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    cosine = sum(clipped(gram[i, j] / max(norms[i] * norms[j], 1e-6)) for i, j in pairs) / len(pairs)
    below = 1.0 + (k - 1) * cosine
    return [(k * cosine / below if abs(below) >= 1e-6 else 0.0) / k] * k


SPHERES = {
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
}
