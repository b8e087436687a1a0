"""How much of its task vector's energy each model gives to a merge: the merge up to its masks, and nothing written.

The energy of a task vector is the sum of the squares of its elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from ..errors import RecipeError
from ..fold import StatisticsPass, Sums, TensorState, passes_to_kept_sums, set_thresholds
from ..kernels import Kernels
from ..methods import TaskVectorMerge
from ..output import OutputDirectory
from ..plan import Inputs, Plan, Survey, TensorTask, grain, passes_over, window_elements
from ..storage import MemoryStore
from .commands import told_kernels
from .execution import DEFAULT_MEMORY_BYTES, Execution
from .local import LocalRunner
from .memory import Surroundings, plan_memory
from .meter import Meter
from .pipeline import Pipeline
from .protocols import Member, Progress, Silent
from .shard import with_survey
from .surveys import take_surveys
from .tensor_job import PassGroup, TensorJob


@dataclass(frozen=True, slots=True)
class ModelEnergy:
    """Sums over all merged tensors that a model has."""

    whole: float
    """Of its task vector."""
    kept: float
    """Of what its masks keep, rescaled as the method does."""
    given: float
    """The same, multiplied by its weights and lambda: what it adds to the merge, before signs are elected and before
    the sum is divided by weights."""


def take_energies(
    inputs: Inputs,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[ModelEnergy]:
    """Count the energies of all models of a recipe, in its order; exact, as masks and sums are those of the merge.

    Raises:
        RecipeError: the method has no weights that are added to what masks keep.
        AnabranchError: what a merge of the recipe would refuse.
    """
    plan, meter, progress = inputs.plan, Meter(), progress or Silent()
    if not any(_is_weighed(task) for task in plan.tasks):
        raise RecipeError(f"{plan.terms.method} weighs no task vectors, so no weights follow from their energy")
    around = Surroundings(remote_inputs=inputs.is_remote, quantiles=True)
    memory = plan_memory(plan, memory_bytes, Execution(workers, memory_bytes).threads, around)
    member = Member(inputs, OutputDirectory(plan, MemoryStore()))
    with told_kernels("cpu", progress) as kernels:
        [survey] = take_surveys([member], [0], LocalRunner([member], memory, kernels, meter), progress)
        energies = _Energies(plan, survey, kernels, memory.slab_bytes)
        progress.phase("survey", sum(map(_folded_bytes, plan.tasks)), 0)
        Pipeline(plan.sources, inputs.stores, memory, kernels, meter).run(energies.jobs())
    inputs.check_unchanged()
    return energies.sums()


def _is_weighed(task: TensorTask) -> bool:
    return isinstance(task.method, TaskVectorMerge) and task.method.needs_weights


def _folded_bytes(task: TensorTask) -> int:
    """Bytes that the passes look at; the moments of task vectors are one more than a merge has."""
    return task.folded_bytes * (1 + passes_over(task.method, task.is_double)) if _is_weighed(task) else 0


class _Energies:
    """Energies by tensor while they are gathered; tensors end in any order."""

    def __init__(self, plan: Plan, survey: Survey | None, kernels: Kernels, slab_bytes: int) -> None:
        self._plan = plan
        self._survey = survey
        self._kernels = kernels
        self._slab_bytes = slab_bytes
        self._found: dict[str, dict[int, ModelEnergy]] = {}
        """By tensor and model of the plan."""

    def jobs(self) -> Iterator[TensorJob]:
        for task in self._plan.tasks:
            if not _is_weighed(task):
                continue
            elements = window_elements(self._slab_bytes, task.widest_bytes, grain(task))
            state = TensorState(with_survey(task, self._survey), self._plan, self._kernels, elements)
            if self._survey is not None:
                set_thresholds(state, self._survey.thresholds)
            whole = StatisticsPass(state)
            passes = [whole, *passes_to_kept_sums(state, partial(self._add, state, whole))]
            yield TensorJob([PassGroup(state, passes, range(len(self._plan.sources)))], noted=False)

    def _add(self, state: TensorState, whole: StatisticsPass, sums: Sums) -> None:
        """Called once per tensor, when its last pass is over and its divisors are known."""
        method, found = state.task.method, {}
        assert isinstance(method, TaskVectorMerge), "only such tensors have jobs"
        for i in state.present:
            own = sums[i]
            assert own is not None, "every model that has the tensor was summed"
            kept = float(own[1]) / state.divisors[i] ** 2
            given = kept * (method.weights[i] * method.lambda_) ** 2
            found[state.task.model_of(i)] = ModelEnergy(float(whole.moments(i)[1]), kept, given)
        self._found[state.task.name] = found

    def sums(self) -> list[ModelEnergy]:
        """Per model; exactly rounded, so that the order of tensors shows nowhere."""
        parts = [[found[i] for found in self._found.values() if i in found] for i in range(len(self._plan.models))]
        return [
            ModelEnergy(
                math.fsum(part.whole for part in own),
                math.fsum(part.kept for part in own),
                math.fsum(part.given for part in own),
            )
            for own in parts
        ]
