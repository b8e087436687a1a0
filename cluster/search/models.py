"""The merges of a search: made together, each a finished output, and only so many on the disk at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from ...engine.errors import InputError, IntegrityError, RecipeError, ResourceError
from ...engine.models import Opened, Room, resolve_file_url, resolve_model
from ...engine.output import MANIFEST_NAME
from ...engine.plan import open_inputs
from ...engine.recipe import Recipe, canonical, recipe_of
from ...engine.recipe import SearchSpace as Space
from ...engine.run import TABLES_BYTES_PER_TENSOR, Execution, merge_all
from ...engine.storage import absolute_path, open_store


class Cost:
    """What a trial costs: that of one recipe of the space, as all of them read and write about the same.

    Args:
        space: the recipes.
        folder: that of the recipe's file.
        memory_bytes: bounds headers and texts of inputs.

    Raises:
        RecipeError: the method writes several outputs, of which none is a model to be evaluated.
        AnabranchError: what a merge of the recipe would refuse.
    """

    def __init__(self, space: Space, folder: Path, memory_bytes: int) -> None:
        recipes = [recipe_of(corner, folder) for corner in space.corners()]
        for recipe in recipes:
            if recipe.method.writes_tasks:
                raise RecipeError(
                    f"{recipe.merge_method} writes several outputs, of which none is one model to evaluate"
                )
        opened = Opened(room=Room(memory_bytes))
        # All are planned: a model or a key of the output that is searched may be refused.
        self.read_bytes = self.write_bytes = 0
        for recipe in recipes:
            plan = open_inputs(recipe, folder, opened).plan
            self.read_bytes = max(self.read_bytes, plan.read_bytes)
            self.write_bytes = max(self.write_bytes, plan.write_bytes + TABLES_BYTES_PER_TENSOR * len(plan.tasks))


def check_space(out: Path, cost: Cost, merges: int) -> None:
    """ResourceError when the disk does not hold so many merges, those of this search that are there included."""
    needed = merges * cost.write_bytes
    free = free_bytes(out) + sum(path.stat().st_size for path in (out / "models").rglob("*") if path.is_file())
    if needed > free:
        raise ResourceError(
            f"{out}: a search with so many merges at a time needs {needed} bytes, {free} are free",
            "free some space, use another output directory, or a smaller --keep or --together",
        )


def free_bytes(place: Path) -> int:
    """Of the file system that a folder lies in, or will."""
    return open_store(str(place)).free_bytes() or 0


class Models:
    """The merges in OUT/models, by name, and their plain recipes in OUT/recipes.

    Args:
        out: the directory of the search.
        folder: that of the recipe's file: where relative references start.
        execution: how merges are carried out.
    """

    def __init__(self, out: Path, folder: Path, execution: Execution) -> None:
        self._out = out
        self._folder = folder
        self._execution = execution
        for name in ("models", "recipes", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self._out / "models" / name

    def recipe_path(self, name: str) -> Path:
        return self._out / "recipes" / f"{name}.yml"

    def write_recipe(self, name: str, recipe: Recipe) -> str:
        """The plain recipe of a trial, which makes the same bytes wherever it is merged."""
        text = yaml.safe_dump(canonical(recipe, AbsoluteReferences(self._folder)), sort_keys=False, width=120)
        path = self.recipe_path(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        return text

    def merge(self, names: Sequence[str]) -> dict[str, str]:
        """Merge recipes that were written, those together that can share a reading.

        Returns:
            Why some of them could not be merged, by name: their values overflow, for example.

        Raises:
            AnabranchError: what has nothing to do with a recipe, such as a full disk.
        """
        try:
            self._merge(names)
        except (InputError, IntegrityError, RecipeError) as error:
            if len(names) == 1:
                return {names[0]: error.message}
            return {name: text for each in names for name, text in self.merge([each]).items()}
        return {}

    def _merge(self, names: Sequence[str]) -> None:
        if names:
            merge_all([self.recipe_path(name) for name in names], self._out / "models", self._execution)

    def keep(self, names: Iterable[str]) -> None:
        """Delete all others."""
        kept = {*names}
        for path in sorted((self._out / "models").iterdir()):
            if path.name not in kept:
                (path / MANIFEST_NAME).unlink(missing_ok=True)  # first, so that half an output does not look finished
                shutil.rmtree(path)


class AbsoluteReferences(Mapping[str, str]):
    """What to write instead of each reference, so that a recipe says the same in another folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, reference: str) -> str:
        try:
            found = resolve_model(reference, self._folder)
        except RecipeError:
            return resolve_file_url(reference, self._folder)  # activations are a file
        return found.base if found.adapter is None else f"{found.base}+{found.adapter}"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def local_folder(out: str) -> Path:
    """The directory of a search; RecipeError when it is no local one."""
    if "://" in out:
        raise RecipeError(f"{out}: a search needs a local directory: evaluation commands read its models there")
    return Path(absolute_path(os.path.expanduser(out)))
