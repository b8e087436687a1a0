"""One tensor being merged: its windows, its state between passes, and how a tile of it is decoded and selected."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels import LEVELS_32, LEVELS_64, Array, Kernels, WindowInputs
from ..methods import Agreement, ModelThreshold, TaskVectorMerge, Variance
from ..models import DTYPES
from ..plan import ROW_ELEMENTS, Plan, TensorTask, cut_windows, grain, tile_elements, tiles
from .masks import KEEP_ALL_EQUAL, Cut, Edge, EqualLedger, Ranks, Selector, first_edges, random_key
from .passes import WindowData, add_into
from .tall_masks import mask_agreement
from .workspace import Real, Workspace


@dataclass(slots=True)
class Tally:
    """What all windows of one tensor counted."""

    nonfinite: list[int]
    """Per source, reference first."""
    kept: list[int]
    """Per model, elements its mask kept."""
    overlaps: dict[tuple[int, int], int] = field(default_factory=dict)
    """Per pair of models, elements that both masks kept."""


@dataclass(slots=True)
class Target:
    """What one recipe makes of a tensor: recipes that select alike share everything else."""

    task: TensorTask
    """The recipe's own task: its weights and its output dtype count."""
    saturate: bool
    member: int = 0
    """Place of the recipe among those that are merged together."""
    label: str = ""
    """What messages call the recipe; empty where there is only one."""
    overflowed: int = 0
    """Results beyond the output dtype's range."""


class TensorState:
    """What the passes over one tensor share.

    Windows only add integers or write to places of their own, so nothing here depends on the order of windows.

    Args:
        task: the tensor with its sources and settings; densities that a survey decides are already numbers.
        plan: seed and treatment of values that cannot be merged.
        kernels: where the arithmetic runs.
        elements: of one window.
        targets: what the last pass writes; empty for a survey.
    """

    def __init__(
        self, task: TensorTask, plan: Plan, kernels: Kernels, elements: int, targets: Sequence[Target] = ()
    ) -> None:
        self.targets = targets
        self.task = task
        self.plan = plan
        self.kernels = kernels
        self.real: Real = "f64" if task.is_double else "f32"
        self.levels = LEVELS_64 if task.is_double else LEVELS_32
        self.present = [i for i, source in enumerate(task.models) if source is not None]
        models = len(task.models)
        self.selector = self._selector(models)
        self.grain = grain(task)
        self.windows = cut_windows(task.numel, elements, self.grain)
        self.tile = tile_elements(self.grain)
        self.tally = Tally([0] * (models + 1), [0] * models)
        self.moments: list[NDArray[np.float64] | None] = [None] * models
        """Per model: f64 [3] = sum |t|, sum t^2, sum t^4; None until a pass took them."""
        self.divisors = [1.0] * models
        self.factors = [self._factors(i) for i in range(models)]
        """Per model, real [row]: what magnitudes are multiplied by to order them; None: magnitude alone orders."""
        self.energies: list[float] | None = None
        """Per model, the share of what its mask keeps in the sum of squares; None until a pass took them."""
        self.own: list[int] | None = None
        """Per model, elements that its mask alone keeps; None until a pass counted them ..."""
        self.shared: list[int] | None = None
        """... and those that other masks keep, too."""
        self.lock = threading.Lock()

    def _selector(self, models: int) -> Selector | None:
        settings = self.task.settings
        if settings is None or not isinstance(settings.method, TaskVectorMerge):
            return None
        keys = tuple(random_key(self.plan.seed, position, self.task.name) for position in range(models))
        selection = settings.method.selection
        densities = [d if isinstance(d, float) else 0.0 for d in settings.method.densities] or [1.0] * models
        if isinstance(selection, Variance):
            densities = [selection.share] * models
        return Selector(
            selection=selection,
            rescale=settings.method.rescale,
            kernels=self.kernels,
            keys=keys,
            densities=densities,
            row=self.task.row_elements,
            edges=[first_edges(selection, self.real) for _ in range(models)],
        )

    def _factors(self, i: int) -> Array | None:
        """The root of each input feature's mean square: rounded once, in fp64 and then to real."""
        source, orders = self.task.models[i], self.task.orders
        order = orders[i] if orders else None
        squares = order.squares.get(source.info.name) if order is not None and source is not None else None
        if squares is None or self.selector is None:
            return None
        roots = np.sqrt(squares.astype(np.float64)).astype(np.float64 if self.real == "f64" else np.float32)
        factors = self.kernels.empty(len(roots), self.real)
        self.kernels.decode(self.kernels.load(roots.view(np.uint8)), "F64" if self.real == "f64" else "F32", factors)
        return factors

    @property
    def stat_tile(self) -> int:
        """Tile size of loops that take statistics: rows stay whole."""
        return self.tile if self.tile % ROW_ELEMENTS == 0 else tile_elements(1)

    def load(self, data: WindowData, workspace: Workspace, begin: int, end: int, nonfinite: list[int]) -> None:
        """Decode the reference and every model's task vector of elements [begin, end) into the workspace.

        A model that ends earlier (fewer rows of a padded vocabulary) has t = 0 beyond its end.

        The number of NaN and Inf among these elements is added to `nonfinite`, per source.
        """
        length = end - begin
        base = workspace.base[:length]
        raw = self.bytes_of(data, 0, begin, length)
        assert raw is not None
        nonfinite[0] += self.kernels.decode(raw, self.task.base.info.dtype, base)
        for i in self.present:
            t = workspace.task_vectors[i][:length]
            raw = self.bytes_of(data, i + 1, begin, length)
            source = self.task.models[i]
            assert source is not None
            known = 0 if raw is None else len(raw) // DTYPES[source.info.dtype].size
            if raw is not None and known:
                nonfinite[i + 1] += self.kernels.task_vector(raw, source.info.dtype, base[:known], t[:known])
            if known < length:
                t[known:] = 0
            if self.plan.keep_base_where_nonfinite:
                self.kernels.zero_nonfinite(t, base)

    def bytes_of(self, data: WindowData, source: int, begin: int, length: int) -> Array | None:
        """Bytes of elements [begin, begin + length) of one source, fewer where it ends earlier."""
        raw = data.raws[source]
        if raw is None:
            return None
        location = self.task.base if source == 0 else self.task.models[source - 1]
        assert location is not None
        size = DTYPES[location.info.dtype].size
        first = begin - data.window.begin
        return self.kernels.load(raw[first * size : (first + length) * size])

    def whole_inputs(self, data: WindowData) -> WindowInputs | None:
        """What the window's own elements are in every source, where calls for whole windows may take them.

        None where bad values are replaced, arithmetic is in 64 bits, or a source ends earlier.
        """
        length = data.window.own_end - data.window.own_begin
        if self.plan.keep_base_where_nonfinite or self.real != "f32" or not length:
            return None
        raws, dtypes = [], []
        for source in self.present_sources:
            raw, location = self.bytes_of(data, source, data.window.own_begin, length), self.task.sources[source]
            assert location is not None
            if raw is None or len(raw) != length * DTYPES[location.info.dtype].size:
                return None
            raws.append(raw)
            dtypes.append(location.info.dtype)
        return WindowInputs(raws, dtypes)

    @property
    def present_sources(self) -> tuple[int, ...]:
        """The sources that have the tensor, the reference first; calls for whole windows know no others."""
        return 0, *(i + 1 for i in self.present)

    def add_nonfinite(self, nonfinite: list[int], counts: NDArray[np.int64]) -> None:
        """Add what a call for a whole window counted to numbers per source."""
        for source, count in zip(self.present_sources, counts, strict=True):
            nonfinite[source] += int(count)

    def add_counts(self, kept: list[int], overlaps: dict[tuple[int, int], int], overflowed: list[int]) -> None:
        """Add what one window counted to the tallies of tensor and targets; the caller holds the lock."""
        add_into(self.tally.kept, kept)
        for pair, count in overlaps.items():
            self.tally.overlaps[pair] = self.tally.overlaps.get(pair, 0) + count
        for target, count in zip(self.targets, overflowed, strict=True):
            target.overflowed += count

    def settle_nonfinite(self, counts: list[int]) -> None:
        """Keep what a whole pass counted; stop the run unless the recipe says what to do with such values.

        Raises:
            InputError: a source holds NaN or Inf.
        """
        self.tally.nonfinite = counts
        if self.plan.keep_base_where_nonfinite or not any(counts):
            return
        source = next(i for i, count in enumerate(counts) if count)
        raise InputError(
            f"{self.source_name(source)} holds {counts[source]} NaN or Inf values",
            "repair the checkpoint, exclude the tensor, or set `nonfinite: keep-base` in the recipe",
        )

    def source_name(self, source: int) -> str:
        """What messages call an input of this tensor: 0 is the reference, i + 1 the i-th model."""
        location = self.task.base if source == 0 else self.task.models[source - 1]
        assert location is not None
        return f"{self.plan.sources[self.task.origins[source]].url}: tensor {location.info.name!r}"

    # -- masks ---------------------------------------------------------------------------------------------------

    def start_ranks(self, data: WindowData, workspace: Workspace, models: list[int]) -> Ranks:
        """Equals of each model's cuts before this window; counts this window's own first where nobody did yet."""
        selector = self.selector
        if selector is None:
            return []
        ranks, window = selector.no_ranks(), data.window.index
        new = [entry for entry in selector.ledgers(models) if not entry[-1].published(window)]
        if new:
            self._publish_equals(data, workspace, models, new)
        for i, place, _, ledger in selector.ledgers(models):
            ranks[i][place] = ledger.before(window)
        return ranks

    def _publish_equals(
        self,
        data: WindowData,
        workspace: Workspace,
        models: list[int],
        new: list[tuple[int, int, Cut, EqualLedger]],
    ) -> None:
        assert self.selector is not None
        unranked = {i for i, *_ in new}
        earlier = [i for i in models if i not in unranked] if self.selector.claims_matter else []
        ranks = self.start_ranks(data, workspace, earlier)
        counts = [0] * len(new)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, self.tile):
            self.load(data, workspace, begin, end, [0] * (len(self.task.models) + 1))
            claims = self.mask_tile(workspace, begin, end, earlier, ranks) if self.selector.claims_matter else None
            for place, (i, _, cut, _) in enumerate(new):
                values = self.order_values(workspace, i, begin, end)
                counts[place] += self.kernels.count_equal(values, claims, cut.level, cut.key)
        for (*_, ledger), count in zip(new, counts, strict=True):
            ledger.publish(data.window.index, count)

    def mask_tile(self, workspace: Workspace, begin: int, end: int, models: list[int], ranks: Ranks) -> Array:
        """Write the masks of `models` for elements [begin, end); returns the claims they make together (u8)."""
        assert self.selector is not None
        length = end - begin
        claims = workspace.claims[:length]
        claims[:] = 0
        if isinstance(self.selector.selection, Agreement):
            mask_agreement(self.selector.selection, workspace, models, length)
            return claims
        spare, shared = workspace.spare[:length], self.selector.shares_mask
        for i in models[:1] if shared else models:
            t, values = workspace.task_vectors[i][:length], self.order_values(workspace, i, begin, end)
            self.selector.mask(i, t, values, begin, claims, workspace.masks[i][:length], spare, ranks)
        for i in models[1:] if shared else ():
            workspace.masks[i][:length] = workspace.masks[models[0]][:length]
        return claims

    def count_masks(
        self, workspace: Workspace, length: int, kept: list[int], overlaps: dict[tuple[int, int], int]
    ) -> None:
        """Add what the masks of a tile keep, per model and per pair of models."""
        for i in self.present:
            kept[i] += self.kernels.count(workspace.masks[i][:length])
        for a, b in overlaps:
            overlaps[a, b] += self.kernels.pair_overlap(workspace.masks[a][:length], workspace.masks[b][:length])

    @property
    def orders_by_change(self) -> bool:
        """Whether `order_values` are the task vectors themselves."""
        alone = all(factors is None for factors in self.factors)
        return alone and (self.selector is None or not self.selector.shares_mask)

    def order_values(self, workspace: Workspace, i: int, begin: int, end: int) -> Array:
        """What model i's elements [begin, end) are ordered by, largest magnitude first; valid until the next call."""
        assert self.selector is not None
        length = end - begin
        factors = self.factors[i]
        if factors is not None:
            self.kernels.score(workspace.task_vectors[i][:length], factors, begin, workspace.order[:length])
            return workspace.order[:length]
        if not self.selector.shares_mask:
            return workspace.task_vectors[i][:length]
        vectors, values = [workspace.task_vectors[j][:length] for j in self.present], workspace.order[:length]
        self.kernels.variance(vectors, workspace.sum[:length], values)
        return values

    def new_edge(self, cut: Cut) -> Edge:
        """An edge of this tensor, with a ledger where the order of its equals decides."""
        return Edge(cut, EqualLedger(len(self.windows)) if cut.ranks_equals else None)

    def abandon(self) -> None:
        """Wake every thread that waits for another window of this tensor, because the run is being stopped."""
        if self.selector is not None:
            for *_, ledger in self.selector.ledgers(self.present):
                ledger.abandon()


def set_thresholds(state: TensorState, thresholds: Sequence[int] | None) -> None:
    """Give a tensor thresholds of whole models; zeros are never kept, since keeping them changes nothing.

    Args:
        state: the tensor.
        thresholds: per model of the plan, the smallest key that is kept; None where no survey decided any.
    """
    if thresholds is None or state.selector is None:
        return
    if isinstance(state.selector.selection, ModelThreshold):
        keys = [thresholds[state.task.model_of(i)] for i in range(len(state.task.models))]
        state.selector.edges = [[Edge(Cut(0, key, KEEP_ALL_EQUAL if key else 0)) if key >= 0 else None] for key in keys]
