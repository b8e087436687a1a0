"""A checkpoint at a URL: its tensors, where their bytes lie, and its fingerprint; read from headers alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import InputError, some_names
from ..storage import JoinedStore, Store, open_store
from .architectures import Architecture, find_architecture
from .header import Header, header_length, parse_header, parse_index, without_garbage_collection
from .location import TensorLocation
from .room import Room

SINGLE_FILE = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

MAX_INDEX_BYTES = 512 << 20
"""Largest index file: a million tensors need about 100 MB."""

FIRST_READ_BYTES = 64 << 10
"""First read of a shard: holds most headers, so that one request is enough."""

LARGE_HEADER_BYTES = 4 << 20
"""Larger ones are read one after the other: the headers of many large shards at once would take too much memory."""

HEADER_THREADS = 8
"""Headers read at once: hides the latency of object stores; local files hardly need it."""

"""Names shown in an error message before it says how many more there are."""

_INDEX = re.compile(r".+\.safetensors\.index(\.[A-Za-z0-9_\-]+)?\.json")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<total>\d{5,})\.safetensors")
_CONSOLIDATED = re.compile(r"consolidated([.\-].*)?\.safetensors")
_ADAPTER = re.compile(r"adapter_model.*\.safetensors")
_PICKLE = re.compile(r".+\.(bin|pt|pth|ckpt|pkl|pickle)")
_FOREIGN_WEIGHTS = re.compile(r".+\.(gguf|ggml|onnx|h5|msgpack|npz|npy|tflite|engine|bin\.index\.json)")
_SIDE_FILE = re.compile(r".+\.(json|jinja|txt|model|tiktoken|vocab|spm|bpe|py)|tokenizer.*|(LICENSE|NOTICE).*")
_NOT_SIDE_FILE = re.compile(r"\..*|anabranch\..*|trainer_state\.json|.*\.index\.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*/[A-Za-z0-9_][A-Za-z0-9_.\-]*(@[A-Za-z0-9_./\-]+)?")


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One weight file, as it was when its header was read."""

    name: str
    """Within the checkpoint's folder; a URL where the file lies in another one."""
    size: int
    """Bytes."""
    version: str
    """See `FileInfo.version`; every later read of the file demands it."""
    header_sha256: str
    inode: int | None = None
    """As `FileInfo.inode`, and the next as `FileInfo.changed_ns`: they mean something on one host only and so are not
    part of what identifies the input in a plan."""
    changed_ns: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of one model."""

    url: str
    """Absolute, normalised, without credentials; a hub name's revision is a commit. A model with an adapter is called
    BASE+ADAPTER."""
    files: tuple[CheckpointFile, ...]
    """Weight files by name, which for numbered shards is the order of the index."""
    tensors: dict[str, TensorLocation]
    """By file, then by offset."""
    side_files: tuple[str, ...]
    """Configuration, tokenizer, template, licence and code files directly in the folder; never weights."""
    ignored_files: tuple[str, ...]
    """Weight files in the folder that are not part of the checkpoint: other formats, duplicates, adapters."""
    folders: tuple[str, ...] = ()
    """URLs of the folders that its files lie in, first that of plain names and side files; () stands for `url`."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """What configuration files say of how tensors are computed, ready for canonical JSON; part of what identifies the
    input."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it is read."""
    tied: bool | None = None
    """Whether config.json says that the output head is the input embedding; None: it says nothing."""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """config.json; {} where there is none that can be read."""

    @cached_property
    def file_urls(self) -> tuple[str, ...]:
        """Where each of `files` lies: URL of its folder, a slash, its name there."""
        home, *others = self.folders or (self.url,)
        apart = tuple(f"{other}/" for other in others)
        return tuple(file.name if file.name.startswith(apart) else f"{home}/{file.name}" for file in self.files)

    @property
    def architecture(self) -> Architecture | None:
        """What is known of the class of models that config.json names; None: nothing."""
        return find_architecture(self.config)

    def fingerprint(self) -> list[dict[str, Any]]:
        """What identifies the input bytes, one entry per file, ready for canonical JSON."""
        return [
            {
                "name": file.name,
                "size": file.size,
                "version": file.version,
                "header_sha256": file.header_sha256,
            }
            for file in self.files
        ]

    def identity(self) -> dict[str, Any]:
        """What identifies the input: where it is, its files, and how they are read."""
        found: dict[str, Any] = {"url": self.url, "files": self.fingerprint()}
        return found | ({"reading": dict(self.decoding)} if self.decoding else {})


def model_url(model: str) -> str:
    """The URL of a model as users write it: an existing folder, any URL, or `owner/name[@revision]` of the hub.

    Raises:
        InputError: none of these.
    """
    if "://" in model or os.path.isdir(os.path.expanduser(model)):
        return model
    if _HUB_NAME.fullmatch(model):
        return f"hf://{model}"
    raise InputError(
        f"model {model!r}: no such folder",
        "Give an existing folder, a URL such as s3://bucket/model, or owner/name of the Hugging Face hub.",
    )


def open_source(checkpoint: Checkpoint) -> Store:
    """The store from which the files of an opened checkpoint are read."""
    home, *others = [open_store(url) for url in checkpoint.folders or (checkpoint.url,)]
    return JoinedStore(checkpoint.url, home, others) if others else home


def open_checkpoint(url: str, store: Store | None = None, room: Room | None = None) -> Checkpoint:
    """Read and check every header of a checkpoint.

    Which files count: the shards that `model.safetensors.index.json` names (or the folder's only other
    `*.safetensors.index.json`); without an index `model.safetensors`; without that all `*.safetensors`
    files together. An index none of whose shards exist is stale, and ignored when `model.safetensors` exists; of
    several copies of a tensor the one in the file that the index names counts.
    `consolidated*.safetensors` and adapters never count beside others. What was left out is in `ignored_files`.

    Args:
        url: a model as in `model_url`.
        store: its store, when it is open already.
        room: memory for index and headers; None: they take what they need.

    Raises:
        InputError: no safetensors weights, a missing or damaged file, or an index that disagrees with the files.
        ResourceError: index and headers do not fit into the room.
    """
    room = room or Room()
    if store is None:
        store = open_store(model_url(url))
    names = store.list()
    with without_garbage_collection():
        selection = _select_files(store, names, room)
        opened = _read_headers(store, selection.files, room)
        tensors, copies = _collect_tensors(store.url, opened, selection.weight_map or {})
        if selection.weight_map is not None:
            _check_index(f"{store.url}/{selection.index_file}", selection.weight_map, opened, tensors)
    if not tensors:
        raise InputError(f"{store.url}: the checkpoint has no tensors")
    weights = {name for name in names if _is_weight_file(name)}
    ignored = tuple(sorted(weights - set(selection.files) - {selection.index_file}))
    unread = [name for name in ignored if name.endswith(".safetensors")]
    notes = [f"{store.url}: not part of the checkpoint and not read: {some_names(sorted(unread))}"] if unread else []
    if copies:
        text = f"{len(copies)} tensors are in several files, of which the index says which one counts"
        notes.append(f"{store.url}: {text}: {some_names([*copies])}")
    return Checkpoint(
        url=store.url,
        files=tuple(file for file, _ in opened),
        tensors=tensors,
        side_files=side_file_names(store, names),
        ignored_files=ignored,
        decoding={"copies": copies} if copies else {},
        notes=tuple(notes),
    )


def side_file_names(store: Store, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Configuration, tokenizer, template, licence and code files of a folder, which may hold no weights.

    Args:
        store: the folder.
        names: its files, when they have been listed already.
    """
    listed = store.list() if names is None else names
    return tuple(name for name in listed if not _is_weight_file(name) and _is_side_file(store, name))


class _Selection(NamedTuple):
    files: list[str]
    index_file: str | None
    weight_map: dict[str, str] | None


def _select_files(store: Store, names: list[str], room: Room) -> _Selection:
    """Decide which files make the checkpoint; see `open_checkpoint`."""
    shards = [name for name in names if name.endswith(".safetensors")]
    index = _find_index(store.url, names)
    if index is not None:
        weight_map = parse_index(room.read(store, index, MAX_INDEX_BYTES), f"{store.url}/{index}")
        wanted = sorted(set(weight_map.values()))
        missing = [name for name in wanted if name not in shards]
        if not missing:
            return _Selection(wanted, index, weight_map)
        if len(missing) < len(wanted) or SINGLE_FILE not in shards:
            raise InputError(
                f"{store.url}: {len(missing)} of {len(wanted)} shards are missing: {some_names(sorted(missing))}",
                "Finish the download, or remove the index if it does not belong to these files.",
            )
    if SINGLE_FILE in shards:
        return _Selection([SINGLE_FILE], None, None)
    own = [name for name in shards if not _ADAPTER.fullmatch(name)]
    chosen = [name for name in own if not _CONSOLIDATED.fullmatch(name)] or own
    if not chosen:
        _reject_folder(store.url, names)
    _check_numbers(store.url, chosen)
    return _Selection(chosen, None, None)


def _find_index(url: str, names: list[str]) -> str | None:
    if INDEX_NAME in names:
        return INDEX_NAME
    candidates = [name for name in names if _INDEX.fullmatch(name)]
    if len(candidates) > 1:
        raise InputError(f"{url}: several indexes: {some_names(sorted(candidates))}", "Keep one of them in the folder.")
    return candidates[0] if candidates else None


def _check_numbers(url: str, names: list[str]) -> None:
    """Numbered shards without an index must at least be complete by their names."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            numbers.setdefault((match["stem"], int(match["total"])), set()).add(int(match["number"]))
    for (stem, total), present in numbers.items():
        if len(present) < total:
            raise InputError(
                f"{url}: {len(present)} of {total} shards of {stem!r} are there, and no index",
                "Finish the download.",
            )


def _reject_folder(url: str, names: list[str]) -> None:
    """Say what the folder holds instead of safetensors weights."""
    if any(_ADAPTER.fullmatch(name) for name in names):
        raise InputError(
            f"{url}: an adapter, not a full checkpoint",
            "Name it together with the model that it was trained on: BASE+ADAPTER.",
        )
    if any(name.endswith((".gguf", ".ggml")) for name in names):
        raise InputError(
            f"{url}: GGUF weights only",
            "Use the safetensors checkpoint that they were made from; quantised GGUF weights cannot be merged.",
        )
    if any(_PICKLE.fullmatch(name) for name in names):
        raise InputError(
            f"{url}: pickled weights only ({some_names(sorted([name for name in names if _PICKLE.fullmatch(name)]))})",
            "Pickles can run code and are never loaded here. Convert: load the model with transformers and call "
            "save_pretrained(FOLDER, safe_serialization=True).",
        )
    if not names:
        raise InputError(f"{url}: no such folder, or an empty one", "Check the path and the permissions.")
    raise InputError(f"{url}: no *.safetensors file (found {some_names(sorted(names))})", "Check the path.")


def _read_headers(store: Store, names: list[str], room: Room) -> list[tuple[CheckpointFile, Header]]:
    """All headers, in the order of `names`; the first file's error wins whatever finishes first."""
    if len(names) == 1:
        return [read_file_header(store, names[0], room)]
    with ThreadPoolExecutor(min(HEADER_THREADS, len(names)), "headers") as pool:
        futures = [pool.submit(read_file_header, store, name, room) for name in names]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_file_header(store: Store, name: str, room: Room) -> tuple[CheckpointFile, Header]:
    """The header of one weight file, and what identifies the file.

    Raises:
        InputError: it is missing or damaged.
        ResourceError: it does not fit into the room.
    """
    where = f"{store.url}/{name}"
    try:
        info = store.info(name)
        size, version = info.size, info.version
        data = bytearray(min(size, FIRST_READ_BYTES))
        store.read_into(name, 0, memoryview(data), version)
        length = header_length(bytes(data[:8]), size, where)
        with room.lock if length > LARGE_HEADER_BYTES else nullcontext():
            room.check_size(length, where)
            if length > len(data):
                rest = bytearray(length - len(data))
                store.read_into(name, len(data), memoryview(rest), version)
                data += rest
            header_bytes = bytes(memoryview(data)[:length])
            del data
            room.keep_header(header_bytes, where)
            with room.lock:
                header = parse_header(header_bytes, size, where)
    except FileNotFoundError as error:
        raise InputError(f"{where}: missing, or a broken link", "Finish the download.") from error
    digest = hashlib.sha256(header_bytes).hexdigest()
    return CheckpointFile(name, size, version, digest, info.inode, info.changed_ns), header


def _collect_tensors(
    url: str, opened: list[tuple[CheckpointFile, Header]], weight_map: Mapping[str, str]
) -> tuple[dict[str, TensorLocation], dict[str, str]]:
    """All tensors, and of those that are in several files the one that counts, as the index says."""
    tensors: dict[str, TensorLocation] = {}
    copies: dict[str, str] = {}
    for number, (file, header) in enumerate(opened):
        for info in header.tensors:
            location = TensorLocation(number, info)
            first = tensors.setdefault(info.name, location)
            if first is location:
                continue
            listed = weight_map.get(info.name)
            if listed is None:
                other = opened[first.file][0].name
                raise InputError(
                    f"{url}: tensor {info.name!r} is in {other} and again in {file.name}",
                    "Keep one of the files, or add the index that says which one counts.",
                )
            copies[info.name] = listed
            if listed == file.name:
                del tensors[info.name]  # its place is among the tensors of this file
                tensors[info.name] = location
    return tensors, copies


def _check_index(
    where: str,
    weight_map: dict[str, str],
    opened: list[tuple[CheckpointFile, Header]],
    tensors: dict[str, TensorLocation],
) -> None:
    """The index and the headers must name the same tensors in the same files."""
    hint = "The index belongs to other files; fetch the checkpoint again."
    missing = [name for name in weight_map if name not in tensors]
    if missing:
        named = Counter(weight_map[name] for name in missing)
        raise InputError(
            f"{where}: names {len(missing)} tensors that are in no file: {some_names(sorted(missing))} "
            f"(it places them in {some_names(sorted(named))})",
            hint,
        )
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        raise InputError(
            f"{where}: lacks {len(extra)} tensors that are in the files: {some_names(sorted(extra))}",
            "If they belong to the model, add them to the index's weight_map with the file that holds them (`exclude` "
            "and `extra_tensors` of a recipe then say what becomes of them); if not, fetch files and index again.",
        )
    for name, location in tensors.items():
        file_name = opened[location.file][0].name
        if weight_map[name] != file_name:
            raise InputError(f"{where}: places {name!r} in {weight_map[name]}, it is in {file_name}", hint)


def _is_weight_file(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        or _INDEX.fullmatch(name) is not None
        or _PICKLE.fullmatch(name) is not None
        or _FOREIGN_WEIGHTS.fullmatch(name) is not None
    )


def _is_side_file(store: Store, name: str) -> bool:
    if _NOT_SIDE_FILE.fullmatch(name) or not _SIDE_FILE.fullmatch(name):
        return False
    try:
        store.info(name)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}/{name}: a broken link", "Finish the download.") from error
    return True
