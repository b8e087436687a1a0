"""How kernels become machine code, and how a process finds it again without starting a compiler.

A kernel is a Python function over arrays that numba compiles once for each combination of argument types: with IEEE
arithmetic as written (no fastmath: sums keep their order, products and sums are not fused, denormals stay). The machine
code goes into a file; later processes load it with llvmlite alone, which takes a tenth of the time and a third of the
memory of importing numba.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from .code_files import alone, fingerprint, keep, processor, read

SCALARS: dict[type, tuple[str, Any]] = {
    bool: ("boolean", ctypes.c_bool),
    int: ("int64", ctypes.c_int64),
    float: ("float64", ctypes.c_double),
    np.bool_: ("boolean", ctypes.c_bool),
    np.uint8: ("uint8", ctypes.c_uint8),
    np.int32: ("int32", ctypes.c_int32),
    np.uint32: ("uint32", ctypes.c_uint32),
    np.int64: ("int64", ctypes.c_int64),
    np.uint64: ("uint64", ctypes.c_uint64),
    np.float32: ("float32", ctypes.c_float),
    np.float64: ("float64", ctypes.c_double),
}
"""Python and numpy types of numbers: what numba calls them, and how they are handed over."""
RESULTS = dict(SCALARS.values())

OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
"""No traps and no counting of references: kernels neither raise nor allocate."""

_LOCK = threading.Lock()
"""LLVM and numba do one thing at a time."""

C_CONTIGUOUS, ALIGNED = 0x1, 0x100
"""Bits of an array's flags."""
NUMBER, NUMPY_NUMBER, NUMBERS = 0, -1, -2
"""How arguments are handed over that are not arrays."""

Native = Callable[..., int]
Kind = Any
"""Of one argument: (dtype, dimensions) of an array, a type of numbers, or (a named tuple's type, types of fields)."""


class Kernel:
    """A function that is compiled when it is first called with arguments of some types.

    Arrays must be C-contiguous. A kernel neither allocates (what it needs to work in is an argument) nor raises: so its
    machine code stands alone.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._entries: dict[tuple[Kind, ...], _Entry] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self._entry(arguments)(arguments)

    def briefly(self, *arguments: Any) -> Any:
        """The same for work of some microseconds, during which other Python threads wait.

        Who lets them run meanwhile gets its turn again only after the 5 ms that Python gives to each.
        """
        return self._entry(arguments).briefly(arguments)

    def prepared(self, *arguments: Any) -> Prepared:
        """A call like `briefly` with these arguments, to be made many times; see there."""
        return Prepared(self._entry(arguments), arguments)

    def _entry(self, arguments: Sequence[Any]) -> _Entry:
        kinds = tuple(map(_kind, arguments))
        entry = self._entries.get(kinds)
        if entry is None:
            with _LOCK:
                if kinds not in self._entries:
                    self._entries[kinds] = _find(self, kinds)
                entry = self._entries[kinds]
        return entry

    @functools.cached_property
    def _by_numba(self) -> Any:
        return _numba().njit(**OPTIONS)(self.function)

    @property
    def _numba_type_(self) -> Any:
        """How numba sees a kernel that another kernel calls."""
        return self._by_numba._numba_type_


jit = Kernel


def _kind(value: Any) -> Kind:
    if type(value) is np.ndarray:
        return value.dtype, value.ndim
    if isinstance(value, tuple):
        return type(value), tuple(map(type, value))
    return type(value)


# -- calling machine code --------------------------------------------------------------------------------------------


class _Entry:
    """Machine code for one combination of argument types."""

    def __init__(self, kernel: Kernel, kinds: Sequence[Kind], address: int, result: str) -> None:
        self.name = kernel.function.__qualname__
        self._result = RESULTS.get(result)
        self._ways = [_way(kind) for kind in kinds]
        self.types = _c_types(kinds)
        """Of all values that the arguments become."""
        # numba's convention: a status, then where to put the result and the exception, then the arguments.
        types = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *self.types]
        self.native: Native = ctypes.CFUNCTYPE(*types)(address)
        self.native_briefly: Native = ctypes.PYFUNCTYPE(*types)(address)
        """The same, but other Python threads wait until it is over."""

    def __call__(self, arguments: Sequence[Any]) -> Any:
        return self._call(self.native, arguments)

    def briefly(self, arguments: Sequence[Any]) -> Any:
        return self._call(self.native_briefly, arguments)

    def _call(self, native: Native, arguments: Sequence[Any]) -> Any:
        flat = self.flat(arguments)
        if flat is None:
            return self._call_on_copies(native, arguments)
        result = self._result() if self._result is not None else ctypes.c_int64()
        check(native(ctypes.byref(result), ctypes.byref(ctypes.c_void_p()), *flat), self.name)
        return result.value if self._result is not None else None

    def flat(self, arguments: Sequence[Any]) -> list[Any] | None:
        """The values that arguments become for machine code, or None where an array is not aligned."""
        flat: list[Any] = []
        for value, way in zip(arguments, self._ways, strict=True):
            if way > 0:
                flags = value.flags.num
                assert flags & C_CONTIGUOUS, "kernels work on contiguous arrays"
                if not flags & ALIGNED:
                    return None
                # As numba sees an array: its two owners (none), size, bytes of an element, address, shape, strides.
                address = _pointer_at(id(value) + _DATA).value  # see `address_of`
                flat += (None, None, value.size, way, address, *value.shape, *value.strides)
            elif way == NUMBER:
                flat.append(value)
            elif way == NUMPY_NUMBER:
                flat.append(value.item())
            else:
                flat += [number.item() for number in value]
        return flat

    def _call_on_copies(self, native: Native, arguments: Sequence[Any]) -> Any:
        """Machine code expects aligned numbers; bytes of a file may start anywhere."""
        copies = [a.copy() if isinstance(a, np.ndarray) and not a.flags.aligned else a for a in arguments]
        result = self._call(native, copies)
        for argument, copy in zip(arguments, copies, strict=True):
            if copy is not argument and argument.flags.writeable:
                argument[...] = copy
        return result


def check(status: int, name: str) -> None:
    """Raises RuntimeError: a kernel of that name ended with a status that says so."""
    if status not in (0, -2):  # -2: returned None
        raise RuntimeError(f"the kernel {name} raised an exception")


class Prepared:
    """A call of a kernel that returns nothing, made many times with the same arguments.

    What is in its arrays may change between calls, and vectors may move (`place`). So it costs a tenth of a call whose
    many arguments are laid out for machine code each time.
    """

    def __init__(self, entry: _Entry, arguments: Sequence[Any]) -> None:
        flat = entry.flat(arguments)
        assert flat is not None, "arrays are aligned"
        self._held = arguments
        """Machine code knows only addresses."""
        self._name, self._native = entry.name, entry.native_briefly
        values = [kind(value) for kind, value in zip(entry.types, flat, strict=True)]
        self._values = [ctypes.byref(ctypes.c_int64()), ctypes.byref(ctypes.c_void_p()), *values]
        widths = [len(_c_types([_kind(argument)])) for argument in arguments]
        self._begins = [2, *(2 + end for end in accumulate(widths))]

    def __call__(self) -> None:
        check(self._native(*self._values), self._name)

    def place(self, number: int, address: int, size: int) -> None:
        """Let a vector be another one, of so many elements; whoever asks for it keeps the memory."""
        begin = self._begins[number]
        _, _, length, _, data, shape = self._values[begin : begin + 6]
        length.value = shape.value = size
        data.value = address


def _way(kind: Kind) -> int:
    """How an argument is handed over: for an array the bytes of its elements."""
    if not isinstance(kind, tuple):
        return NUMPY_NUMBER if issubclass(kind, np.generic) else NUMBER
    return int(kind[0].itemsize) if isinstance(kind[0], np.dtype) else NUMBERS


def address_of(array: npt.NDArray[Any]) -> int | None:
    """Where an array's memory begins: the first field of numpy's own structure after Python's.

    `array.ctypes.data` says the same in ten times the time, which is longer than many a kernel runs.
    """
    return _pointer_at(id(array) + _DATA).value


_pointer_at, _DATA = ctypes.c_void_p.from_address, object.__basicsize__


def _c_types(kinds: Sequence[Kind]) -> list[Any]:
    types: list[Any] = []
    for kind in kinds:
        if not isinstance(kind, tuple):
            types.append(SCALARS[kind][1])
        elif isinstance(kind[0], np.dtype):
            types += [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p] + [ctypes.c_int64] * (2 * kind[1])
        else:
            types += [SCALARS[field][1] for field in kind[1]]
    return types


def _spelled(kinds: Sequence[Kind]) -> str:
    """The types as text that has a place in a file name."""
    words = []
    for kind in kinds:
        if not isinstance(kind, tuple):
            words.append(SCALARS[kind][0])
        elif isinstance(kind[0], np.dtype):
            words.append(f"{kind[0].name}.{kind[1]}d")
        else:
            words.append(f"{kind[0].__name__}.{len(kind[1])}")
    return "-".join(words)


# -- loading machine code --------------------------------------------------------------------------------------------


@functools.cache
def _engine() -> Any:
    """LLVM's linker of machine code into this process.

    llvmlite's own memory manager reserves the sections of an object side by side. LLVM's looks for a place for each:
    once large buffers have come and gone, code and constants may lie more than 2 GiB apart. No address in small code
    reaches so far, and LLVM aborts the process.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(), use_lmm=True)


def _target() -> Any:
    cpu, features = processor()
    triple = llvm.Target.from_default_triple()
    return triple.create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default")


def _find(kernel: Kernel, kinds: tuple[Kind, ...]) -> _Entry:
    """Machine code from a file, or from numba now."""
    module = kernel.function.__module__.rpartition(".")[2]
    types = hashlib.sha256(_spelled(kinds).encode()).hexdigest()[:16]
    name = f"{fingerprint()}-{module}.{kernel.function.__name__}-{types}.bin"
    data = read(name)
    if data is None:
        with alone():
            data = read(name)  # somebody else may have made it meanwhile
            if data is None:
                data = _compile(kernel, kinds)
                keep(name, data + hashlib.sha256(data).digest())
    header, _, code = data.partition(b"\n")
    about = json.loads(header)
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return _Entry(kernel, kinds, engine.get_function_address(about["symbol"]), about["result"])


# -- compiling -------------------------------------------------------------------------------------------------------


@functools.cache
def _numba() -> Any:
    """numba, which looks for scipy to offer linear algebra that no kernel uses: 0.4 s and 16 MiB, spared here."""
    import sys

    hide = "scipy" not in sys.modules
    if hide:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import numba
        from numba.core.registry import cpu_target

        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
    finally:
        if hide:
            del sys.modules["scipy"]
    return numba


@contextmanager
def announced(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` before the first kernel is compiled in this context; never where all are found in files."""
    _WAITING.append(tell)
    try:
        yield
    finally:
        if tell in _WAITING:
            _WAITING.remove(tell)


_WAITING: list[Callable[[], None]] = []
"""Who wants to know, and does not yet."""


def _compile(kernel: Kernel, kinds: tuple[Kind, ...]) -> bytes:
    """A line of JSON, {"symbol": ..., "result": ...}, and an object file.

    Raises:
        TypeError: the kernel is not one that can stand alone.
    """
    while _WAITING:
        _WAITING.pop()()
    numba = _numba()
    signature = tuple(map(_numba_type, kinds))
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    try:
        compiled = numba.njit(signature, **OPTIONS, **options)(kernel.function)
    except numba.core.errors.TypingError as error:
        advice = "kernels may not allocate arrays: take them as arguments"
        raise TypeError(f"the kernel {kernel.function.__qualname__} cannot be compiled; {advice}") from error
    overload = compiled.overloads[signature]
    symbol = overload.fndesc.llvm_func_name
    code = _object(compiled.inspect_llvm(signature), symbol)
    about = {"symbol": symbol, "result": str(overload.signature.return_type)}
    return json.dumps(about).encode() + b"\n" + code


def _numba_type(kind: Kind) -> Any:
    """What numba calls a kind of argument."""
    numba = _numba()
    if not isinstance(kind, tuple):
        return getattr(numba.types, SCALARS[kind][0])
    if isinstance(kind[0], np.dtype):
        return numba.types.Array(numba.from_dtype(kind[0]), kind[1], "C")
    return numba.types.NamedTuple([_numba_type(field) for field in kind[1]], kind[0])


def _object(ir: str, symbol: str) -> bytes:
    """Machine code of one function and all that it calls."""
    _engine()
    module = llvm.parse_assembly(ir)
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    target = _target()
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options()))
    foreign = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if foreign:
        raise TypeError(f"a kernel may not call what is outside it: {', '.join(foreign)}")
    return bytes(target.emit_object(module))
