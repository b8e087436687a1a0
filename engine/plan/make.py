"""(recipe, checkpoints) -> plan. Pure: no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, RecipeError, some_names
from ..json_text import canonical_json
from ..methods import METHODS, Method, find_method
from ..models import DTYPES, Activations, Checkpoint, Config, TensorInfo, buffer_kind
from ..recipe import ModelGroup, Recipe, activations_of, canonical, donor_of, task_name
from .blueprint import Blueprint, OutputTensor, make_blueprint
from .cautions import check_densities
from .checks import (
    check_activations,
    check_models,
    check_names,
    check_quantised,
    check_whole_models,
    mismatch,
)
from .layout import cut_shards, layout, make_shard
from .output_config import output_edits
from .parameters import ParameterResolver, Values
from .plan import NUMERICS, Plan, Terms, plan_id
from .task import TensorTask, make_task
from .unchanged import check_taking_part


def make_plan(
    recipe: Recipe,
    opened: Mapping[str, Checkpoint],
    urls: Mapping[str, str],
    side_files: Sequence[Mapping[str, Any]] = (),
    configs: Mapping[str, Config] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    activations: Mapping[str, Activations] | None = None,
    notes: Sequence[str] = (),
    card: Mapping[str, str] | None = None,
) -> Plan:
    """Decide what happens to every tensor of every input.

    Args:
        recipe: the recipe.
        opened: the checkpoint of every model that is merged.
        urls: absolute normalised URL of every model reference of the recipe.
        side_files: name, size and version of the config and tokenizer files that will be copied.
        configs: config.json of the reference, and of models that slices are cut from, by reference, where there is one.
        tokenizer: what decides the bytes of embeddings and tokenizer files beside them; nothing where they are copied.
        warnings: what may not be as it was meant, noticed before.
        activations: what orders changes besides their magnitude, by the reference in the recipe.
        notes: how inputs are read and files are copied, said before.
        card: SHA-256 of files that are made to say how the output was made, by name.

    Raises:
        InputError: names, shapes or dtypes do not fit, each named with what was expected and what was found.
        RecipeError: a parameter has no value for some tensor, or a slice asks for layers that are not there.
    """
    blueprint = make_blueprint(recipe, opened, configs or {})
    read = _distinct(blueprint.sources)
    notes = [*notes, *(note for checkpoint in read for note in checkpoint.notes)]
    noticed = [*warnings, *blueprint.warnings]
    check_quantised(recipe, read)
    maker = _TaskMaker(recipe, blueprint, activations or {})
    tasks = tuple(maker.task(tensor) for tensor in blueprint.tensors)
    check_taking_part(recipe, blueprint, tasks)
    check_names(recipe, blueprint, noticed)
    maker.report(noticed)
    check_activations(tasks, noticed)
    check_whole_models(tasks)
    check_models(tasks, blueprint.models)
    check_densities(tasks, noticed)
    cut = cut_shards(
        [(task.name, task.out_dtype, task.base.info.shape) for task in tasks], recipe.output.shard_size_bytes
    )
    shards = tuple(make_shard(tasks, members, index, len(cut)) for index, members in enumerate(cut))
    inputs: list[dict[str, Any]] = [checkpoint.identity() for checkpoint in read]
    config = (configs or {}).get(donor_of(recipe))
    edits = {**blueprint.config_edits, **output_edits(recipe, config, tasks, blueprint.sources, noticed)}
    inputs.append({"side_files": [dict(file) for file in side_files], **({"config": edits} if edits else {})})
    if tokenizer:
        inputs.append({"tokenizer": dict(tokenizer)})
    if activations:
        inputs.append({"activations": [activations[name].identity() for name in sorted(activations)]})
    if card:
        inputs.append({"card": dict(card)})
    if recipe.merge_method not in METHODS:
        inputs.append({"stages": _digest(tasks)})
    described = canonical(recipe, urls)
    return Plan(
        _terms(recipe),
        blueprint.sources[0],
        blueprint.models,
        blueprint.sources,
        tasks,
        shards,
        (*notes, *blueprint.notes),
        tuple(noticed),
        blueprint.extra,
        edits,
        described,
        inputs,
        plan_id(NUMERICS, described, inputs, layout(shards)),
    )


def _terms(recipe: Recipe) -> Terms:
    return Terms(
        method=recipe.merge_method,
        has_base=recipe.base_model is not None,
        seed=recipe.seed,
        saturate=recipe.overflow == "saturate",
        keep_base_where_nonfinite=recipe.nonfinite == "keep-base",
        allow_unchanged=recipe.allow_unchanged,
        out_dtype=recipe.output_dtype,
        shard_size_bytes=recipe.output.shard_size_bytes,
        slices=len(recipe.slices),
        layers=sum(part.length for part in recipe.slices),
        task_names=tuple(map(task_name, recipe.models)) if recipe.method.writes_tasks else (),
    )


def _digest(tasks: Sequence[TensorTask]) -> str:
    """What identifies the stages that a method of the user's own made: an edited function gives another plan."""
    made = {task.name: repr(task.method) for task in tasks if task.method is not None}
    return hashlib.sha256(canonical_json(made)).hexdigest()


def _distinct(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    return list({checkpoint.url: checkpoint for checkpoint in checkpoints}.values())


class _TaskMaker:
    """Looks every tensor up in its sources and says what happens to it."""

    def __init__(self, recipe: Recipe, blueprint: Blueprint, activations: Mapping[str, Activations]) -> None:
        self._recipe = recipe
        orders = [[activations.get(activations_of(recipe, e) or "") for e in g.entries] for g in blueprint.groups]
        self._orders = [tuple(own) if any(own) else () for own in orders]
        self._blueprint = blueprint
        self._methods = [_MethodCache(recipe, group) for group in blueprint.groups]
        self._sources = [[blueprint.sources[number] for number in origins] for origins in blueprint.origins]
        self._problems: list[str] = []
        self._other_rows: dict[str, dict[str, None]] = {}

    def task(self, tensor: OutputTensor) -> TensorTask:
        recipe, name, origins = self._recipe, tensor.name, self._blueprint.origins[tensor.group]
        reference, *models = self._sources[tensor.group]
        location = reference.tensors[tensor.names[0]]
        info = location.info
        kind = DTYPES[info.dtype].kind
        out_dtype = (recipe.output_dtype or location.out_dtype) if kind == "float" else info.dtype
        none = (None,) * len(models)
        if recipe.excludes(name):
            return make_task(name, location, none, origins, out_dtype, None, "excluded")
        if what := buffer_kind(info):
            return make_task(name, location, none, origins, location.out_dtype, None, f"{what}, which are no weights")
        sources = tuple(model.tensors.get(own) for model, own in zip(models, tensor.names[1:], strict=True))
        for model, source in zip(models, sources, strict=True):
            if source is not None and (source.info.dtype != info.dtype or source.info.shape != info.shape):
                self._note_difference(model, info, source.info)
        if info.numel == 0:
            return make_task(name, location, none, origins, out_dtype, None, "empty")
        if kind != "float":
            others = tuple(s if s is not location else None for s in sources)
            reason = f"{info.dtype}, identical in all models"
            return make_task(name, location, others, origins, out_dtype, None, reason)
        if not any(sources):
            return make_task(name, location, none, origins, out_dtype, None, "in no model")
        found = self._methods[tensor.group].get(tensor)
        if found.is_copy:
            return make_task(name, location, none, origins, out_dtype, None, "passed through")
        return make_task(name, location, sources, origins, out_dtype, found, "", self._orders[tensor.group])

    def _note_difference(self, model: Checkpoint, base: TensorInfo, info: TensorInfo) -> None:
        if problem := mismatch(self._recipe, base, info):
            self._problems.append(f"{model.url}: {info.name!r} {problem}")
        elif base.shape != info.shape:
            found = self._other_rows.setdefault(model.url, {})
            found[f"{info.name} ({info.shape[:1]} for {base.shape[:1]})"] = None

    def report(self, warnings: list[str]) -> None:
        """Raise what cannot be merged, and say which tensors have other rows, as `vocab: intersect` allows."""
        if self._problems:
            shown = "\n".join(f"  {problem}" for problem in self._problems[:20])
            more = f"\n  and {len(self._problems) - 20} more" if len(self._problems) > 20 else ""
            raise InputError(f"{len(self._problems)} tensors cannot be merged:\n{shown}{more}")
        for url, found in self._other_rows.items():
            text = "rows that only one side has keep the base's values in"
            warnings.append(f"{url}: {text} {some_names(list(found))}")


class _MethodCache:
    """What a recipe's method makes of one group's tensors; those with equal parameters share one object, as most do."""

    def __init__(self, recipe: Recipe, group: ModelGroup) -> None:
        self._recipe = recipe
        self._resolver = ParameterResolver(recipe, group)
        self._has_base = group.apart is not None
        self._made: dict[tuple[Values, tuple[Values, ...]], Method] = {}

    def get(self, tensor: OutputTensor) -> Method:
        shared = self._resolver.shared(tensor.name, tensor.position)
        own = tuple(self._resolver.model(i, name, tensor.position) for i, name in enumerate(tensor.names[1:]))
        found = self._made.get((shared, own))
        if found is None:
            found = self._made[shared, own] = self._make(tensor.name, shared, own)
        return found

    def _make(self, tensor_name: str, shared: Values, own: Sequence[Values]) -> Method:
        """The stages for one tensor.

        Raises:
            RecipeError: a method of the user's own refuses these values, or returns something else.
        """
        name, schema = self._recipe.merge_method, self._recipe.method
        values: dict[str, Any] = dict(zip(schema.shared, shared, strict=True))
        values |= dict(zip(schema.per_model, zip(*own, strict=True), strict=True))
        method = find_method(name)
        assert method is not None, "the recipe was read with it"
        try:
            return method.make(values, has_base=self._has_base)
        except Exception as error:
            if name in METHODS:
                raise
            text = f"{name} makes no stages for tensor {tensor_name!r}: {error}"
            raise RecipeError(f"{self._recipe.at(('merge_method',))}: {text}", "correct the function") from error
