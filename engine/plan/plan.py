"""(recipe, checkpoints) -> plan: output shards, one task per tensor, bytes, peak memory. Pure: no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..json_text import canonical_json
from ..methods import SurveyKind
from ..models import Checkpoint, RowGather
from .demands import survey_kind
from .layout import OutputShard, layout
from .task import TensorTask

NUMERICS = 2
"""Changes whenever the bytes of an output may change."""


def plan_id(
    numerics: int,
    recipe: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    layout: Sequence[Mapping[str, Any]],
) -> str:
    """What identifies a plan: the canonical recipe, the inputs, and names, sizes and headers of the output's shards."""
    identity = {"numerics": numerics, "recipe": recipe, "inputs": list(inputs), "layout": list(layout)}
    return hashlib.sha256(canonical_json(identity)).hexdigest()


@dataclass(frozen=True, slots=True)
class TaskOutput:
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


@dataclass(frozen=True, slots=True)
class Terms:
    """What the recipe says of the merge as a whole, beyond what becomes of each tensor."""

    method: str
    has_base: bool
    """Whether the recipe names a base; without one the first model stands for it."""
    seed: int
    saturate: bool
    """Results beyond the output's dtype become its largest value, and do not stop the run."""
    keep_base_where_nonfinite: bool
    """NaN and Inf in an input count as no change there, and do not stop the run."""
    allow_unchanged: bool
    """A model that changes nothing does not stop the run."""
    out_dtype: str | None
    """The floating-point type that the output shall have; None: the inputs decide."""
    shard_size_bytes: int
    slices: int
    """How many slices there are; 0: the models are merged whole."""
    layers: int
    """How many layers the slices are put together to."""
    task_names: tuple[str, ...]
    """Of a method that writes an output per task: what its outputs are called, by model of the recipe."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output's bytes. Two equal plan ids give equal bytes."""

    terms: Terms
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
    part: TaskOutput | None = None
    """Which output it is, where the recipe has several."""

    @cached_property
    def most_models(self) -> int:
        """The largest number of models that are merged into one tensor."""
        return max((len(task.models) for task in self.tasks), default=0)

    @property
    def masks_of(self) -> int | None:
        """Which model's masks the output holds and nothing else, by position in the recipe; None: it holds values."""
        return self.part.task if self.part is not None else None

    @cached_property
    def input_files(self) -> tuple[str, ...]:
        """URLs of all weight files that may be read, in the order of the sources."""
        return tuple(dict.fromkeys(url for source in self.sources for url in source.file_urls))

    @cached_property
    def input_headers(self) -> tuple[str, ...]:
        """Digests of the headers of `input_files`."""
        found = {u: f.header_sha256 for s in self.sources for u, f in zip(s.file_urls, s.files, strict=True)}
        return tuple(found[url] for url in self.input_files)

    @cached_property
    def input_places(self) -> Mapping[str, int]:
        """Where each of `input_files` stands in them."""
        return {url: place for place, url in enumerate(self.input_files)}

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of inputs that a merge needs, each counted once."""
        return sum(task.read_bytes for task in self.tasks)

    @property
    def write_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @cached_property
    def stretches(self) -> int:
        """Stretches of input files that are read, at most."""
        return sum(task.stretches for task in self.tasks)

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
