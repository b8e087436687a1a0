"""What the installed transformers knows of every architecture's tensor names, as `engine/models/architectures.json`.

`make architectures` writes it. Models are built on the meta device from the defaults of their configuration, so nothing
is loaded and nothing computed; planning reads the file and needs no transformers.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "engine" / "models" / "architectures.json"

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
"""Names of layers repeat; building few of them takes a minute less."""


def main() -> None:
    """Write the table."""
    table = make_table(architecture_names())
    text = _one_entry_per_line(table)
    TARGET.write_text(text, encoding="utf-8")
    print(f"{len(table['architectures'])} architectures, {len(table['rules'])} sets of rules, {len(text)} bytes")
    print(f"known by their classes alone: {', '.join(table['unknown'])}")


def architecture_names() -> list[str]:
    """Every class that an Auto class can load."""
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for key, mapping in vars(modeling_auto).items():
        if key.startswith("MODEL") and key.endswith("_MAPPING_NAMES"):
            for value in mapping.values():
                names.update([value] if isinstance(value, str) else value)
    return sorted(names)


def make_table(names: list[str]) -> dict[str, Any]:
    """The content of the file for some architectures."""
    import transformers

    rules: dict[str, int] = {}
    found, unbuilt = {}, []
    for name in names:
        architecture = getattr(transformers, name, None)
        try:
            found[name] = describe(build(architecture), rules)
        except Exception:  # noqa: BLE001 - whatever a class's constructor lacks here: a library, a default
            unbuilt.append(name)
            try:
                found[name] = describe_class(architecture, rules)
            except (ImportError, AttributeError):  # a stand-in for a class whose library is missing, or no class
                continue
    return {
        "transformers": transformers.__version__,
        "rules": [json.loads(text) for text in rules],
        "architectures": found,
        "unbuilt": unbuilt,
    }


def build(architecture: Any) -> Any:
    """A model of default size and few layers, without memory for its weights; else with all its layers."""
    import torch

    defaults = architecture.config_class()
    few = {name: 2 for name in LAYERS if isinstance(getattr(defaults, name, None), int)}
    for changes in (few, {}):
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                return architecture(architecture.config_class(**changes))
        except Exception:
            if not changes:
                raise
    raise AssertionError


def describe(model: Any, rules: dict[str, int]) -> dict[str, Any]:
    """One architecture's entry; sets of rules that are new get the next numbers."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping

    numbered: list[Any] = []
    for scope, group in groupby(get_model_conversion_mapping(model, add_legacy=False), lambda rule: rule.scope_prefix):
        number = _number(group, rules)
        numbered.append(number if scope is None else [number, scope])
    numbered.append(_number(get_checkpoint_conversion_mapping("legacy"), rules))
    entry = {
        "model_type": model.config.model_type,
        "prefix": model.base_model_prefix,
        "rules": numbered,
        "tied": _tied(model),
        "missing": sorted(model._keys_to_ignore_on_load_missing or ()),
        "unexpected": sorted(_unexpected(model)),
        "buffers": _buffers(model),
    }
    return {key: value for key, value in entry.items() if value or key in ("model_type", "prefix")}


def describe_class(architecture: Any, rules: dict[str, int]) -> dict[str, Any]:
    """The entry of an architecture that cannot be built here, from its class and that of its model without a head."""
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    config = architecture.config_class
    numbered: list[Any] = []
    own = get_checkpoint_conversion_mapping(architecture.__name__)
    own = get_checkpoint_conversion_mapping(config.model_type) if own is None else own
    if own is not None:
        numbered.append(_number(own, rules))
    for name, part in sorted(vars(sys.modules[architecture.__module__]).items()):
        is_part = isinstance(part, type) and issubclass(part, PreTrainedModel) and part is not architecture
        found = get_checkpoint_conversion_mapping(name) if is_part and part.config_class is config else None
        if found is not None and "For" in architecture.__name__:
            numbered.append([_number(found, rules), ""])
    numbered.append(_number(get_checkpoint_conversion_mapping("legacy"), rules))
    default = bool(getattr(config, "tie_word_embeddings", False))
    tied = (architecture._tied_weights_keys or {}).items()
    entry = {
        "model_type": config.model_type,
        "prefix": architecture.base_model_prefix,
        "rules": numbered,
        "tied": [[target, source, "tie_word_embeddings", default] for target, source in tied],
        "missing": sorted(architecture._keys_to_ignore_on_load_missing or ()),
        "unexpected": sorted(architecture._keys_to_ignore_on_load_unexpected or ()),
    }
    return {key: value for key, value in entry.items() if value or key in ("model_type", "prefix")}


def _number(transforms: Iterable[Any], rules: dict[str, int]) -> int:
    """The number of a set of rules."""
    return rules.setdefault(_compact([_rule(rule) for rule in transforms]), len(rules))


def _rule(transform: Any) -> dict[str, Any]:
    kind = type(transform).__name__
    found: dict[str, Any] = {"from": transform.compiled_sources.pattern, "to": list(transform.target_patterns)}
    if kind == "Inkling2IndexOffsetWeightRename":
        found["offset"] = transform.offset
    elif kind == "GroupWeightRename":
        found["group"] = True
    elif operations := getattr(transform, "operations", None):
        found["sources"] = list(transform.source_patterns)
        found["operations"] = [_operation(operation) for operation in operations]
    return found


def _operation(operation: Any) -> list[Any]:
    simple = {k: v for k, v in vars(operation).items() if isinstance(v, str | int | list | tuple) and k[0] != "_"}
    return [type(operation).__name__, simple] if simple else [type(operation).__name__]


def _tied(model: Any) -> list[list[Any]]:
    """[target, source, key of config.json that says whether, its default], submodels included."""
    from transformers import PreTrainedModel

    paths = _config_paths(model.config)
    found = []
    for prefix, part in model.named_modules(remove_duplicate=False):
        if not isinstance(part, PreTrainedModel) or not part._tied_weights_keys:
            continue
        path = paths.get(id(part.config), "")
        key = f"{path}/tie_word_embeddings" if path else "tie_word_embeddings"
        default = bool(getattr(part.config, "tie_word_embeddings", False))
        before = f"{prefix}." if prefix else ""
        for target, source in part._tied_weights_keys.items():
            row = [before + target, before + source, key, default]
            if row not in found:
                found.append(row)
    return found


def _config_paths(config: Any, before: str = "") -> dict[int, str]:
    found = {id(config): before}
    for name in getattr(config, "sub_configs", ()):
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "to_dict"):
            found |= _config_paths(part, f"{before}/{name}" if before else name)
    return found


def _unexpected(model: Any) -> set[str]:
    """Patterns of names that loading passes over in silence; see `_adjust_missing_and_unexpected_keys`."""
    found = set(model._keys_to_ignore_on_load_unexpected or ())
    names = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in names):
        found.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in names):
        found.add(r"(^|\.)position_ids$")
    return found


def _buffers(model: Any) -> list[str]:
    """Shortest endings, with `*` for numbers, of names that are stored and loaded but never trained."""
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    parameters: dict[str, set[str]] = {}
    for name in trained:
        parameters.setdefault(name.rpartition(".")[2], set()).add(_pattern(name))
    found = set()
    for name in {_pattern(name) for name in model.state_dict() if name not in trained}:
        parts = name.split(".")
        others = parameters.get(parts[-1], set())
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found.add(next(e for e in endings if not any(f".{other}".endswith(f".{e}") for other in others)))
    return sorted(found)


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _one_entry_per_line(table: dict[str, Any]) -> str:
    """JSON whose differences can be read."""
    lines = [f'{{"transformers": {json.dumps(table["transformers"])},', '"rules": [']
    lines.append(",\n".join(_compact(found) for found in table["rules"]))
    lines += ["],", '"architectures": {']
    lines.append(",\n".join(f"{json.dumps(name)}: {_compact(found)}" for name, found in table["architectures"].items()))
    lines += ["},", f'"unbuilt": {json.dumps(table["unbuilt"])}}}']
    return "\n".join(lines) + "\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main())
