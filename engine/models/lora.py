"""A LoRA adapter as PEFT saves it, on its base model: a checkpoint whose changed matrices are computed while reading.

W + alpha / r * (B @ A) (arXiv 2106.09685); with `use_rslora` alpha / sqrt(r) (arXiv 2312.03732). The arithmetic is that
of `derived.LowRank`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, some_names
from ..storage import Store
from .checkpoint import Checkpoint, read_file_header
from .config_json import read_config
from .derived import Factor, LowRank
from .header import DTYPES, TensorInfo
from .location import TensorLocation
from .module_patterns import ModulePatterns
from .names import Known, describe_names, match_names
from .room import Room
from .tied_embeddings import names_embedding, names_head, tied_to
from .tokens.json_members import finite_number

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 16 << 20

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.(?!weight$)[^.]+)?\.weight")
_EMBEDDING_FACTOR = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are."""

MERGE_FIRST = "Merge it into its base with peft (merge_and_unload, then save_pretrained) and name the result."


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says, as far as it decides the weights."""

    rank: int
    alpha: float
    rank_pattern: ModulePatterns
    alpha_pattern: ModulePatterns
    rank_stabilised: bool
    transposed_weights: bool
    """`fan_in_fan_out`: the weights of the changed layers are stored as [in, out]; decides for square ones."""

    def scale(self, module: str, rank: int) -> float:
        """The factor of a module's product."""
        alpha = self.alpha_pattern.value(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(self.rank_pattern.value(module, self.rank))

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": dict(sorted(self.rank_pattern.values.items())),
            "alpha_pattern": dict(sorted(self.alpha_pattern.values.items())),
            "use_rslora": self.rank_stabilised,
            "fan_in_fan_out": self.transposed_weights,
        }


def with_adapter(base: Checkpoint, store: Store, room: Room | None = None) -> Checkpoint:
    """The model that an adapter makes of its base.

    Args:
        base: the base, quantised weights already resolved.
        store: the adapter's folder.
        room: memory for its header and configuration; None: they take what they need.

    Raises:
        ResourceError: they do not fit into the room.
        InputError: no adapter, another kind of adapter, or tensors that do not fit the base; each is named.
    """
    room = room or Room()
    names = store.list()
    if CONFIG_FILE not in names:
        raise InputError(f"{store.url}: no adapter: {CONFIG_FILE} is missing", "Name the folder that PEFT saved.")
    config = read_adapter_config(store, room)
    if WEIGHTS_FILE not in names:
        if PICKLE_FILE in names:
            raise InputError(
                f"{store.url}: pickled weights only ({PICKLE_FILE})",
                "Pickles can run code and are never loaded here. Convert: load the adapter with peft and call "
                "save_pretrained(FOLDER, safe_serialization=True).",
            )
        raise InputError(f"{store.url}: {WEIGHTS_FILE} is missing", "Finish the download.")
    file, header = read_file_header(store, WEIGHTS_FILE, room)
    place = len(base.files)
    stored = {info.name: TensorLocation(place, info) for info in header.tensors}
    changes = _Changes(f"{store.url}/{WEIGHTS_FILE}", base, config).read(stored)
    note = (
        f"{base.url}+{store.url}: the adapter changes {changes.products} matrices and replaces "
        f"{changes.replaced} tensors of {len(base.tensors)}"
    )
    notes = [
        *base.notes,
        note,
        *([describe_names(store.url, base.url, changes.names)] if changes.names else []),
        *changes.notes,
    ]
    files = (*base.files, replace(file, name=f"{store.url}/{file.name}"))
    return replace(
        base,
        url=f"{base.url}+{store.url}",
        files=files,
        tensors=changes.tensors,
        folders=(*(base.folders or (base.url,)), store.url),
        decoding={**base.decoding, "adapter": config.describe()},
        notes=tuple(notes),
        tied=False if changes.unties else base.tied,
    )


def read_adapter_config(store: Store, room: Room | None = None) -> AdapterConfig:
    """adapter_config.json, strictly.

    Raises:
        InputError: it is damaged, or asks for what changes weights in another way than LoRA.
    """
    where = f"{store.url}/{CONFIG_FILE}"
    raw = read_config((room or Room()).read(store, CONFIG_FILE, MAX_CONFIG_BYTES), where, "Fetch the adapter again.")
    _refuse_other_kinds(raw, where)
    rank, alpha = raw.get("r"), finite_number(raw.get("lora_alpha"))
    if type(rank) is not int or rank < 1:
        raise InputError(f"{where}: r is {str(rank)[:80]}, expected a positive whole number")
    if alpha is None:
        raise InputError(f"{where}: lora_alpha is {str(raw.get('lora_alpha'))[:80]}, expected a number")
    return AdapterConfig(
        rank,
        alpha,
        _patterns(raw, "rank_pattern", where),
        _patterns(raw, "alpha_pattern", where),
        bool(raw.get("use_rslora")),
        bool(raw.get("fan_in_fan_out")),
    )


def _patterns(raw: Mapping[str, Any], key: str, where: str) -> ModulePatterns:
    patterns = raw.get(key) or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else [("", None)]:
        if finite_number(value) is None or (key == "rank_pattern" and (type(value) is not int or value < 1)):
            raise InputError(f"{where}: {key} is damaged at {pattern[:80]!r}: {str(value)[:80]}")
    return ModulePatterns(patterns, f"{where}: {key}")


def _refuse_other_kinds(raw: Mapping[str, Any], where: str) -> None:
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type is {str(kind)[:80]}; only LORA adapters are supported", MERGE_FIRST)
    for key, what in (
        ("use_dora", "DoRA"),
        ("use_qalora", "QALoRA"),
        ("use_bdlora", "block-diagonal LoRA"),
        ("lora_bias", "a bias of its own (lora_bias)"),
        ("layer_replication", "replicated layers"),
        ("alora_invocation_tokens", "activated LoRA"),
        ("trainable_token_indices", "single trained tokens (trainable_token_indices)"),
        ("target_parameters", "bare parameters (target_parameters)"),
        ("megatron_config", "Megatron layers"),
    ):
        if raw.get(key):
            raise InputError(f"{where}: the adapter uses {what}, which is not supported", MERGE_FIRST)
    start = raw.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise InputError(
            f"{where}: init_lora_weights is {str(start)[:80]}, which changes the base's own weights, too",
            "Convert the adapter with peft (save_pretrained with path_initial_model_for_weight_conversion) or merge it "
            "there and name the result.",
        )


class _Changes:
    """The base's tensors with the adapter's changes."""

    def __init__(self, where: str, base: Checkpoint, config: AdapterConfig) -> None:
        self._where = where
        self._base = base
        self._config = config
        self.tensors = dict(base.tensors)
        self.products = 0
        self.replaced = 0
        self.unties = False
        self.names: dict[str, str] = {}
        """The base's names of what the adapter calls otherwise."""
        self.notes: tuple[str, ...] = ()

    def read(self, stored: Mapping[str, TensorLocation]) -> _Changes:
        """Apply every tensor of the adapter, or say which cannot be."""
        factors: dict[tuple[str, bool], dict[str, TensorLocation]] = {}
        whole: dict[str, TensorLocation] = {}
        for name, location in stored.items():
            if "lora_magnitude_vector" in name:
                raise InputError(f"{self._where}: {name!r} is DoRA's, which is not supported", MERGE_FIRST)
            plain = _WRAPPER.sub("", name.removeprefix(PREFIX))
            linear, embedding = _FACTOR.fullmatch(plain), _EMBEDDING_FACTOR.fullmatch(plain)
            match = linear or embedding
            if match is not None:
                pair = factors.setdefault((match["module"], linear is None), {})
                if match["side"] in pair:
                    raise InputError(
                        f"{self._where}: several adapters in one file: {name!r} is there twice", MERGE_FIRST
                    )
                pair[match["side"]] = location
            else:
                whole[plain] = location
        base = Known(self._base.tensors, self._base.architecture, self._base.url)
        own = [*whole, *(f"{module}.weight" for module, _ in factors)]
        self.names = match_names(Known(dict.fromkeys(own), None, self._where), base)
        whole = {self.names.get(name, name): location for name, location in whole.items()}
        unknown = [name for name in whole if name not in self._base.tensors and not self._unties(name)]
        for module, _ in factors:
            name = self._weight_of(module)
            if name not in self._base.tensors and not self._gives_own_weight(name):
                unknown.append(name)
        if unknown:
            raise InputError(
                f"{self._where}: {len(unknown)} tensors match nothing in {self._base.url}: "
                f"{some_names(sorted(unknown))}",
                "The adapter was trained on another model, or on one that names its tensors differently.",
            )
        if not stored:
            raise InputError(f"{self._where}: the adapter has no tensors")
        for name, location in whole.items():
            info = replace(location.info, name=name)
            self.tensors[name] = replace(location, info=info)
            self.replaced += 1
        for (module, is_embedding), pair in factors.items():
            self._multiply(module, is_embedding, pair)
        return self

    def _weight_of(self, module: str) -> str:
        """The base's name of a module's weight."""
        return self.names.get(f"{module}.weight", f"{module}.weight")

    def _unties(self, name: str) -> bool:
        """Whether this is the head of its own that an adapter gives a base whose head is its embedding."""
        has_embedding = any(names_embedding(other) for other in self._base.tensors)
        found = tied_to(self._base, name) is not None or (names_head(name) and has_embedding)
        self.unties |= found
        return found

    def _gives_own_weight(self, name: str) -> bool:
        """Give a tensor that the base does not store, because it is tied to another, that one's values.

        What factors of it change is then a tensor of its own, as it is while the adapter is at work.
        """
        source = tied_to(self._base, name)
        if source is None:
            return False
        location = self._base.tensors[source]
        self.tensors[name] = replace(location, info=replace(location.info, name=name))
        self.notes += (f"{name} is tied to {source} in {self._base.url}; the adapter makes it a tensor of its own",)
        self.unties = True
        return True

    def _multiply(self, module: str, is_embedding: bool, pair: Mapping[str, TensorLocation]) -> None:
        name = self._weight_of(module)
        weight = self.tensors[name]
        if set(pair) != {"A", "B"}:
            missing = "A" if "B" in pair else "B"
            raise InputError(f"{self._where}: {module!r} lacks its lora_{missing}", "Fetch the adapter again.")
        a, b = pair["A"], pair["B"]
        for location in (weight, a, b):
            kind = DTYPES[location.info.dtype]
            if kind.kind != "float" or kind.bits > 32:
                raise InputError(f"{self._where}: {module!r}: {location.info.name!r} is {kind.name}", MERGE_FIRST)
        transposed = self._is_transposed(module, is_embedding, weight.info, a.info, b.info)
        rank = a.info.shape[0]
        if rank != self._config.rank_of(module):
            raise InputError(
                f"{self._where}: {module!r} has rank {rank}, {CONFIG_FILE} says {self._config.rank_of(module)}",
                "The two files do not belong together.",
            )
        left, right = (Factor(a, 1, True), Factor(b, 0, True)) if transposed else (Factor(b, 0), Factor(a, 0))
        product = LowRank(weight, left, right, self._config.scale(module, rank))
        info = TensorInfo(name, "F32", weight.info.shape, 0)
        self.tensors[name] = TensorLocation(weight.file, info, product)
        self.products += 1

    def _is_transposed(self, module: str, is_embedding: bool, weight: TensorInfo, a: TensorInfo, b: TensorInfo) -> bool:
        """Whether (B @ A) transposed has the shape of the weight, as embeddings and Conv1D layers have it."""
        fits = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
        plain = fits and weight.shape == (b.shape[0], a.shape[1])
        turned = fits and weight.shape == (a.shape[1], b.shape[0])
        if not plain and not turned:
            raise InputError(
                f"{self._where}: {module!r} has A {list(a.shape)} and B {list(b.shape)}, which do not fit the weight "
                f"{list(weight.shape)} of {self._base.url}",
                "Only matrices are supported; the adapter may have been trained on another model.",
            )
        return turned and (not plain or is_embedding or self._config.transposed_weights)
