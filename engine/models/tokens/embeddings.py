"""Embeddings: the tensors whose rows are tokens, and the same tensors with rows in the order of another vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from ...errors import InputError, some_names
from ..header import DTYPES
from ..location import TensorLocation
from ..row_gather import RowGather
from .vocabulary import Alignment

_TOKEN_ROWS = re.compile(
    r"(.*\.)?((embed_tokens|embed_tokens_per_layer|wte|word_embeddings|tok_embeddings|embed_in|embeddings|shared|embed_out"
    r"|lm_head|lm_head\.linear|lm_head\.decoder|output_layer|vocab_projector|cls\.predictions|cls\.predictions\.decoder)"
    r"\.(weight|bias))|output\.weight"
)
"""Names of input and output embeddings in published architectures."""
_OTHER_ROWS = re.compile(r"(.*\.)?(wpe|embed_positions|position_embeddings|token_type_embeddings)\.weight")
"""Names of matrices whose rows are something else, whatever their number."""
_IN_LAYER = re.compile(r"(.*\.)?\d+(\..*)?")
_WTE_IN_LAYER = re.compile(r"layers\.0\.wte\.weight")
"""The one published architecture that counts its embedding as a layer."""


def find_embeddings(tensors: Mapping[str, TensorLocation], patterns: Sequence[str], where: str) -> list[str]:
    """Names of the tensors whose rows are tokens.

    Args:
        tensors: of the reference.
        patterns: the recipe's; without any they are known by their names, and a tensor outside the layers that has as
            many rows as one of them, under a name that says nothing, is an error.
        where: the reference, for messages.

    Raises:
        InputError: there is none, or it is not clear which they are.
    """
    hint = "list the tensors whose rows are tokens under `tokenizer: {embeddings: [...]}` in the recipe"
    if patterns:
        found = [name for name in tensors if any(fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        found = [name for name in tensors if _has_token_rows(name)]
    if not found:
        raise InputError(f"{where}: no tensor is known to be an embedding", hint)
    wrong = [n for n in found if not tensors[n].info.shape or DTYPES[tensors[n].info.dtype].kind != "float"]
    if wrong:
        info = tensors[wrong[0]].info
        text = f"{where}: {wrong[0]!r} is {info.dtype} of shape {list(info.shape)}: its rows cannot be matched by token"
        raise InputError(text, "use a checkpoint with floating-point embeddings")
    if not patterns:
        heights = {tensors[name].info.shape[0] for name in found}
        unclear = [n for n in tensors if n not in found and _may_have_token_rows(n, tensors[n].info.shape, heights)]
        if unclear:
            listed = some_names([f"{n} {list(tensors[n].info.shape)}" for n in unclear])
            raise InputError(f"{where}: are these rows tokens? As many as in {found[0]}, but unknown: {listed}", hint)
    return found


def _has_token_rows(name: str) -> bool:
    if _WTE_IN_LAYER.fullmatch(name):
        return True
    return _TOKEN_ROWS.fullmatch(name) is not None and _IN_LAYER.fullmatch(name) is None


def _may_have_token_rows(name: str, shape: tuple[int, ...], heights: set[int]) -> bool:
    if len(shape) < 2 or _IN_LAYER.fullmatch(name) or _OTHER_ROWS.fullmatch(name):
        return False
    return shape[0] in heights or (shape[0] == 1 and shape[1] in heights)


def align_tensor(
    sources: Sequence[TensorLocation | None], urls: Sequence[str], alignment: Alignment, where: str
) -> list[TensorLocation | None]:
    """An embedding of every source with the rows of the output's vocabulary; None where a source lacks it.

    Args:
        sources: the tensor in every source.
        urls: of their checkpoints.
        alignment: which rows are taken.
        where: its name, for messages.

    Raises:
        InputError: rows of the models differ in shape, or are F64 and would have to be converted.
    """
    found = [source.info for source in sources if source is not None]
    for info in found:
        if len(info.shape) != len(found[0].shape) or info.shape[1:] != found[0].shape[1:]:
            raise InputError(f"{where} has shape {list(found[0].shape)} in one model and {list(info.shape)} in another")
    return [
        None if own is None else _aligned(number, own, sources, urls, alignment, where)
        for number, own in enumerate(sources)
    ]


def _aligned(
    number: int,
    own: TensorLocation,
    sources: Sequence[TensorLocation | None],
    urls: Sequence[str],
    alignment: Alignment,
    where: str,
) -> TensorLocation:
    """One source's embedding: its own rows first among the parts, then those of others that it takes rows from."""
    entries = alignment.entries[number]
    assert entries is not None
    parts = {i: location for i in entries.used if (location := sources[i]) is not None}
    dtypes = {location.info.dtype for location in parts.values()}
    computed = alignment.padding > 0 or entries.has_means
    dtype = "F32" if computed or len(dtypes) > 1 else own.info.dtype
    if "F64" in dtypes and dtype != "F64":
        text = f"{where} is F64 in some model; means, padding and rows of another dtype are taken in F32"
        raise InputError(text, "convert the models to one dtype")
    origins = tuple(urls[i] for i in parts)
    rows = RowGather(tuple(parts.values()), origins, *entries.arrays, alignment.padding, dtype, own.out_dtype)
    shape = (alignment.rows + alignment.padding, *own.info.shape[1:])
    return replace(own, info=replace(own.info, dtype=dtype, shape=shape), derived=rows)
