"""(recipe, checkpoints) -> plan: output shards, one task per tensor, bytes, peak memory. Pure: no I/O."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import InputError, RecipeError
from ..methods import BUILDERS
from ..methods.stages import CombinationMerge, Method, ModelThreshold, RankedRandom, TaskVectorMerge
from ..models.activations import Activations
from ..models.checkpoint import Checkpoint
from ..models.derived import RowGather
from ..models.header import DTYPES, TensorInfo
from ..models.layers import Config, is_computed
from ..models.quantised import foreign_format
from ..output.manifest import canonical_json
from ..recipe.canonical import canonical
from ..recipe.groups import ModelGroup, activations_of
from ..recipe.parameters import TadropDensity
from ..recipe.schema import Recipe
from .blueprint import Blueprint, OutputTensor, make_blueprint
from .demands import SurveyKind, selection_of, survey_kind
from .layout import OutputShard, cut_shards, layout, make_shard
from .parameters import ParameterResolver, SharedParameters
from .task import TensorSettings, TensorTask, make_task

NUMERICS = 1
"""Changes whenever the bytes of an output may change."""


@dataclass(frozen=True, slots=True)
class OutputPart:
    """Which of several outputs of one recipe a plan makes."""

    name: str
    """Of its folder."""
    task: int | None = None
    """Which model's masks it holds, by position in the recipe; None: it holds the unified task vector."""
    unified_id: str = ""
    """Plan id of the unified task vector that masks belong to."""

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {"name": self.name} | ({} if self.task is None else {"task": self.task, "unified": self.unified_id})


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output's bytes. Two equal plan ids give equal bytes."""

    recipe: Recipe
    base: Checkpoint
    """The base, or the first model where the recipe has none: gives configuration and other small files, and, unless
    slices say otherwise, names, shapes and dtypes."""
    models: tuple[Checkpoint, ...]
    """One per model of the recipe; in slices, one per checkpoint, or more where a slice lists it more than once."""
    sources: tuple[Checkpoint, ...]
    """Where tensors are read from: the base, the models, and what else tasks name in their `origins`."""
    tasks: tuple[TensorTask, ...]
    """In the reference's order."""
    shards: tuple[OutputShard, ...]
    notes: tuple[str, ...]
    """How inputs are read, and what slices leave of them: for information."""
    warnings: tuple[str, ...]
    """What may not be as it was meant."""
    extra: Mapping[str, Sequence[str]] = field(repr=False)
    """By URL, tensors that a model has beyond the reference's."""
    config_edits: Mapping[str, Any]
    """What config.json must say besides the dtype, by path of keys, joined by `/`."""
    canonical_recipe: Mapping[str, Any] = field(repr=False)
    inputs: Sequence[Mapping[str, Any]] = field(repr=False)
    plan_id: str = ""
    part: OutputPart | None = None
    """Which output it is, where the recipe has several."""

    @cached_property
    def most_models(self) -> int:
        """The largest number of models that are merged into one tensor."""
        return max((len(task.models) for task in self.tasks), default=0)

    @property
    def output_layers(self) -> int | None:
        """The number of layers that slices were put together to; None without slices."""
        return sum(part.length for part in self.recipe.slices) or None

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
    def gathered_rows(self) -> int:
        """Rows that are listed one by one to match embeddings; tensors often share a list."""
        sources = (source for task in self.tasks for source in task.sources) if self.has_derived else ()
        gathers = (s.derived for s in sources if s is not None and isinstance(s.derived, RowGather))
        return sum({id(gather.offsets): gather.rows for gather in gathers}.values())

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
    opened: Mapping[str, Checkpoint],
    urls: Mapping[str, str],
    side_files: Sequence[Mapping[str, Any]] = (),
    configs: Mapping[str, Config] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    activations: Mapping[str, Activations] | None = None,
) -> Plan:
    """Decide what happens to every tensor of every input.

    Args:
        recipe: the recipe.
        opened: the checkpoint of every model that is merged.
        urls: absolute normalised URL of every model reference of the recipe.
        side_files: name, size and version of the config and tokenizer files that will be copied.
        configs: config.json of the models that slices are cut from, by reference, where there is one.
        tokenizer: what decides the bytes of embeddings and tokenizer files beside them; nothing where they are copied.
        warnings: what may not be as it was meant, noticed before.
        activations: what orders changes besides their magnitude, by the reference in the recipe.

    Raises:
        InputError: names, shapes or dtypes do not fit, each named with what was expected and what was found.
        RecipeError: a parameter has no value for some tensor, or a slice asks for layers that are not there.
    """
    blueprint = make_blueprint(recipe, opened, configs or {})
    read = _distinct(blueprint.sources)
    notes = [note for checkpoint in read for note in checkpoint.notes]
    noticed = [*warnings, *blueprint.warnings]
    _check_quantised(recipe, read)
    _check_names(recipe, blueprint, noticed)
    maker = _TaskMaker(recipe, blueprint, activations or {})
    tasks = tuple(maker.task(tensor) for tensor in blueprint.tensors)
    maker.report(noticed)
    _check_activations(tasks, noticed)
    _check_target_scope(tasks)
    _check_probabilities(tasks, blueprint.models)
    cut = cut_shards(
        [(task.name, task.out_dtype, task.base.info.shape) for task in tasks], recipe.output.shard_size_bytes
    )
    shards = tuple(make_shard(tasks, members, index, len(cut)) for index, members in enumerate(cut))
    inputs: list[dict[str, Any]] = [checkpoint.identity() for checkpoint in read]
    edits = {"config": dict(blueprint.config_edits)} if blueprint.config_edits else {}
    inputs.append({"side_files": [dict(file) for file in side_files], **edits})
    if tokenizer:
        inputs.append({"tokenizer": dict(tokenizer)})
    if activations:
        inputs.append({"activations": [activations[name].identity() for name in sorted(activations)]})
    described = canonical(recipe, urls)
    return Plan(
        recipe,
        blueprint.sources[0],
        blueprint.models,
        blueprint.sources,
        tasks,
        shards,
        (*notes, *blueprint.notes),
        tuple(noticed),
        blueprint.extra,
        blueprint.config_edits,
        described,
        inputs,
        plan_id(described, inputs, shards),
    )


def plan_id(recipe: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], shards: Sequence[OutputShard]) -> str:
    """What identifies a plan: the canonical recipe, the inputs and the layout of the output."""
    identity = {"numerics": NUMERICS, "recipe": recipe, "inputs": list(inputs), "layout": layout(shards)}
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def _distinct(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    return list({checkpoint.url: checkpoint for checkpoint in checkpoints}.values())


# -- names ---------------------------------------------------------------------------------------------------------


def _check_names(recipe: Recipe, blueprint: Blueprint, warnings: list[str]) -> None:
    lacking: dict[str, list[str]] = {model.url: [] for model in blueprint.models}
    for url, name in dict.fromkeys(_missing(blueprint)):
        if not recipe.excludes(name):
            lacking[url].append(name)
    for url, missing in lacking.items():
        if missing:
            text = f"{url} lacks {len(missing)} of the reference's tensors: {_listed(missing)}"
            if recipe.strict:
                raise InputError(text, "the recipe is strict; without `strict` they count as unchanged")
            warnings.append(text + "; they count as unchanged")
        extra = [name for name in blueprint.extra.get(url, ()) if not recipe.excludes(name)]
        if not extra:
            continue
        learned = [name for name in extra if not is_computed(name)]
        shown = learned if learned and recipe.extra_tensors == "error" else extra
        text = f"{url} has {len(shown)} tensors that {blueprint.reference_name} does not have: {_listed(shown)}"
        if shown is learned:
            raise InputError(text, "set `extra_tensors: ignore` in the recipe to leave them out")
        warnings.append(text + "; they are left out")


def _missing(blueprint: Blueprint) -> Iterator[tuple[str, str]]:
    """(URL, name) of every tensor that a model was to give and lacks."""
    for tensor in blueprint.tensors:
        for number, name in zip(blueprint.origins[tensor.group][1:], tensor.names[1:], strict=True):
            source = blueprint.sources[number]
            if name not in source.tensors:
                yield source.url, name


def _check_quantised(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        names = {name: place for name, place in checkpoint.tensors.items() if not recipe.excludes(name)}
        if found := foreign_format(names):
            raise InputError(
                f"{checkpoint.url}: quantised as {found[0]} ({found[1]!r}); such weights cannot be merged",
                "name the checkpoint that was quantised, or exclude these tensors to copy the base's",
            )


def _listed(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


# -- one tensor ----------------------------------------------------------------------------------------------------


class _TaskMaker:
    """Looks every tensor up in its sources and says what happens to it."""

    def __init__(self, recipe: Recipe, blueprint: Blueprint, activations: Mapping[str, Activations]) -> None:
        self._recipe = recipe
        orders = [[activations.get(activations_of(recipe, e) or "") for e in g.entries] for g in blueprint.groups]
        self._orders = [tuple(own) if any(own) else () for own in orders]
        self._blueprint = blueprint
        self._settings = [_SettingsCache(recipe, group) for group in blueprint.groups]
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
        found = self._settings[tensor.group].get(tensor)
        if isinstance(found.method, CombinationMerge) and found.method.copies and found.weights == (1.0,):
            return make_task(name, location, none, origins, out_dtype, None, "passed through")
        return make_task(name, location, sources, origins, out_dtype, found, "", self._orders[tensor.group])

    def _note_difference(self, model: Checkpoint, base: TensorInfo, info: TensorInfo) -> None:
        if problem := _mismatch(self._recipe, base, info):
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
            warnings.append(f"{url}: {text} {_listed(list(found))}")


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
        return shapes + (
            f"; {recipe.merge_method} has no base whose rows could be kept, so `vocab` does not help; "
            "`tokenizer_source` matches rows by token"
        )
    if recipe.vocab == "intersect":
        return ""
    return shapes + "; set `vocab: intersect` to merge the rows that both have"


class _SettingsCache:
    """Settings of one group's tensors; those with equal parameters share one object, as most do."""

    def __init__(self, recipe: Recipe, group: ModelGroup) -> None:
        self._resolver = ParameterResolver(recipe, group)
        self._has_base = group.apart is not None
        self._build = BUILDERS[recipe.merge_method]
        self._wanted = tuple(inspect.signature(self._build).parameters)
        self._methods: dict[SharedParameters, Method] = {}
        self._made: dict[tuple[object, ...], TensorSettings] = {}

    def get(self, tensor: OutputTensor) -> TensorSettings:
        shared = self._resolver.shared(tensor.name, tensor.position)
        own = tuple(self._resolver.model(i, name, tensor.position) for i, name in enumerate(tensor.names[1:]))
        found = self._made.get((shared, own))
        if found is None:
            given = {"has_base": self._has_base}
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


def _check_activations(tasks: Sequence[TensorTask], warnings: list[str]) -> None:
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
                f"{order.url}: no merged tensor has one of its names, such as {_listed(unknown, 2)}",
                "name mean squares as the weights that they belong to, for instance model.layers.0.mlp.up_proj.weight",
            )
        if missing:
            warnings.append(f"{order.url} has nothing for {_listed(missing)}; magnitude alone orders their changes")
        if unknown:
            warnings.append(f"{order.url} holds what belongs to no merged tensor: {_listed(unknown)}")


def _names_in(task: TensorTask, order: Activations) -> list[str]:
    """What models that this file orders call a merged tensor."""
    pairs = zip(task.models, task.orders, strict=True)
    return [source.info.name for source, own in pairs if source is not None and own == order]


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
