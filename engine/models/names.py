"""One module under several names: a model's tensors under the names that the reference has.

A tensor whose name both have is the same tensor. What is left over on both sides is compared by four sets of rules,
each on what the ones before have left:

1. Both names as the model's class has them now (see `Architecture.canonical`), without the class's prefix.
2. One of them so, the other as it stands: transformers does not rename what has its new name already.
3. Rules for any architecture: see `generic_name`.
4. The same without the module that vision-language models have around their language model: see `text_name`.

Names that wrappers of a training run put before or into others (`module.`, `_orig_mod.`) are left out everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from ..errors import InputError, RecipeError, some_names
from ..json_text import canonical_json
from .architectures import Architecture
from .checkpoint import Checkpoint

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""Of torch.compile, FSDP, activation checkpointing and DeepSpeed; no module of a model is called so."""
_OUTERMOST = re.compile(r"^(?:module\.|base_model\.model\.)+")
"""Of DataParallel, DDP and peft."""
_PREFIX = re.compile(r"^(?:(?:model|transformer|backbone|base_model|module)\.)+")
_NESTED_TEXT = re.compile(r"^language_model\.model\.")
_NESTED_HEAD = re.compile(r"^language_model\.(?=lm_head\.)")
_GAMMA, _BETA = re.compile(r"(?<=\.)gamma$"), re.compile(r"(?<=\.)beta$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
SHOWN_RULES = 8
"""Differences of names that a note spells out."""


class Known(NamedTuple):
    """A set of tensor names and what is known of them."""

    names: Collection[str]
    architecture: Architecture | None
    url: str
    """For messages."""


def plain_name(name: str) -> str:
    """The name without what wrappers of a training run put into it."""
    return _OUTERMOST.sub("", _WRAPPERS.sub("", name))


def generic_name(name: str) -> str:
    """What names have in common whatever the architecture.

    Without prefixes of the whole model (`model.`, `transformer.`, `backbone.`), without the second module around the
    language model that vision-language models had before transformers 4.52 (`language_model.model.`,
    `language_model.lm_head.`), and with `weight` and `bias` for the `gamma` and `beta` of old LayerNorms.
    """
    name = _PREFIX.sub("", plain_name(name))
    name = _NESTED_HEAD.sub("", _NESTED_TEXT.sub("language_model.", name))
    return _BETA.sub("bias", _GAMMA.sub("weight", name))


def text_name(name: str) -> str:
    """What a language model by itself calls a tensor that lies in `language_model.` of a larger model."""
    return generic_name(name).removeprefix("language_model.")


def match_names(model: Known, reference: Known) -> dict[str, str]:
    """By name of the model that the reference does not have, the reference's name of the same tensor.

    Raises:
        InputError: a name could mean two tensors of the reference, or two names mean one.
    """
    left = [name for name in model.names if name not in reference.names]
    gone = [name for name in reference.names if name not in model.names]
    found: dict[str, str] = {}
    if not left or not gone:
        return found
    architecture, other = model.architecture or reference.architecture, reference.architecture or model.architecture

    def current(name: str) -> str:
        return without_prefix(current_name(name, architecture), architecture)

    def others_current(name: str) -> str:
        return without_prefix(current_name(name, other), other)

    def raw(name: str) -> str:
        return without_prefix(plain_name(name), architecture)

    def others_raw(name: str) -> str:
        return without_prefix(plain_name(name), other)

    for own, wanted in ((current, others_current), (current, others_raw), (raw, others_current)):
        _match(model, reference, found, own, wanted)
    for rule in (generic_name, text_name):
        _match(model, reference, found, rule, rule)
    return _with_other_layers(model, reference, found)


def _match(
    model: Known,
    reference: Known,
    found: dict[str, str],
    own: Callable[[str], str],
    wanted: Callable[[str], str],
) -> None:
    """Add the pairs of names that one pair of spellings makes equal."""
    taken = set(found.values())
    left = [name for name in model.names if name not in reference.names and name not in found]
    if not left or not any(name not in model.names and name not in taken for name in reference.names):
        return
    candidates: dict[str, list[str]] = defaultdict(list)
    for name in reference.names:
        if name not in taken:
            candidates[wanted(name)].append(name)
    claims: dict[str, list[str]] = defaultdict(list)
    for name in left:
        meant = candidates.get(own(name), [])
        if len(meant) > 1:
            raise InputError(
                f"{model.url}: {name!r} could be several tensors of {reference.url}: {some_names(meant)}", _SAY_WHICH
            )
        claims[meant[0] if meant else ""].append(name)
    claims.pop("", None)
    for target, names in claims.items():
        both = [*names, target] if target in model.names else names
        if len(both) > 1:
            text = " and ".join(repr(name) for name in both[:3])
            raise InputError(f"{model.url}: {text} could all be {target!r} of {reference.url}", _SAY_WHICH)
        found[names[0]] = target


_SAY_WHICH = (
    "Remove the one that is not meant from the file, or map it to a name of its own with `names` in the recipe."
)


def current_name(name: str, architecture: Architecture | None) -> str:
    """The name as the class has it now, with its prefix or without, as it stands."""
    plain = plain_name(name)
    return architecture.canonical(plain) if architecture is not None else plain


def without_prefix(name: str, architecture: Architecture | None) -> str:
    """The name as the class's model without a head has it."""
    prefix = architecture.prefix if architecture is not None else ""
    return name.removeprefix(f"{prefix}.") if prefix else name


def _with_other_layers(model: Known, reference: Known, found: dict[str, str]) -> dict[str, str]:
    """Layers that only the model has, as slices may take them, are called like those that both have."""
    patterns = {_NUMBER.sub("*", own): _NUMBER.sub("*", name) for own, name in found.items()}
    taken = {*reference.names, *model.names, *found.values()}
    for name in model.names:
        if name in found or name in reference.names:
            continue
        numbers = _NUMBER.findall(name)
        pattern = patterns.get(_NUMBER.sub("*", name)) if numbers else None
        if pattern is not None and pattern.count("*") == len(numbers):
            parts = pattern.split("*")
            renamed = parts[0] + "".join(number + part for number, part in zip(numbers, parts[1:], strict=True))
            if renamed not in taken:
                found[name] = renamed
                taken.add(renamed)
    return found


def describe_difference(name: str, other: str) -> str:
    """How two names of one tensor differ, with `*` for numbers, the same for all tensors that differ so."""
    own, theirs = _NUMBER.sub("*", name).split("."), _NUMBER.sub("*", other).split(".")
    while own and theirs and own[-1] == theirs[-1]:
        own.pop()
        theirs.pop()
    if not own or not theirs:
        return f"prefix {'.'.join([*own, *theirs])}. {'put before' if theirs else 'left out'}"
    same = 0
    while same < min(len(own), len(theirs)) - 1 and own[same] == theirs[same]:
        same += 1
    return f"{'.'.join(own[same:])} is {'.'.join(theirs[same:])}"


def describe_names(url: str, reference_url: str, found: Mapping[str, str]) -> str:
    """A note on names that were matched: how they differ, with counts."""
    counts = Counter(describe_difference(name, other) for name, other in found.items())
    shown = some_names([f"{rule} ({count})" for rule, count in counts.most_common()], SHOWN_RULES)
    return f"{url}: names that differ from those in {reference_url} ({len(found)}): {shown}"


def with_names_of(reference: Checkpoint, model: Checkpoint) -> Checkpoint:
    """The model with the names that the reference has for the same tensors; the same object where they agree.

    Which differences were found is a note, with counts.

    Raises:
        InputError: see `match_names`.
    """
    found = match_names(
        Known(model.tensors, model.architecture, model.url),
        Known(reference.tensors, reference.architecture, reference.url),
    )
    if not found:
        return model
    return _renamed(model, found, "names", describe_names(model.url, reference.url, found))


def with_mapped_names(model: Checkpoint, names: Mapping[str, str], where: str) -> tuple[Checkpoint, set[str]]:
    """The model with names as a recipe maps them, and the patterns that fitted a tensor.

    Args:
        model: a model.
        names: patterns with `*` for any text, and what stands in their place, with as many `*`. Of several that fit a
            name, the longest counts.
        where: where the recipe says so, for messages.

    Raises:
        RecipeError: two tensors would have one name.
    """
    ordered = sorted(names.items(), key=lambda item: (-len(item[0]), item))
    compiled = [(pattern, _compile(pattern), target) for pattern, target in ordered]
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in model.tensors:
        fitting = next(((p, m, t) for p, c, t in compiled if (m := c.fullmatch(name))), None)
        if fitting is not None:
            pattern, match, target = fitting
            used.add(pattern)
            found[name] = _filled(target, match.groups())
    targets = Counter(found.get(name, name) for name in model.tensors)
    if twice := sorted(name for name, count in targets.items() if count > 1):
        raise RecipeError(f"{where} gives {len(twice)} names to several tensors of {model.url}: {some_names(twice)}")
    changed = {name: other for name, other in found.items() if name != other}
    if not changed:
        return model, used
    return _renamed(model, changed, "mapped", f"{model.url}: renamed by `names` of the recipe ({len(changed)})"), used


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(re.escape(part) for part in pattern.split("*")))


def _filled(target: str, texts: Iterable[str]) -> str:
    parts = target.split("*")
    return parts[0] + "".join(text + part for text, part in zip(texts, parts[1:], strict=True))


def _renamed(model: Checkpoint, names: Mapping[str, str], key: str, note: str) -> Checkpoint:
    tensors = {}
    for name, location in model.tensors.items():
        new = names.get(name, name)
        tensors[new] = location if new == name else replace(location, info=replace(location.info, name=new))
    digest = hashlib.sha256(canonical_json(dict(names))).hexdigest()
    return replace(
        model,
        tensors=tensors,
        decoding={**model.decoding, key: {"count": len(names), "sha256": digest}},
        notes=(*model.notes, note),
    )
