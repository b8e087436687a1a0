"""Which parameters each merge method takes, and how recipes write them: number, gradient, filters, TADrop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..methods import TadropDensity
from .text import KeyPath, Problem, did_you_mean, shorten

FLOAT32_MAX = 3.4028234663852886e38
"""Parameters meet tensors in fp32."""


Value = bool | int | float | str | TadropDensity | tuple[float, ...]
"""What a rule gives: one value, or a gradient over the layers as a tuple of numbers."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for the tensors whose name contains `filter`; None: for every tensor."""

    value: Value
    filter: str | None = None


Setting = tuple[Rule, ...]
"""The first rule that matches a tensor's name gives its value."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What one key under `parameters` may hold."""

    name: str
    kind: Literal["number", "density", "integer", "flag", "choice"]
    lowest: float = -FLOAT32_MAX
    highest: float = FLOAT32_MAX
    choices: tuple[str, ...] = ()
    per_model: bool = False
    """May be set for each model; the others are the same for all models."""
    by_tensor: bool = True
    """May differ between tensors, by filters and gradients."""

    @property
    def expected(self) -> str:
        """The values that are allowed, in words."""
        match self.kind:
            case "flag":
                return "true or false"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "integer":
                return f"a whole number from {self.lowest:.0f} to {self.highest:.0f}"
            case _:
                free = self.highest == FLOAT32_MAX
                text = "a finite number" if free else f"a number from {self.lowest:g} to {self.highest:g}"
                return text + (" or {tadrop: {}}" if self.kind == "density" else "")


PARAMETERS: Mapping[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("weight", "number", per_model=True),
        Parameter("density", "density", 0, 1, per_model=True),
        Parameter("epsilon", "number", 0, 1, per_model=True),
        Parameter("r", "number"),
        Parameter("alpha", "number"),
        Parameter("gamma", "number", 0, 1, per_model=True),
        Parameter("select_topk", "number", 0, 1),
        Parameter("block", "integer", 1, 65536),
        Parameter("tail", "choice", choices=("keep", "drop")),
        Parameter("overlap", "choice", choices=("allow", "never")),
        Parameter("overlap_merge", "choice", choices=("sum", "ties")),
        Parameter("conflict", "choice", choices=("none", "sequential")),
        Parameter("scope", "choice", choices=("tensor", "model"), by_tensor=False),
        Parameter("rescale", "flag"),
        Parameter("rescale_norm", "choice", choices=("none", "l1", "l2")),
        Parameter("normalize", "flag"),
        Parameter("lambda", "number"),
        Parameter("scale", "number", per_model=True),
        Parameter("t", "number"),
        Parameter("normalize_weights", "flag"),
        Parameter("eps", "number", 0, 1),
        Parameter("max_iter", "integer", 0, 10**12),
        Parameter("tol", "number", 0, 1),
        Parameter("nuslerp_flatten", "flag"),
        Parameter("nuslerp_row_wise", "flag"),
        Parameter("filter_wise", "flag"),
    )
}
IGNORED = Parameter("int8_mask", "flag", per_model=True)
"""mergekit's switch for a smaller mask: accepted everywhere, changes nothing here."""

REQUIRED = None
"""In place of a default: the recipe must say it."""


@dataclass(frozen=True, slots=True)
class MethodSchema:
    """What a merge method needs from a recipe."""

    defaults: Mapping[str, Value | None]
    """Every parameter that the method takes, with its default or REQUIRED."""
    base: Literal["required", "optional", "listed"] = "required"
    """Whether there is a base apart from the models. `listed`: no, `base_model` may name one of them as reference."""
    differences: bool = True
    """Merges differences to the base, where there is one."""
    fewest: int = 1
    """Models that it merges at least, not counting the base ..."""
    most: int | None = None
    """... and at most."""
    one_for_all: tuple[str, ...] = ()
    """Parameters that other methods take for each model and this one for all models together."""

    def is_per_model(self, name: str) -> bool:
        """Whether a parameter may be set for each model."""
        return PARAMETERS[name].per_model and name not in self.one_for_all


ORDERED = ("magnitude", "cabs", "ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
"""Methods whose masks follow an order of magnitudes, in which activations may take part."""

MOST_COUNTED = 255
"""Models at most where a byte counts how many of them have kept, or change, an element."""

_COMMON: Mapping[str, Value | None] = {"weight": 1.0, "lambda": 1.0, "normalize": False, "rescale": False}
_SPARSE = {**_COMMON, "rescale_norm": "none"}

METHODS: Mapping[str, MethodSchema] = {
    "task_arithmetic": MethodSchema(_COMMON),
    "magnitude": MethodSchema({**_SPARSE, "density": REQUIRED, "conflict": "none"}, most=MOST_COUNTED),
    "cabs": MethodSchema(
        {
            **_SPARSE,
            "density": REQUIRED,
            "block": 256,
            "tail": "keep",
            "overlap": "allow",
            "overlap_merge": "sum",
        },
        most=MOST_COUNTED,
    ),
    # `rescale: true` means mergekit's ratio of norms where mergekit users write it.
    "ties": MethodSchema({**_SPARSE, "density": 1.0, "normalize": True, "rescale_norm": "l1", "scope": "tensor"}),
    "dare_linear": MethodSchema({**_SPARSE, "density": 1.0, "rescale": True}),
    "dare_ties": MethodSchema({**_SPARSE, "density": 1.0, "rescale": True}),
    "della": MethodSchema({**_SPARSE, "density": 1.0, "epsilon": 0.15, "normalize": True, "rescale": True}),
    "della_linear": MethodSchema({**_SPARSE, "density": 1.0, "epsilon": 0.15, "rescale": True}),
    "breadcrumbs": MethodSchema({**_SPARSE, "density": 1.0, "gamma": 0.01, "rescale_norm": "l1"}),
    "breadcrumbs_ties": MethodSchema({**_SPARSE, "density": 1.0, "gamma": 0.01, "rescale_norm": "l1"}),
    "sce": MethodSchema({"select_topk": 1.0, "lambda": 1.0}),
    "linear": MethodSchema({"weight": 1.0, "normalize": True}, "listed", differences=False),
    "passthrough": MethodSchema({"scale": 1.0}, "listed", differences=False, most=1),
    "slerp": MethodSchema({"t": REQUIRED}, differences=False, most=1),
    "nuslerp": MethodSchema(
        {"weight": 1.0, "nuslerp_flatten": True, "nuslerp_row_wise": False}, "optional", fewest=2, most=2
    ),
    "multislerp": MethodSchema({"weight": 1.0, "normalize_weights": True, "eps": 1e-8}, "optional"),
    "karcher": MethodSchema({"max_iter": 10, "tol": 1e-5}, "listed", differences=False),
    "model_stock": MethodSchema({"filter_wise": False}, fewest=2),
    "nearswap": MethodSchema({"t": REQUIRED}, most=1),
    "arcee_fusion": MethodSchema({}, differences=False, most=1),
    "ram": MethodSchema({"epsilon": 1e-5}, most=MOST_COUNTED, one_for_all=("epsilon",)),
    "ramplus_tl": MethodSchema({"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}, most=MOST_COUNTED, one_for_all=("epsilon",)),
    "emr": MethodSchema({}),
}


def read_parameters(
    raw: Any, path: KeyPath, method: str, problems: list[Problem], *, of_model: bool
) -> dict[str, Setting]:
    """Read one `parameters` mapping of a recipe.

    Args:
        raw: what the recipe holds there; None is the same as nothing.
        path: where it stands, for messages.
        method: a name in METHODS.
        problems: everything that is wrong is appended here.
        of_model: the mapping belongs to one model.

    Returns:
        The settings that are right, without those that have no effect.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.append(Problem(path, f"expected a mapping of parameters, got {shorten(raw)}"))
        return {}
    taken = METHODS[method].defaults
    settings: dict[str, Setting] = {}
    for name, value in raw.items():
        here = (*path, name)
        parameter = IGNORED if name == IGNORED.name else PARAMETERS.get(name)
        if parameter is None:
            text = f"unknown parameter; {method} takes {', '.join(taken) or 'none'}{did_you_mean(name, taken)}"
            problems.append(Problem(here, text))
        elif parameter is not IGNORED and name not in taken:
            problems.append(Problem(here, f"{method} takes no {name}; it takes {', '.join(taken) or 'no parameters'}"))
        elif of_model and parameter is not IGNORED and not METHODS[method].is_per_model(name):
            text = f"{name} is the same for all models; write it under the recipe's own `parameters`"
            problems.append(Problem(here, text))
        else:
            setting = read_setting(parameter, value, here, problems)
            if setting and parameter is not IGNORED:
                settings[name] = setting
    return settings


def read_setting(parameter: Parameter, raw: Any, path: KeyPath, problems: list[Problem]) -> Setting:
    """Read a value, a gradient, one {filter, value}, or a list of these; () when anything is wrong."""
    entries: list[tuple[KeyPath, Any]]
    if isinstance(raw, dict) and not ("tadrop" in raw and "value" not in raw):
        entries = [(path, raw)]
    elif isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        entries = [((*path, i), item) for i, item in enumerate(raw)]
    else:
        value = _read_value(parameter, raw, path, problems)
        return () if value is None else (Rule(value),)
    before = len(problems)
    rules = [_read_rule(parameter, entry, place, problems) for place, entry in entries]
    for i, rule in enumerate(rules[:-1]):
        if rule is not None and rule.filter is None:
            text = "never used: the entry before it applies to every tensor; put the entry without a filter last"
            problems.append(Problem(entries[i + 1][0], text))
            break
    if not parameter.by_tensor and any(rule is not None and rule.filter for rule in rules):
        problems.append(Problem(path, f"{parameter.name} is the same for all tensors and takes no filters"))
    return () if len(problems) > before else tuple(rule for rule in rules if rule is not None)


def _read_rule(parameter: Parameter, raw: Any, path: KeyPath, problems: list[Problem]) -> Rule | None:
    if not isinstance(raw, dict):
        problems.append(Problem(path, f"expected {{filter: TEXT, value: ...}}, got {shorten(raw)}"))
        return None
    for key in raw:
        if key not in ("filter", "value"):
            text = f"unknown key; expected filter and value{did_you_mean(key, ('filter', 'value'))}"
            problems.append(Problem((*path, key), text))
            return None
    chosen = raw.get("filter")
    if chosen is not None and (not isinstance(chosen, str) or not chosen):
        text = f"expected text that tensor names contain, got {shorten(chosen)}"
        problems.append(Problem((*path, "filter"), text))
        return None
    if "value" not in raw:
        problems.append(Problem(path, "the value is missing; expected {filter: TEXT, value: ...}"))
        return None
    value = _read_value(parameter, raw["value"], (*path, "value"), problems)
    return None if value is None else Rule(value, None if chosen == "*" else chosen)


def _read_value(parameter: Parameter, raw: Any, path: KeyPath, problems: list[Problem]) -> Value | None:
    if isinstance(raw, dict) and "tadrop" in raw and parameter.kind == "density":
        return _read_tadrop(raw, path, problems)
    if isinstance(raw, list) and parameter.kind in ("number", "density"):
        return _read_gradient(parameter, raw, path, problems)
    value = _read_scalar(parameter, raw)
    if value is None:
        near = did_you_mean(raw, parameter.choices) if isinstance(raw, str) else ""
        problems.append(Problem(path, f"expected {parameter.expected}, got {shorten(raw)}{near}"))
    return value


def _read_gradient(parameter: Parameter, raw: list[Any], path: KeyPath, problems: list[Problem]) -> Value | None:
    """Numbers at equal distances from the first layer to the last."""
    expected = replace(parameter, kind="number").expected
    if not raw:
        problems.append(Problem(path, f"the list is empty; expected {expected} for at least one layer"))
        return None
    numbers: list[float] = []
    for i, item in enumerate(raw):
        number = read_number(item, parameter.lowest, parameter.highest)
        if number is None:
            problems.append(Problem((*path, i), f"expected {expected}, got {shorten(item)}"))
            return None
        numbers.append(number)
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _read_scalar(parameter: Parameter, raw: Any) -> Value | None:
    match parameter.kind:
        case "flag":
            return read_flag(raw)
        case "choice":
            return raw if isinstance(raw, str) and raw in parameter.choices else None
        case "integer":
            raw = int(raw) if isinstance(raw, str) and re.fullmatch(r"\d{1,12}", raw) else raw
            whole = isinstance(raw, int) and not isinstance(raw, bool)
            return raw if whole and parameter.lowest <= raw <= parameter.highest else None
        case _:
            return read_number(raw, parameter.lowest, parameter.highest)


def read_flag(raw: Any) -> bool | None:
    """true and false, also in quotes, and 1 and 0, as mergekit takes them; its own tools write `normalize: 1.0`."""
    if isinstance(raw, bool):
        return raw
    text = str(raw).lower()
    return True if text in ("true", "1", "1.0") else False if text in ("false", "0", "0.0") else None


def read_number(raw: Any, lowest: float, highest: float) -> float | None:
    """The number as a float, or None when it is no number, not finite, or outside the range; quotes change nothing."""
    if isinstance(raw, str) and _NUMBER.fullmatch(raw):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not lowest <= raw <= highest:
        return None  # comparisons with NaN are false, so NaN ends here too
    return float(raw) + 0.0  # -0.0 and 0 are one recipe


_NUMBER = re.compile(r"\s*[-+]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,3})?\s*")


def _read_tadrop(raw: dict[str, Any], path: KeyPath, problems: list[Problem]) -> TadropDensity | None:
    before = len(problems)
    problems += [Problem((*path, key), "unknown key beside tadrop") for key in raw if key != "tadrop"]
    path = (*path, "tadrop")
    options = raw["tadrop"] if raw["tadrop"] is not None else {}
    if not isinstance(options, dict):
        problems.append(Problem(path, f"expected {{}} or {{mean: 0.25}}, got {shorten(options)}"))
        return None
    for key, value in options.items():
        parameter = TADROP.get(key)
        if parameter is None:
            text = f"unknown key; expected {', '.join(TADROP)}{did_you_mean(key, TADROP)}"
            problems.append(Problem((*path, key), text))
        elif _read_scalar(parameter, value) is None:
            text = f"expected {parameter.expected}, got {shorten(value)}"
            problems.append(Problem((*path, key), text))
    if "spread" in options and "mean" not in options:
        problems.append(Problem((*path, "spread"), "spread has an effect only with mean, which is missing"))
    if len(problems) > before:
        return None
    return TadropDensity(**{key: _read_scalar(TADROP[key], value) for key, value in options.items()})  # type: ignore[arg-type]


TADROP: Mapping[str, Parameter] = {
    "mean": Parameter("mean", "number", 0.01, 1),  # sparsity ends at 0.99
    "spread": Parameter("spread", "number", 0, 1),
    "statistic": Parameter("statistic", "choice", choices=("participation", "quantile", "kurtosis")),
}
"""The keys of `density: {tadrop: {...}}`."""
