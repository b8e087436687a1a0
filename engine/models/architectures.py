"""What transformers knows of tensor names, per architecture: renamings, prefix, ties, keys to ignore; from a table.

`make architectures` writes the table from the installed transformers; reading it needs none. Names and patterns are
those that transformers uses for the class as it is now; old names become new ones by `Architecture.canonical`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("architectures.json")

_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining", "Model")
"""Endings of the class that stands for a model type, first choice first."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """One renaming of transformers' loading: the first match of a pattern is replaced."""

    pattern: re.Pattern[str]
    """One alternative per old spelling, in groups named g0, g1 and so on."""
    targets: tuple[str, ...]
    scope: str | None
    """The submodule whose names it changes; None: all names."""
    offset: int = 0
    """Added to the number that the pattern captures."""
    by_group: bool = False
    """Whether each alternative has a target of its own."""

    def apply(self, name: str, prefix: str) -> str:
        """The new name; the same one where nothing matches. `prefix` may stand before the scope, or lack."""
        before = _before_scope(name, self.scope, prefix)
        rest = name[len(before or "") :]
        match = self.pattern.search(rest) if before is not None else None
        if match is None:
            return name
        group = next(g for g, value in match.groupdict().items() if value is not None)
        target = self.targets[int(group[1:]) if self.by_group else 0]
        first = self.pattern.groupindex[group]

        def captured(found: re.Match[str]) -> str:
            value = match.group(first + int(found[1])) or ""
            return str(int(value) + self.offset) if self.offset else value

        # As transformers does: the text of the match, wherever it stands first.
        return (before or "") + rest.replace(match.group(0), re.sub(r"\\(\d)", captured, target), 1)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Tensors that loading computes from stored ones, such as one tensor for all experts of a layer."""

    pattern: re.Pattern[str]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[tuple[str, Mapping[str, Any]], ...]
    """Names and arguments of transformers' operations, in order."""
    scope: str | None

    def apply(self, name: str, prefix: str) -> tuple[str, str, int] | None:
        """The first target that a tensor becomes a part of, the text that matched, and which source it is."""
        before = _before_scope(name, self.scope, prefix)
        rest = name[len(before or "") :]
        match = self.pattern.search(rest) if before is not None else None
        if match is None:
            return None
        source = next(int(group[1:]) for group, value in match.groupdict().items() if value is not None)
        return (before or "") + rest.replace(match.group(0), self.targets[0], 1), match.group(0), source


def _before_scope(name: str, scope: str | None, prefix: str) -> str | None:
    """What stands before the names that a rule changes; None where it does not reach this name."""
    if scope is None:
        return ""
    inner, outer = f"{scope}." if scope else "", f"{prefix}." if prefix else ""
    return next((text for text in (outer + inner, inner) if name.startswith(text)), None)


@dataclass(frozen=True, slots=True)
class Tie:
    """Two names of one tensor, or of all tensors of two modules, while the configuration says so."""

    target: str
    """A pattern that names match from their start: the copy."""
    source: str
    """A pattern likewise: what is stored."""
    key: str
    """Where config.json says whether they are tied, its parts joined by `/`."""
    default: bool
    """What holds where it does not say."""


@dataclass(frozen=True)
class Architecture:
    """What transformers knows of one class of models."""

    name: str
    model_type: str
    prefix: str
    """What the names of the model without a head lack, without the dot; may be empty."""
    renamings: tuple[Renaming, ...]
    conversions: tuple[Conversion, ...]
    ties: tuple[Tie, ...]
    missing: tuple[str, ...]
    """Patterns (searched) of names that a file may lack."""
    unexpected: tuple[str, ...]
    """Patterns (searched) of names that a file may have beyond the model's."""
    buffers: tuple[str, ...]
    """Endings, with `*` for numbers, of names of stored tensors that are no parameters."""

    def canonical(self, name: str) -> str:
        """The name as the class has it now; its own where no renaming matches. The prefix stays as it is."""
        for renaming in self.renamings:
            name = renaming.apply(name, self.prefix)
        return name

    def passes_over(self, name: str) -> bool:
        """Whether loading ignores a tensor of this name in silence."""
        return any(pattern.search(name) for pattern in self._unexpected)

    def may_lack(self, name: str) -> bool:
        """Whether loading misses no tensor of this name."""
        return any(pattern.search(name) for pattern in self._missing)

    def is_buffer(self, name: str) -> bool:
        """Whether the tensor is stored and loaded but no parameter; of a name as the class has it now."""
        parts = re.sub(r"(?<=\.)\d+(?=\.)", "*", name).split(".")
        return any(".".join(parts[at:]) in self._buffers for at in range(len(parts)))

    @cached_property
    def _unexpected(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(re.compile, self.unexpected))

    @cached_property
    def _missing(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(re.compile, self.missing))

    @cached_property
    def _buffers(self) -> frozenset[str]:
        return frozenset(self.buffers)


def architecture_of(model_type: str) -> Architecture:
    """The architecture that stands for a model type; KeyError where the table has none."""
    return _architecture(_by_model_type()[model_type])


def find_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture that a config.json names, by `architectures`, else by `model_type`; None: not in the table."""
    entries, names = _table()["architectures"], config.get("architectures")
    named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    found = next((name for name in named if name in entries), None)
    model_type = config.get("model_type")
    if found is None and isinstance(model_type, str):
        found = _by_model_type().get(model_type)
    return _architecture(found) if found is not None else None


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.read_bytes())
    return found


@cache
def _by_model_type() -> dict[str, str]:
    """Per model type the class that stands for it."""
    found: dict[str, tuple[int, str]] = {}
    for name, entry in _table()["architectures"].items():
        rank = next((i for i, ending in enumerate(_HEADS) if name.endswith(ending)), len(_HEADS))
        found[entry["model_type"]] = min((rank, name), found.get(entry["model_type"], (rank, name)))
    return {model_type: name for model_type, (_, name) in found.items()}


@cache
def _architecture(name: str) -> Architecture:
    entry = _table()["architectures"][name]
    renamings: list[Renaming] = []
    conversions: list[Conversion] = []
    for item in entry.get("rules", ()):
        number, scope = item if isinstance(item, list) else (item, None)
        for rule in _table()["rules"][number]:
            pattern, targets = re.compile(rule["from"]), tuple(rule["to"])
            if "operations" not in rule:
                renamings.append(Renaming(pattern, targets, scope, rule.get("offset", 0), rule.get("group", False)))
                continue
            operations = tuple((kind, dict(*rest)) for kind, *rest in rule["operations"])
            conversions.append(Conversion(pattern, tuple(rule["sources"]), targets, operations, scope))
    return Architecture(
        name,
        entry["model_type"],
        entry["prefix"],
        tuple(renamings),
        tuple(conversions),
        tuple(Tie(*row) for row in entry.get("tied", ())),
        tuple(entry.get("missing", ())),
        tuple(entry.get("unexpected", ())),
        tuple(entry.get("buffers", ())),
    )
