"""Which tensors the output has, in order, and under which names each lies in which source. Pure: no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import InputError, RecipeError
from ..models import (
    Checkpoint,
    Config,
    Layers,
    buffer_kind,
    check_layers,
    config_edits,
    declared_layers,
    find_layers,
    layer_rules,
)
from ..recipe import ModelGroup, Recipe, SliceSource, donor_of, groups_of, references_of
from .parameters import count_layers, layer_position


class OutputTensor(NamedTuple):
    """One tensor of the output, before it is looked up."""

    name: str
    group: int
    """Which models are merged into it, by position in `groups_of(recipe)`."""
    position: float
    """Where it stands on gradients, from 0.0 to 1.0."""
    names: tuple[str, ...]
    """In the reference, then in every model of the group."""


@dataclass(frozen=True)
class Blueprint:
    """The output as a list of tensors; recipes without slices are the case in which all names are equal."""

    groups: tuple[ModelGroup, ...]
    models: tuple[Checkpoint, ...]
    """One per model of the recipe; in slices, one per checkpoint, or more where a slice lists it more than once."""
    sources: tuple[Checkpoint, ...]
    """The donor of configuration and names, `models`, and bases that only some slices have."""
    origins: tuple[tuple[int, ...], ...]
    """Per group, where in `sources` its reference lies, then its models."""
    tensors: Sequence[OutputTensor]
    extra: Mapping[str, Sequence[str]]
    """By URL, tensors that a model has beyond the reference's."""
    config_edits: Mapping[str, Any] = field(default_factory=dict)
    """What config.json must say differently, by path of keys, joined by `/`."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def reference_name(self) -> str:
        """What messages call the model that has names and shapes."""
        return self.sources[0].url if len(self.groups) == 1 else "the reference of its slice"


def make_blueprint(recipe: Recipe, opened: Mapping[str, Checkpoint], configs: Mapping[str, Config]) -> Blueprint:
    """List the tensors of the output.

    Args:
        recipe: the recipe.
        opened: the checkpoint of every model that the recipe names.
        configs: config.json of the models that slices are cut from, by reference, where there is one.

    Raises:
        InputError: the layers of the checkpoints do not fit each other.
        RecipeError: a slice asks for layers that a model does not have.
    """
    donor = opened[donor_of(recipe)]
    if not donor.tensors:
        raise InputError(f"{donor.url}: the checkpoint holds no tensors")
    return _Slices(recipe, opened, configs, donor).blueprint() if recipe.slices else _whole(recipe, opened, donor)


def _whole(recipe: Recipe, opened: Mapping[str, Checkpoint], donor: Checkpoint) -> Blueprint:
    groups = groups_of(recipe)
    models = tuple(opened[entry.model] for entry in groups[0].entries)
    counts, times = count_layers(donor.tensors), 1 + len(models)
    tensors = [OutputTensor(name, 0, layer_position(name, counts), (name,) * times) for name in donor.tensors]
    extra = {
        model.url: [name for name in model.tensors if name not in donor.tensors]
        for model in models
        if model.url != donor.url
    }
    return Blueprint(groups, models, (donor, *models), (tuple(range(times)),), tensors, extra)


class _Slices:
    """The output of a recipe with slices, while it is put together."""

    def __init__(
        self, recipe: Recipe, opened: Mapping[str, Checkpoint], configs: Mapping[str, Config], donor: Checkpoint
    ) -> None:
        self._recipe, self._opened, self._configs, self._donor = recipe, opened, configs, donor
        self._groups = groups_of(recipe)
        own = configs.get(donor_of(recipe))
        layers = find_layers(donor.tensors, declared_layers(own), donor.url)
        self._layers = {donor.url: layers}
        self._prefix = layers.prefix
        for reference in references_of(recipe):
            checkpoint = opened[reference]
            if checkpoint.url not in self._layers:
                declared = declared_layers(configs.get(reference))
                self._layers[checkpoint.url] = check_layers(checkpoint.tensors, self._prefix, declared, checkpoint.url)
        self._rests = {url: _rests(opened_url, self._layers[url]) for url, opened_url in self._by_url().items()}
        self._taken: dict[str, set[str]] = defaultdict(set)
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._warnings: list[str] = []

    def _by_url(self) -> dict[str, Checkpoint]:
        return {checkpoint.url: checkpoint for checkpoint in self._opened.values()}

    def blueprint(self) -> Blueprint:
        self._check_ranges()
        models, origins, sources = self._sources()
        outside = [name for name in self._donor.tensors if self._layers[self._donor.url].place(name) is None]
        behind = {name for name in outside if self._layers[self._donor.url].is_behind(name)}
        last = len(self._groups) - 1
        tensors = [
            *self._outside([name for name in outside if name not in behind], 0),
            *self._all_layers(),
            *self._outside([name for name in outside if name in behind], last),
        ]
        self._raise_problems()
        extra = self._extra_and_unused()
        edits = self._config_edits()
        told = tuple(self._notes), tuple(self._warnings)
        return Blueprint(self._groups, models, sources, origins, tensors, extra, edits, *told)

    def _check_ranges(self) -> None:
        for i, part in enumerate(self._recipe.slices):
            for j, source in enumerate(part.sources):
                checkpoint = self._opened[source.model]
                count = self._layers[checkpoint.url].count
                if source.layer_range[1] > count:
                    where = self._recipe.at(("slices", i, "sources", j, "layer_range"))
                    text = f"{list(source.layer_range)} ends behind the last of the {count} layers of {checkpoint.url}"
                    raise RecipeError(f"{where}: {text}")

    # -- sources -----------------------------------------------------------------------------------------------------

    def _sources(self) -> tuple[tuple[Checkpoint, ...], tuple[tuple[int, ...], ...], tuple[Checkpoint, ...]]:
        """Models in order of appearance; one that a slice lists twice is two, as two things are merged."""
        numbers: dict[tuple[str, int], int] = {}
        per_group = []
        for group in self._groups:
            seen: dict[str, int] = defaultdict(int)
            members = []
            for entry in group.entries:
                url = self._opened[entry.model].url
                members.append(numbers.setdefault((url, seen[url]), len(numbers)))
                seen[url] += 1
            per_group.append(members)
        by_url = self._by_url()
        models = tuple(by_url[url] for url, _ in numbers)
        places = {self._donor.url: 0}
        others: list[Checkpoint] = []
        for group in self._groups:
            url = self._opened[self._reference(group).model].url
            if url not in places:
                places[url] = 1 + numbers[url, 0] if (url, 0) in numbers else 1 + len(models) + len(others)
                if (url, 0) not in numbers:
                    others.append(by_url[url])
        origins = tuple(
            (places[self._opened[self._reference(group).model].url], *(1 + member for member in members))
            for group, members in zip(self._groups, per_group, strict=True)
        )
        return models, origins, (self._donor, *models, *others)

    def _reference(self, group: ModelGroup) -> SliceSource:
        """Whose names, shapes and dtypes a slice has: the base, else the first source."""
        if group.base is not None:
            return group.base
        entries = [entry for entry in group.entries if isinstance(entry, SliceSource)]
        return next((entry for entry in entries if entry.model == self._recipe.base_model), entries[0])

    # -- tensors -----------------------------------------------------------------------------------------------------

    def _outside(self, names: Sequence[str], number: int) -> Iterator[OutputTensor]:
        """Tensors before the first layer belong to the first slice, those behind the last to the last one."""
        group = self._groups[number]
        reference = self._opened[self._reference(group).model]
        times = 1 + len(group.entries)
        for name in names:
            if name not in reference.tensors:
                self._differs(reference, name, f"lacks {name!r}, which {self._donor.url} has")
                continue
            self._check_shape(reference, name, {self._donor.tensors[name].info.shape})
            self._take(group, (name,) * times)
            yield OutputTensor(name, number, 0.0, (name,) * times)

    def _all_layers(self) -> Iterator[OutputTensor]:
        shapes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
        own = self._rests[self._donor.url]
        for number, rests in own.items():
            for rest in rests:
                name = self._layers[self._donor.url].name(number, rest)
                shapes[rest].add(self._donor.tensors[name].info.shape)
        everywhere = set.intersection(*(set(rests) for rests in own.values()))
        output = 0
        for number, group in enumerate(self._groups):
            sources = [self._reference(group), *_entries_of(group)]
            length = sources[0].layer_range[1] - sources[0].layer_range[0]
            reference = self._opened[sources[0].model]
            for step in range(length):
                layer = sources[0].layer_range[0] + step
                position = step / (length - 1) if length > 1 else 1.0
                rests = self._rests[reference.url][layer]
                for rest in sorted(everywhere.difference(rests)):
                    name = self._name(layer, rest)
                    self._differs(reference, name, f"lacks {name!r}, which all layers of {self._donor.url} have")
                for rest in rests:
                    name = self._name(layer, rest)
                    names = (name, *(self._name(source.layer_range[0] + step, rest) for source in sources[1:]))
                    self._take(group, names)
                    if rest not in shapes:
                        self._differs(reference, name, f"has {name!r}, which no layer of {self._donor.url} has")
                        continue
                    self._check_shape(reference, name, shapes[rest])
                    yield OutputTensor(self._name(output, rest), number, position, names)
                output += 1

    def _name(self, number: int, rest: str) -> str:
        return f"{self._prefix}{number}.{rest}"

    def _take(self, group: ModelGroup, names: Sequence[str]) -> None:
        for source, name in zip((self._reference(group), *group.entries), names, strict=True):
            self._taken[self._opened[source.model].url].add(name)

    def _check_shape(self, reference: Checkpoint, name: str, shapes: set[tuple[int, ...]]) -> None:
        found = reference.tensors[name].info.shape
        if found not in shapes:
            expected = " or ".join(str(list(shape)) for shape in sorted(shapes))
            self._problems.append(
                f"{reference.url}: {name!r} has shape {list(found)}, {self._donor.url} has {expected}"
            )

    def _differs(self, reference: Checkpoint, name: str, text: str) -> None:
        """The layers of the output would not be alike, so its configuration cannot describe them."""
        known = (self._donor.tensors.get(name), reference.tensors.get(name))
        is_buffer = any(buffer_kind(location.info) for location in known if location is not None)
        if self._recipe.extra_tensors == "error" and not self._recipe.excludes(name) and not is_buffer:
            self._problems.append(f"{reference.url} {text}")
        else:
            self._warnings.append(f"{reference.url} {text}; it is left out")

    def _raise_problems(self) -> None:
        if self._problems:
            shown = "\n".join(f"  {problem}" for problem in self._problems[:20])
            more = f"\n  and {len(self._problems) - 20} more" if len(self._problems) > 20 else ""
            raise InputError(
                f"the slices do not fit together in {len(self._problems)} places:\n{shown}{more}",
                "take slices from models of one architecture and size; `extra_tensors: ignore` leaves out tensors "
                "that only some of them have",
            )

    # -- what is left ------------------------------------------------------------------------------------------------

    def _extra_and_unused(self) -> dict[str, list[str]]:
        """Tensors that no slice takes: beside taken ones (extra), or in layers that nobody asked for (reported)."""
        by_url = self._by_url()
        extra: dict[str, list[str]] = {}
        used: dict[str, set[int]] = defaultdict(set)
        for group in self._groups:
            for source in (self._reference(group), *_entries_of(group)):
                used[self._opened[source.model].url].update(range(*source.layer_range))
        ends = [self._urls(self._groups[0]), self._urls(self._groups[-1])]
        for url, checkpoint in by_url.items():
            if url not in used:
                self._notes.append(f"{url}: no slice uses this model; it gives configuration and names only")
                continue
            layers = self._layers[url]
            beside: list[str] = []
            unused: list[str] = []
            outside: list[str] = []
            for name in checkpoint.tensors:
                if name in self._taken[url]:
                    continue
                place = layers.place(name)
                if place is not None:
                    (beside if place[0] in used[url] else unused).append(name)
                else:
                    (beside if url in ends[layers.is_behind(name)] else outside).append(name)
            extra[url] = beside
            if unused:
                numbers = _ranges(set(range(layers.count)) - used[url])
                self._notes.append(f"{url}: layers that no slice uses are left out: {numbers}")
            if outside:
                shown = ", ".join(outside[:5]) + (f" and {len(outside) - 5} more" if len(outside) > 5 else "")
                self._notes.append(f"{url}: left out, because another slice gives them: {shown}")
        return extra

    def _urls(self, group: ModelGroup) -> set[str]:
        return {self._opened[source.model].url for source in (self._reference(group), *group.entries)}

    def _config_edits(self) -> dict[str, Any]:
        own = self._configs.get(donor_of(self._recipe))
        layers: list[tuple[Config, int]] = []
        for group in self._groups:
            reference = self._reference(group)
            config = self._configs.get(reference.model, {})
            layers += [(config, number) for number in range(*reference.layer_range)]
        moved = [number for _, number in layers] != [*range(self._layers[self._donor.url].count)]
        if own is None or declared_layers(own) is None:
            if moved:
                text = "has no config.json that says how many layers there are"
                self._warnings.append(f"{self._donor.url} {text}; write {len(layers)} into the configuration you use")
            return {}
        for rule in layer_rules(own) if moved else ():
            self._warnings.append(f"config.json says {rule}; check that it fits the new order of layers")
        return config_edits(own, layers, f"{self._donor.url}/config.json")


def _entries_of(group: ModelGroup) -> list[SliceSource]:
    return [entry for entry in group.entries if isinstance(entry, SliceSource)]


def _rests(checkpoint: Checkpoint, layers: Layers) -> dict[int, list[str]]:
    """Per layer, what follows its number in the names of its tensors, in the checkpoint's order."""
    found: dict[int, list[str]] = {number: [] for number in range(layers.count)}
    for name in checkpoint.tensors:
        if (place := layers.place(name)) is not None:
            found[place[0]].append(place[1])
    return found


def _ranges(numbers: set[int]) -> str:
    """{3, 4, 5, 9} as `3 to 5, 9`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
