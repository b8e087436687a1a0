"""How two checkpoints differ, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import some_names
from ..models import TensorInfo
from .element_differences import TensorDifference
from .manifest_differences import ManifestDifferences
from .wording import counted

SHOWN = 20
"""Tensors in the text, the most different first."""


@dataclass(frozen=True)
class ComparedTensor:
    """One name in one or both of two checkpoints."""

    name: str
    first: TensorInfo | None
    second: TensorInfo | None
    elements: TensorDifference | None
    """None where elements cannot be compared one by one."""

    @property
    def state(self) -> str:
        """The largest of its differences: `equal` means the same dtype, shape and bits."""
        if self.second is None:
            return "only in A"
        if self.first is None:
            return "only in B"
        if self.first.shape != self.second.shape:
            return "shape"
        if self.elements is None or self.elements.differing:
            return "values" if self.elements is not None else "dtype"
        if self.first.dtype != self.second.dtype:
            return "dtype"
        return "bits" if self.elements.other_bits else "equal"

    def as_json(self) -> dict[str, Any]:
        """Numbers are None where there are none."""
        found: dict[str, Any] = {"tensor": self.name, "state": self.state}
        for side, info in (("a", self.first), ("b", self.second)):
            found[f"dtype_{side}"] = None if info is None else info.dtype
            found[f"shape_{side}"] = None if info is None else list(info.shape)
        each = self.elements
        names = ("elements", "differing", "other_bits", "nonfinite", "largest", "relative", "cosine")
        return found | {name: _json_number(getattr(each, name)) if each else None for name in names}


def _json_number(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


@dataclass(frozen=True)
class ComparisonReport:
    """What a comparison found."""

    first: str
    """URL of A."""
    second: str
    """URL of B."""
    tensors: tuple[ComparedTensor, ...]
    """Every name, those of A first."""
    ours: ManifestDifferences | None
    """What the manifests say, where both are finished outputs."""

    @cached_property
    def differing(self) -> tuple[ComparedTensor, ...]:
        """In the order of A."""
        return tuple(tensor for tensor in self.tensors if tensor.state != "equal")

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors, with the same dtypes, shapes and bits; files may be cut differently."""
        return not self.differing

    def as_json(self) -> dict[str, Any]:
        """Every tensor that differs, and what the manifests say."""
        return {
            "outcome": "equal" if self.equal else "different",
            "a": self.first,
            "b": self.second,
            "tensors": len(self.tensors),
            "states": self._counts(),
            "differences": [tensor.as_json() for tensor in self.differing],
            "outputs": None if self.ours is None else self.ours.as_json(),
        }

    def _counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.state] = found.get(tensor.state, 0) + 1
        return found

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"A {self.first}"
        yield f"B {self.second}"
        counts = self._counts()
        total = counted(len(self.tensors), "tensor")
        if self.equal:
            yield f"equal: {total} with the same dtypes, shapes and bits"
        else:
            yield f"different: {len(self.differing)} of {total}"
            yield from self._other_kinds(counts)
            yield from self._table()
        if self.ours is not None:
            yield from self.ours.lines()

    def _other_kinds(self, counts: dict[str, int]) -> Iterator[str]:
        found: dict[str, list[str]] = {}
        for tensor in self.differing:
            what = _WORDS.get(tensor.state, tensor.state)
            if tensor.state == "dtype":
                what += ", same values" if tensor.elements is not None else ", not compared"
            found.setdefault(what, []).append(tensor.name)
        found.pop("values", None)
        for what, names in found.items():
            yield f"  {what}: {some_names(names)}"
        if counts.get("values"):
            yield f"  other values: {counted(counts['values'], 'tensor')}"

    def _table(self) -> Iterator[str]:
        rows = sorted((tensor for tensor in self.differing if tensor.state == "values"), key=_by_size)
        if not rows:
            return
        width = max(len(tensor.name) for tensor in rows[:SHOWN])
        yield f"  {'tensor':<{width}} {'elements':>14} {'differ':>8} {'largest':>10} {'relative':>10} {'cosine':>11}"
        for tensor in rows[:SHOWN]:
            each = tensor.elements
            assert each is not None, "elements of these were compared"
            share = f"{each.differing / each.elements:.2%}"
            numbers = f"{each.largest:>10.3g} {_shown(each.relative, '.3g'):>10} {_shown(each.cosine, '.8f'):>11}"
            odd = f" ({each.nonfinite} not finite)" if each.nonfinite else ""
            kinds = f" {tensor.first.dtype}/{tensor.second.dtype}" if _other_dtype(tensor) else ""  # type: ignore[union-attr]
            yield f"  {tensor.name:<{width}} {each.elements:>14,} {share:>8} {numbers}{odd}{kinds}"
        if len(rows) > SHOWN:
            yield f"  and {len(rows) - SHOWN} more (all of them with --json)"


_WORDS = {"shape": "other shape", "dtype": "other dtype", "bits": "same values, other bits"}


def _other_dtype(tensor: ComparedTensor) -> bool:
    return tensor.first is not None and tensor.second is not None and tensor.first.dtype != tensor.second.dtype


def _by_size(tensor: ComparedTensor) -> tuple[float, str]:
    """The largest relative difference first; what has none (the other is zero, or no number) before all."""
    relative = tensor.elements.relative if tensor.elements is not None else None
    return (-math.inf if relative is None else -relative, tensor.name)


def _shown(value: float | None, spelling: str) -> str:
    return "-" if value is None else format(value, spelling)
