"""Input embedding and output head: one matrix that models store once, twice, or under either name.

A model with tied weights has one matrix for both. Its file may hold it under the embedding's name (as transformers
saves it), under the head's (as safetensors' `save_model` does, which keeps the alphabet's first name), or under both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .checkpoint import Checkpoint
from .location import TensorLocation

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
"""Endings of tensor names; where several tensors of a model have one, nothing is assumed."""


def with_the_names_of(reference: Checkpoint, model: Checkpoint) -> Checkpoint:
    """The model with its embedding and head under the names that the reference has; the same object where they agree.

    * It stores one matrix, the reference only the other name: the matrix is the same one under another name, unless the
      model says that it is not tied.
    * It stores one and is tied, the reference stores both: its one matrix is compared with both.
    * It stores both and is tied, the reference stores one: the second copy means nothing and is not read.

    Whether a model is tied says `tie_word_embeddings` of its config.json, else that of the reference's. Every such
    decision is a note.
    """
    names = {*reference.tensors, *model.tensors}
    embedding, head = _only(filter(names_embedding, names)), _only(filter(names_head, names))
    if embedding is None or head is None:
        return model
    pair = (embedding, head)
    stored = [name for name in pair if name in model.tensors]
    wanted = [name for name in pair if name in reference.tensors]
    if not stored or not wanted or stored == wanted:
        return model
    tied = model.tied if model.tied is not None else reference.tied
    if len(stored) == len(wanted) == 1:
        if model.tied is False:
            return model
        return _changed(model, {wanted[0]: stored[0]}, stored, f"{stored[0]} is tied and merged as {wanted[0]}")
    if not tied:
        return model
    if len(stored) == 1:
        other = next(name for name in wanted if name not in stored)
        return _changed(model, {other: stored[0]}, [], f"{stored[0]} is tied and merged as {other}, too")
    other = next(name for name in stored if name not in wanted)
    return _changed(model, {}, [other], f"{other} is a copy of {wanted[0]}, to which it is tied, and is not read")


def names_embedding(name: str) -> bool:
    """Whether a tensor's name is that of an input embedding."""
    return any(name == end or name.endswith(f".{end}") for end in EMBEDDINGS)


def names_head(name: str) -> bool:
    """Whether a tensor's name is that of an output head."""
    return any(name == end or name.endswith(f".{end}") for end in HEADS)


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
    return replace(
        model,
        tensors=tensors,
        decoding={**model.decoding, "tied": {"added": added, "removed": sorted(removed)}},
        notes=(*model.notes, f"{model.url}: {note}"),
    )
