"""What config.json of an output must say differently, because the reference's no longer describes the weights. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..models import TIE_KEY, Checkpoint, Config, names_embedding, names_head, tied_groups
from ..recipe import Recipe
from .task import TensorTask

TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder")
"""Keys under which configurations of larger models describe their language model."""
ROWS_KEY = "vocab_size"


def output_edits(
    recipe: Recipe,
    config: Config | None,
    tasks: Sequence[TensorTask],
    sources: Sequence[Checkpoint],
    warnings: list[str],
) -> dict[str, Any]:
    """Values of config.json that follow from the output's tensors, by path of keys, joined by `/`; each is reported."""
    if not config:
        return {}
    # With keys of tokenizers, `VocabularyFiles` sets the number of rows.
    edits = vocabulary_edits(config, tasks) if recipe.tokenizer_keys is None else {}
    for path, rows in edits.items():
        warnings.append(f"config.json: {path} does not fit the embedding and becomes {rows}, the number of its rows")
    untied, why = tie_edits(config, tasks, sources)
    if untied:
        warnings.append(f"config.json: {', '.join(untied)} becomes false: {why}")
    return {**edits, **untied}


def tie_edits(
    config: Config, tasks: Sequence[TensorTask], sources: Sequence[Checkpoint]
) -> tuple[dict[str, bool], str]:
    """Where config.json must say that tensors are not tied, and why; ({}, "") where it need not.

    The output stores several copies, and one of the models has them as tensors of their own.
    """
    architecture = sources[0].architecture
    groups = tied_groups([task.name for task in tasks], architecture)
    for source, *copies in groups:
        own = next((s for s in sources if s.tied is False and source in s.tensors and copies[0] in s.tensors), None)
        if own is None:
            continue
        said = {f"{path}{TIE_KEY}": part[TIE_KEY] for path, part in _text_parts(config) if TIE_KEY in part}
        default = architecture is not None and any(tie.default for tie in architecture.ties)
        wrong = {path: False for path, value in said.items() if value is not False}
        if wrong or (default and not said):
            return wrong or {TIE_KEY: False}, f"{copies[0]} and {source} are two tensors in {own.url}"
    return {}, ""


def vocabulary_edits(config: Config, tasks: Sequence[TensorTask]) -> dict[str, int]:
    """The number of rows that embedding and head have, by path of every `vocab_size` that says another one.

    Where one place says the right number, others mean something else. A head has a row for each token; an embedding
    may have more (Mllama's has eight), and counts where there is no head. Where heads, or embeddings, differ among each
    other nothing is assumed.
    """
    said = {path: part[ROWS_KEY] for path, part in _text_parts(config) if isinstance(part.get(ROWS_KEY), int)}
    shapes = {task.name: task.base.info.shape for task in tasks if len(task.base.info.shape) == 2}
    heads = {shape[0] for name, shape in shapes.items() if names_head(name)}
    rows = heads or {shape[0] for name, shape in shapes.items() if names_embedding(name)}
    if len(rows) != 1 or rows & set(said.values()):
        return {}
    return {f"{path}{ROWS_KEY}": next(iter(rows)) for path in said}


def _text_parts(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration and that of a language model inside it, by path with its slash."""
    yield "", config
    for key in TEXT_PARTS:
        if isinstance(config.get(key), dict):
            yield f"{key}/", config[key]
