"""What a plan refuses before any output exists: names, shapes, dtypes, probabilities, activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ..errors import InputError, RecipeError, some_names
from ..models import (
    DTYPES,
    TIE_KEY,
    Activations,
    Architecture,
    Checkpoint,
    TensorInfo,
    buffer_kind,
    foreign_format,
    tied_to,
    unscaled,
)
from ..recipe import Recipe
from .blueprint import Blueprint
from .task import TensorTask


def check_names(recipe: Recipe, blueprint: Blueprint, warnings: list[str]) -> None:
    """Refuse tensors that only some models have, as far as the recipe says, and report what is missing.

    Buffers are no weights, and an architecture passes over other tensors, too: whichever model has them, they are
    reported by kind and never refused.
    """
    architecture = blueprint.sources[0].architecture
    tensors = {model.url: model.tensors for model in blueprint.models}
    missing: dict[str, dict[str, TensorInfo]] = {url: {} for url in tensors}
    for url, name, info in _missing(blueprint):
        if not recipe.excludes(name):
            missing[url][name] = info
    for url, lacking in missing.items():
        weights = _weights(lacking, architecture, (f"{url} lacks", "the output has the reference's"), warnings)
        if weights:
            text = f"{url} lacks {len(weights)} of the reference's tensors: {some_names(weights)}"
            if recipe.strict:
                raise InputError(text, "the recipe is strict; without `strict` they count as unchanged")
            warnings.append(text + "; they count as unchanged")
        extra = {n: tensors[url][n].info for n in blueprint.extra.get(url, ()) if not recipe.excludes(n)}
        weights = _weights(extra, architecture, (f"{url} has", "they are left out"), warnings)
        if weights:
            text = f"{url} has {len(weights)} tensors that {blueprint.reference_name} does not have"
            text += f": {some_names(weights)}"
            if recipe.extra_tensors == "error":
                raise InputError(text, _extra_hint(blueprint.sources[0], weights))
            warnings.append(text + "; they are left out")


def _extra_hint(reference: Checkpoint, names: Sequence[str]) -> str:
    hint = "set `extra_tensors: ignore` in the recipe to leave them out"
    tied = [(name, source) for name in names if (source := tied_to(reference, name)) is not None]
    if not tied:
        return hint
    name, source = tied[0]
    return (
        f"{name} is tied to {source} in {reference.url}. Either {hint}, so that the output stays tied; or set `output: "
        f"{{ties: apart}}`, so that it is merged as a tensor of its own and config.json says {TIE_KEY}: false"
    )


def _weights(
    infos: Mapping[str, TensorInfo], architecture: Architecture | None, said: tuple[str, str], warnings: list[str]
) -> list[str]:
    """Names of the weights among tensors that not all models have; others are reported in a line for each kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, info in infos.items():
        kinds[_kind(info, architecture)].append(name)
    weights = kinds.pop("", [])
    for kind, names in kinds.items():
        warnings.append(f"{said[0]} {len(names)} {kind}: {some_names(names)}; {said[1]}")
    return weights


def _kind(info: TensorInfo, architecture: Architecture | None) -> str:
    if kind := buffer_kind(info):
        return f"{kind}, which are no weights"
    if architecture is None:
        return ""
    if architecture.passes_over(info.name):
        return f"tensors that {architecture.name} does not load"
    if architecture.may_lack(info.name) and architecture.is_buffer(architecture.canonical(info.name)):
        return f"buffers that {architecture.name} makes itself where they are missing"
    return ""


def _missing(blueprint: Blueprint) -> Iterator[tuple[str, str, TensorInfo]]:
    """(URL, name) of every tensor that a model was to give and lacks, and what the reference has."""
    for tensor in blueprint.tensors:
        reference, *others = blueprint.origins[tensor.group]
        for number, name in zip(others, tensor.names[1:], strict=True):
            source = blueprint.sources[number]
            if name not in source.tensors:
                yield source.url, name, blueprint.sources[reference].tensors[tensor.names[0]].info


def check_quantised(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse weights in packed formats that no task vector can be taken of."""
    for checkpoint in checkpoints:
        names = {name: place for name, place in checkpoint.tensors.items() if not recipe.excludes(name)}
        if found := foreign_format(names):
            raise InputError(
                f"{checkpoint.url}: quantised as {found[0]} ({found[1]!r}); such weights cannot be merged",
                "name the checkpoint that was quantised, or exclude these tensors to copy the base's",
            )
        codes, sign = unscaled(checkpoint.tensors) or ([], "")
        if lacking := [name for name in codes if not recipe.excludes(name)]:
            raise InputError(
                f"{checkpoint.url}: {len(lacking)} matrices of 8-bit floats have no scales of a known name, "
                f"and {sign}: {some_names(lacking)}; without their scales such numbers cannot be merged",
                "name the checkpoint that was quantised, or exclude these tensors to copy the base's",
            )


def check_activations(tasks: Sequence[TensorTask], warnings: list[str]) -> None:
    """Every vector must fit its tensor; what has none, and what belongs to no tensor, is reported."""
    for order in {order: None for task in tasks for order in task.orders if order is not None}:
        used = {name: task for task in tasks if task.orders for name in _names_in(task, order)}
        for name, task in used.items():
            found = len(order.squares.get(name, ()))
            if found not in (0, task.row_elements):
                text = (
                    f"{order.url}: {name!r} has {found} mean squares, the tensor has {task.row_elements} input features"
                )
                raise InputError(text, "these are its last dimension; measure the activations with this base model")
        missing = [name for name in used if name not in order.squares]
        unknown = [name for name in order.squares if name not in used]
        if len(unknown) == len(order.squares):
            raise InputError(
                f"{order.url}: no merged tensor has one of its names, such as {some_names(unknown, 2)}",
                "name mean squares as the weights that they belong to, for instance model.layers.0.mlp.up_proj.weight",
            )
        if missing:
            warnings.append(f"{order.url} has nothing for {some_names(missing)}; magnitude alone orders their changes")
        if unknown:
            warnings.append(f"{order.url} holds what belongs to no merged tensor: {some_names(unknown)}")


def _names_in(task: TensorTask, order: Activations) -> list[str]:
    """What models that this file orders call a merged tensor."""
    pairs = zip(task.models, task.orders, strict=True)
    return [source.info.name for source, own in pairs if source is not None and own == order]


def check_models(tasks: Sequence[TensorTask], models: Sequence[Checkpoint]) -> None:
    """Refuse values of a model that its stages cannot work with."""
    checked: set[int] = set()
    for task in tasks:
        method = task.method
        if method is None or id(method) in checked:
            continue
        checked.add(id(method))
        for i in range(len(task.models)):
            if problem := method.problem(i):
                url = models[task.model_of(i)].url
                text = f"tensor {task.name!r} of {url}: {problem}"
                raise RecipeError(text, "choose a smaller epsilon or another density")


def check_whole_models(tasks: Sequence[TensorTask]) -> None:
    """Refuse what one threshold for a whole model cannot mean."""
    for task in tasks:
        if task.method is None or task.method.survey != "threshold":
            continue
        if task.is_double:
            raise InputError(
                f"tensor {task.name!r} is F64, which `scope: model` does not take",
                "exclude it, convert it, or use `scope: tensor`",
            )
        if not all(isinstance(density, float) for density in task.method.densities):
            raise RecipeError("`scope: model` takes one density per model, not tadrop: use `scope: tensor` with tadrop")


def mismatch(recipe: Recipe, base: TensorInfo, info: TensorInfo) -> str:
    """What keeps a tensor from being merged with the reference; empty where nothing does."""
    base_kind, kind = DTYPES[base.dtype].kind, DTYPES[info.dtype].kind
    if (base_kind != "float" or kind != "float") and base.dtype != info.dtype:
        return f"is {info.dtype}, the reference has {base.dtype}; exclude the tensor or convert the model"
    if base.shape == info.shape:
        return ""
    shapes = f"has shape {list(info.shape)}, the reference has {list(base.shape)}"
    rows_only = len(base.shape) == len(info.shape) == 2 and base.shape[1] == info.shape[1]
    if not rows_only or base_kind != "float":
        return shapes
    if not recipe.merges_differences:
        return shapes + (
            f"; {recipe.merge_method} has no base whose rows could be kept, so `vocab` does not help; "
            "`tokenizer_source` matches rows by token"
        )
    if recipe.vocab == "intersect":
        return ""
    return shapes + "; set `vocab: intersect` to merge the rows that both have"
