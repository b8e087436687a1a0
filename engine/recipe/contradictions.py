"""What no key of a recipe shows alone: keys that contradict each other or the method."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..methods import METHODS
from .groups import ModelGroup, groups_of, may_be, references_of, rules_of
from .schema import ModelEntry, Recipe, task_name
from .slices import slice_contradictions
from .task_names import TASK_NAME
from .text import KeyPath, Problem, did_you_mean, shorten


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """All of them, in the order of the recipe's keys as far as they have one."""
    schema = recipe.method
    listed = [entry.model for entry in recipe.models]
    if schema.base == "required" and recipe.base_model is None and not recipe.slices:
        what = "differences to a base model" if schema.differences else "a base model with another model"
        yield Problem((), f"base_model is missing; {recipe.merge_method} merges {what}")
    yield from _count_contradictions(recipe)
    if schema.base == "listed" and listed and recipe.base_model is not None and recipe.base_model not in listed:
        text = f"{recipe.merge_method} merges what `models` lists; list this model too or remove the key"
        yield Problem(("base_model",), text)
    may_keep = schema.differences and (recipe.has_base or schema.base == "required")
    if recipe.nonfinite == "keep-base" and not may_keep:
        text = f"{recipe.merge_method} merges no differences, so there is no base whose value could be kept"
        yield Problem(("nonfinite",), f"{text}; expected error")
    yield from _tokenizer_contradictions(recipe)
    yield from slice_contradictions(recipe)
    yield from _task_contradictions(recipe)
    for group in groups_of(recipe):
        for i, entry in enumerate(group.entries):
            if group.apart is None or entry.model != group.apart:
                yield from _entry_contradictions(recipe, group, group.entry_path(i), entry)
    yield from _shared_contradictions(recipe)
    yield from _order_contradictions(recipe)


def _count_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """The number of models, not counting the base where the method sets it apart."""
    schema = recipe.method
    for group in groups_of(recipe):
        count = sum(entry.model != group.apart for entry in group.entries)
        if count < schema.fewest or (schema.most is not None and count > schema.most):
            bound = "exactly" if schema.fewest == schema.most else "at least" if count < schema.fewest else "at most"
            number = schema.fewest if count < schema.fewest or schema.most is None else schema.most
            text = f"expected {bound} {_NUMBERS.get(number, number)} model{'s' if number > 1 else ''} to merge"
            text += ", besides the base" if schema.base == "required" or group.apart is not None else ""
            yield Problem(group.path, text + (f", got {count}" if count else ""))


_NUMBERS = {1: "one", 2: "two"}


def _tokenizer_contradictions(recipe: Recipe) -> Iterator[Problem]:
    if recipe.tokenizer is None:
        return
    if recipe.tokenizer_source is not None:
        yield Problem(("tokenizer_source",), "say it with `tokenizer: {source: ...}` or with this key, not with both")
    known = references_of(recipe)
    for model in recipe.tokenizer.token_models():
        if model not in known:
            near = did_you_mean(model, known)
            text = f"expected a model of this recipe as the source of a token's row, got {shorten(model)}{near}"
            yield Problem(("tokenizer", "tokens"), text)


def _task_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Outputs per task: their names, and what a mask cannot express."""
    if not recipe.method.writes_tasks:
        for group in groups_of(recipe):
            for i, entry in enumerate(group.entries):
                if entry.name is not None:
                    yield Problem((*group.entry_path(i), "name"), "names a task; only emr has an output per task")
        return
    for key in ("slices", "tokenizer_source", "tokenizer", "chat_template"):
        if getattr(recipe, key):
            text = "emr writes masks on the base's own tensors and tokens; use the key when a task's model is merged"
            yield Problem((key,), text)
    if recipe.output.card == "base":
        yield Problem(
            ("output", "card"), "emr writes parts, which no card of a model describes; expected true or false"
        )
    for key in ("experts", "ties"):
        if getattr(recipe.output, key) != "as-base":
            yield Problem(("output", key), "emr writes masks on the base's own tensors; expected as-base")
    yield from _same_folders(recipe)


def _same_folders(recipe: Recipe) -> Iterator[Problem]:
    """Tasks whose outputs cannot have a folder of their own."""
    seen: dict[str, str] = {}
    for i, entry in enumerate(recipe.models):
        name = task_name(entry)
        if entry.model == recipe.base_model:
            continue
        if not re.fullmatch(TASK_NAME, name) or name.lower() in ("unified", *seen):
            why = f"{seen[name.lower()]} has it, too" if name.lower() in seen else "it is no name for a folder here"
            text = f"the task's folder would be called {shorten(name)}, but {why}; give the model another `name`"
            yield Problem(("models", i, "name"), text)
        seen[name.lower()] = shorten(entry.model)


def _entry_contradictions(recipe: Recipe, group: ModelGroup, path: KeyPath, entry: ModelEntry) -> Iterator[Problem]:
    for name, parameter in recipe.method.parameters.items():
        if parameter.default is None and parameter.per_model and not rules_of(recipe, name, entry, group):
            text = f"{recipe.merge_method} needs a {name} for {shorten(entry.model)}: {parameter.expected}"
            yield Problem(path, text)
    if may_be(recipe, "scope", "model"):
        rules = rules_of(recipe, "density", entry, group)
        if rules[0].filter is not None or not isinstance(rules[0].value, float):
            text = "scope: model has one threshold for a whole model, so the density must be one number"
            yield Problem((*path, "parameters", "density"), text)


def _shared_contradictions(recipe: Recipe) -> Iterator[Problem]:
    path: KeyPath = ("parameters",)
    required = [p for p in recipe.method.parameters.values() if p.default is None and not p.per_model]
    for parameter in required:
        for group in groups_of(recipe):
            if not rules_of(recipe, parameter.name, None, group):
                where = group.path[:2] if recipe.slices else path
                yield Problem(where, f"{recipe.merge_method} needs a {parameter.name}: {parameter.expected}")
    norms = [rule.value for rule in recipe.parameters.get("rescale_norm", ())]
    if set(norms) - {"none"} and not may_be(recipe, "rescale", True):
        yield Problem((*path, "rescale_norm"), "has an effect only with rescale: true")
    if may_be(recipe, "overlap_merge", "ties") and may_be(recipe, "normalize", True):
        text = "ties takes the mean of agreeing models already and does not go with normalize: true"
        yield Problem((*path, "overlap_merge"), text)


def _order_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Activations where no order of magnitudes decides."""
    places: list[tuple[KeyPath, str | None]] = [(("activations",), recipe.activations)]
    for group in groups_of(recipe):
        own = enumerate(group.entries)
        places += [((*group.entry_path(i), "activations"), entry.activations) for i, entry in own]
    for path, given in places:
        if given is not None and not recipe.method.orders_magnitudes:
            ordered = ", ".join(name for name, method in METHODS.items() if method.schema.orders_magnitudes)
            text = f"{recipe.merge_method} does not order changes by magnitude; these methods do: {ordered}"
            yield Problem(path, text)
        elif given is not None and may_be(recipe, "scope", "model"):
            yield Problem(path, "does not go with scope: model, whose threshold is one magnitude for all tensors")
