"""Kernels alone, no files: a CABS merge against the same in torch.topk, then each kernel against a memory copy.

    python -m benchmarks.kernels --mebi-elements 32 --rounds 5

All formulations run in every round, one after the other, so that a busy machine slows both; medians and the median of
the rounds' ratios are printed. Compiling is done before the first round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels

N, M = 64, 256
WEIGHTS = (1.2, 0.7)
TILE = 1 << 17
CHUNK = 1 << 22
"""Elements that the tuned torch formulation works on at once."""
KERNELS = CpuKernels()

Bytes = npt.NDArray[np.uint8]


def to_bf16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def checkpoints(elements: int) -> list[Bytes]:
    """A base and two fine-tunes of it as bf16 bytes: about a quarter of the differences is zero, many are equal."""
    rng = np.random.default_rng(1)
    part = min(elements, 1 << 22)
    base = to_bf16(rng.standard_normal(part) * 0.02)
    wide = (base.astype(np.uint32) << 16).view(np.float32)
    models = [to_bf16(wide + rng.standard_normal(part) * 1e-4) for _ in WEIGHTS]
    return [np.tile(tensor, elements // part).view(np.uint8) for tensor in (base, *models)]


class Workspace:
    """The tile buffers of one thread."""

    def __init__(self) -> None:
        self.base, self.t, self.acc = (KERNELS.empty(TILE, "f32") for _ in range(3))
        self.claims, self.mask, self.active = (KERNELS.empty(TILE, "u8") for _ in range(3))


def merge_tiles(raws: Sequence[Bytes], out: Bytes, first: int, stride: int) -> int:
    """Merge every `stride`-th tile from tile `first` on; returns how many elements were kept."""
    w, kept = Workspace(), 0
    for begin in range(2 * TILE * first, len(out), 2 * TILE * stride):
        part = slice(begin, begin + 2 * TILE)
        KERNELS.decode(raws[0][part], "BF16", w.base)
        w.acc.fill(0)
        w.claims.fill(0)
        w.active.fill(0)
        for raw, weight in zip(raws[1:], WEIGHTS, strict=True):
            KERNELS.task_vector(raw[part], "BF16", w.base, w.t)
            KERNELS.mask_blocks(w.t, N, M, w.claims, w.mask, False, False)
            KERNELS.accumulate(w.acc, w.t, w.mask, 1.0, weight, w.active)
            kept += KERNELS.count(w.mask)
        KERNELS.finish(raws[0][part], "BF16", w.base, w.acc, w.active, "BF16", False, out[part])
    return kept


def merge_ours(raws: Sequence[Bytes], out: Bytes, threads: int) -> int:
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda first: merge_tiles(raws, out, first, threads), range(threads)))


def merge_masks(raws: Sequence[Bytes], out: Bytes, threads: int) -> int:
    """The same merge as published scripts do it in torch: whole tensors, torch.topk of each block, masks."""
    torch.set_num_threads(threads)
    base, *models = (torch.from_numpy(raw).view(torch.bfloat16).float().view(-1, M) for raw in raws)
    total, claimed, kept = torch.zeros_like(base), torch.zeros_like(base, dtype=torch.bool), 0
    for model, weight in zip(models, WEIGHTS, strict=True):
        t = model - base
        chosen = t.abs().masked_fill(claimed, -1).topk(N, dim=1).indices
        mask = torch.zeros_like(claimed).scatter_(1, chosen, True) & (t != 0)
        total += t * mask * weight
        claimed |= mask
        kept += int(mask.sum())
    torch.from_numpy(out).view(torch.bfloat16).copy_((base + total).view(-1))
    return kept


def merge_tuned(raws: Sequence[Bytes], out: Bytes, threads: int) -> int:
    """The quickest torch that we found: memory is reused, topk does not sort, only chosen elements are touched."""
    torch.set_num_threads(threads)
    kept = 0
    for begin in range(0, len(out), 2 * CHUNK):
        part = slice(begin, begin + 2 * CHUNK)
        base, *models = (torch.from_numpy(raw[part]).view(torch.bfloat16).float().view(-1, M) for raw in raws)
        total, free = torch.zeros_like(base), torch.ones_like(base)
        for model, weight in zip(models, WEIGHTS, strict=True):
            t = model - base
            chosen = (t.abs() * free).topk(N, dim=1, sorted=False).indices
            values = t.gather(1, chosen)
            total.scatter_add_(1, chosen, values * weight)
            free.scatter_(1, chosen, 0)
            kept += int((values != 0).sum())
        torch.from_numpy(out[part]).view(torch.bfloat16).copy_((base + total).view(-1))
    return kept


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare_merges(elements: int, rounds: int, threads: int) -> None:
    raws = checkpoints(elements)
    out = np.zeros_like(raws[0])
    contenders: dict[str, Callable[[], int]] = {
        "torch.topk and masks, whole tensor": lambda: merge_masks(raws, out, threads),
        f"torch.topk, tuned, {CHUNK >> 20} Mi at a time": lambda: merge_tuned(raws, out, threads),
        "kernels": lambda: merge_ours(raws, out, threads),
    }
    kept = [action() for action in contenders.values()]
    # Ties may fall differently, so model 2 may find a few more or fewer free positions; not more than that.
    assert max(kept) <= 1.01 * min(kept), f"the merges keep {kept} elements"
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, action in contenders.items():
            before = time.process_time()
            wall[name].append(seconds(action))
            cpu[name].append(time.process_time() - before)
    print(
        f"Base and 2 models, {N}:{M}, bf16, {elements / 2**20:g} Mi elements, {threads} threads, median of {rounds}:\n"
    )
    print("| formulation | seconds | M elements/s | CPU seconds | kernels are x faster | by CPU time |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in contenders:
        faster, cheaper = (
            statistics.median(a / b for a, b in zip(times[name], times["kernels"], strict=True))
            for times in (wall, cpu)
        )
        median, busy = statistics.median(wall[name]), statistics.median(cpu[name])
        print(f"| {name} | {median:.3f} | {elements / median / 1e6:.1f} | {busy:.2f} | {faster:.1f} | {cheaper:.1f} |")


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    action: Callable[[], object]


def cases() -> list[Case]:
    """Every kernel on one tile of bf16-like data."""
    k, w = KERNELS, Workspace()
    base_raw, raw, other_raw = checkpoints(TILE)
    k.decode(base_raw, "BF16", w.base)
    k.task_vector(raw, "BF16", w.base, w.t)
    second, scratch, weight_sum = (k.empty(TILE, "f32") for _ in range(3))
    k.task_vector(other_raw, "BF16", w.base, second)
    claims, mask, none, ones = (np.zeros(TILE, np.uint8) for _ in range(4))
    k.mask_blocks(w.t, N, M, claims, mask, False, False)
    changed = (w.t != 0).astype(np.uint8)
    ones.fill(1)
    counts, rows, out = np.zeros(1 << 16, np.int64), np.empty((TILE // 4096, 3)), np.empty(2 * TILE, np.uint8)
    key = int(np.sort(np.abs(w.t))[-TILE // 5].view(np.uint32))
    scratch.fill(0)
    w.acc.fill(0)
    weight_sum.fill(0)

    def blocks(t: npt.NDArray[Any], n: int, m: int, before: Bytes) -> None:
        np.copyto(w.claims, before)
        k.mask_blocks(t, n, m, w.claims, w.mask, False, False)

    def finish(dtype: str) -> int:
        return k.finish(base_raw, "BF16", w.base, w.t, changed, dtype, False, out)

    return [
        Case("decode BF16", lambda: k.decode(raw, "BF16", scratch)),
        Case("task_vector BF16", lambda: k.task_vector(raw, "BF16", w.base, scratch)),
        Case("task_vector F16", lambda: k.task_vector(raw, "F16", w.base, scratch)),
        Case("task_vector F8_E4M3", lambda: k.task_vector(raw[:TILE], "F8_E4M3", w.base, scratch)),
        Case("mask_blocks 64:256", lambda: blocks(w.t, 64, 256, none)),
        Case("mask_blocks 64:256, second model", lambda: blocks(second, 64, 256, claims)),
        Case("mask_blocks 192:256, second model", lambda: blocks(second, 192, 256, claims)),
        Case("mask_blocks 32:128", lambda: blocks(w.t, 32, 128, none)),
        Case("mask_blocks 3:32", lambda: blocks(w.t, 3, 32, none)),
        Case("mask_random", lambda: k.mask_random(1, 2, 3, 0.3, w.mask)),
        Case("histogram, high bits", lambda: k.histogram(w.t, None, 0, 15, 16, 0, counts)),
        Case("histogram, low bits", lambda: k.histogram(w.t, None, 0, 0, 15, key >> 15, counts[: 1 << 15])),
        Case("count_equal", lambda: k.count_equal(w.t, None, 0, key)),
        Case("mask_top", lambda: k.mask_top(w.t, None, 0, key, 40, 0, w.mask)),
        Case("mask_top with claims", lambda: k.mask_top(w.t, claims, 1, key, 40, 0, w.mask)),
        Case("moments", lambda: k.moments(w.t, rows)),
        Case("accumulate", lambda: k.accumulate(w.acc, w.t, mask, 1.0, 1e-3, w.active)),
        Case("accumulate with divisor", lambda: k.accumulate(w.acc, w.t, mask, 0.3, 1e-3, w.active)),
        Case("accumulate_agreeing", lambda: k.accumulate_agreeing(w.acc, weight_sum, none, w.t, w.t, mask, 1.0, 1e-3)),
        Case("divide by array", lambda: k.divide(w.acc, ones)),
        Case("scale", lambda: k.scale(w.acc, 1.0)),
        Case("finish BF16 to BF16", lambda: finish("BF16")),
        Case("finish BF16 to F16", lambda: finish("F16")),
        Case("convert to BF16", lambda: k.convert(w.base, "BF16", False, out)),
        Case("zero_nonfinite", lambda: k.zero_nonfinite(scratch, w.base)),
        Case("pair_overlap", lambda: k.pair_overlap(mask, changed)),
    ]


def compare_kernels(rounds: int) -> None:
    source, target = np.ones(TILE, np.float32), np.zeros(TILE, np.float32)
    all_cases = cases()
    times: dict[str, list[float]] = {case.name: [] for case in all_cases}
    floors: list[float] = []
    for turn in range(rounds + 1):
        floor = seconds(lambda: np.copyto(target, source))
        taken = {case.name: seconds(case.action) for case in all_cases}
        if turn:  # the first one compiles and touches fresh memory
            floors.append(floor)
            for name, value in taken.items():
                times[name].append(value)
    print(
        f"\nOne thread, tiles of {TILE // 1024} Ki elements, median of {rounds}; "
        "x copy: time against copying the tile as fp32.\n"
    )
    print("| kernel | M elements/s | x copy |")
    print("|---|---:|---:|")
    copy = statistics.median(floors)
    print(f"| copy of fp32 | {TILE / copy / 1e6:.0f} | 1.0 |")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, floors, strict=True))
        print(f"| {name} | {TILE / statistics.median(values) / 1e6:.0f} | {ratio:.1f} |")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The kernels against torch.topk and against a memory copy.")
    parser.add_argument("--mebi-elements", type=int, default=32, help="size of the merged tensor, a power of two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    compare_merges(options.mebi_elements << 20, options.rounds, options.threads)
    compare_kernels(20 * options.rounds)
    print(f"\nLoad of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
