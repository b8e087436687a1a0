"""Which files a reader opens to follow one element of a CABS merge, from the inputs' bytes to those of the output.

    python -m benchmarks.one_element BF16

A merge of one tensor in one window is run under a profiler. A file counts when one of its functions is handed numbers:
an array or a memoryview as an argument other than `self`, or up to three steps inside one (in a list, a tuple, or an
attribute of an object of ours). What runs on the calling thread (planning, opening, committing) does not count, and
neither does what happens after the last bytes of the output are hashed. Compiled kernels run unseen: every file counts
whose kernels can be reached by name from one that was called.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np

import anabranch

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("BF16", "F32")
STEPS = 3  # from an argument to the numbers in it; a fourth finds no further file

Sight = tuple[str, FunctionType | None]
"""A file, and the kernel that was called there; no file where bytes were hashed."""


def on_the_way(dtype: str) -> set[str]:
    """The files, relative to the checkout; all tensors have the dtype."""
    with tempfile.TemporaryDirectory() as work:
        recipe = _write_models(Path(work), dtype)
        anabranch.merge(recipe, Path(work, "compiled"), anabranch.Execution(workers=1))
        seen: list[Sight] = []
        threading.setprofile(_profiler(seen))
        try:
            anabranch.merge(recipe, Path(work, "out"), anabranch.Execution(workers=1))
        finally:
            threading.setprofile(None)
    hashed = max(place for place, (file, _) in enumerate(seen) if not file)
    kernels: set[FunctionType] = set()
    for _, kernel in seen[:hashed]:
        _add_kernels(kernel, kernels)
    files = {file for file, _ in seen[:hashed] if file} | {_file(kernel.__code__) for kernel in kernels}
    return {os.path.relpath(file, ROOT) for file in files}


def _write_models(folder: Path, dtype: str) -> Path:
    random = np.random.default_rng(1)
    values = random.standard_normal((3, 1 << 16)).astype("<f4").view("<u4")
    for name, bits in zip(("base", "first", "second"), values, strict=True):
        data = (bits >> 16).astype("<u2").tobytes() if dtype == "BF16" else bits.tobytes()
        header = json.dumps({"w": {"dtype": dtype, "shape": [256, 256], "data_offsets": [0, len(data)]}}).encode()
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
        (folder / name / "config.json").write_text("{}")
    recipe = {"merge_method": "cabs", "base_model": "base", "models": [{"model": "first"}, {"model": "second"}]}
    (folder / "recipe.yml").write_text(json.dumps(recipe | {"parameters": {"density": 0.25}}))
    return folder / "recipe.yml"


def _profiler(seen: list[Sight]) -> Callable[[FrameType, str, Any], None]:
    """Notes files of functions that are handed numbers, kernels that are called, and ('', None) for each hash."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ == "update" and "hash" in type(argument.__self__).__module__:
            seen.append(("", None))
        elif event == "call" and (file := _file(frame.f_code)):
            values = dict(frame.f_locals)
            kernel = getattr(values.pop("self", None), "function", None)
            if frame.f_code.co_name[0] != "<" and any(holds_numbers(value) for value in values.values()):
                seen.append((file, kernel if isinstance(kernel, FunctionType) else None))

    return profile


def holds_numbers(value: Any, steps: int = STEPS) -> bool:
    """Whether a value is an array or a memoryview, or leads to one in so many steps."""
    if isinstance(value, np.ndarray | memoryview):
        return True
    if isinstance(value, list | tuple):
        inner = list(value)
    elif type(value).__module__.partition(".")[0] == anabranch.__name__:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    else:
        return False
    return steps > 0 and any(holds_numbers(each, steps - 1) for each in inner)


def _add_kernels(kernel: FunctionType | None, found: set[FunctionType]) -> None:
    """A kernel and those that it calls: objects that wrap a function of ours, as its source names them."""
    if kernel is None or kernel in found or not _file(kernel.__code__):
        return
    found.add(kernel)
    named = [kernel.__globals__.get(name) for name in kernel.__code__.co_names]
    modules = [value for value in named if isinstance(value, ModuleType)]
    named += [getattr(module, name, None) for module in modules for name in kernel.__code__.co_names]
    for value in named:
        inner = getattr(value, "function", None)
        _add_kernels(inner if isinstance(inner, FunctionType) else None, found)


@cache
def _file(code: CodeType) -> str:
    """The file of a function, or '' where it is none of ours."""
    path = Path(code.co_filename).resolve()
    return str(path) if any(path.is_relative_to(ROOT / top) for top in ("engine", "cluster")) else ""


if __name__ == "__main__":
    print(*sorted(on_the_way(sys.argv[1])), sep="\n")
