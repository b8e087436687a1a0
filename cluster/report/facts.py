"""What a finished output says of its masks, by layer and kind of tensor: a few thousand numbers of any model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ...engine.errors import IntegrityError
from ...engine.output import SURVEY_NAME, Finished, read_survey_rows, read_task_rows, read_tensor_rows
from .places import Places

MAX_CELLS = 2400
"""Layers times kinds times models: a page with a table and three pictures of so many has under 3 MB."""
MAX_PAIRS = 400
"""Pairs of models in a table and in a matrix; of more models the first ones."""
MAX_MODELS = 12
"""Models with panels of their own; tables and sums have all."""
BINS = 40
"""Of a histogram over [0, 1]."""


@dataclass(slots=True)
class Sums:
    """What several tensors of one model give together."""

    tensors: int = 0
    numel: int = 0
    wanted: float = 0.0
    """Elements that densities ask for."""
    kept: int = 0
    shared: float = 0.0
    """Of each tensor, its elements times the mean over the other models of |A and B| / |A or B|."""
    squares: float = 0.0
    kept_squares: float = 0.0
    known: bool = False
    """Whether any of them has norms; squares are those of the ones that have."""

    def add(self, row: Mapping[str, Any], shared: float) -> None:
        self.tensors += 1
        self.numel += row["numel"]
        self.wanted += row["density"] * row["numel"]
        self.kept += row["kept"]
        self.shared += shared * row["numel"]
        if row["l2"] is not None and row.get("kept_l2") is not None:
            self.known = True
            self.squares += row["l2"] ** 2
            self.kept_squares += row["kept_l2"] ** 2

    @property
    def density(self) -> float:
        return self.wanted / self.numel if self.numel else 0.0

    @property
    def kept_share(self) -> float:
        return self.kept / self.numel if self.numel else 0.0

    @property
    def overlap(self) -> float:
        return self.shared / self.numel if self.numel else 0.0

    @property
    def norm(self) -> float | None:
        return math.sqrt(self.squares) if self.known else None

    @property
    def kept_norm(self) -> float | None:
        return math.sqrt(self.kept_squares) if self.known else None

    @property
    def energy(self) -> float | None:
        return self.kept_squares / self.squares if self.known and self.squares else None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models' masks over all tensors."""

    first: int
    second: int
    both: int
    either: int
    smaller: int

    @property
    def jaccard(self) -> float:
        return self.both / self.either if self.either else 0.0

    @property
    def over_smaller(self) -> float:
        return self.both / self.smaller if self.smaller else 0.0


@dataclass
class Facts:
    """Everything that pictures of an output are made of."""

    output: Finished
    places: Places
    models: list[str]
    """URLs."""
    cells: dict[tuple[int, str, str], Sums] = field(default_factory=dict)
    """By model, layer and kind."""
    claims: Counter[int] = field(default_factory=Counter)
    """Elements by number of models that keep them; empty where the output does not say."""
    pairs: list[Pair] = field(default_factory=list)
    densities: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """Per model, tensors by bin of their density."""
    statistics: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """Per model, tensors by bin of TADrop's statistic."""
    actions: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)
    """(tensors, elements, bytes) by what became of them and why."""
    missing: Counter[int] = field(default_factory=Counter)
    """Per model, merged tensors that it lacks."""

    def model(self, i: int) -> Sums:
        """All tensors of a model together."""
        return added(sums for (model, _, _), sums in self.cells.items() if model == i)

    def layer(self, i: int, label: str) -> Sums | None:
        """All tensors of a layer; None where the model has none."""
        found = [sums for (model, layer, _), sums in self.cells.items() if (model, layer) == (i, label)]
        return added(found) if found else None


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of several."""
    total = Sums()
    for part in parts:
        total.tensors += part.tensors
        total.numel += part.numel
        total.wanted += part.wanted
        total.kept += part.kept
        total.shared += part.shared
        total.squares += part.squares
        total.kept_squares += part.kept_squares
        total.known = total.known or part.known
    return total


def short_name(url: str) -> str:
    """The end of a URL: what people call the model."""
    return url.rstrip("/").rpartition("/")[2] or url


def read_facts(output: Finished) -> Facts:
    """Read the tables of an output twice: for the names, then for the numbers; a few rows are in memory at once.

    Raises:
        IntegrityError: a table is damaged.
    """
    models = [row["url"] for row in output.manifest.summary]
    names = ((row["tensor"], row["numel"]) for row in read_tensor_rows(output.store))
    facts = Facts(output, Places(names, MAX_CELLS // max(1, len(models))), models)
    _add_rows(facts)
    _add_actions(facts)
    if SURVEY_NAME in output.manifest.tables:
        for row in read_survey_rows(output.store):
            if row["redundancy"] is not None and math.isfinite(row["redundancy"]):
                facts.statistics[row["model"]][bin_of(row["redundancy"])] += 1
    return facts


def _add_rows(facts: Facts) -> None:
    kept: Counter[int] = Counter()
    both: Counter[tuple[int, int]] = Counter()
    tensor: list[Mapping[str, Any]] = []
    for row in read_tensor_rows(facts.output.store):
        if tensor and row["tensor"] != tensor[0]["tensor"]:
            _add_tensor(facts, tensor, kept, both)
            tensor = []
        tensor.append(row)
    if tensor:
        _add_tensor(facts, tensor, kept, both)
    for a, b in combinations(range(len(facts.models)), 2):
        shared = both[a, b]
        facts.pairs.append(Pair(a, b, shared, kept[a] + kept[b] - shared, min(kept[a], kept[b])))


def _add_tensor(
    facts: Facts, rows: list[Mapping[str, Any]], kept: Counter[int], both: Counter[tuple[int, int]]
) -> None:
    """All models' rows of one tensor."""
    layer, kind = facts.places.find(rows[0]["tensor"])
    counts = {row["model"]: row["kept"] for row in rows}
    for row in rows:
        i = row["model"]
        jaccards = []
        for j, others in counts.items():
            if j != i:
                shared = row["overlaps"][j]
                either = row["kept"] + others - shared
                jaccards.append(shared / either if either else 0.0)
                both[i, j] += shared
        sums = facts.cells.setdefault((i, layer, kind), Sums())
        sums.add(row, sum(jaccards) / len(jaccards) if jaccards else 0.0)
        kept[i] += row["kept"]
        facts.densities[i][bin_of(row["density"])] += 1
    for number, count in enumerate(rows[0].get("claims") or ()):
        facts.claims[number] += count
    for i in range(len(facts.models)):
        facts.missing[i] += i not in counts


def _add_actions(facts: Facts) -> None:
    """What became of every tensor; the plan's table is a working file, without which merged ones alone are known."""
    try:
        for row in read_task_rows(facts.output.store):
            key = ("merged" if row["action"] == "merge" else "copied", row["reason"])
            tensors, numel, size = facts.actions.get(key, (0, 0, 0))
            facts.actions[key] = (tensors + 1, numel + row["numel"], size + row["write_bytes"])
    except IntegrityError:
        manifest = facts.output.manifest
        facts.actions = {
            ("merged", ""): (manifest.merged_tensors, 0, 0),
            ("copied", ""): (manifest.copied_tensors, 0, 0),
        }


def bin_of(share: float) -> int:
    """The bin of a share, of BINS equal ones over [0, 1]; what lies beyond is in the first or the last."""
    return min(int(min(max(share, 0.0), 1.0) * BINS), BINS - 1)
