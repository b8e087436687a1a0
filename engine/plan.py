"""(recipe, checkpoints) -> plan: output shards, one task per tensor, bytes, peak memory. Pure: no I/O."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .checkpoint import Checkpoint
from .demands import SurveyKind, selection_of, survey_kind
from .errors import InputError, RecipeError
from .header import DTYPES, TensorInfo
from .layout import OutputShard, cut_shards, layout, make_shard
from .manifest import canonical_json
from .methods import BUILDERS
from .methods.stages import CombinationMerge, Method, ModelThreshold, RankedRandom, TaskVectorMerge
from .parameters import ParameterResolver, SharedParameters, count_layers
from .quantised import foreign_format
from .recipe import canonical
from .recipe_schema import Recipe
from .settings import TadropDensity
from .source import TensorLocation
from .task import TensorSettings, TensorTask, make_task

NUMERICS = 1
"""Changes whenever the bytes of an output may change."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output's bytes. Two equal plan ids give equal bytes."""

    recipe: Recipe
    base: Checkpoint
    """Reference for names, shapes, dtypes and side files."""
    models: tuple[Checkpoint, ...]
    sources: tuple[Checkpoint, ...]
    """Where tensors are read from: the base, the models, and what else tasks name in their `origins`."""
    tasks: tuple[TensorTask, ...]
    """In the reference's order."""
    shards: tuple[OutputShard, ...]
    warnings: tuple[str, ...]
    canonical_recipe: Mapping[str, Any] = field(repr=False)
    inputs: Sequence[Mapping[str, Any]] = field(repr=False)
    plan_id: str = ""

    @cached_property
    def most_models(self) -> int:
        """The largest number of models that are merged into one tensor."""
        return max(len(task.models) for task in self.tasks)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def saturate(self) -> bool:
        return self.recipe.overflow == "saturate"

    @property
    def keep_base_where_nonfinite(self) -> bool:
        return self.recipe.nonfinite == "keep-base"

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of inputs that a merge needs, each counted once."""
        return sum(task.read_bytes for task in self.tasks)

    @property
    def write_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @cached_property
    def has_derived(self) -> bool:
        """Whether any input is computed while it is read."""
        return any(
            source is not None and source.derived is not None
            for task in self.tasks
            for source in (task.base, *task.models)
        )

    @cached_property
    def survey_kind(self) -> SurveyKind:
        """What must be known of whole models before the first tensor can be merged."""
        return survey_kind(self.tasks)

    def describe(self) -> dict[str, Any]:
        """The content of plan.json: canonical, without paths of the output, times, hosts or execution options."""
        return {
            "plan_id": self.plan_id,
            "numerics": NUMERICS,
            "recipe": self.canonical_recipe,
            "inputs": list(self.inputs),
            "layout": layout(self.shards),
        }


def make_plan(
    recipe: Recipe,
    reference: Checkpoint,
    models: Sequence[Checkpoint],
    urls: Mapping[str, str],
    side_files: Sequence[Mapping[str, Any]] = (),
    tokenizer: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> Plan:
    """Decide what happens to every tensor of every input.

    Args:
        recipe: the recipe.
        reference: the base, or the first model where the recipe has no base.
        models: one checkpoint per entry of `recipe.models`.
        urls: absolute normalised URL of every model reference of the recipe.
        side_files: name, size and version of the config and tokenizer files that will be copied.
        tokenizer: what decides the bytes of embeddings and tokenizer files beside them; nothing where they are copied.
        warnings: what was noticed before.

    Raises:
        InputError: names, shapes or dtypes do not fit, each named with what was expected and what was found.
        RecipeError: a parameter has no value for some tensor.
    """
    noticed = [note for checkpoint in _distinct([reference, *models]) for note in checkpoint.notes]
    noticed += warnings
    _check_quantised(recipe, [reference, *models])
    _check_names(recipe, reference, models, noticed)
    _warn_of_rows(recipe, reference, models, noticed)
    resolver = ParameterResolver(recipe, count_layers(reference.tensors))
    settings = _SettingsCache(recipe, resolver)
    problems: list[str] = []
    tasks = tuple(
        _task(recipe, reference, models, location, settings, problems) for location in reference.tensors.values()
    )
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"{len(problems)} tensors cannot be merged:\n{shown}{more}")
    _check_target_scope(tasks)
    _check_probabilities(tasks, models)
    cut = cut_shards(
        [(task.name, task.out_dtype, task.base.info.shape) for task in tasks], recipe.output.shard_size_bytes
    )
    shards = tuple(make_shard(tasks, members, index, len(cut)) for index, members in enumerate(cut))
    inputs: list[dict[str, Any]] = [checkpoint.identity() for checkpoint in _distinct([reference, *models])]
    inputs.append({"side_files": [dict(file) for file in side_files]})
    if tokenizer:
        inputs.append({"tokenizer": dict(tokenizer)})
    described = canonical(recipe, urls)
    identity = {"numerics": NUMERICS, "recipe": described, "inputs": inputs, "layout": layout(shards)}
    plan_id = hashlib.sha256(canonical_json(identity)).hexdigest()
    sources = (reference, *models)
    return Plan(recipe, reference, tuple(models), sources, tasks, shards, tuple(noticed), described, inputs, plan_id)


def _distinct(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    return list({checkpoint.url: checkpoint for checkpoint in checkpoints}.values())


# -- names ---------------------------------------------------------------------------------------------------------


def _check_names(recipe: Recipe, reference: Checkpoint, models: Sequence[Checkpoint], warnings: list[str]) -> None:
    if not reference.tensors:
        raise InputError(f"{reference.url}: the checkpoint holds no tensors")
    for model in _distinct(models):
        if model.url == reference.url:
            continue
        missing = [name for name in reference.tensors if name not in model.tensors and not recipe.excludes(name)]
        if missing:
            text = f"{model.url} lacks {len(missing)} of the reference's tensors: {_listed(missing)}"
            if recipe.strict:
                raise InputError(text, "the recipe is strict; without `strict` they count as unchanged")
            warnings.append(text + "; they count as unchanged")
        extra = [name for name in model.tensors if name not in reference.tensors and not recipe.excludes(name)]
        if not extra:
            continue
        text = f"{model.url} has {len(extra)} tensors that {reference.url} does not have: {_listed(extra)}"
        if recipe.extra_tensors == "error":
            raise InputError(text, "set `extra_tensors: ignore` in the recipe to leave them out")
        warnings.append(text + "; they are left out")


def _check_quantised(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in _distinct(checkpoints):
        names = {name: place for name, place in checkpoint.tensors.items() if not recipe.excludes(name)}
        if found := foreign_format(names):
            raise InputError(
                f"{checkpoint.url}: quantised as {found[0]} ({found[1]!r}); such weights cannot be merged",
                "name the checkpoint that was quantised, or exclude these tensors to copy the base's",
            )


def _warn_of_rows(recipe: Recipe, reference: Checkpoint, models: Sequence[Checkpoint], warnings: list[str]) -> None:
    """Say which tensors have other rows than the reference's, as `vocab: intersect` allows."""
    for model in _distinct(models):
        found = []
        for name, location in model.tensors.items():
            base = reference.tensors.get(name)
            if base is not None and base.info.shape != location.info.shape and not recipe.excludes(name):
                found.append(f"{name} ({location.info.shape[:1]} for {base.info.shape[:1]})")
        if found:
            warnings.append(f"{model.url}: rows that only one side has keep the base's values in {_listed(found)}")


def _listed(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


# -- one tensor ----------------------------------------------------------------------------------------------------


def _task(
    recipe: Recipe,
    reference: Checkpoint,
    models: Sequence[Checkpoint],
    location: TensorLocation,
    settings: _SettingsCache,
    problems: list[str],
) -> TensorTask:
    info = location.info
    kind = DTYPES[info.dtype].kind
    out_dtype = (recipe.output_dtype or location.out_dtype) if kind == "float" else info.dtype
    none = (None,) * len(models)
    origins = tuple(range(1 + len(models)))
    if recipe.excludes(info.name):
        return make_task(info.name, location, none, origins, out_dtype, None, "excluded")
    sources = tuple(model.tensors.get(info.name) for model in models)
    for model, source in zip(models, sources, strict=True):
        if source is None or (source.info.dtype == info.dtype and source.info.shape == info.shape):
            continue
        if problem := _mismatch(recipe, info, source.info):
            problems.append(f"{model.url}: {info.name!r} {problem}")
    if info.numel == 0:
        return make_task(info.name, location, none, origins, out_dtype, None, "empty")
    if kind != "float":
        others = tuple(s if m.url != reference.url else None for m, s in zip(models, sources, strict=True))
        reason = f"{info.dtype}, identical in all models"
        return make_task(info.name, location, others, origins, out_dtype, None, reason)
    if not any(sources):
        return make_task(info.name, location, none, origins, out_dtype, None, "in no model")
    found = settings.get(info.name)
    if isinstance(found.method, CombinationMerge) and found.method.copies and found.weights == (1.0,):
        return make_task(info.name, location, none, origins, out_dtype, None, "passed through")
    return make_task(info.name, location, sources, origins, out_dtype, found, "")


def _mismatch(recipe: Recipe, base: TensorInfo, info: TensorInfo) -> str:
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
        return shapes + f"; {recipe.merge_method} has no base whose rows could be kept: `vocab` does not help"
    if recipe.vocab == "intersect":
        return ""
    return shapes + "; set `vocab: intersect` to merge the rows that both have"


class _SettingsCache:
    """Settings per tensor; tensors with equal parameters share one object, as most do."""

    def __init__(self, recipe: Recipe, resolver: ParameterResolver) -> None:
        self._recipe = recipe
        self._resolver = resolver
        self._build = BUILDERS[recipe.merge_method]
        self._wanted = tuple(inspect.signature(self._build).parameters)
        self._methods: dict[SharedParameters, Method] = {}
        self._made: dict[tuple[object, ...], TensorSettings] = {}

    def get(self, tensor_name: str) -> TensorSettings:
        shared = self._resolver.shared(tensor_name)
        own = tuple(self._resolver.model(i, tensor_name) for i in range(len(self._recipe.models)))
        found = self._made.get((shared, own))
        if found is None:
            given = {"has_base": self._recipe.has_base}
            method = self._build(**{n: given[n] if n in given else getattr(shared, n) for n in self._wanted})
            found = TensorSettings(
                method,
                weights=tuple(float(p.weight * p.scale) for p in own),
                densities=tuple(_density(p.density) for p in own),
                epsilons=tuple(float(p.epsilon) for p in own),
                gammas=tuple(float(p.gamma) for p in own),
            )
            self._made[shared, own] = found
        return found


def _density(value: float | TadropDensity) -> float | TadropDensity:
    return value if isinstance(value, TadropDensity) else float(value)


def _check_probabilities(tasks: Sequence[TensorTask], models: Sequence[Checkpoint]) -> None:
    """Ranked random elements need density +- epsilon inside (0, 1); a density of 0 or 1 leaves nothing to chance.

    Densities that follow from the tensor are known later; epsilon gives way to them.
    """
    checked: set[int] = set()
    for task in tasks:
        settings = task.settings
        if settings is None or id(settings) in checked or not isinstance(selection_of(settings), RankedRandom):
            continue
        checked.add(id(settings))
        for i, (density, epsilon) in enumerate(zip(settings.densities, settings.epsilons, strict=True)):
            if isinstance(density, TadropDensity) or density in (0.0, 1.0):
                continue
            if density - epsilon <= 0 or density + epsilon >= 1:
                url = models[task.model_of(i)].url
                raise RecipeError(
                    f"tensor {task.name!r} of {url}: density {density:g} +- epsilon {epsilon:g} must lie between "
                    "0 and 1, because these are the probabilities of its smallest and largest changes",
                    "choose a smaller epsilon or another density",
                )


def _check_target_scope(tasks: Sequence[TensorTask]) -> None:
    for task in tasks:
        if task.settings is None or not isinstance(task.settings.method, TaskVectorMerge):
            continue
        if isinstance(task.settings.method.selection, ModelThreshold) and task.is_double:
            raise InputError(
                f"tensor {task.name!r} is F64, which `scope: model` does not take",
                "exclude it, convert it, or use `scope: tensor`",
            )
        if isinstance(task.settings.method.selection, ModelThreshold) and any(
            isinstance(d, TadropDensity) for d in task.settings.densities
        ):
            raise RecipeError("`scope: model` takes one density per model, not tadrop: use `scope: tensor` with tadrop")
