"""Tied tensors: one matrix that models store once, several times, or under any of its names.

A model with tied weights has one matrix for input embedding and output head; T5 and BART have one for both embeddings
and the head. Its file may hold it under the embedding's name (as transformers saves it), under the head's (as
safetensors' `save_model` does, which keeps the alphabet's first name), or under several.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..errors import RecipeError
from .architectures import Architecture
from .checkpoint import Checkpoint
from .location import TensorLocation
from .names import plain_name

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
"""Endings of tensor names of unknown architectures; where several tensors of a model have one, nothing is assumed."""
TIE_KEY = "tie_word_embeddings"

_IN_A_LAYER = re.compile(r"\.\d+\.")


def tied_groups(names: Iterable[str], architecture: Architecture | None) -> list[tuple[str, ...]]:
    """Names of one matrix while a model is tied, the one that transformers stores first; from two names on.

    Args:
        names: all names that may be used for it, of several checkpoints, too.
        architecture: what is known of the model; else, and where its names are not those of the architecture, the one
            embedding and the one head.
    """
    listed = list(names)
    groups: dict[tuple[str, str], list[tuple[bool, str]]] = defaultdict(list)
    if architecture is not None and architecture.ties:
        layers = _ties_layers(architecture)
        for name in listed:
            if layers or _IN_A_LAYER.search(name) is None:
                for key, is_copy in _places(name, architecture):
                    groups[key].append((is_copy, name))
    found = [tuple(name for _, name in sorted(dict.fromkeys(group))) for group in groups.values() if len(group) > 1]
    if not found:
        embedding, head = _only(filter(names_embedding, listed)), _only(filter(names_head, listed))
        if embedding is not None and head is not None:
            found = [(embedding, head)]
    return found


def _ties_layers(architecture: Architecture | None) -> bool:
    """Whether tensors of layers are tied to each other, which few architectures do."""
    ties = architecture.ties if architecture is not None else ()
    return any(re.search(r"\d", tie.target + tie.source) for tie in ties)


def _places(name: str, architecture: Architecture) -> Iterator[tuple[tuple[str, str], bool]]:
    """(source, rest) of the group that a name belongs to, and whether it is a copy."""
    prefix = f"{architecture.prefix}." if architecture.prefix else ""
    canonical = architecture.canonical(name)
    forms = {canonical, f"{prefix}{canonical}", canonical.removeprefix(prefix)}
    for tie in architecture.ties:
        for form in forms:
            for pattern, is_copy in ((tie.source, False), (tie.target, True)):
                match = re.match(pattern, form)
                rest = form[match.end() :] if match is not None else ""
                if match is not None and (not rest or not pattern.rstrip("$").endswith((".weight", ".bias"))):
                    yield (tie.source.lstrip("^"), rest), is_copy
                    return


def is_tied(*checkpoints: Checkpoint) -> bool | None:
    """What config.json of the first that says so says, else what holds for the first of a known architecture."""
    said = (checkpoint.tied for checkpoint in checkpoints)
    known = (checkpoint.architecture for checkpoint in checkpoints)
    defaults = (
        architecture.ties[0].default for architecture in known if architecture is not None and architecture.ties
    )
    return next((tied for tied in (*said, *defaults) if tied is not None), None)


def tied_to(checkpoint: Checkpoint, name: str) -> str | None:
    """The stored tensor that a name stands for in a tied model that does not store it; None: there is none."""
    architecture = checkpoint.architecture
    if checkpoint.tied is False or (_IN_A_LAYER.search(name) is not None and not _ties_layers(architecture)):
        return None
    for group in tied_groups([*checkpoint.tensors, name], architecture):
        if name in group:
            return next((other for other in group if other != name), None)
    return None


def with_own_copies(checkpoint: Checkpoint, differ: Callable[[TensorLocation, TensorLocation], bool]) -> Checkpoint:
    """The checkpoint as one that is not tied where copies of a tied tensor differ, as transformers loads it.

    Args:
        checkpoint: tensors as they are stored.
        differ: compares the values of two tensors.
    """
    if is_tied(checkpoint) is not True:
        return checkpoint
    for first, *others in tied_groups(checkpoint.tensors, checkpoint.architecture):
        for other in others:
            if differ(checkpoint.tensors[first], checkpoint.tensors[other]):
                text = f"{checkpoint.url}: {other} differs from {first}, to which it is said to be tied"
                return replace(checkpoint, tied=False, notes=(*checkpoint.notes, f"{text}; it counts as not tied"))
    return checkpoint


def with_the_names_of(reference: Checkpoint, model: Checkpoint) -> Checkpoint:
    """The model with its tied tensors under the names that the reference has; the same object where they agree.

    * It stores one matrix, the reference only another name: the matrix is the same one under another name, unless the
      model says that it is not tied.
    * It stores fewer copies than the reference and is tied: its one matrix is compared with all of them.
    * It stores copies that the reference does not and is tied: they mean nothing and are not read.

    Whether a model is tied says `tie_word_embeddings` of its config.json, else that of the reference's, else the
    default of its architecture. Every such decision is a note.
    """
    architecture = reference.architecture or model.architecture
    for group in tied_groups({**reference.tensors, **model.tensors}, architecture):
        model = _in_group(reference, model, group)
    return model


def with_ties_apart(reference: Checkpoint, models: Iterable[Checkpoint]) -> Checkpoint:
    """The reference with a tensor of its own for each tied one that a model has so; it counts as not tied then.

    Args:
        reference: its tied tensors are stored under one of their names, at least.
        models: with the names that the reference has, as far as it has any.

    Raises:
        RecipeError: the reference stores already what models have of their own.
    """
    added: dict[str, str] = {}
    for model in models:
        if is_tied(model, reference) is False:
            names = {*reference.tensors, *map(plain_name, model.tensors)}
            for group in tied_groups(names, reference.architecture or model.architecture):
                source = next((name for name in group if name in reference.tensors), None)
                if source is not None:
                    added |= {name: source for name in group if name not in reference.tensors}
    if not added:
        text = "`output: {ties: apart}` has no meaning: no model has a tensor of its own that is tied in the base"
        raise RecipeError(text, "leave the key out: tied tensors are written as the base has them")
    texts = [f"{name} is written apart from {source} and starts from its values" for name, source in added.items()]
    return replace(_changed(reference, added, [], "; ".join(texts)), tied=False)


def _in_group(reference: Checkpoint, model: Checkpoint, group: tuple[str, ...]) -> Checkpoint:
    stored = [name for name in group if name in model.tensors]
    wanted = [name for name in group if name in reference.tensors]
    if not stored or not wanted or stored == wanted:
        return model
    if len(stored) == len(wanted) == 1:
        if model.tied is False:
            return model
        return _changed(model, {wanted[0]: stored[0]}, stored, f"{stored[0]} is tied and merged as {wanted[0]}")
    if not is_tied(model, reference):
        return model
    source = next((name for name in wanted if name in stored), stored[0])
    added = {name: source for name in wanted if name not in stored}
    removed = [name for name in stored if name not in wanted]
    texts = [f"{source} is tied and merged as {name}, too" for name in added]
    texts += [f"{name} is a copy of {wanted[0]}, to which it is tied, and is not read" for name in removed]
    return _changed(model, added, removed, "; ".join(texts))


def names_embedding(name: str) -> bool:
    """Whether a tensor's name is that of an input embedding."""
    return _is_called(name, EMBEDDINGS)


def names_head(name: str) -> bool:
    """Whether a tensor's name is that of an output head."""
    return _is_called(name, HEADS)


def _is_called(name: str, ends: tuple[str, ...]) -> bool:
    """Whether a name ends with whole parts of one of them; few of many names do, which one look tells."""
    return name.endswith(ends) and any(name == end or name.endswith(f".{end}") for end in ends)


def _only(names: Iterable[str]) -> str | None:
    """The one name; None where there is none, or several."""
    found = list(names)
    return found[0] if len(found) == 1 else None


def _changed(model: Checkpoint, added: dict[str, str], removed: Iterable[str], note: str) -> Checkpoint:
    tensors = dict(model.tensors)
    for name, source in added.items():
        location = model.tensors[source]
        tensors[name] = TensorLocation(location.file, replace(location.info, name=name), location.derived)
    for name in removed:
        del tensors[name]
    before = model.decoding.get("tied", {"added": {}, "removed": []})
    tied = {"added": {**before["added"], **added}, "removed": sorted([*before["removed"], *removed])}
    return replace(
        model,
        tensors=tensors,
        decoding={**model.decoding, "tied": tied},
        notes=(*model.notes, f"{model.url}: {note}"),
    )
