"""The readable kernels: torch tensors on any device, one obvious operation after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..protocol import LEAST_CHANGE, Kind
from ..row_sums import ROW
from ..window_calls import LookCounts, NearCounts, WindowCounts, WindowFold, WindowInputs, WindowLook, WindowNear
from . import election, rowwise, sources
from .codec import FORMATS, round_to
from .selection import ascending_ranks, keys_of, take_best, uniform

KINDS = {"f32": torch.float32, "f64": torch.float64, "u8": torch.uint8, "u16": torch.uint16, "i64": torch.int64}


class TorchKernels:
    """`Kernels` on torch tensors of one device. See the protocol for what each function means."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def empty(self, count: int, kind: Kind) -> Tensor:
        """Uninitialised memory on the device."""
        return torch.empty(count, dtype=KINDS[kind], device=self.device)

    def buffer(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Pinned where the device is CUDA."""
        memory: npt.NDArray[np.uint8] = torch.empty(
            size_bytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        ).numpy()
        return memory

    def load(self, raw: npt.NDArray[np.uint8]) -> Tensor:
        """A copy on the device; on the CPU the same memory when it is writable.

        From pinned memory the copy is asynchronous: what reads the copy waits for it, on the device, and every kernel
        that counts or stores waits for what it read, so the host's bytes stay until then.
        """
        return torch.from_numpy(raw if raw.flags.writeable else raw.copy()).to(self.device, non_blocking=True)

    def store(self, values: Tensor, raw: npt.NDArray[np.uint8]) -> None:
        """A copy from the device; on the CPU the memory is often the same and nothing happens."""
        data = values.view(torch.uint8)
        torch.from_numpy(raw)[: data.numel()].copy_(data)

    def _scalar(self, value: float, like: Tensor) -> Tensor:
        """A number rounded to `like`'s dtype and put on its device.

        torch's CUDA division by a plain number multiplies by the reciprocal, which rounds differently; dividing by a
        tensor of the device does not.
        """
        return torch.tensor(value, dtype=like.dtype, device=like.device)

    def decode(self, raw: Tensor, dtype: str, out: Tensor) -> int:
        """Exact conversions; 8-bit floats go by way of float32."""
        values = raw.view(FORMATS[dtype].dtype)
        out.copy_(values.float() if dtype.startswith("F8") else values)
        return int((~out.isfinite()).sum())

    def task_vector(self, raw: Tensor, dtype: str, base: Tensor, out: Tensor) -> int:
        """Decode, then subtract."""
        nonfinite = self.decode(raw, dtype, out)
        out.sub_(base)
        return nonfinite

    def zero_nonfinite(self, t: Tensor, base: Tensor) -> None:
        """The base matters too, because Inf - Inf is not the only way to a bad element."""
        t.masked_fill_(~(t.isfinite() & base.isfinite()), 0)

    def moments(self, t: Tensor, rows: Tensor) -> None:
        """Pad to whole rows, then halve twelve times."""
        x = self._rows(t)
        square = x * x
        rows[:, 0], rows[:, 1] = rowwise.fold(x.abs()), rowwise.fold(square)
        if rows.shape[1] > 2:
            rows[:, 2] = rowwise.fold(square * square)

    def squares(self, t: Tensor, rows: Tensor) -> None:
        """Square and halve three times as numbers of t's type, then nine times in float64."""
        x = self._rows(t, t.dtype)
        x = x * x
        for half in (ROW // 2, ROW // 4, ROW // 8):
            x = x[:, :half] + x[:, half:]
        rows.copy_(rowwise.fold(x.double()))

    def _rows(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """[rows, 4096] of that dtype, padded with +0.0."""
        x = torch.zeros(-(-t.numel() // ROW) * ROW, dtype=dtype, device=t.device)
        x[: t.numel()] = t
        return x.view(-1, ROW)

    def dots(self, a: Tensor, b: Tensor, rows: Tensor) -> None:
        """Multiply, then halve twelve times."""
        rows.copy_(rowwise.fold(self._rows(a) * self._rows(b)))

    def row_dots(self, a: Tensor, b: Tensor, width: int, out: Tensor) -> None:
        """Multiply, then add up each row."""
        out.copy_(rowwise.ordered_sums((a.double() * b.double()).view(-1, width)))

    def row_divergence(self, w: Tensor, base: Tensor, width: int, out: Tensor) -> None:
        """Two matrices of probabilities."""
        out.copy_(rowwise.divergence(w.view(-1, width), base.view(-1, width)))

    def scale_rows(self, t: Tensor, factors: Tensor, width: int, out: Tensor) -> None:
        """One factor per row."""
        out.copy_((t.abs().view(-1, width) * factors.to(t.dtype)[:, None]).view(-1))

    def accumulate_rows(self, acc: Tensor, t: Tensor, factors: Tensor, width: int, active: Tensor) -> None:
        """One factor per row; zeros stay out."""
        x = (t.view(-1, width) * factors.to(t.dtype)[:, None]).view(-1)
        acc.copy_(torch.where(t != 0, acc + x, acc))
        active |= t != 0

    def column_dots(self, a: Tensor, b: Tensor, width: int, rows: int, out: Tensor) -> None:
        """Multiply, then add up each column of each group."""
        rowwise.add_groups((a.double() * b.double()).view(-1, width), rows, out)

    def accumulate_columns(self, acc: Tensor, t: Tensor, factors: Tensor, active: Tensor) -> None:
        """One factor per column; zeros stay out."""
        x = (t.view(-1, factors.numel()) * factors.to(t.dtype)).view(-1)
        acc.copy_(torch.where(t != 0, acc + x, acc))
        active |= t != 0

    def variance(self, vectors: Sequence[Tensor], mean: Tensor, out: Tensor) -> None:
        """Two sums, one model after the other."""
        count = self._scalar(len(vectors), out)
        mean.zero_()
        for vector in vectors:
            mean += vector
        mean.div_(count)
        out.zero_()
        for vector in vectors:
            difference = vector - mean
            out += difference * difference
        out.div_(count)

    def score(self, t: Tensor, factors: Tensor, first: int, out: Tensor) -> None:
        """Every element looks its column up."""
        columns = torch.arange(first, first + t.numel(), device=t.device) % factors.numel()
        torch.mul(t.abs(), factors[columns], out=out)

    def histogram(
        self, t: Tensor, claims: Tensor | None, level: int, shift: int, bits: int, prefix: int, counts: Tensor
    ) -> None:
        """Select, then count."""
        keys = keys_of(t)
        chosen = keys >> (shift + bits) == prefix
        if claims is not None:
            chosen &= claims == level
        counts += torch.bincount((keys[chosen] >> shift) & ((1 << bits) - 1), minlength=1 << bits)

    def count_equal(self, t: Tensor, claims: Tensor | None, level: int, key: int) -> int:
        """Compare and add."""
        equal = keys_of(t) == key
        if claims is not None:
            equal &= claims == level
        return int(equal.sum())

    def count_near(
        self, t: Tensor, low: int, high: int, counts: npt.NDArray[np.int64], inside: npt.NDArray[np.int32]
    ) -> int:
        """Compare and add; then a list."""
        keys = keys_of(t)
        for place, chosen in enumerate((keys > high, keys == high, keys == low, keys == 0)):
            counts[place] += int(chosen.sum())
        between = keys[(low < keys) & (keys < high)]
        inside[: between.numel()] = between[: len(inside)].cpu().numpy()
        return between.numel()

    def mask_top(
        self,
        t: Tensor,
        claims: Tensor | None,
        level: int,
        key: int,
        keep_equal: int,
        equal_before: int,
        mask: Tensor,
    ) -> int:
        """Ranks of equal elements are a running count."""
        keys = keys_of(t)
        at_level = torch.ones_like(keys, dtype=torch.bool) if claims is None else claims == level
        equal = at_level & (keys == key)
        rank = equal_before + equal.cumsum(0) - 1
        keep = (at_level & (keys > key)) | (equal & (rank < keep_equal))
        if claims is not None:
            keep |= (claims < level) & (keys != 0)
        mask.copy_(keep)
        return int(equal.sum())

    def mask_blocks(
        self, t: Tensor, n: int, m: int, claims: Tensor, mask: Tensor, overlap_never: bool, drop_tail: bool
    ) -> None:
        """Whole blocks as a matrix, then the partial block."""
        whole = t.numel() // m * m
        tail = t.numel() - whole
        tail_n = 0 if drop_tail else (n * tail + m // 2) // m
        for part, width, keep in ((slice(0, whole), m, n), (slice(whole, None), tail, tail_n)):
            if width == 0 or whole == part.stop == 0:
                continue
            keys, free = keys_of(t[part]).view(-1, width), claims[part].view(-1, width)
            kept = take_best(keys, free, keep) & (keys != 0)
            if overlap_never:
                kept &= free == 0
            mask[part] = kept.view(-1)
        claims += mask

    def mask_random(self, key0: int, key1: int, first: int, probability: float, mask: Tensor) -> None:
        """Compare as fp64."""
        mask.copy_(uniform(key0, key1, first, mask.numel(), self.device) < probability)

    def mask_ranked(
        self,
        order: Tensor,
        row: int,
        key0: int,
        key1: int,
        first: int,
        low: float,
        span: float,
        mask: Tensor,
        divided: Tensor | None,
    ) -> None:
        """Sort each row from the largest down: the last place is rank 1."""
        rank = ascending_ranks(keys_of(order).view(-1, row)).to(order.dtype)
        share = rank / self._scalar(max(row - 1, 1), order)
        p = self._scalar(low, order) + share * self._scalar(span, order)
        mask.copy_(uniform(key0, key1, first, mask.numel(), self.device) < p.double())
        if divided is not None:
            divided.copy_(torch.where(mask != 0, divided / p, divided))

    def _weighted(self, t: Tensor, divisor: float, weight: float) -> Tensor:
        return t / self._scalar(divisor, t) * self._scalar(weight, t)

    def accumulate(
        self, acc: Tensor, t: Tensor, mask: Tensor | None, divisor: float, weight: float, active: Tensor
    ) -> None:
        """Unkept elements stay as they are."""
        keep = t != 0 if mask is None else (t != 0) & (mask != 0)
        acc.copy_(torch.where(keep, acc + self._weighted(t, divisor, weight), acc))
        active |= keep

    def accumulate_agreeing(
        self,
        acc: Tensor,
        weight_sum: Tensor,
        count: Tensor,
        signs: Tensor,
        t: Tensor,
        mask: Tensor | None,
        divisor: float,
        weight: float,
    ) -> None:
        """The elected sign of 0 is +."""
        x = self._weighted(t, divisor, weight)
        agree = (x != 0) & ((x > 0) == (signs >= 0))
        if mask is not None:
            agree &= mask != 0
        acc.copy_(torch.where(agree, acc + x, acc))
        weight_sum.copy_(torch.where(agree, weight_sum + self._scalar(weight, t), weight_sum))
        count += agree

    def accumulate_shared(
        self, acc: Tensor, t: Tensor, mask: Tensor, claims: Tensor, weight: float, active: Tensor
    ) -> None:
        """A product and a quotient, of which each element needs one."""
        keep = (t != 0) & (mask != 0)
        x = torch.where(claims == 1, t * self._scalar(weight, t), t / claims.clamp(min=1).to(t.dtype))
        acc.copy_(torch.where(keep, acc + x, acc))
        active |= keep

    def shorten(self, t: Tensor, bound: float) -> None:
        """One quotient and one product per element."""
        share = self._scalar(bound, t) / torch.maximum(t.abs(), self._scalar(LEAST_CHANGE, t))
        t.mul_(share.clamp(0, 1))

    def divide(self, acc: Tensor, denominator: Tensor | float) -> None:
        """A denominator of 0 counts as 1."""
        if not isinstance(denominator, Tensor):
            denominator = self._scalar(denominator, acc)
        denominator = denominator.to(acc.dtype)
        acc.div_(torch.where(denominator == 0, torch.ones_like(denominator), denominator))

    def scale(self, acc: Tensor, factor: float) -> None:
        """One product per element."""
        acc.mul_(self._scalar(factor, acc))

    def finish(
        self,
        base_raw: Tensor,
        base_dtype: str,
        base: Tensor,
        acc: Tensor,
        active: Tensor,
        out_dtype: str,
        saturate: bool,
        out_raw: Tensor,
    ) -> int:
        """Add, round, and choose between the sum and the base's own bytes."""
        changed = active != 0
        counted = changed | base.isfinite()
        values = torch.where(changed, base + acc, base)
        codes, nonfinite = round_to(values, out_dtype, counted if saturate else torch.zeros_like(changed))
        if base_dtype == out_dtype:
            codes = torch.where(changed, codes, base_raw.view(codes.dtype))
        out_raw.view(codes.dtype).copy_(codes)
        return int((nonfinite & counted).sum())

    def convert(self, values: Tensor, out_dtype: str, saturate: bool, out_raw: Tensor) -> int:
        """Round each value once."""
        codes, nonfinite = round_to(values, out_dtype, torch.full_like(values, saturate, dtype=torch.bool))
        out_raw.view(codes.dtype).copy_(codes)
        return int(nonfinite.sum())

    def scale_blocks(
        self, values: Tensor, start: int, columns: int, scales: Tensor, first_row: int, block: tuple[int, int]
    ) -> None:
        """One product per element."""
        sources.scale_blocks(values, start, columns, scales, first_row, block)

    def add_low_rank(
        self,
        values: Tensor,
        start: int,
        columns: int,
        left: Tensor,
        first_row: int,
        right: Tensor,
        first_column: int,
        scale: float,
    ) -> None:
        """From 0 on, in order; then the scale."""
        by = self._scalar(scale, values)
        sources.add_low_rank(values, start, columns, left, first_row, right, first_column, by)

    def add_products(
        self,
        sums: Tensor,
        start: int,
        columns: int,
        left: Tensor,
        first_row: int,
        right: Tensor,
        first_column: int,
        first_rank: int,
    ) -> None:
        """In order, from what is there."""
        sources.add_products(sums, start, columns, left, first_row, right, first_column, first_rank)

    def add_scaled(self, values: Tensor, sums: Tensor, factor: float) -> None:
        """Multiply, then add."""
        values += sums * self._scalar(factor, values)

    def elect(self, elected: Tensor, signs: Tensor, t: Tensor) -> None:
        """One comparison of signs and one of sizes."""
        election.elect(elected, signs, t)

    def mask_agreeing(self, t: Tensor, elected: Tensor, mask: Tensor) -> None:
        """Both above or both below 0."""
        mask.copy_(election.agreeing(t, elected))

    def pack_bits(self, mask: Tensor, out_raw: Tensor) -> None:
        """Eight elements per byte."""
        out_raw.copy_(election.packed(mask))

    def add_where(self, values: Tensor, change: Tensor, bits: Tensor, skip: int, factor: float) -> None:
        """Elements whose bit is 0 stay as they are."""
        chosen = election.unpacked(bits, skip, values.numel())
        values.copy_(torch.where(chosen, values + change * self._scalar(factor, values), values))

    def observe_window(self, look: WindowLook, inputs: WindowInputs) -> LookCounts | None:
        """None, as for `fold_window`."""
        del look, inputs
        return None

    def near_window(self, near: WindowNear, inputs: WindowInputs) -> NearCounts | None:
        """None, as for `fold_window`."""
        del near, inputs
        return None

    def fold_window(
        self, fold: WindowFold, inputs: WindowInputs, outs: Sequence[npt.NDArray[np.uint8]]
    ) -> WindowCounts | None:
        """None: one operation after the other is what this file is for."""
        del fold, inputs, outs
        return None

    def pair_overlap(self, a: Tensor, b: Tensor) -> int:
        """Masks hold 0 or 1."""
        return int((a & b).sum())

    def count(self, mask: Tensor) -> int:
        """Masks hold 0 or 1."""
        return int(mask.sum())
