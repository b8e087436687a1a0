"""The numbered layers of a language model: which tensors are theirs, and what config.json says of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

Config = Mapping[str, Any]

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How configurations call the number of layers."""
LANGUAGE_PARTS = ("text_config", "llm_config", "language_config")
"""Where the configuration of a model of several kinds of input keeps its language model's."""
INDEX_LISTS = ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "cross_attention_layers")
"""Lists of layer numbers."""
LAYER_RULES = (
    "first_k_dense_replace",
    "num_nextn_predict_layers",
    "num_kv_shared_layers",
    "sliding_window_pattern",
    "full_attention_interval",
    "no_rope_layer_interval",
    "interleave_moe_layer_step",
    "attn_layer_period",
    "expert_layer_period",
    "decoder_sparse_step",
)
"""Numbers from which a model's code derives what a layer is like."""
MAX_DIGITS = 18
_NOT_BY_LAYER = re.compile(r"architectures|.*(ids?|tokens)")
_HEADS = re.compile(
    r"lm_head|embed_out|output|output_layer|score|classifier|pre_classifier|pooler|cls|head|qa_outputs|v_head|vocab_.*"
)
"""What stands behind the last layer, by the part of a name where it leaves the path to the layers."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of one model: tensors called `{prefix}{number}.{rest}`, numbered from 0."""

    prefix: str
    """With its dot: `model.layers.`"""
    count: int

    def place(self, name: str) -> tuple[int, str] | None:
        """(number, rest) of a layer's tensor, None for any other."""
        if not name.startswith(self.prefix):
            return None
        number, dot, rest = name[len(self.prefix) :].partition(".")
        return (int(number), rest) if dot and is_number(number) else None

    def name(self, number: int, rest: str) -> str:
        return f"{self.prefix}{number}.{rest}"

    def is_behind(self, name: str) -> bool:
        """Whether a tensor outside the layers stands behind the last one: final norm and heads."""
        way, parts = self.prefix[:-1].split("."), name.split(".")
        depth = next((i for i, (a, b) in enumerate(zip(way, parts, strict=False)) if a != b), 0)
        part = parts[depth].lower()
        norm = ("norm" in part or part.startswith("ln_")) and "emb" not in part
        return norm or _HEADS.fullmatch(part) is not None


def find_layers(names: Iterable[str], declared: int | None, where: str) -> Layers:
    """The layers of a language model, by the first number in the dotted names of its tensors.

    Args:
        names: of all tensors of a checkpoint.
        declared: the number of layers by its configuration; None when that is unknown.
        where: the checkpoint, for messages.

    Raises:
        InputError: there are no layers of that number, or several sets of layers could be meant.
    """
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts[:-1]) if is_number(part)), 0)
        if at:
            found[".".join(parts[:at]) + "."].add(int(parts[at]))
    whole = {prefix: len(numbers) for prefix, numbers in found.items() if numbers == set(range(len(numbers)))}
    fitting = [prefix for prefix, count in whole.items() if declared in (None, count)]
    if len(fitting) == 1:
        return Layers(fitting[0], whole[fitting[0]])
    seen = ", ".join(f"{prefix}* ({len(numbers)})" for prefix, numbers in sorted(found.items())) or "none"
    said = "config.json does not say how many there are" if declared is None else f"config.json says {declared}"
    raise InputError(
        f"{where}: cannot tell which tensors are the layers that `slices` cuts: {said}; numbered sets found: {seen}",
        "slices need one set of layers, numbered from 0, as many as config.json says; merge this model as a whole",
    )


def check_layers(names: Iterable[str], prefix: str, declared: int | None, where: str) -> Layers:
    """The layers of a checkpoint that is sliced together with one whose layers are called `prefix`.

    Raises:
        InputError: it has no such layers, or another number than its configuration says.
    """
    unlimited = Layers(prefix, 0)
    numbers = {place[0] for name in names if (place := unlimited.place(name)) is not None}
    if not numbers or numbers != set(range(len(numbers))) or declared not in (None, len(numbers)):
        said = "" if declared is None else f" and config.json says {declared}"
        raise InputError(
            f"{where}: expected layers {prefix}0 and following without a gap, as config.json counts them; "
            f"found {len(numbers)}{said}",
            "slices can be taken only from models whose layers have the same names",
        )
    return Layers(prefix, len(numbers))


def is_number(text: str) -> bool:
    """Whether a part of a tensor's name may be the number of a layer: digits, few enough for a number of 64 bits."""
    return text.isdecimal() and text.isascii() and len(text) <= MAX_DIGITS


# -- config.json -------------------------------------------------------------------------------------------------------


def declared_layers(config: Config | None) -> int | None:
    """The number of layers of the language model by its configuration; None when it does not say."""
    part = _at(config, _language_part(config)) if config is not None else {}
    for key in COUNT_KEYS:
        if _is_count(part.get(key)):
            return int(part[key])
    return None


def config_edits(donor: Config, layers: Sequence[tuple[Config, int]], where: str) -> dict[str, Any]:
    """What config.json must say of a model that was put together from layers.

    Args:
        donor: the configuration that the output gets.
        layers: per layer of the output, the configuration that describes it and its number there.
        where: the file, for messages.

    Returns:
        Values by path of keys, joined by `/`: the number of layers, and lists with one entry per layer cut in step;
        only those that are not there already.

    Raises:
        InputError: the configuration tells layers apart in a way that cannot be cut.
    """
    count = declared_layers(donor)
    assert count is not None, "asked only where the configuration says how many layers there are"
    moved = [number for _, number in layers] != [*range(count)]
    path = _language_part(donor)
    part = _at(donor, path)
    edits: dict[str, Any] = {}
    for key, value in part.items():
        here = "/".join((*path, key))
        if key in COUNT_KEYS and value == count:
            edits[here] = len(layers)
        elif isinstance(value, list) and value and key in INDEX_LISTS:
            if moved:
                text = f"{where}: {here} lists layers by number, and slices give layers other numbers"
                raise InputError(text, "empty the list if it has no effect, or merge whole models")
        elif isinstance(value, list) and len(value) == count and not _NOT_BY_LAYER.fullmatch(key):
            edits[here] = [_entry(config, key, number, where) for config, number in layers]
    if path:
        edits |= {key: len(layers) for key in COUNT_KEYS if donor.get(key) == count}
    return {key: value for key, value in edits.items() if value != _at(donor, tuple(key.split("/")))}


def layer_rules(donor: Config) -> list[str]:
    """Keys of a configuration that say by number what a layer is like, as `key: value`."""
    path = _language_part(donor)
    part = _at(donor, path)
    wanted = [key for key in LAYER_RULES if _is_count(part.get(key)) and part[key] > (key == "decoder_sparse_step")]
    return [f"{'.'.join((*path, key))}: {part[key]}" for key in wanted]


def _entry(config: Config, key: str, number: int, where: str) -> Any:
    found = _at(config, _language_part(config)).get(key)
    if isinstance(found, list) and len(found) == declared_layers(config):
        return found[number]
    raise InputError(
        f"{where}: {key} has one entry per layer, and the configuration of another model in `slices` has none for its "
        f"layer {number}",
        "add the key to that model's config.json",
    )


def _language_part(config: Config) -> tuple[str, ...]:
    """The path of keys to the language model's own configuration."""
    for key in LANGUAGE_PARTS:
        part = config.get(key)
        if isinstance(part, dict) and any(_is_count(part.get(name)) for name in COUNT_KEYS):
            return (key,)
    return ()


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
