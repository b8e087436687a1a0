"""Recipe: YAML becomes one frozen recipe, or one error with every line that is wrong.

Held by tests/unit/recipe and tests/corpus.
"""

from __future__ import annotations

from .canonical import canonical
from .chat_templates import CHAT_TEMPLATES
from .groups import ModelGroup, activations_of, donor_of, groups_of, names_of, references_of, rules_of
from .parameters import Setting, Value
from .parse import SearchFound, load_recipe, load_search, recipe_of
from .published import published
from .schema import OUTPUT_DTYPES, ModelEntry, Recipe, SliceSource, task_name
from .search_space import Choice, Domain, Interval, Option, SearchSpace
from .task_names import TASK_NAME, UNIFIED
from .text import shorten
from .tokenizer_keys import TokenizerKeys

__all__ = [
    "CHAT_TEMPLATES",
    "OUTPUT_DTYPES",
    "TASK_NAME",
    "UNIFIED",
    "Choice",
    "Domain",
    "Interval",
    "ModelEntry",
    "ModelGroup",
    "Option",
    "Recipe",
    "SearchFound",
    "SearchSpace",
    "Setting",
    "SliceSource",
    "TokenizerKeys",
    "Value",
    "activations_of",
    "canonical",
    "donor_of",
    "groups_of",
    "load_recipe",
    "load_search",
    "names_of",
    "published",
    "recipe_of",
    "references_of",
    "rules_of",
    "shorten",
    "task_name",
]
