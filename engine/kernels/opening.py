"""The kernels of a device, loaded when they are asked for: neither numba nor torch is imported before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ..errors import ResourceError
from .protocol import Kernels


def make_kernels(device: str) -> Kernels:
    """The arithmetic of a device.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        ResourceError: no CUDA device is usable here.
    """
    if device == "cpu":
        from .cpu.tile_kernels import CpuKernels

        return CpuKernels()
    import torch

    from .torch.reference import TorchKernels

    if not torch.cuda.is_available():
        raise ResourceError(
            "--device cuda: torch finds no usable CUDA device",
            "run on a machine with one and with torch's CUDA build, or without --device; the result is the same",
        )
    return TorchKernels("cuda")


def announce_compiling(tell: Callable[[], None]) -> AbstractContextManager[None]:
    """A context in which `tell` is called before the first kernel is compiled: a merge stands still meanwhile."""
    from .cpu.compile import announced

    return announced(tell)
