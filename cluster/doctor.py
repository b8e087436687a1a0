"""What of this machine a merge depends on, each with what to do. Secrets are found and never shown."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.filesize import decimal

from ..engine.errors import AnabranchError, ResourceError
from ..engine.kernels import announce_compiling, make_kernels
from ..engine.run import Execution, PreparedMerge, available_cores, check_disk, prepare_all
from ..engine.storage import Store, crosses_network, open_store
from .ray.session import finds_token

State = Literal["ok", "note", "problem"]
LIBRARIES = ("anabranch", "numpy", "numba", "safetensors", "pyarrow", "torch", "huggingface_hub", "s3fs", "ray")
LEAST_BYTES = 512 << 20
"""The smallest limit that a worker works within."""
PROBE_BYTES = 64 << 20
"""Written and made durable to measure a disk."""
SLOW_BYTES_PER_SECOND = 100e6
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""How containers limit memory, in cgroups of version 2 and 1; a number close to 2 ** 63 means that they do not."""

SECRETS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "S3": (
        ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("~/.aws/credentials", "~/.aws/config"),
    ),
    "Hugging Face Hub": (("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), ("~/.cache/huggingface/token",)),
    "Google Cloud": (
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        ("~/.config/gcloud/application_default_credentials.json",),
    ),
    "Azure": (("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_SECRET"), ()),
}
"""Variables and files in which each keeps what it needs to be let in."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    text: str
    advice: str = ""
    """What to do; empty where there is nothing to."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.state:<8}{self.what:<18}{self.text}" + (f"\n{'':<26}{self.advice}" if self.advice else "")


def examine(recipe: str | None, out: str | None, memory_bytes: int, workers: int | None) -> Iterator[Finding]:
    """Look at the machine, and with a recipe and an output at whether they could be merged here.

    Args:
        recipe: a recipe's file.
        out: where its output goes.
        memory_bytes: limit of a worker.
        workers: fold threads.
    """
    yield versions()
    yield cores_and_memory(memory_limit(), available_memory(), memory_bytes)
    yield disk(out or ".")
    yield kernels()
    yield gpu()
    yield ray_token(os.environ, Path.home())
    yield from credentials(os.environ)
    if recipe is not None and out is not None:
        yield from whether_it_runs(recipe, out, Execution(workers, memory_bytes))


def versions() -> Finding:
    """Of Python, and of the libraries that a merge may need."""
    found = {name: _version(name) for name in LIBRARIES}
    missing = [name for name, number in found.items() if number is None]
    said = ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)
    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; {said}"
    if missing:
        return Finding("versions", "problem", text, f"not installed: {', '.join(missing)}; install anabranch again")
    return Finding("versions", "ok", text)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cores_and_memory(limit_bytes: int | None, free_bytes: int | None, wanted_bytes: int) -> Finding:
    """Cores and memory that this process may use.

    Args:
        limit_bytes: of the container; None: there is none.
        free_bytes: of the machine; None: unknown.
        wanted_bytes: the limit of a worker.
    """
    known = [size for size in (limit_bytes, free_bytes) if size is not None]
    room = min(known) if known else None
    text = f"{available_cores()} cores, {_size(free_bytes)} of memory free"
    text += f", a container's limit of {_size(limit_bytes)}" if limit_bytes is not None else ""
    if room is not None and room < LEAST_BYTES:
        return Finding("cores and memory", "problem", text, "a merge needs 512 MiB: free some or raise the limit")
    if room is not None and room < wanted_bytes:
        advice = f"less than --memory {wanted_bytes >> 20}MiB: give --memory {room * 3 // 4 >> 20}MiB"
        return Finding("cores and memory", "note", text, advice)
    return Finding("cores and memory", "ok", text)


def _size(size_bytes: int | None) -> str:
    return "an unknown amount" if size_bytes is None else decimal(size_bytes)


def memory_limit() -> int | None:
    """Bytes that a container allows; None: there is no limit."""
    for path in MEMORY_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def available_memory() -> int | None:
    """Bytes that Linux would give without swapping; None: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def disk(out: str) -> Finding:
    """Space and speed of where an output goes; nothing stays behind."""
    if crosses_network(out):
        return Finding("disk", "ok", f"{out} is no disk of this machine")
    folder = Path(out.removeprefix("file://")).expanduser().absolute()
    folder = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = open_store(str(folder)).free_bytes()
    try:
        speed = write_speed(folder)
    except OSError as error:
        advice = "choose another place, or have it made writable"
        return Finding("disk", "problem", f"{folder}: {error.strerror}", advice)
    text = f"{folder}: {_size(free)} free, durable writes at {decimal(int(speed))}/s"
    if speed < SLOW_BYTES_PER_SECOND:
        return Finding("disk", "note", text, "slow: a merge may wait for it; a local SSD is faster")
    return Finding("disk", "ok", text)


def write_speed(folder: Path) -> float:
    """Bytes per second of a file that is written and made durable; OSError where that cannot be."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        begin = time.perf_counter()
        for _ in range(PROBE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return PROBE_BYTES / (time.perf_counter() - begin)


def kernels() -> Finding:
    """Whether machine code is there; tried with one kernel, which is compiled where it is not."""
    import numpy as np

    compiling: list[bool] = []
    arithmetic = make_kernels("cpu")
    try:
        with announce_compiling(lambda: compiling.append(True)):
            arithmetic.decode(arithmetic.load(np.zeros(2, np.uint8)), "BF16", arithmetic.empty(1, "f32"))
    except Exception as error:  # noqa: BLE001 - whatever a compiler does on a strange machine is the finding
        return Finding("kernels", "problem", f"{type(error).__name__}: {error}", "install numba and llvmlite again")
    if compiling:
        return Finding("kernels", "note", "not compiled yet", "the first merge takes some seconds longer, once")
    return Finding("kernels", "ok", "compiled")


def gpu() -> Finding:
    """Whether `--device cuda` would work."""
    try:
        make_kernels("cuda")
    except ResourceError as error:
        return Finding("GPU", "note", error.message, "none is needed; --device cpu gives the same bytes")
    return Finding("GPU", "ok", "torch can use CUDA: --device cuda")


def ray_token(environment: Mapping[str, str], home: Path) -> Finding:
    """Whether a cluster would be asked for a token, and whether there is one to show."""
    has_token = finds_token(environment, home)
    mode = environment.get("RAY_AUTH_MODE", "none")
    text = f"token mode {'on' if mode == 'token' else 'off'}, {'a token' if has_token else 'no token'} found"
    if mode == "token" and not has_token:
        return Finding("Ray", "note", text, "for --ray auto put the cluster's token into ~/.ray/auth_token")
    if mode != "token":
        return Finding("Ray", "note", text, "--ray local works; for other clusters set RAY_AUTH_MODE=token")
    return Finding("Ray", "ok", text)


def credentials(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Where credentials of object stores were found; never what they are."""
    for name, (variables, files) in SECRETS.items():
        found = [variable for variable in variables if environment.get(variable)]
        found += [file for file in files if Path(file).expanduser().is_file()]
        if found:
            yield Finding(name, "ok", f"credentials in {', '.join(found)}")
        else:
            yield Finding(name, "note", "no credentials found", "public models and roles of machines need none")


def whether_it_runs(recipe: str, out: str, execution: Execution) -> Iterator[Finding]:
    """Plan a merge, and ask its places for an answer."""
    yield _tried("output answers", lambda: _asked(open_store(out)))
    jobs: list[PreparedMerge] = []

    def prepared() -> str:
        jobs.extend(prepare_all([recipe], [out], execution))
        check_disk(jobs)
        return f"{jobs[0].memory.peak_bytes >> 20} MiB at most, {jobs[0].memory.threads} fold threads"

    yield _tried("this merge", prepared)
    remote = {store.url: store for job in jobs for store in job.inputs.stores if crosses_network(store.url)}
    for store in remote.values():
        yield _tried("input answers", lambda store=store: _asked(store))  # type: ignore[misc]


def _asked(store: Store) -> str:
    begin = time.perf_counter()
    names = store.list()
    return f"{store.url}: {len(names)} files, in {(time.perf_counter() - begin) * 1000:.0f} ms"


def _tried(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", attempt())
    except AnabranchError as error:
        return Finding(what, "problem", error.message, error.hint or "")
