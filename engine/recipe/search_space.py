"""A recipe with `search` in place of values: the space that it spans, and the plain recipe at each of its points."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from .text import Document, KeyPath, Problem, did_you_mean, dotted, shorten

KEY = "search"
PERMUTED_UP_TO = 5
"""Models whose orders are listed one by one: 120 of five. More get a number each and are sorted by it."""

Label = bool | int | float | str
Option = int | float
"""What is chosen: an item of a choice by its index, or a number of a range."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from `low` to `high`, all of them or in steps."""

    low: int | float
    high: int | float
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether all of its numbers are integers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step))

    @property
    def size(self) -> int | None:
        """How many numbers; None: without steps."""
        return None if self.step is None else int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1

    def number(self, index: int) -> int | float:
        """The number after `index` steps, as people write it: 0.3 and not 0.30000000000000004."""
        assert self.step is not None
        found = _exact(self.low) + index * _exact(self.step)
        return int(found) if self.whole else float(found)

    def snap(self, number: float) -> int | float:
        """The number of the range that is meant by one with a rounding error."""
        return float(number) if self.step is None else self.number(round((number - self.low) / self.step))

    def __str__(self) -> str:
        steps = "" if self.step is None else f" in steps of {self.step}"
        return f"{self.low} to {self.high}{steps}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several items, by what they are called."""

    labels: tuple[Label, ...]

    @property
    def size(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        shown = ", ".join(str(label) for label in self.labels[:8])
        return shown if len(self.labels) <= 8 else f"{shown} and {len(self.labels) - 8} more"


Domain = Interval | Choice
Choose = Callable[[str, Domain], Option]
"""Is asked for each parameter that counts, in the order of the recipe; what it answers decides which come next."""


def _exact(number: float) -> Decimal:
    return Decimal(str(number))


def find_searches(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Where a document has searches, `order: search` included."""
    if isinstance(value, dict):
        if KEY in value:
            yield path
            return
        if not path and value.get("order") == KEY:
            yield ("order",)
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from find_searches(item, (*path, key))


@dataclass(frozen=True)
class SearchSpace:
    """The recipes that one recipe with searches stands for.

    Args:
        document: the recipe as data; see `check_searches` for what must be right in it.
    """

    document: Document

    def at(self, choose: Choose) -> Document:
        """The plain recipe of a point.

        Args:
            choose: names each parameter's choice. A name is the path of the key, and in an item of a choice what has
                to be chosen for it to count: `parameters.density if merge_method=cabs`.
        """
        data = dict(self.document.data)
        in_order = data.pop("order", None)
        method = data.get("merge_method")
        if isinstance(method, dict) and KEY in method:
            options = _options(method[KEY])
            index = int(choose("merge_method", Choice(options.labels)))
            data["merge_method"] = options.labels[index]
            rest = {key: value for key, value in data.items() if key != "merge_method"}
            filled = _filled(rest, (), "", choose)
            keys = method[KEY]["choice"][options.labels[index]] if isinstance(method[KEY]["choice"], dict) else None
            own = _filled(keys or {}, (), f" if merge_method={options.labels[index]}", choose)
            data = overlaid({"merge_method": options.labels[index]} | filled, own)
        else:
            data = _filled(data, (), "", choose)
        if in_order == KEY:
            data["models"] = _ordered(data["models"], choose)
        elif in_order is not None:
            data["order"] = in_order
        return replace(self.document, data=data)

    def parameters(self) -> dict[str, Domain]:
        """Every parameter with what it may be; those that count only sometimes, too."""
        found: dict[str, Domain] = {}
        for _ in self._each_option_once(found):
            pass
        return found

    def corners(self) -> Iterator[Document]:
        """Recipes in which every item of every choice and both ends of every range occur; few, to be checked."""
        yield from self._each_option_once({})

    def _each_option_once(self, found: dict[str, Domain]) -> Iterator[Document]:
        todo: list[dict[str, Option]] = [{}]
        while todo:
            forced = todo.pop(0)
            asked: dict[str, Option] = {}

            def choose(
                name: str, domain: Domain, forced: Mapping[str, Option] = forced, asked: dict[str, Option] = asked
            ) -> Option:
                first: Option = domain.low if isinstance(domain, Interval) else 0
                if name not in found:
                    found[name] = domain
                    others = [domain.high] if isinstance(domain, Interval) else range(1, domain.size)
                    if name != "order":  # all orders of right models are right
                        todo.extend({**asked, name: other} for other in others)
                asked[name] = forced.get(name, first)
                return asked[name]

            yield self.at(choose)

    @property
    def size(self) -> int | None:
        """How many recipes; None: a range without steps holds any number of them."""
        data = dict(self.document.data)
        sizes = [_size(value) for key, value in data.items() if key != "order"]
        if data.get("order") == KEY:
            count = len(data["models"])
            sizes.append(math.factorial(count) if count <= PERMUTED_UP_TO else None)
        return _product(sizes)

    def points(self) -> Iterator[dict[str, Option]]:
        """The choices of every recipe of a space with steps, the last parameter changing fastest."""
        prefix: list[int] = []
        while True:
            sizes: list[int] = []
            point: dict[str, Option] = {}

            def choose(
                name: str,
                domain: Domain,
                sizes: list[int] = sizes,
                point: dict[str, Option] = point,
                prefix: Any = tuple(prefix),
            ) -> Option:
                assert domain.size is not None, "only a space with steps can be listed"
                index = prefix[len(sizes)] if len(sizes) < len(prefix) else 0
                sizes.append(domain.size)
                point[name] = domain.number(index) if isinstance(domain, Interval) else index
                return point[name]

            self.at(choose)
            yield point
            prefix += [0] * (len(sizes) - len(prefix))
            while prefix and prefix[-1] + 1 == sizes[len(prefix) - 1]:
                prefix.pop()
            if not prefix:
                return
            prefix[-1] += 1


@dataclass(frozen=True, slots=True)
class _Options:
    labels: tuple[Label, ...]
    values: tuple[Any, ...]
    """Per label: what stands for it, or of a method the keys that go with it."""


def _options(search: Mapping[str, Any]) -> _Options:
    items = search["choice"]
    if isinstance(items, dict):
        return _Options(tuple(items), tuple(items.values()))
    labels = (item if isinstance(item, Label) else json.dumps(item) for item in items)
    return _Options(tuple(labels), tuple(items))


def _filled(value: Any, path: KeyPath, condition: str, choose: Choose) -> Any:
    """A value without searches."""
    if isinstance(value, list):
        return [_filled(item, (*path, i), condition, choose) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if KEY not in value:
        return {key: _filled(item, (*path, key), condition, choose) for key, item in value.items()}
    name, search = dotted(path) + condition, value[KEY]
    if "choice" not in search:
        domain = Interval(search["from"], search["to"], search.get("step"))
        return domain.snap(choose(name, domain))
    options = _options(search)
    index = int(choose(name, Choice(options.labels)))
    inner = f" if {dotted(path)}={options.labels[index]}{condition.replace(' if ', ' and ', 1)}"
    return _filled(options.values[index], path, inner, choose)


def _ordered(models: list[Any], choose: Choose) -> list[Any]:
    places = range(len(models))
    if len(models) <= PERMUTED_UP_TO:
        orders = list(itertools.permutations(places))
        index = int(choose("order", Choice(tuple(" ".join(map(str, order)) for order in orders))))
        return [models[i] for i in orders[index]]
    keys = [choose(f"order[{i}]", Interval(0.0, 1.0)) for i in places]
    return [models[i] for i in sorted(places, key=lambda i: (keys[i], i))]


def overlaid(value: Any, own: Any) -> Any:
    """A recipe with the keys of a method put in: mappings and lists of one length key by key, others replaced."""
    if isinstance(value, dict) and isinstance(own, dict):
        return {key: overlaid(value.get(key), own[key]) if key in own else value[key] for key in {**value, **own}}
    if isinstance(value, list) and isinstance(own, list) and len(value) == len(own):
        return [overlaid(mine, theirs) for mine, theirs in zip(value, own, strict=True)]
    return own


def _size(value: Any) -> int | None:
    if isinstance(value, list):
        return _product([_size(item) for item in value])
    if not isinstance(value, dict):
        return 1
    if KEY not in value:
        return _product([_size(item) for item in value.values()])
    search = value[KEY]
    if "choice" not in search:
        return Interval(search["from"], search["to"], search.get("step")).size
    sizes = [_size(item) for item in _options(search).values]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _product(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


# -- what can be wrong -----------------------------------------------------------------------------------------------


def check_searches(document: Document) -> list[Problem]:
    """What is wrong with the searches of a recipe."""
    problems: list[Problem] = []
    data = document.data
    _check(data, (), problems)
    if data.get("order") == KEY and (not isinstance(data.get("models"), list) or len(data["models"]) < 2):
        problems.append(
            Problem(("order",), "expected a list of two or more `models` at the top, whose order is searched")
        )
    method = data.get("merge_method")
    search = method.get(KEY) if isinstance(method, dict) else None
    if not problems and isinstance(search, dict):
        for label, own in search["choice"].items() if isinstance(search.get("choice"), dict) else ():
            if own is not None and (not isinstance(own, dict) or {"merge_method", "order"} & own.keys()):
                path = ("merge_method", KEY, "choice", label)
                problems.append(Problem(path, f"expected recipe keys that go with {label}, got {shorten(own)}"))
    return problems


def _check(value: Any, path: KeyPath, problems: list[Problem]) -> None:
    if isinstance(value, dict) and KEY in value:
        if len(value) > 1:
            problems.append(Problem(path, f"expected `search` alone, got {', '.join(map(str, value))}"))
        else:
            _check_search(value[KEY], (*path, KEY), problems)
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check(item, (*path, key), problems)


def _check_search(search: Any, path: KeyPath, problems: list[Problem]) -> None:
    known = ("from", "to", "step", "choice")
    if not isinstance(search, dict) or not search:
        text = f"expected {{from: 0.2, to: 2, step: 0.1}} or {{choice: [...]}}, got {shorten(search)}"
        problems.append(Problem(path, text))
        return
    unknown = [key for key in search if key not in known]
    if unknown:
        near = did_you_mean(unknown[0], known)
        problems.append(Problem((*path, unknown[0]), f"unknown key; expected from, to and step, or choice{near}"))
    elif "choice" in search:
        _check_choice(search, path, problems)
    else:
        _check_range(search, path, problems)


def _check_choice(search: dict[str, Any], path: KeyPath, problems: list[Problem]) -> None:
    items, here = search["choice"], (*path, "choice")
    is_method = path == ("merge_method", KEY)
    if len(search) > 1:
        problems.append(Problem(path, "expected either a choice or a range, got both"))
    elif not items or not isinstance(items, (list, dict) if is_method else list):
        what = "a list of methods, or a mapping from methods to keys of their own" if is_method else "a list of values"
        problems.append(Problem(here, f"expected {what}, got {shorten(items)}"))
    elif isinstance(items, list) and is_method and not all(isinstance(item, str) for item in items):
        problems.append(Problem(here, f"expected names of methods, got {shorten(items)}"))
    else:
        options = _options(search)
        if len(set(options.labels)) < len(options.labels):  # True is 1 and 1.0 is 1, also to what stores trials
            problems.append(Problem(here, f"expected values that differ, got {shorten(items)}"))
        for key, item in items.items() if isinstance(items, dict) else enumerate(items):
            _check(item, (*here, key), problems)


def _check_range(search: dict[str, Any], path: KeyPath, problems: list[Problem]) -> None:
    for key in ("from", "to"):
        if key not in search:
            problems.append(Problem(path, f"{key} is missing; expected {{from: 0.2, to: 2, step: 0.1}}"))
            return
    for key, number in search.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            problems.append(Problem((*path, key), f"expected a number, got {shorten(number)}"))
            return
    if search["to"] <= search["from"]:
        problems.append(Problem((*path, "to"), f"expected more than {search['from']}, got {search['to']}"))
    elif search.get("step") is not None:
        width = _exact(search["to"]) - _exact(search["from"])
        if not 0 < _exact(search["step"]) <= width:
            problems.append(Problem((*path, "step"), f"expected more than 0 and at most {width}, got {search['step']}"))
