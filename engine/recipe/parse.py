"""A recipe file becomes one frozen Recipe, or one error that lists what is wrong with it."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import RecipeError
from ..methods import METHODS, MethodSchema, NoMethod, find_method
from .contradictions import contradictions
from .dialect import MISPLACED, other_tool, plain_recipe
from .parameters import OURS, read_parameters
from .schema import Layout, ModelEntry, Recipe, Slice, SliceSource
from .search_space import SearchSpace, check_searches, find_searches
from .slices import check_structure, each_slice, lift_module, module_parameters
from .text import MAX_RECIPE_BYTES, Document, KeyPath, Places, Problem, did_you_mean, read_document, shorten

logger = logging.getLogger(__name__)

PIPE_SECONDS = 30.0
"""For whatever writes a recipe into a pipe (`<(envsubst < template.yml)`) to have written it."""
SEARCHES = (
    "stands for many recipes, and one is merged: "
    "use `anabranch search RECIPE OUT --evaluate COMMAND`, or put a value here"
)
"""What to say about a search where a plain recipe is expected."""


class SearchFound(RecipeError):
    """A recipe has `search` in place of values where a plain one is expected."""


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: the file cannot be read, or see `parse_recipe`.
    """
    return parse_recipe(_read_text(path), os.fspath(path), Path(path).parent)


def load_search(path: str | Path) -> SearchSpace | None:
    """Read a recipe file with `search` in place of values; None where it has none.

    Raises:
        RecipeError: the file cannot be read, a search is wrong, or a recipe of the space is.
    """
    return parse_search(_read_text(path), os.fspath(path), Path(path).parent)


def _read_text(path: str | Path) -> str:
    where = os.fspath(path)
    try:
        data = _read_at_most(where, MAX_RECIPE_BYTES + 1, PIPE_SECONDS)
    except OSError as error:
        raise RecipeError(f"{where}: cannot read the recipe: {error.strerror or error}") from None
    if len(data) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{where}: a recipe has at most {MAX_RECIPE_BYTES} bytes, this file has more")
    encoding = _encoding(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else "UTF-8, or as this file UTF-16,"
        raise RecipeError(f"{where}: a recipe is {name} text; byte {error.start} is not") from None


def _read_at_most(path: str, size_bytes: int, seconds: float) -> bytes:
    """The first bytes of a file, or of a pipe or device as far as they come within that time.

    Raises:
        OSError: it cannot be read; TimeoutError (ETIMEDOUT) when whoever should write to the pipe has not finished.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _read_before(descriptor, size_bytes, time.monotonic() + seconds)
    finally:
        os.close(descriptor)


def _read_before(descriptor: int, size_bytes: int, deadline: float) -> bytes:
    data, poll = bytearray(), select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) < size_bytes:
        # A pipe that nobody has opened for writing yet looks ended, but is not ready.
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nothing comes out of this pipe or device")
        piece = os.read(descriptor, size_bytes - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def _encoding(data: bytes) -> str:
    """UTF-8, or UTF-16 as Windows writes it: known by its byte order mark or by the zero in its first letter."""
    if data[:2] == b"\xff\xfe" or (data[1:2] == b"\0" and data[:1] != b"\0"):
        return "utf-16-le"
    if data[:2] == b"\xfe\xff" or (data[:1] == b"\0" and data[1:2] != b"\0"):
        return "utf-16-be"
    return "utf-8"


def parse_recipe(text: str, where: str, folder: Path | None = None) -> Recipe:
    """Read a recipe from its YAML text.

    Args:
        text: a superset of mergekit 0.1.5's schema, see docs/recipe.md.
        where: what to call the text in messages.
        folder: where relative paths start, unless they exist below the working directory; None: references are only
            compared as text, without a look at the disk.

    Raises:
        RecipeError: file, line, key path, what was expected and what was found, for up to ten problems.
        SearchFound: it stands for many recipes.
    """
    document = _read_mapping(text, where)
    found = next(find_searches(document.data), None)
    if found is not None:
        raise SearchFound(document.error([Problem(found, SEARCHES)]).message)
    return recipe_of(document, folder)


def parse_search(text: str, where: str, folder: Path | None = None) -> SearchSpace | None:
    """As `load_search`, from YAML text; see `parse_recipe` for the arguments."""
    document = _read_mapping(text, where)
    if next(find_searches(document.data), None) is None:
        return None
    problems = check_searches(document)
    if problems:
        raise document.error(problems)
    space = SearchSpace(document)
    for corner in space.corners():
        recipe_of(corner, folder)
    return space


def _read_mapping(text: str, where: str) -> Document:
    document = read_document(text, where)
    if not isinstance(document.data, dict):
        raise document.error([Problem((), f"expected a mapping of recipe keys, got {shorten(document.data)}")])
    return document


def recipe_of(document: Document, folder: Path | None = None) -> Recipe:
    """The recipe that a document without searches holds; see `parse_recipe`."""
    where = document.where
    problems: list[Problem] = []
    data = plain_recipe(document, _known_keys(()), problems)
    foreign = other_tool(data)
    if foreign is not None:
        raise document.error([foreign])
    check_structure(data, problems)
    module, settings = lift_module(data, problems)
    if folder is not None:
        _spell_bases_alike(data, folder)
    places = Places(where, document.lines, module)
    method = _method_of(data, problems)
    _read_all_parameters(data, method, problems)
    if method is not None and module:
        data["parameters"] = module_parameters(settings, module, method, data["parameters"], problems)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems += [_problem(details) for details in error.errors(include_url=False)]
    else:
        recipe._method = method
    if not problems:
        problems += contradictions(recipe)
    if problems:
        raise document.error([Problem(places.moved(path), text) for path, text in problems])
    recipe._places = places
    return _without_base(recipe)


def _method_of(data: dict[str, Any], problems: list[Problem]) -> MethodSchema | None:
    """What the recipe's method needs; None where it names none."""
    name = data.get("merge_method")
    if not isinstance(name, str):
        return None  # as any key that is missing or no text
    try:
        method = find_method(name)
    except NoMethod as error:
        problems.append(Problem(("merge_method",), str(error)))
        return None
    if method is None:
        supported = f"supported: {', '.join(METHODS)}"
        text = f"unknown method {shorten(name)}; {supported}{did_you_mean(name, METHODS)}"
        problems.append(Problem(("merge_method",), text))
        return None
    return method.schema


def _spell_bases_alike(data: dict[str, Any], folder: Path) -> None:
    """Call the base among the models as `base_model` does where a link or another path leads to its folder."""

    def spell(entries: Any, base: Any) -> None:
        target = _real_folder(base, folder)
        for entry in entries if isinstance(entries, list) and target is not None else ():
            if (
                isinstance(entry, dict)
                and "adapter" not in entry
                and _real_folder(entry.get("model"), folder) == target
            ):
                entry["model"] = base

    spell(data.get("models"), data.get("base_model"))
    parts = data.get("slices")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            spell(part.get("sources"), part.get("base_model") or data.get("base_model"))


def _real_folder(reference: Any, folder: Path) -> str | None:
    """The folder that a reference names, behind all links; None where it is no folder of this machine."""
    if not isinstance(reference, str) or not reference:
        return None
    path = os.path.expanduser(reference)
    return next((os.path.realpath(place) for place in (path, os.path.join(folder, path)) if os.path.isdir(place)), None)


def _each_parameters(data: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any], bool]]:
    """Every mapping that may hold `parameters`, with its path, and whether it is one model's."""
    yield (), data, False
    models = data.get("models")
    for i, entry in enumerate(models if isinstance(models, list) else []):
        if isinstance(entry, dict):
            yield ("models", i), entry, True
    yield from each_slice(data)


def _read_all_parameters(data: dict[str, Any], method: MethodSchema | None, problems: list[Problem]) -> None:
    """Replace each `parameters` by its settings; without a method they mean nothing and are left out."""
    for path, holder, of_model in _each_parameters(data):
        raw = holder.pop("parameters", None)
        if method is not None:
            holder["parameters"] = read_parameters(raw, (*path, "parameters"), method, problems, of_model=of_model)


def _problem(details: ErrorDetails) -> Problem:
    """One of pydantic's errors in our words."""
    path = tuple(details["loc"])
    kind = details["type"]
    got = shorten(details["input"])
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = MISPLACED.get(str(path[-1])) or _as_parameter(path) or did_you_mean(path[-1], known)
        return Problem(path, f"unknown key; expected one of {', '.join(known)}{near}")
    if kind == "missing":
        return Problem(path, "the key is missing")
    if kind == "value_error":
        return Problem(path, str(details["ctx"]["error"]))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        return Problem(
            path, f"expected one of {', '.join(choices)}, got {got}{did_you_mean(details['input'], choices)}"
        )
    if kind == "model_type" and isinstance(details["input"], str) and path[-2:-1] in (("models",), ("sources",)):
        return Problem(path, f"expected a mapping such as {{model: {details['input'][:100]}}}, got {got}")
    expected = _EXPECTED.get(kind)
    return Problem(path, f"expected {expected}, got {got}" if expected else details["msg"])


def _as_parameter(path: KeyPath) -> str:
    """What to say about `weight: 1` beside `model`, where its `parameters` belong; "" about other keys."""
    if path[-1] in OURS and path[0] != "output":
        return f"; did you mean `parameters: {{{path[-1]}: ...}}`?"
    return ""


_SEED = "a whole number from 0 to 9223372036854775807"
_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": _SEED,
    "greater_than_equal": _SEED,
    "less_than": _SEED,
    "tuple_type": "a list",
    "model_type": "a mapping",
}
"""What each of pydantic's errors that our schema can raise means."""


def _known_keys(path: KeyPath) -> list[str]:
    schema: type[BaseModel] = Recipe if not path else Layout if path[0] == "output" else ModelEntry
    if path[:1] == ("slices",):
        schema = SliceSource if "sources" in path else Slice
    known = [field.alias or name for name, field in schema.model_fields.items()]
    return [*known, "modules"] if schema is Recipe else known


def _without_base(recipe: Recipe) -> Recipe:
    """Recipes often list the base among the models; its task vector is zero and it takes no part."""
    if not recipe.has_base:
        return recipe
    kept = tuple(entry for entry in recipe.models if entry.model != recipe.base_model)
    if any(entry.parameters or entry.activations for entry in recipe.models if entry.model == recipe.base_model):
        logger.warning("parameters of %s have no effect: it is the base model", shorten(recipe.base_model))
    return recipe.model_copy(update={"models": kept})
