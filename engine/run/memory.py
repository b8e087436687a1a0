"""How a worker's memory limit is spent: fixed costs, one workspace per fold thread, and window buffers for the rest."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ..errors import ResourceError
from ..fold import Workspace
from ..kernels import ROW
from ..models import BYTES_PER_TENSOR, HELD_BYTES
from ..plan import (
    Plan,
    SharedReading,
    TensorTask,
    grain,
    histograms_per_model,
    kept_bytes,
    least_joint_elements,
    needs_columns,
    needs_rows,
    passes_over,
    selection_bytes,
    share_reading,
    tile_elements,
)

FIXED_BYTES = 320 << 20
"""Interpreter, numpy, kernels with their scratch, buffers of the writer, pyarrow for the tables; measured 160 MiB, and
310 MiB in the first run on a machine, which imports numba and compiles kernels."""
SURVEYED_BYTES_PER_TENSOR = 2500
"""Statistics of each tensor and model, and their place in the manifest; measured 2100."""
GATHERED_ROW_BYTES = 130
"""Where a row of an embedding comes from, per source: 12 bytes, and what reading tokenizers leaves behind; measured 125
with two vocabularies of 150,000 tokens."""
STRETCH_BYTES = 300
"""What was read of an input for a tensor: places and digest, from the receipt to the table."""
PARTS_BYTES = 64 << 20
"""Parts of uploads on the way: one shard is being written while the one before is completed; measured 40 MiB to Google,
72 MiB to Azure, of which its client had counted 24 for answers that are not on the way then."""
CUDA_BYTES = 3 << 29
"""torch with CUDA and its context, in host memory."""
QUANTILES_PASSES = 3
"""Readings of a survey that takes quantiles: moments, then two levels of histograms."""
LARGEST_SLAB = 2 << 20
"""A window of bf16 is then 1 Mi elements: large enough for the storage, small enough to keep threads equally busy."""
LARGEST_REMOTE_SLAB = 8 << 20
"""Object stores answer a request in tens of milliseconds whatever its size."""
SMALLEST_SLAB = 64 << 10
LOCAL_READERS = 2
REMOTE_READERS = 16
"""Ranged requests in flight: one stream of an object store carries a fraction of what the network does."""
LARGE_HELD_BYTES = (128 << 20, 32 << 20)
"""Matrices of up to this size are kept between windows where memory is left for it: factors of large adapters."""
AHEAD = 2
"""Windows that are read ahead or written behind, beyond those being folded."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much of what one worker process may hold."""

    limit_bytes: int
    threads: int
    fixed_bytes: int
    workspace_bytes: int
    """All threads together."""
    slab_bytes: int
    slabs: int
    held_bytes: int = 0
    """What derived tensors may keep between windows; within `fixed_bytes`."""
    held_most_bytes: int = HELD_BYTES
    """Largest matrix that they keep."""
    readers: int = LOCAL_READERS
    """Threads that read."""

    @property
    def peak_bytes(self) -> int:
        return self.fixed_bytes + self.workspace_bytes + self.slab_bytes * self.slabs


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker process holds besides the merge itself."""

    remote_inputs: bool = False
    remote_output: bool = False
    client_bytes: int = 0
    """Of the clients of whatever lies behind a network, see `storage.client_bytes`."""
    place_bytes: int = 0
    """What the place where it runs holds in it, such as Ray."""
    cuda: bool = False
    quantiles: bool = False
    """Whether quantiles of every task vector are surveyed, whatever the recipe's method."""

    @property
    def fixed_bytes(self) -> int:
        """Memory that is gone before the first window is read."""
        parts = PARTS_BYTES if self.remote_output else 0
        return self.client_bytes + parts + self.place_bytes + CUDA_BYTES * self.cuda


def plan_memory(plan: Plan, limit_bytes: int, threads: int, surroundings: Surroundings | None = None) -> MemoryPlan:
    """Share a worker's limit out, with fewer threads where the limit does not hold the wanted number.

    Raises:
        ResourceError: not even one thread fits.
    """
    return plan_shared_memory(share_reading([plan]), limit_bytes, threads, surroundings)


def plan_shared_memory(
    group: SharedReading, limit_bytes: int, threads: int, surroundings: Surroundings | None = None
) -> MemoryPlan:
    """As `plan_memory`, for recipes that share a reading: a buffer per source and per output for every window."""
    around = surroundings or Surroundings()
    costs = _costs(group, around.quantiles)
    uploads = PARTS_BYTES * (len(group.plans) - 1) if around.remote_output else 0
    entries = sum(_entries_bytes(plan, around.quantiles) for plan in group.plans)
    orders = {id(o): o for plan in group.plans for task in plan.tasks for o in task.orders if o is not None}
    entries += sum(order.held_bytes for order in orders.values())
    fixed = FIXED_BYTES + around.fixed_bytes + uploads + costs.rows + entries
    for count in range(threads, 0, -1):
        workspaces = count * costs.workspace
        readers = _reader_threads(group, count, around.remote_inputs)
        derived = costs.derived.bytes_for(readers)
        room = limit_bytes - fixed - derived - workspaces
        least = (count + AHEAD) * costs.slabs_per_window
        buffers = _buffers(costs, least, room, LARGEST_REMOTE_SLAB if around.remote_inputs else LARGEST_SLAB)
        if buffers is not None:
            slab, slabs = buffers
            held = _hold_more(group, costs.derived, readers, room - slab * slabs)
            return MemoryPlan(
                limit_bytes=limit_bytes,
                threads=count,
                fixed_bytes=fixed + held.bytes_for(readers),
                workspace_bytes=workspaces,
                slab_bytes=slab,
                slabs=slabs,
                held_bytes=held.kept,
                held_most_bytes=held.most,
                readers=readers,
            )
    need = fixed + costs.derived.bytes_for(_reader_threads(group, 1, around.remote_inputs))
    need += costs.workspace + (1 + AHEAD) * costs.slabs_per_window * max(SMALLEST_SLAB, costs.least_slab)
    hint = "give more with --memory"
    if costs.long_row is not None:
        task = costs.long_row
        elements = task.column_count if needs_columns(task) else task.row_elements
        rows = f"rows of {elements} elements, which this method needs whole"
        hint += f"; {task.name!r} has {rows}: it can be excluded"
    raise ResourceError(
        f"a worker needs {-(-need // (1 << 20))} MiB for this merge, the limit is {limit_bytes >> 20} MiB", hint
    )


def _buffers(costs: _Costs, least: int, room: int, largest_slab: int) -> tuple[int, int] | None:
    """Size and number of window buffers, the largest of which so many fit as are needed at least; None: none fit."""
    slab = largest_slab
    while slab >= max(SMALLEST_SLAB, costs.least_slab):
        if least * slab <= room:
            return slab, min(room // slab, least + costs.slabs_to_keep(slab)) if costs.several_passes else least
        slab //= 2
    return (costs.least_slab, least) if costs.least_slab > slab and least * costs.least_slab <= room else None


def _entries_bytes(plan: Plan, quantiles: bool) -> int:
    """What is held for each tensor from the plan to the manifest."""
    tensors = len(plan.tasks)
    models = plan.most_models if plan.masks_of is None else 1  # masks speak of one alone
    surveyed = quantiles or plan.survey_kind in ("moments", "quantiles")
    rows = tensors * (BYTES_PER_TENSOR * (1 + models) + SURVEYED_BYTES_PER_TENSOR * models * surveyed)
    return rows + plan.gathered_rows * GATHERED_ROW_BYTES + plan.stretches * STRETCH_BYTES


@dataclass(frozen=True, slots=True)
class _DerivedCosts:
    """What tensors that are computed while they are read need, beyond window buffers."""

    kept: int
    """For all sources of two tensors: windows of the next one are read while those of one are folded."""
    held: int
    """Largest of one source."""
    scratch: int
    most: int
    """Matrices of up to this size are kept."""

    def bytes_for(self, readers: int) -> int:
        """A reader may still use what was kept before and had to make room."""
        return self.kept + readers * (self.held + self.scratch)


def _reader_threads(group: SharedReading, threads: int, remote: bool) -> int:
    """How many threads read: as many as fold, where reading computes."""
    if remote:
        return REMOTE_READERS
    return max(LOCAL_READERS, threads) if any(plan.has_derived for plan in group.plans) else LOCAL_READERS


def _derived_costs(group: SharedReading, most: int) -> _DerivedCosts:
    kept, held, scratch = 0, 0, 0
    members = range(len(group.plans))
    for position in range(len(group.plans[0].tasks)) if any(plan.has_derived for plan in group.plans) else ():
        found = [location.derived for _, location in group.reads(position, members) if location.derived is not None]
        kept = max(kept, sum(derived.held_bytes(most) for derived in found))
        held = max(held, max((derived.held_bytes(most) for derived in found), default=0))
        scratch = max(scratch, max((derived.scratch_bytes(most) for derived in found), default=0))
    return _DerivedCosts(2 * kept, held, scratch, most)


def _hold_more(group: SharedReading, least: _DerivedCosts, readers: int, room_bytes: int) -> _DerivedCosts:
    """The costs of keeping the largest matrices that the room, beyond the least costs, has a place for."""
    for most in LARGE_HELD_BYTES if least.held else ():
        costs = _derived_costs(group, most)
        if costs.bytes_for(readers) - least.bytes_for(readers) <= room_bytes:
            return costs
    return least


@dataclass(frozen=True, slots=True)
class _Costs:
    workspace: int
    rows: int
    reads_per_window: int
    outputs: int
    least_slab: int
    several_passes: bool
    derived: _DerivedCosts
    long_row: TensorTask | None
    """The tensor whose row asks for the largest buffers, where rows are folded whole."""
    largest_bytes: int
    """Of the largest tensor in its widest input or output."""

    @property
    def slabs_per_window(self) -> int:
        """Buffers of one window: for what is read and for what is written."""
        return self.reads_per_window + self.outputs

    def slabs_to_keep(self, slab_bytes: int) -> int:
        """Buffers that hold all inputs of the largest tensor between its passes; more would only be fresh memory.

        Windows are whole tiles and so may be shorter than their buffer, by at most a quarter where buffers are large.
        """
        return -(-self.largest_bytes // (slab_bytes * 3 // 4)) * self.reads_per_window


def _passes_alone(group: SharedReading) -> list[int]:
    """Plans that may have passes of their own; parts of one recipe have them in common."""
    of: dict[int, int] = {}
    for place, plan in enumerate(group.plans):
        of.setdefault(id(plan) if plan.part is None else id(plan.terms), place)
    return list(of.values())


def _costs(group: SharedReading, quantiles: bool) -> _Costs:
    """The largest of each cost over the distinct kinds of task; many tensors share one."""
    models = max(plan.most_models for plan in group.plans)
    workspace, least_slab, several, largest, kept = 0, 0, False, 0, 0
    long_row = None
    alone = _passes_alone(group)
    seen: set[tuple[Hashable, ...]] = set()
    alike: set[tuple[Hashable, ...]] = set()
    for tasks in zip(*(plan.tasks for plan in group.plans), strict=True):
        looks = tuple(map(_looks, tasks))
        if looks in alike:
            continue
        alike.add(looks)
        largest = max(largest, tasks[0].numel if any(task.method for task in tasks) else 0)
        kept = max(kept, sum(kept_bytes(tasks[place]) for place in alone))
        key = tuple(map(_kind, tasks))
        if key in seen:
            continue
        seen.add(key)
        passes = max(passes_over(task.method, task.is_double) for task in tasks)
        passes = max(passes, QUANTILES_PASSES) if quantiles else passes
        histograms = models * (2 if quantiles else max(histograms_per_model(task.method) for task in tasks))
        grains = [grain(task) for task in tasks]
        elements = max(tile_elements(each) for each in grains)
        real_bytes = 8 if any(task.is_double for task in tasks) else 4
        need = Workspace.bytes_for(models, elements, real_bytes, histograms)
        workspace = max(workspace, need + max(selection_bytes(task, elements) for task in tasks))
        slab = least_joint_elements(grains) * max(task.widest_bytes for task in tasks)
        if slab > least_slab:
            least_slab, long_row = slab, next((t for t in tasks if needs_rows(t) or needs_columns(t)), None)
        several = several or passes > 1
    doubles = any(task.is_double for plan in group.plans for task in plan.tasks)
    workspace *= 2 if doubles else 1
    held = sum(group.plans[place].most_models for place in alone)
    rows = 24 * held * (largest // ROW + 1) * 2 + 2 * kept
    widest = max((task.numel * task.widest_bytes for plan in group.plans for task in plan.tasks), default=0)
    return _Costs(
        workspace=workspace,
        rows=rows,
        reads_per_window=group.most_reads,
        outputs=len(group.plans),
        least_slab=least_slab,
        several_passes=several,
        derived=_derived_costs(group, HELD_BYTES),
        long_row=long_row,
        largest_bytes=widest,
    )


def _looks(task: TensorTask) -> Hashable:
    """Equal for tasks of one method, shape and dtypes, which cost the same for sure; quick, as there are many."""
    models = [model and model.info.dtype for model in task.models]
    return id(task.method), task.base.info.shape, task.base.info.dtype, task.out_dtype, task.stored, *models


def _kind(task: TensorTask) -> Hashable:
    """Equal for tasks that cost the same."""
    length = task.numel if needs_columns(task) else 0  # the longer columns are, the more sums wait for others
    return id(task.method), task.is_double, task.widest_bytes, grain(task), length


def resident_slabs(inputs: int, windows: int) -> int:
    """Buffers that hold all inputs of a tensor between its passes."""
    return windows * inputs
