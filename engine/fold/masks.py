"""What decides the masks of one tensor's models: from densities and edges to the rules of a window."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..kernels import (
    AgreementRule,
    Array,
    BandRule,
    BlockRule,
    CutRule,
    KeepAll,
    Kernels,
    MaskRules,
    RandomRule,
    RankedRule,
    Rule,
    value_key,
)
from ..methods import (
    Agreement,
    All,
    Band,
    Beyond,
    Blocks,
    Elect,
    ModelThreshold,
    Random,
    RankedRandom,
    Selection,
    TaskVectorMerge,
    Top,
    TopInTurn,
    Variance,
)
from ..plan import TensorTask
from .edges import Cut, Edge, EqualLedger
from .workspace import Real, Workspace

Edges = list[Edge | None]
"""What bounds one model's mask: where the kept magnitudes begin and, in a band, where they end (the smaller and the
larger magnitude). Without the first nothing is kept, without the second nothing is left out."""
LARGEST = {"f32": 0x7FFFFFFF, "f64": 0x7FFFFFFFFFFFFFFF}
"""The key that no magnitude exceeds."""


def first_edges(selection: Selection, real: Real) -> Edges:
    """The edges of one model before the tensor was looked at."""
    if isinstance(selection, Beyond):
        return [Edge(Cut(0, value_key(selection.epsilon, real), 0))]
    return [None] * (2 if isinstance(selection, Band) else 1)


def random_key(seed: int, position: int, name: str) -> tuple[int, int]:
    """Philox key words of one model and tensor (ALGORITHMS 1.6)."""
    text = json.dumps([seed, position, name], separators=(",", ":"), ensure_ascii=False)
    words: NDArray[np.uint32] = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u4")
    return int(words[0]), int(words[1])


def block_keep(density: float, m: int) -> int:
    """n of n:m: 0 for no density, else the rounded share, at least 1 and at most m (section 2)."""
    return 0 if density <= 0 else min(max(int(np.floor(density * m + 0.5)), 1), m)


class Masks:
    """How the models of one tensor select; a tensor that is not merged by task vectors keeps everything.

    Args:
        task: the tensor with its method.
        seed: of random selections.
        kernels: where the arithmetic runs.
        real: in which numbers.
        windows: how many the tensor has.
    """

    def __init__(self, task: TensorTask, seed: int, kernels: Kernels, real: Real, windows: int) -> None:
        self._kernels = kernels
        self._real = real
        self._row = task.row_elements
        self._windows = windows
        models = len(task.models)
        self._present = [i for i, model in enumerate(task.models) if model is not None]
        self.selection: Selection = All()
        self.densities = [1.0] * models
        """Per model; 0 until a pass found it where it depends on the tensor."""
        self.divides = False
        """Whether masks come with task vectors divided by probabilities that differ between elements."""
        self._factors: list[Array | None] = [None] * models
        """Per model, real [row]: what magnitudes are multiplied by to order them; None: magnitude alone orders."""
        method = task.method
        if isinstance(method, TaskVectorMerge | Elect):
            self.selection = method.selection
            if method.densities:
                self.densities = [d if isinstance(d, float) else 0.0 for d in method.densities]
        if isinstance(method, TaskVectorMerge):
            selection = method.selection
            if isinstance(selection, Variance):
                self.densities = [selection.share] * models
            self.divides = isinstance(selection, RankedRandom) and method.rescale == "density"
            self._factors = [self._factors_of(task, i) for i in range(models)]
        self._keys: list[tuple[int, int]] = []
        """Of random selections, per model."""
        if isinstance(self.selection, Random | RankedRandom):
            self._keys = [random_key(seed, position, task.name) for position in range(models)]
        self.edges = [first_edges(self.selection, real) for _ in range(models)]
        """Per model; filled between passes by those selections that need order statistics."""

    def _factors_of(self, task: TensorTask, i: int) -> Array | None:
        """The root of each input feature's mean square: rounded once, in fp64 and then to real."""
        source, order = task.models[i], task.orders[i] if task.orders else None
        squares = order.squares.get(source.info.name) if order is not None and source is not None else None
        if squares is None:
            return None
        roots = np.sqrt(squares.astype(np.float64)).astype(np.float64 if self._real == "f64" else np.float32)
        factors = self._kernels.empty(len(roots), self._real)
        dtype = "F64" if self._real == "f64" else "F32"
        self._kernels.decode(self._kernels.load(roots.view(np.uint8)), dtype, factors)
        return factors

    @property
    def claims_decide(self) -> bool:
        """Whether a model's mask goes by what the models before it keep."""
        return isinstance(self.selection, Blocks | TopInTurn)

    @property
    def of_variance(self) -> bool:
        """Whether all models have one mask: that of the first which has the tensor."""
        return isinstance(self.selection, Variance)

    @property
    def scored(self) -> bool:
        """Whether a model's changes are ordered by more than their magnitude."""
        return any(factors is not None for factors in self._factors)

    def top_counts(self, i: int, numel: int, nonzero: int) -> tuple[int, ...]:
        """How many of model i's largest magnitudes lie above each of its edges (ALGORITHMS 1.5, 4).

        Args:
            i: position of the model in the recipe.
            numel: elements of the tensor.
            nonzero: those with an order value that is not zero.
        """
        keep = int(self.densities[i] * (nonzero if self.of_variance else numel))
        if not isinstance(self.selection, Band):
            return (keep,)
        left_out = min(int(self.selection.gammas[i] * numel), numel - keep)
        return (left_out + keep, left_out) if keep > 0 else (0, 0)

    def new_edge(self, cut: Cut) -> Edge:
        """An edge of this tensor, with a ledger where the order of its equals decides."""
        return Edge(cut, EqualLedger(self._windows) if cut.ranks_equals else None)

    def ledgers(self, models: Iterable[int]) -> Iterator[tuple[int, Cut, EqualLedger]]:
        """(model, cut, ledger) of each edge where the order of equals decides."""
        for i in models:
            for edge in self.edges[i]:
                if edge is not None and edge.ledger is not None:
                    yield i, edge.cut, edge.ledger

    def abandon(self) -> None:
        """Wake every thread that waits for another window, because the run is being stopped."""
        for *_, ledger in self.ledgers(self._present):
            ledger.abandon()

    def rules(self, models: Sequence[int], window: int) -> MaskRules:
        """How the masks of these models are made in one window; waits until earlier windows have counted equals."""
        rules: list[Rule]
        match self.selection:
            case All():
                rules = [KeepAll() for _ in models]
            case Blocks(m=m, drop_tail=drop_tail, overlap_never=overlap_never):
                rules = [BlockRule(block_keep(self.densities[i], m), m, overlap_never, drop_tail) for i in models]
            case Top() | TopInTurn() | ModelThreshold() | Beyond():
                rules = [self._cut_rule(i, 0, window) for i in models]
            case Variance():
                rules = [self._cut_rule(self._present[0], 0, window) for _ in models]
            case Band():
                rules = [BandRule(self._cut_rule(i, 0, window), self._cut_rule(i, 1, window)) for i in models]
            case Random():
                rules = [RandomRule(*self._keys[i], self.densities[i]) for i in models]
            case Agreement(lambdas=lambdas, consensus=consensus):
                rules = [AgreementRule(tuple(lambdas[i] for i in models), consensus) for _ in models]
            case RankedRandom(epsilons=epsilons):
                rules = [
                    RankedRule(*self._keys[i], *self._probabilities(i, epsilons[i]), self._row, self.divides)
                    for i in models
                ]
        counted = isinstance(self.selection, Beyond)  # what models share is averaged
        return MaskRules(
            rules,
            claims="decide" if self.claims_decide else "counted" if counted else "ignored",
            of_variance=self.of_variance,
            scored=self.scored,
        )

    def _cut_rule(self, i: int, place: int, window: int) -> CutRule:
        edge = self.edges[i][place]
        if edge is None:
            return CutRule(0, LARGEST[self._real], 0, 0)
        before = edge.ledger.before(window) if edge.ledger is not None else 0
        return CutRule(edge.cut.level, edge.cut.key, edge.cut.keep_equal, before)

    def _probabilities(self, i: int, epsilon: float) -> tuple[float, float]:
        """The least probability of model i and how far the largest lies above it; a row of one element has its density.

        Epsilon is smaller where it would lead out of [0, 1], as densities that follow from the tensor may want.
        """
        density = self.densities[i]
        if self._row == 1:
            return density, 0.0
        epsilon = min(epsilon, density, 1.0 - density)
        return density - epsilon, 2.0 * epsilon

    def order_values(self, workspace: Workspace, i: int, begin: int, end: int) -> Array:
        """What model i's elements [begin, end) are ordered by, largest magnitude first; valid until the next call."""
        length = end - begin
        factors = self._factors[i]
        if factors is not None:
            self._kernels.score(workspace.task_vectors[i][:length], factors, begin, workspace.order[:length])
            return workspace.order[:length]
        if not self.of_variance:
            return workspace.task_vectors[i][:length]
        vectors, values = [workspace.task_vectors[j][:length] for j in self._present], workspace.order[:length]
        self._kernels.variance(vectors, workspace.sum[:length], values)
        return values
