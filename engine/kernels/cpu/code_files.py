"""Files of machine code: what they depend on, the folders they lie in, and who makes them.

A name has what its code depends on in it, so a file that is found is the right one; what is damaged counts as missing.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

SHIPPED = Path(__file__).parent / "compiled"
"""Machine code beside the sources: what a wheel or an image brings along, or what a checkout has compiled."""
CACHE_VARIABLE = "ANABRANCH_KERNELS"
"""Environment variable that names another folder for machine code."""
STALE_SECONDS = 30 * 86400
"""Machine code of other versions that is older than this is removed when something is compiled."""
LOCK_NAME = "lock"
WAIT_SECONDS = 300.0
"""For another process that compiles: all kernels of a merge take less."""
POLL_SECONDS = 0.05


@functools.cache
def processor() -> tuple[str, str]:
    """Name and features of the processor that code is made for: this one, or what numba's own variables name."""
    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name else llvm.get_host_cpu_features().flatten()
    return name or llvm.get_host_cpu_name(), features


@functools.cache
def fingerprint() -> str:
    """What machine code depends on: the sources of all kernels, the compiler, and the processor."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *Path(__file__).parents[1].glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr((version("numba"), llvm.llvm_version_info, *processor())).encode())
    return digest.hexdigest()[:16]


def folders() -> list[Path]:
    """Where machine code is looked for, and kept in the first that can be written."""
    named = os.environ.get(CACHE_VARIABLE)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    own = [Path(caches, "anabranch", "kernels")] if os.path.isabs(caches) else []  # some users have no home
    return [*([Path(named)] if named else []), SHIPPED, *own]


def read(name: str) -> bytes | None:
    """A file's content without the hash that it ends with; a damaged file counts as missing."""
    for folder in folders():
        with suppress(OSError):
            content = (folder / name).read_bytes()
            data, digest = content[:-32], content[-32:]
            if hashlib.sha256(data).digest() == digest:
                return data
    return None


@contextmanager
def alone() -> Iterator[None]:
    """Of the processes that share a folder, one compiles and the others find what it made.

    They wait so long at most, and not at all where there is no such folder or its file system has no locks: to compile
    twice costs time, nothing else.
    """
    descriptor = _lock_file()
    try:
        if descriptor is not None:
            end = time.monotonic() + WAIT_SECONDS
            while not _locked(descriptor) and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock_file() -> int | None:
    """Open it in the folder that machine code is kept in."""
    for folder in folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    return None


def _locked(descriptor: int) -> bool:
    """Whether nobody else compiles now; True as well where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def keep(name: str, data: bytes) -> None:
    """Into the first folder that takes it; without one, every process compiles for itself."""
    for folder in folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / name, data)
            _remove_stale(folder)
            return


def _write(path: Path, data: bytes) -> None:
    """The whole file or, where it does not fit, none."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("*.bin"):
        with suppress(OSError):
            old = path.stat().st_mtime < time.time() - STALE_SECONDS
            if old and not path.name.startswith(fingerprint()):
                path.unlink()
