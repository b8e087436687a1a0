"""The tensors that a combination adds up, and the pass that adds them up."""

from __future__ import annotations

from typing import Literal

from ..errors import InputError
from ..kernels import Array
from ..methods import CombinationMerge
from ..plan import tiles
from .inputs import WindowData
from .passes import CountingPass
from .rounding import write_merged, write_values
from .sums import normalizer
from .tally import Target, WindowTally
from .tensor import TensorState, method_of
from .workspace import Workspace


def beyond_fp64(state: TensorState) -> InputError:
    """What to say when dot products of finite numbers are not finite; possible with F64 inputs only."""
    text = f"tensor {state.task.name!r} has values so large that their squares are beyond fp64"
    return InputError(text, "exclude the tensor")


class Operands:
    """The tensors that are added up, in their order: the base where it takes part, then the models.

    Attributes:
        models: the models that have a coefficient. A model that lacks the tensor is left out of a sum of models, and
            has a difference of 0 to the base.
    """

    def __init__(self, state: TensorState, of: Literal["models", "base", "differences"]) -> None:
        self._state = state
        self.differences = of == "differences"
        self.with_base = of == "base"
        self.models = list(range(len(state.task.models))) if self.differences else state.present
        self.count = len(self.models) + self.with_base

    def merge_of(self, target: Target) -> tuple[CombinationMerge, list[float]]:
        """A target's method, and its weights of the models that have a coefficient."""
        method = method_of(target, CombinationMerge)
        return method, method.weights_of(self.models)

    def load(
        self, data: WindowData, workspace: Workspace, begin: int, end: int, nonfinite: list[int]
    ) -> list[tuple[int, Array]]:
        """Decode elements [begin, end): (position among the operands, real [end - begin]) of each that exists."""
        state, length = self._state, end - begin
        if self.differences:
            state.inputs.load(data, workspace, begin, end, nonfinite)
            return [(i, workspace.task_vectors[i][:length]) for i in state.present]
        found: list[tuple[int, Array]] = []
        places = [(0, workspace.base)] if self.with_base else []
        places += [(i + 1, workspace.task_vectors[i]) for i in state.present]
        for position, (source, place) in enumerate(places):
            raw, values = state.inputs.bytes_of(data, source, begin, length), place[:length]
            nonfinite[source] += state.kernels.decode(raw, state.inputs.dtype(source), values)
            found.append((position, values))
        return found


class CombinationPass(CountingPass):
    """Coefficients times operands, added in their order, starting from 0; on top of the base for differences."""

    def __init__(self, state: TensorState, operands: Operands) -> None:
        super().__init__(state)
        self._operands = operands
        self._merges = [operands.merge_of(target) for target in state.targets]
        self.coefficients: list[list[float]] = []
        """Per target and operand; known when the pass starts."""

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state = self._state
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            operands = self._operands.load(data, workspace, begin, end, tally.nonfinite)
            total, active = workspace.sum[: end - begin], workspace.active[: end - begin]
            for place in range(len(state.targets)):
                total[:] = 0
                active[:] = 0
                self._add(place, operands, total, active)
                if self._operands.differences:
                    tally.overflowed[place] += write_merged(state, data, workspace, begin, end, place)
                else:
                    tally.overflowed[place] += write_values(state, data, total, begin, end, place)

    def _add(self, place: int, operands: list[tuple[int, Array]], total: Array, active: Array) -> None:
        coefficients = self.coefficients[place]
        for position, values in operands:
            self._state.kernels.accumulate(total, values, None, 1.0, coefficients[position], active)
        if self._merges[place][0].normalize and not self._operands.differences:
            self._state.kernels.divide(total, normalizer(coefficients, self._state.real))
