"""From a recipe to opened checkpoints and a plan, and the side files that go with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .checkpoint import Checkpoint, open_checkpoint
from .commit import MAX_SIDE_FILE_BYTES, patch_config
from .errors import RecipeError
from .memory import crosses_network
from .plan import Plan, make_plan
from .recipe import resolve_model_url
from .recipe_schema import Recipe
from .storage import Store, open_store

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
)


@dataclass(frozen=True)
class Inputs:
    """Opened inputs of a merge."""

    plan: Plan
    stores: Sequence[Store]
    """One per source: the reference first, then the models in recipe order."""
    tokenizer: Checkpoint
    tokenizer_store: Store

    @property
    def is_remote(self) -> bool:
        """Whether any input lies behind a network."""
        return any(crosses_network(store.url) for store in self.stores)

    def side_files(self) -> dict[str, bytes]:
        """config.json with the output's dtype, other side files of the reference, tokenizer files of their source.

        Raises:
            InputError: config.json is not a JSON object.
        """
        dtype = self.plan.recipe.output_dtype
        files = {}
        for name in self.plan.base.side_files:
            if not _is_tokenizer_file(name):
                files[name] = self.stores[0].read_bytes(name, MAX_SIDE_FILE_BYTES)
        for name in self.tokenizer.side_files:
            if _is_tokenizer_file(name):
                files[name] = self.tokenizer_store.read_bytes(name, MAX_SIDE_FILE_BYTES)
        if "config.json" in files:
            files["config.json"] = patch_config(files["config.json"], dtype, f"{self.plan.base.url}/config.json")
        return files


def _is_tokenizer_file(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)


def open_inputs(recipe: Recipe, recipe_dir: Path) -> Inputs:
    """Open every checkpoint that a recipe names and make the plan; reads headers only.

    Args:
        recipe: the recipe.
        recipe_dir: where relative model paths of the recipe start, unless they exist below the working directory.

    Raises:
        RecipeError: a model does not exist.
        InputError: a checkpoint is damaged, or the checkpoints do not fit each other.
    """
    references = [recipe.base_model, *(entry.model for entry in recipe.models), recipe.tokenizer_source]
    urls = {r: resolve_model_url(r, recipe_dir) for r in references if r is not None and r != "base"}
    stores: dict[str, Store] = {}
    checkpoints: dict[str, Checkpoint] = {}
    for url in urls.values():
        if url not in stores:
            stores[url] = open_store(url)
            checkpoints[url] = open_checkpoint(url, stores[url])
    models = [urls[entry.model] for entry in recipe.models]
    reference = urls[recipe.base_model] if recipe.base_model is not None else models[0]
    source = recipe.tokenizer_source
    tokenizer = reference if source == "base" else urls[source]
    if recipe.output_dtype is not None and recipe.output_dtype not in _MERGEABLE:
        raise RecipeError(f"out_dtype {recipe.output_dtype} is not a floating-point type")
    plan = make_plan(
        recipe, checkpoints[reference], [checkpoints[url] for url in models], _plan_urls(urls, checkpoints)
    )
    return Inputs(
        plan, [stores[reference], *(stores[url] for url in models)], checkpoints[tokenizer], stores[tokenizer]
    )


_MERGEABLE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def _plan_urls(urls: dict[str, str], checkpoints: dict[str, Checkpoint]) -> dict[str, str]:
    return {reference: checkpoints[url].url for reference, url in urls.items()}
