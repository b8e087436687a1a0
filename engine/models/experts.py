"""Experts of a layer as one tensor or one by one: a model's in the form that the reference has.

transformers 5 holds the experts of a layer in one tensor [experts, rows, columns], with the rows of several matrices
(gate and up) one below the other; most files have a matrix per expert. Which names belong together is in the table of
architectures (see `Conversion`); for classes that it lacks, the names that most of them share are tried.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import InputError, RecipeError
from ..json_text import canonical_json
from .architectures import Architecture, Conversion, architecture_of
from .checkpoint import Checkpoint
from .derived import PIECE_ELEMENTS, fill_pieces
from .header import DTYPES, TensorInfo
from .location import Bytes, Reads, TensorLocation
from .names import current_name, without_prefix

USUAL = ("qwen3_moe", "mixtral")
"""Model types whose names other classes use as well: gate_proj, up_proj, down_proj; w1, w3, w2."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors of one size, one behind the other.

    Args:
        pieces: of float dtypes of at least 8 bits.
        dtype: of the result: the pieces' own where they agree, else F32.
    """

    pieces: tuple[TensorLocation, ...]
    dtype: str

    @property
    def read_bytes(self) -> int:
        return sum(piece.read_bytes for piece in self.pieces)

    @property
    def stretches(self) -> int:
        return sum(piece.stretches for piece in self.pieces)

    @property
    def out_dtype(self) -> str:
        return self.pieces[0].out_dtype

    def held_bytes(self, most_bytes: int) -> int:
        return sum(piece.derived.held_bytes(most_bytes) for piece in self.pieces if piece.derived)

    def scratch_bytes(self, most_bytes: int) -> int:
        inner = max((piece.derived.scratch_bytes(most_bytes) for piece in self.pieces if piece.derived), default=0)
        return inner + (4 * PIECE_ELEMENTS if any(piece.info.dtype != self.dtype for piece in self.pieces) else 0)

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) in `dtype`."""
        size, length = DTYPES[self.dtype].size, self.pieces[0].info.numel
        for number in range(begin // length, -(-end // length)):
            start, first, stop = number * length, max(begin, number * length), min(end, (number + 1) * length)
            place, piece = into[(first - begin) * size : (stop - begin) * size], self.pieces[number]
            if piece.info.dtype == self.dtype:
                piece.fill(first - start, stop - start, place, reads)
            else:
                fill_pieces(piece, first - start, stop - start, place, reads, lambda _values, _first: None)


class Place(NamedTuple):
    """Where a matrix lies in the one tensor of all experts."""

    expert: int
    source: int
    """Which of the matrices whose rows stand one below the other."""


@dataclass(frozen=True)
class _Apart:
    """The matrices of one layer's experts, by place."""

    packed: str
    """What the tensor of all of them is called."""
    names: dict[Place, str]
    sources: int

    @property
    def experts(self) -> int:
        return len(self.names) // self.sources

    def in_order(self, url: str) -> list[str]:
        """The names as they lie in the tensor of all; InputError where one is missing."""
        count = 1 + max(place.expert for place in self.names)
        places = [Place(e, s) for e in range(count) for s in range(self.sources)]
        for place in places:
            if place not in self.names:
                text = f"{url}: of {self.packed}, expert {place.expert} of {count} lacks its matrix {place.source}"
                raise InputError(text, "Finish the download, or exclude these tensors.")
        return [self.names[place] for place in places]


def with_experts_like(reference: Checkpoint, model: Checkpoint) -> Checkpoint:
    """The model with its experts in the form and under the names that the reference has; the same object where it does.

    Raises:
        InputError: an expert is missing, or shapes do not fit each other.
    """
    if not model.tensors.keys() - reference.tensors.keys() or not reference.tensors.keys() - model.tensors.keys():
        return model
    architecture, other = model.architecture or reference.architecture, reference.architecture or model.architecture
    own, theirs = _apart(model, architecture), _apart(reference, other)
    changes: dict[str, dict[str, TensorLocation]] = {}
    gone: set[str] = set()
    if theirs:
        for name, location in model.tensors.items():
            group = theirs.get(without_prefix(current_name(name, architecture), architecture))
            if group is not None and name not in reference.tensors and len(location.info.shape) == 3:
                shape = reference.tensors[next(iter(group.names.values()))].info.shape
                changes[name] = _split(model.url, name, location, group, group.in_order(reference.url), shape)
    split = len(changes)
    if own:
        for name in reference.tensors:
            group = own.get(without_prefix(current_name(name, other), other))
            if group is not None and name not in model.tensors:
                names = group.in_order(model.url)
                changes[names[0]] = {name: _stack(model, name, group, names)}
                gone.update(names[1:])
    if not changes:
        return model
    form = "one by one" if split else "in one tensor per layer"
    note = (
        f"{model.url}: experts are merged {form}, as {reference.url} has them ({len(changes)} tensors of all experts)"
    )
    return _changed(model, changes, gone, note)


def with_experts_as(checkpoint: Checkpoint, form: str) -> Checkpoint:
    """The model with its experts in the form `packed` or `apart`; the same object where it has them so already.

    Raises:
        RecipeError: no experts are known in it.
        InputError: an expert is missing, or shapes are not those of experts.
    """
    groups, packed = _apart(checkpoint, checkpoint.architecture), _packed(checkpoint)
    if not groups and not packed:
        text = f"{checkpoint.url}: no tensors are known as experts, so `output: {{experts: {form}}}` has no meaning"
        raise RecipeError(text, "leave the key out: experts are written as the base has them")
    changes: dict[str, dict[str, TensorLocation]] = {}
    gone: set[str] = set()
    if form == "packed":
        for group in groups.values():
            names = group.in_order(checkpoint.url)
            changes[names[0]] = {group.packed: _stack(checkpoint, group.packed, group, names)}
            gone.update(names[1:])
    else:
        for name, group in packed.items():
            location = checkpoint.tensors[name]
            shape = (location.info.shape[1] // group.sources, location.info.shape[2])
            wanted = group.in_order(checkpoint.url)
            changes[name] = _split(checkpoint.url, name, location, group, wanted, shape)
    if not changes:
        return checkpoint
    note = f"{checkpoint.url}: experts are written {form} ({len(changes)} tensors of all experts)"
    return _changed(checkpoint, changes, gone, note)


# -- which tensors are experts -----------------------------------------------------------------------------------------


def _conversions(architecture: Architecture | None) -> tuple[Conversion, ...]:
    """What makes one tensor of all experts; without knowledge of the class, what is usual."""
    if architecture is None:
        return tuple(rule for name in USUAL for rule in _conversions(architecture_of(name)))
    return tuple(rule for rule in architecture.conversions if _is_stacking(rule))


def _is_stacking(rule: Conversion) -> bool:
    first, *rest = rule.operations
    plain = first == ("MergeModulelist", {"dim": 0}) and len(rule.targets) == 1
    return plain and rest == [("Concatenate", {"dim": 1})] * (len(rule.sources) > 1)


def _apart(checkpoint: Checkpoint, architecture: Architecture | None) -> dict[str, _Apart]:
    """Experts one by one, by what their tensor of all is called without the class's prefix."""
    rules = _conversions(architecture)
    found: dict[str, _Apart] = {}
    for name in checkpoint.tensors if rules else ():
        if ".experts." not in name:
            continue
        for rule in rules:
            converted = rule.apply(current_name(name, architecture), architecture.prefix if architecture else "")
            number = re.search(r"(?<=\.)\d+(?=\.)", converted[1]) if converted is not None else None
            if converted is not None and number is not None:
                packed, _, source = converted
                key = without_prefix(packed, architecture)
                group = found.setdefault(key, _Apart(packed, {}, len(rule.sources)))
                group.names[Place(int(number[0]), source)] = name
                break
    return found


def _packed(checkpoint: Checkpoint) -> dict[str, _Apart]:
    """By the name of a tensor of all experts, what its matrices are called one by one; of known classes alone."""
    architecture = checkpoint.architecture
    found = {}
    for name, location in checkpoint.tensors.items():
        if architecture is None or ".experts." not in name or len(location.info.shape) != 3:
            continue
        for rule in _conversions(architecture):
            if name.endswith(rule.targets[0]):
                before = name.removesuffix(rule.targets[0])
                sources = [source.replace("\\.", ".") for source in rule.sources]
                names = {
                    Place(e, s): before + source.replace("*", str(e))
                    for e in range(location.info.shape[0])
                    for s, source in enumerate(sources)
                }
                found[name] = _Apart(name, names, len(sources))
                break
    return found


# -- one tensor --------------------------------------------------------------------------------------------------------


def _split(
    url: str, name: str, location: TensorLocation, group: _Apart, names: list[str], shape: tuple[int, ...]
) -> dict[str, TensorLocation]:
    """Every expert's matrices, which are ranges of the stored tensor."""
    info, kind = location.info, DTYPES[location.info.dtype]
    expected = (group.experts, group.sources * shape[0], *shape[1:])
    if info.shape != expected or kind.kind != "float":
        text = f"{url}: {name!r} is {info.dtype} {list(info.shape)}, expected experts {list(expected)}"
        raise InputError(text, "The experts are laid out in another way; map or exclude them.")
    if location.derived is not None:
        raise InputError(
            f"{url}: {name!r} is computed while it is read and cannot be cut into experts",
            "Merge the adapter first, or name a base that has its experts in one tensor, too.",
        )
    size = info.nbytes // len(names)
    return {
        own: TensorLocation(location.file, TensorInfo(own, info.dtype, tuple(shape), info.offset + i * size))
        for i, own in enumerate(names)
    }


def _stack(checkpoint: Checkpoint, name: str, group: _Apart, names: list[str]) -> TensorLocation:
    """All experts' matrices as one tensor."""
    pieces = tuple(checkpoint.tensors[own] for own in names)
    first = pieces[0].info
    for piece in pieces:
        kind = DTYPES[piece.info.dtype]
        if piece.info.shape != first.shape or kind.kind != "float" or kind.bits < 8 or len(first.shape) != 2:
            text = f"{checkpoint.url}: {piece.info.name!r} is {piece.info.dtype} {list(piece.info.shape)}, "
            text += f"{first.name!r} is {first.dtype} {list(first.shape)}"
            raise InputError(text, "Experts that become one tensor are matrices of one shape.")
    stored = {piece.info.dtype for piece in pieces}
    dtype = stored.pop() if len(stored) == 1 else "F32"
    shape = (group.experts, group.sources * first.shape[0], first.shape[1])
    return TensorLocation(pieces[0].file, TensorInfo(name, dtype, shape, 0), Stack(pieces, dtype))


def _changed(
    checkpoint: Checkpoint, changes: Mapping[str, Mapping[str, TensorLocation]], gone: set[str], note: str
) -> Checkpoint:
    tensors: dict[str, TensorLocation] = {}
    for name, location in checkpoint.tensors.items():
        if name in changes:
            tensors |= changes[name]
        elif name not in gone:
            tensors[name] = location
    made: dict[str, list[str]] = defaultdict(list)
    for name, new in changes.items():
        made[name] = list(new)
    digest = hashlib.sha256(canonical_json(dict(made))).hexdigest()
    return replace(
        checkpoint,
        tensors=tensors,
        decoding={**checkpoint.decoding, "experts": {"count": len(changes), "sha256": digest}},
        notes=(*checkpoint.notes, note),
    )
