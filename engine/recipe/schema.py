"""The keys of a recipe, their types and defaults."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SkipValidation,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from ..methods import MethodSchema
from .chat_templates import CHAT_TEMPLATES
from .parameters import Setting, read_number
from .task_names import TASK_NAME
from .text import KeyPath, Places, did_you_mean, shorten
from .tokenizer_keys import TokenizerKeys, read_chat_template, read_tokenizer_keys

OUTPUT_DTYPES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""Output dtypes: the name in recipes (PyTorch's) and the name in safetensors headers."""


def _size(raw: Any) -> int:
    """Bytes from `2000000000`, `2GB` (10^9) or `1.5GiB` (2^30)."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        size = Fraction(raw)
    else:
        match = _SIZE.fullmatch(raw.strip()) if isinstance(raw, str) else None
        if match is None:
            raise ValueError(f"expected a size such as 2GB, 500MB, 1GiB or a number of bytes, got {shorten(raw)}")
        unit = match["unit"].upper()
        power = "BKMGT".index(unit[0]) if unit else 0
        size = Fraction(match["number"]) * (1024 if "I" in unit else 1000) ** power
    if not 1 <= size < 2**62 or size.denominator != 1:
        raise ValueError(f"expected a whole number of bytes, at least 1, got {shorten(raw)}")
    return int(size)


_SIZE = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,9})?)\s*(?P<unit>|B|[KMGT]i?B)", re.IGNORECASE)


def _dtype(raw: Any) -> Any:
    """PyTorch's names, as `bfloat16` or `torch.bfloat16`."""
    if raw is None:
        return None
    name = raw.removeprefix("torch.") if isinstance(raw, str) else raw
    if name not in OUTPUT_DTYPES:
        near = did_you_mean(raw, OUTPUT_DTYPES)
        raise ValueError(f"expected one of {', '.join(OUTPUT_DTYPES)}, got {shorten(raw)}{near}")
    return name


def _reference(raw: Any) -> Any:
    """A model's name, path or URL, or BASE+ADAPTER; credentials in it would reach logs and manifests."""
    if not isinstance(raw, str) or not raw.strip() or not raw.isprintable():
        raise ValueError(f"expected a directory, a URL or owner/name, got {shorten(raw)}")
    if re.match(r"[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@", raw, re.IGNORECASE):
        raise ValueError("a URL must hold no credentials; use the environment or your cloud's configuration")
    return raw


def _patterns(raw: Any) -> Any:
    if not isinstance(raw, list) or not all(isinstance(item, str) and item for item in raw):
        raise ValueError(f"expected a list of tensor name patterns such as '*.embed_tokens.*', got {shorten(raw)}")
    return tuple(raw)


def _names(raw: Any) -> Any:
    """Patterns with `*`, and what stands in their place."""
    pairs = raw.items() if isinstance(raw, dict) else ()
    if not pairs or not all(isinstance(text, str) and text for pair in pairs for text in pair):
        raise ValueError(f"expected a mapping such as {{'encoder.*': 'model.encoder.*'}}, got {shorten(raw)}")
    for pattern, name in pairs:
        if pattern.count("*") != name.count("*"):
            raise ValueError(f"expected as many `*` in {shorten(name)} as in {shorten(pattern)}")
    return raw


def _card(raw: Any) -> Any:
    if raw is not True and raw is not False and raw != "base":
        raise ValueError(f"expected true, false or base, got {shorten(raw)}")
    return raw


def _tokenizer(raw: Any) -> Any:
    return None if raw is None else read_tokenizer_keys(raw, _reference)


def _chat_template(raw: Any) -> Any:
    return read_chat_template(raw, CHAT_TEMPLATES)


def _layer_range(raw: Any) -> tuple[int, int]:
    """[first, end): layer numbers from 0, the end not included; whole numbers may be quoted."""
    numbers = [_whole_number(item) for item in raw] if isinstance(raw, list) else []
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise ValueError(f"expected [first, end] with 0 <= first < end, the end not included; got {shorten(raw)}")
    return numbers[0], numbers[1]


def _whole_number(raw: Any) -> int:
    number = read_number(raw, 0, 1 << 31)
    return -1 if number is None or number != int(number) else int(number)


def _residual_weight(raw: Any) -> None:
    if raw is not None:
        raise ValueError("not supported: mergekit accepts residual_weight and does nothing with it; remove the key")


def _name(text: str) -> str:
    """As TASK_NAME; marks that belong to letters count as such. pydantic's own patterns take 50 ms to compile."""
    plain = "".join("_" if unicodedata.category(c) in ("Mn", "Mc", "Me", "Pc") or c in _JOINERS else c for c in text)
    if not re.fullmatch(TASK_NAME, plain):
        raise ValueError(f"expected letters, digits, `_`, `-` and `.`, at most 100, got {shorten(text)}")
    return text


_JOINERS = "\u200c\u200d"
Reference = Annotated[StrictStr, BeforeValidator(_reference)]
Dtype = Annotated[StrictStr | None, BeforeValidator(_dtype)]
Name = Annotated[StrictStr, AfterValidator(_name)]
Names = Annotated[Mapping[StrictStr, StrictStr], BeforeValidator(_names)]
Settings = Annotated[Mapping[str, Setting], SkipValidation]  # read by settings.read_parameters
_FROZEN = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
_PART = ConfigDict(**_FROZEN, defer_build=True)
"""Of what is read as a part of a recipe: who reads it alone, and nobody else, needs a validator of its own."""


class Layout(BaseModel):
    """How the merged checkpoint is laid out."""

    model_config = _PART

    shard_size_bytes: Annotated[int, BeforeValidator(_size)] = Field(default=2_000_000_000, alias="shard_size")
    """Tensors fill a shard up to this size; a larger tensor has a shard of its own."""
    experts: Literal["as-base", "packed", "apart"] = "as-base"
    """Experts of a layer in one tensor or one by one."""
    card: Annotated[bool | Literal["base"], BeforeValidator(_card)] = True
    """Whether README.md and mergekit_config.yml say how the output was made; `base`: README.md is the base's."""
    ties: Literal["as-base", "apart"] = "as-base"
    """Tied tensors stored as the base stores them, or each that a model has as a tensor of its own."""


class ModelEntry(BaseModel):
    """One model to merge."""

    model_config = _PART

    model: Reference
    """Once it is read, with its adapter: BASE+ADAPTER."""
    adapter: Reference | None = None
    """A LoRA adapter that changes the model; becomes a part of `model`."""
    parameters: Settings = Field(default_factory=dict)
    activations: Reference | None = None
    """A file of mean squares that orders this model's changes; None: the recipe's, if it has one."""
    names: Names = Field(default_factory=dict)
    """What this model calls tensors, and what the reference does, where no rule knows; see `names_of`."""
    name: Name | None = None
    """In `emr`, the name of the task and of its folder; None: the last part of the reference."""

    @model_validator(mode="before")
    @classmethod
    def _join_adapter(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not all(isinstance(raw.get(key), str) for key in ("model", "adapter")):
            return raw
        rest = {key: value for key, value in raw.items() if key != "adapter"}
        return rest | {"model": f"{_reference(raw['model'])}+{_reference(raw['adapter'])}"}


def task_name(entry: ModelEntry) -> str:
    """The name of a model's task: its own, or the last part of the reference without a revision."""
    return entry.name or entry.model.rstrip("/").rpartition("/")[2].partition("@")[0]


class SliceSource(ModelEntry):
    """Layers of one model, as a source of one slice."""

    layer_range: Annotated[tuple[int, int], BeforeValidator(_layer_range)]
    """First layer, and the one behind the last."""
    parameters: Settings = Field(default_factory=dict)


class Slice(BaseModel):
    """Layers that follow each other in the output."""

    model_config = _PART

    sources: tuple[SliceSource, ...]
    """What is merged into them; every source gives as many layers."""
    base_model: Reference | None = None
    """The base of this slice; None: the recipe's."""
    parameters: Settings = Field(default_factory=dict)
    residual_weight: Annotated[None, BeforeValidator(_residual_weight)] = None

    @property
    def length(self) -> int:
        """Layers that it gives to the output."""
        first, end = self.sources[0].layer_range
        return end - first


class Recipe(BaseModel):
    """What to merge and how: everything that decides the output's bytes, nothing about how it is executed."""

    model_config = _FROZEN

    merge_method: StrictStr
    base_model: Reference | None = None
    models: tuple[ModelEntry, ...] = ()
    """In recipe order; an entry that names the base is no task vector and is left out."""
    slices: tuple[Slice, ...] = ()
    """Instead of `models`: the layers of the output from the first to the last."""
    parameters: Settings = Field(default_factory=dict)
    exclude: Annotated[tuple[StrictStr, ...], BeforeValidator(_patterns)] = ()
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    dtype: Dtype = None
    out_dtype: Dtype = None
    nonfinite: Literal["error", "keep-base"] = "error"
    overflow: Literal["error", "saturate"] = "error"
    strict: StrictBool = False
    extra_tensors: Literal["error", "ignore"] = "error"
    vocab: Literal["error", "intersect"] = "error"
    allow_unchanged: StrictBool = False
    """Whether a model may change nothing; decides no byte of an output, only whether there is one."""
    activations: Reference | None = None
    """A file of mean squares of input features: it orders changes together with their magnitude."""
    tokenizer_source: Reference | None = None
    tokenizer: Annotated[TokenizerKeys | None, BeforeValidator(_tokenizer)] = None
    chat_template: Annotated[StrictStr | None, BeforeValidator(_chat_template)] = None
    names: Names = Field(default_factory=dict)
    """The same for all models."""
    name: Name | None = None
    output: Layout = Field(default_factory=Layout)

    _places: Places = PrivateAttr(default_factory=Places)
    _method: MethodSchema | None = PrivateAttr(default=None)

    def at(self, path: KeyPath) -> str:
        """What messages call a place in the recipe: file, line and key path."""
        return self._places.describe(path)

    @property
    def method(self) -> MethodSchema:
        """What the method needs; kept here because a process that only runs a plan may lack a user's own module."""
        assert self._method is not None, "parse_recipe has set it"
        return self._method

    @property
    def output_dtype(self) -> str | None:
        """The safetensors name of the output dtype; None: each tensor keeps the base's."""
        chosen = self.out_dtype or self.dtype
        return OUTPUT_DTYPES[chosen] if chosen else None

    @property
    def has_base(self) -> bool:
        """Whether `base_model` stands apart from the models, and is not just one of them that names the reference."""
        bases = (self.base_model, *(part.base_model for part in self.slices))
        return any(base is not None for base in bases) and self.method.base != "listed"

    @property
    def merges_differences(self) -> bool:
        """Whether differences to the base are merged, so that "no difference" leaves the base's value."""
        return self.has_base and self.method.differences

    @property
    def tokenizer_keys(self) -> TokenizerKeys | None:
        """What `tokenizer` or `tokenizer_source` says; None: the base's tokenizer is copied and rows stay in place."""
        if self.tokenizer is None and self.tokenizer_source is not None:
            return TokenizerKeys(source=self.tokenizer_source)
        return self.tokenizer

    def excludes(self, tensor_name: str) -> bool:
        """Whether a tensor is copied from the base instead of merged."""
        return any(fnmatchcase(tensor_name, pattern) for pattern in self.exclude)
