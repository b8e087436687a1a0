"""One tensor of the output: where its inputs lie, how it is merged, what it costs to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..methods import Method
from ..models import DTYPES, Activations, TensorLocation


@dataclass(frozen=True, slots=True)
class TensorTask:
    """One tensor of the output."""

    name: str
    """In the output; in a slice, layers of the inputs have other numbers and so other names."""
    base: TensorLocation
    """The reference: the base, or the first model where a method has no base."""
    models: tuple[TensorLocation | None, ...]
    """Per model that is merged here, in recipe order; None where it lacks the tensor or is not read."""
    origins: tuple[int, ...]
    """Which of `Plan.sources` the reference lies in, then every model."""
    out_dtype: str
    method: Method | None
    """None: the tensor is copied from the reference."""
    reason: str
    """Why it is copied; empty when it is merged."""
    numel: int
    """Elements; bytes where an element is narrower than one."""
    is_double: bool
    """Whether section 1.1 asks for fp64: any input is F64."""
    widest_bytes: int
    """Bytes per element of the widest input or output."""
    read_bytes: int
    """Stored bytes of all inputs, read once."""
    orders: tuple[Activations | None, ...] = ()
    """Per model, what orders its changes besides their magnitude; () where no model has any."""
    stored: Literal["values", "bits", "nothing"] = "values"
    """What the output holds of it: a value per element, a bit per element in whole bytes, or no tensor at all."""

    @property
    def row_elements(self) -> int:
        """Elements of one row: the length of the last dimension."""
        shape = self.base.info.shape
        return shape[-1] if shape else 1

    @property
    def column_count(self) -> int:
        """Elements of one slice of the first dimension, each of which belongs to another column."""
        shape = self.base.info.shape
        return self.numel // shape[0] if shape else 1

    @property
    def reads_base(self) -> bool:
        """Whether the reference's own values take part; a tensor that is left out is only compared with others."""
        return reads_base(self.method) and (self.stored != "nothing" or any(self.models))

    @property
    def sources(self) -> tuple[TensorLocation | None, ...]:
        """What is read: of the reference, then of each model; None where nothing is."""
        return (self.base if self.reads_base else None, *self.models)

    @property
    def stretches(self) -> int:
        """Stretches of input files that are read, at most."""
        return sum(
            1 if source.derived is None else source.derived.stretches for source in self.sources if source is not None
        )

    @property
    def folded_bytes(self) -> int:
        """Bytes of all inputs in windows, looked at once: derived ones as they are computed, not as they are stored."""
        derived = [source for source in self.sources if source is not None and source.derived is not None]
        return self.read_bytes + sum(source.info.nbytes - source.read_bytes for source in derived)

    @property
    def has_task_vectors(self) -> bool:
        """Whether differences to the reference are merged."""
        return self.method is not None and self.method.merges_task_vectors

    def model_of(self, position: int) -> int:
        """Which of `Plan.models` stands at a position of `models`."""
        return self.origins[position + 1] - 1

    def position_of(self, model: int) -> int:
        """Where one of `Plan.models` that takes part stands in `models`."""
        return self.origins.index(model + 1, 1) - 1

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape in the output."""
        return (-(-self.numel // 8),) if self.stored == "bits" else self.base.info.shape

    @property
    def write_bytes(self) -> int:
        return self.out_bytes(self.numel)

    def out_bytes(self, elements: int) -> int:
        """Bytes in the output of so many elements, the first of which has an index that 8 divides."""
        if self.stored == "values":
            return elements * DTYPES[self.out_dtype].unit_bytes
        return -(-elements // 8) if self.stored == "bits" else 0


def make_task(
    name: str,
    base: TensorLocation,
    models: tuple[TensorLocation | None, ...],
    origins: tuple[int, ...],
    out_dtype: str,
    method: Method | None,
    reason: str,
    orders: tuple[Activations | None, ...] = (),
) -> TensorTask:
    """A task from where its inputs lie; arguments as the fields of TensorTask."""
    info = base.info
    nbytes = info.nbytes
    numel = nbytes // DTYPES[info.dtype].unit_bytes
    read = base.read_bytes if reads_base(method) else 0
    inputs = {info.dtype}
    for source in models:
        if source is not None:
            other = source.info
            inputs.add(other.dtype)
            # Most models are cut like the base; for 100,000 tensors the short cut saves a second.
            same = source.derived is None and other.dtype == info.dtype and other.shape == info.shape
            read += nbytes if same else source.read_bytes
    widest = max(DTYPES[dtype].unit_bytes for dtype in (*inputs, out_dtype))
    double = "F64" in inputs
    return TensorTask(name, base, models, origins, out_dtype, method, reason, numel, double, widest, read, orders)


def reads_base(method: Method | None) -> bool:
    """Whether the reference's own values take part."""
    return method is None or method.reads_base
