"""Where a model lies that a recipe names: a directory, a URL, a name on the hub, or one of these with an adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import RecipeError
from ..recipe import shorten
from ..storage import absolute_path


class ModelUrl(NamedTuple):
    """Where a model lies, and the adapter that changes it."""

    base: str
    adapter: str | None = None


def public_id(url: str) -> str | None:
    """`owner/name` of a folder on the Hub; None for any other place."""
    found = HUB_FOLDER.fullmatch(url)
    return found["name"] if found else None


def resolve_model(reference: str, recipe_dir: Path) -> ModelUrl:
    """Where a model lies: see `resolve_model_url`, or BASE+ADAPTER of two of these.

    A `+` may also belong to a name: what exists as a whole is no pair, and of several places to cut, the last at which
    both sides can be models counts.

    Raises:
        RecipeError: it is none of these.
    """
    if not (_is_directory(reference, recipe_dir) or _HUB_NAME.fullmatch(reference)):
        cuts = [i for i, letter in enumerate(reference) if letter == "+"]
        for cut in reversed(cuts):
            pair = reference[:cut], reference[cut + 1 :]
            if all(_may_be_model(part, recipe_dir) for part in pair):
                base, adapter = (resolve_model_url(part, recipe_dir) for part in pair)
                return ModelUrl(base, adapter)
    return ModelUrl(resolve_model_url(reference, recipe_dir))


def _is_directory(reference: str, recipe_dir: Path) -> bool:
    return _find(reference, recipe_dir, Path.is_dir) is not None


def _may_be_model(part: str, recipe_dir: Path) -> bool:
    known = _URL.match(part) or _HUB_NAME.fullmatch(part)
    return part != "" and (known is not None or _is_directory(part, recipe_dir))


def resolve_model_url(reference: str, recipe_dir: Path) -> str:
    """Where a folder of weights lies.

    Args:
        reference: as the recipe gives it.
        recipe_dir: the directory of the recipe file.

    Returns:
        The absolute path of a directory that exists, seen from the working directory or from the recipe;
        a URL as it is; `hf://owner/name[@revision]` for a name on the Hugging Face Hub.

    Raises:
        RecipeError: it is none of these.
    """
    if _URL.match(reference):
        return reference
    directory = _find(reference, recipe_dir, Path.is_dir)
    if directory is not None:
        return directory
    if _find(reference, recipe_dir, Path.exists) is not None:
        raise RecipeError(
            f"model {shorten(reference)}: expected a directory that holds a checkpoint, got a file",
            "Name the directory that the file lies in.",
        )
    if _HUB_NAME.fullmatch(reference):
        return f"hf://{reference}"
    raise RecipeError(
        f"model {shorten(reference)} does not exist",
        f"Looked for a directory in {_places(recipe_dir)}; "
        "expected a directory, a URL (s3://bucket/folder, hf://owner/name@revision) or owner/name, "
        "or two of them as BASE+ADAPTER.",
    )


def resolve_file_url(reference: str, recipe_dir: Path) -> str:
    """Where a file lies: a URL as it is, else its absolute path, seen from the working directory or the recipe.

    Raises:
        RecipeError: there is no such file.
    """
    if _URL.match(reference):
        return reference
    file = _find(reference, recipe_dir, Path.is_file)
    if file is not None:
        return file
    raise RecipeError(
        f"file {shorten(reference)} does not exist",
        f"Looked in {_places(recipe_dir)}; expected a file or a URL of one.",
    )


def _find(reference: str, recipe_dir: Path, fits: Callable[[Path], bool]) -> str | None:
    """The absolute path of what fits, seen from the working directory or, failing that, from the recipe's."""
    path = Path(reference).expanduser()
    found = next((candidate for candidate in (path, recipe_dir / path) if fits(candidate)), None)
    return None if found is None else absolute_path(os.fspath(found))


def _places(recipe_dir: Path) -> str:
    return f"{absolute_path('.')} and in {absolute_path(os.fspath(recipe_dir))}"


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_NAME = re.compile(rf"{_PART}/{_PART}(@[A-Za-z0-9][A-Za-z0-9._/-]*)?")

HUB_FOLDER = re.compile(r"hf://(?P<name>[^/@+]+/[^/@+]+)(@(?P<revision>[^@]+))?")
"""A folder on the hub as it is opened: hf://owner/name, with a revision or without."""
