"""Recipes as people write them parse, or are refused with the key's name and what to do."""

from __future__ import annotations

from collections import Counter

import pytest

from anabranch.engine.errors import RecipeError
from anabranch.engine.recipe.parse import load_recipe

from .files import FILES, RecipeFile

MERGEKITS = {
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "linear",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
}
"""Methods that mergekit has, too."""


@pytest.mark.parametrize("file", [f for f in FILES if not f.refused_with], ids=lambda file: file.path.stem)
def test_recipes_that_are_right(file: RecipeFile) -> None:
    load_recipe(file.path)


@pytest.mark.parametrize("file", [f for f in FILES if f.refused_with], ids=lambda file: file.path.stem)
def test_recipes_that_are_refused(file: RecipeFile) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(file.path)
    message = str(refused.value)
    missing = [words for words in file.refused_with if words not in message]
    assert not missing, message


def test_the_corpus_is_large_and_has_every_method() -> None:
    assert len(FILES) >= 60
    right = Counter(load_recipe(file.path).merge_method for file in FILES if not file.refused_with)
    assert set(right) == MERGEKITS
