"""What config.json of an output must say differently, because the reference's no longer describes the weights. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..models import Config, names_embedding, names_head
from ..recipe import Recipe
from .task import TensorTask

TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder")
"""Keys under which configurations of larger models describe their language model."""
ROWS_KEY = "vocab_size"


def output_edits(
    recipe: Recipe, config: Config | None, tasks: Sequence[TensorTask], warnings: list[str]
) -> dict[str, Any]:
    """Values of config.json that follow from the output's tensors, by path of keys, joined by `/`; each is reported."""
    if not config or recipe.tokenizer_keys is not None:  # with them, `VocabularyFiles` sets the number of rows
        return {}
    edits = vocabulary_edits(config, tasks)
    for path, rows in edits.items():
        warnings.append(f"config.json: {path} does not fit the embedding and becomes {rows}, the number of its rows")
    return dict(edits)


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
