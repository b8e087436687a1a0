"""How the numba kernels are compiled: without the interpreter lock, cached on disk, with IEEE arithmetic as written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compile at first call for each combination of argument types.

    No fastmath: sums keep their order, products and sums are not fused, denormals stay. Functions that call each other
    must live in one file, because numba's cache watches only the file of the outermost one.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written, so each process compiles for itself
        compiled = numba.njit(**options)(function)
    return cast(F, compiled)


def start_compiler() -> None:
    """Let numba set itself up, without scipy.

    numba looks for scipy to offer BLAS inside compiled functions, which these kernels do not use; importing it would
    cost every worker 0.4 s of processor time and 16 MiB. A process that has imported scipy already loses nothing.
    """
    from numba.core.registry import cpu_target

    hide = "scipy" not in sys.modules
    if hide:
        sys.modules["scipy"] = cast(Any, None)
    try:
        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
    finally:
        if hide:
            del sys.modules["scipy"]
