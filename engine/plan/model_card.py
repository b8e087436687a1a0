"""README.md and mergekit_config.yml of an output, for people and for what crawls the Hub. Pure.

Nothing in them says where anything lies: models of the Hub have their public names, all others neutral ones.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..methods import METHODS
from ..models import CARD_NAME, HUB_FOLDER, Config, ModelUrl, public_id
from ..recipe import Recipe, donor_of, published, references_of

RECIPE_NAME = "mergekit_config.yml"
MERGEKITS = frozenset(
    {
        *("arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear"),
        *("karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram", "ramplus_tl"),
        *("sce", "slerp", "task_arithmetic", "ties"),
    }
)
"""Methods that mergekit has, too."""
_MERGEKIT_KEYS = {
    *("merge_method", "base_model", "models", "slices", "sources", "parameters", "out_dtype"),
    *("tokenizer", "chat_template", "model", "layer_range"),
}
_OUR_PARAMETERS = {"scope", "rescale_norm"}


def card_files(
    recipe: Recipe,
    urls: Mapping[str, ModelUrl],
    files: Sequence[str],
    opened: Mapping[str, str],
    licence: Mapping[str, str],
    config: Config,
) -> dict[str, bytes]:
    """README.md and mergekit_config.yml.

    Args:
        recipe: the recipe.
        urls: where every model that it names lies.
        files: other files that it names.
        opened: URL of every folder as it was read, with the commit of one on the Hub, by the URL in `urls`.
        licence: keys of the front matter on which all inputs agree.
        config: config.json of the output; {} where there is none.
    """
    folders = _folder_names(recipe, urls)
    names = {reference: "+".join(folders[part] for part in url if part is not None) for reference, url in urls.items()}
    names |= {name: f"activations-{number}" for number, name in enumerate(files, 1)}
    shown = published(recipe, names)
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    front = _front(shown, urls, licence, config)
    card = [f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---", "# A merged model"]
    card += [_about(recipe), "## Models", _models(recipe, urls, folders, opened), "## Recipe", _fenced(text), _MADE]
    return {CARD_NAME: ("\n\n".join(card) + "\n").encode(), RECIPE_NAME: text.encode()}


def _folder_names(recipe: Recipe, urls: Mapping[str, ModelUrl]) -> dict[str, str]:
    """What stands for every folder: its name on the Hub, or `base`, `model-1`, `adapter-1` and so on."""
    found: dict[str, str] = {}
    numbers = {"model": 0, "adapter": 0}
    donor = donor_of(recipe) if recipe.base_model is not None else None
    merged = references_of(recipe)
    for reference in (*merged, *(reference for reference in urls if reference not in merged)):
        for kind, folder in zip(("model", "adapter"), urls[reference], strict=True):
            if folder is None or folder in found:
                continue
            if hub := HUB_FOLDER.fullmatch(folder):
                found[folder] = folder.removeprefix("hf://") if hub["revision"] else hub["name"]
            elif reference == donor and kind == "model":
                found[folder] = "base"
            else:
                numbers[kind] += 1
                found[folder] = f"{kind}-{numbers[kind]}"
    return found


def _front(
    shown: Mapping[str, Any], urls: Mapping[str, ModelUrl], licence: Mapping[str, str], config: Config
) -> dict[str, Any]:
    """What the Hub reads."""
    ids = dict.fromkeys(name for url in urls.values() for part in url if part and (name := public_id(part)))
    front: dict[str, Any] = {"base_model": list(ids), "base_model_relation": "merge"} if ids else {}
    if config.get("model_type") or config.get("architectures"):
        front["library_name"] = "transformers"
    front["tags"] = ["merge", "anabranch", *(["mergekit"] if is_mergekits(shown) else [])]
    return {**front, **licence}


def is_mergekits(shown: Mapping[str, Any]) -> bool:
    """Whether a recipe, as published, is one that mergekit understands in full."""
    return shown["merge_method"] in MERGEKITS and _all_known(shown)


def _all_known(part: Mapping[str, Any]) -> bool:
    if not set(part) <= _MERGEKIT_KEYS or "tadrop" in repr(part.get("parameters", {})):
        return False
    if _OUR_PARAMETERS & set(part.get("parameters", {})) or "embeddings" in part.get("tokenizer", {}):
        return False
    inside = [*part.get("models", ()), *part.get("slices", ()), *part.get("sources", ())]
    return all(_all_known(entry) for entry in inside)


def _about(recipe: Recipe) -> str:
    """The method in a sentence, with its papers."""
    name = recipe.merge_method
    if name not in METHODS:
        return "Merged by a method that comes with no name of ours: its authors' own."
    said = " ".join((inspect.getdoc(METHODS[name].function) or "").split())
    linked = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", said)
    return f"Merged by `{name}`: {linked}"


def _models(recipe: Recipe, urls: Mapping[str, ModelUrl], folders: Mapping[str, str], opened: Mapping[str, str]) -> str:
    lines: dict[str, None] = {}
    donor = donor_of(recipe)
    for reference in references_of(recipe):
        parts = [_linked(folder, folders, opened) for folder in urls[reference] if folder is not None]
        role = ", the base" if reference == donor and recipe.base_model is not None else ""
        lines[f"- {' with '.join(parts)}{role}"] = None
    private = any(public_id(part) is None for url in urls.values() for part in url if part is not None)
    return "\n".join([*lines, *(["", "What has no link has no public name."] if private else [])])


def _linked(folder: str, folders: Mapping[str, str], opened: Mapping[str, str]) -> str:
    hub = public_id(folder)
    if hub is None:
        return f"`{folders[folder]}`"
    read = HUB_FOLDER.fullmatch(opened.get(folder, folder))
    commit = f" at `{read['revision']}`" if read is not None and read["revision"] else ""
    return f"[{hub}](https://huggingface.co/{hub}){commit}"


def _fenced(text: str) -> str:
    """A block that nothing inside it can end."""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}yaml\n{text}{fence}"


_MADE = """## How it was made

`anabranch merge` made these files from the recipe, which is also in `mergekit_config.yml`. The same recipe and inputs
give the same bytes. `anabranch.manifest.json` has the SHA-256 of every file, and `anabranch verify` compares them."""
