"""YAML text becomes plain data, and every key path keeps the line that it stands on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from ..errors import RecipeError

MAX_RECIPE_BYTES = 1 << 20
"""Recipes are written by hand; anything larger is another kind of file."""
MAX_VALUES = 20_000
"""Values, counted before and after aliases are expanded: a few nested aliases can stand for billions."""
MAX_PROBLEMS_SHOWN = 10

KeyPath = tuple[str | int, ...]


class Problem(NamedTuple):
    """One thing that is wrong with a recipe: where it stands, what was expected, what was found."""

    path: KeyPath
    text: str


@dataclass(frozen=True, eq=False)
class Places:
    """Where the keys of a recipe stand in its file."""

    where: str = ""
    """The name of the file; empty: unknown."""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    module: KeyPath = ()
    """What `models` and `slices` stand in."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)  # where a recipe stands does not change what it says

    def __hash__(self) -> int:
        return 0

    def moved(self, path: KeyPath) -> KeyPath:
        """A path of the recipe as its file has it."""
        return (*self.module, *path) if path and path[0] in ("models", "slices") else path

    def describe(self, path: KeyPath) -> str:
        """`recipe.yml:7: slices[0].sources[1]`."""
        path = self.moved(path)
        line = next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)
        return f"{self.where}:{line}: {dotted(path)}" if line is not None else dotted(path)


@dataclass(frozen=True)
class Document:
    """A recipe as plain mappings, lists, texts, numbers, flags and None."""

    where: str
    data: Any
    lines: Mapping[KeyPath, int]
    """1-based line of every key and list item; () is the document itself."""
    anchors: frozenset[str] = frozenset()
    """Keys at the top whose value holds an anchor that is used elsewhere."""

    def line(self, path: KeyPath) -> int:
        """The line of a key path, or of the nearest thing around it when the key is missing."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def error(self, problems: Iterable[Problem]) -> RecipeError:
        """All problems in one error, first lines first."""
        ordered = sorted(problems, key=lambda problem: self.line(problem.path))
        shown = [self._describe(problem) for problem in ordered[:MAX_PROBLEMS_SHOWN]]
        if len(ordered) == 1:
            return RecipeError(shown[0])
        if len(ordered) > len(shown):
            shown.append(f"... and {len(ordered) - len(shown)} more")
        return RecipeError("\n  ".join([f"{len(ordered)} problems in the recipe:", *shown]))

    def _describe(self, problem: Problem) -> str:
        place = f"{self.where}:{self.line(problem.path)}"
        return f"{place}: {dotted(problem.path)}: {problem.text}" if problem.path else f"{place}: {problem.text}"


def read_document(text: str, where: str) -> Document:
    """Parse one YAML document.

    Args:
        text: the recipe; tags are refused, anchors, aliases and merge keys are expanded.
        where: the name of the file, for messages.

    Raises:
        RecipeError: the text is too large, is not YAML, repeats a key, or uses a tag.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{where}: a recipe has at most {MAX_RECIPE_BYTES} bytes, this text has more")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        if error.problem == "but found another document":
            raise RecipeError(f"{where}{line}: another document; one recipe per file, so cut the file here") from None
        raise RecipeError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"{where}: lists or mappings are nested too deeply") from None
    if node is None:
        raise RecipeError(f"{where}: the recipe is empty")
    reader = _Reader()
    try:
        data = reader.value(node, ())
    except RecursionError:
        reader.problems = [Problem((), "lists or mappings are nested too deeply")]
    if reader.problems:
        raise Document(where, None, reader.lines).error(reader.problems)
    return Document(where, data, reader.lines, frozenset(_anchor_keys(node, loader.aliased)))


def _anchor_keys(document: yaml.Node, aliased: set[int]) -> Iterator[str]:
    """Keys of the outermost mapping whose value is, or holds, the first of a node that aliases repeat later."""

    def holds_one(node: yaml.Node, key: yaml.Node) -> bool:
        if id(node) in aliased:  # an alias leads back to a node that stands before the key
            return bool(node.start_mark.index > key.start_mark.index)
        if isinstance(node, yaml.MappingNode):
            return any(holds_one(value, key) for _, value in node.value)
        return isinstance(node, yaml.SequenceNode) and any(holds_one(item, key) for item in node.value)

    for key, value in document.value if isinstance(document, yaml.MappingNode) else ():
        if holds_one(value, key):
            yield key.value


class _Loader(yaml.SafeLoader):
    """Composes nodes only; numbers are YAML 1.2's: 1e-3 is a number, 010 is ten, 1:30 and dates are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's form)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.values = 0
        self.aliased: set[int] = set()
        """Identities of the nodes that aliases repeat."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values")
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias:
            self.aliased.add(id(node))
        return node


_TAG = "tag:yaml.org,2002:"
_PLAIN_FORMS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"(?i:true|false|yes|no|on|off)", list("tTfFyYnNoO")),
    "int": (r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _kind, (_pattern, _first) in _PLAIN_FORMS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), _first)


class _Reader:
    """Walks the node graph once; an alias is walked again at each place where it is used."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = []
        self._count = 0
        self._open: set[int] = set()  # nodes being walked: an alias to one of them never ends

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_VALUES:
            if self._count == MAX_VALUES + 1:
                self.problems.append(Problem((), f"more than {MAX_VALUES} values after aliases are expanded"))
            return None
        if id(node) in self._open:
            self.problems.append(Problem(path, "an alias refers to the value that contains it"))
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
        finally:
            self._open.discard(id(node))
        self._refuse_tag(node, path)
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(path, "a key must be text"))
            elif key_node.tag == _TAG + "merge":
                self._merge(value_node, path, merged)
            elif key_node.value in own:
                first = self.lines[*path, key_node.value]
                line = key_node.start_mark.line + 1
                text = f"the key is given twice, on lines {first} and {line}"
                self.problems.append(Problem((*path, key_node.value), text))
            else:
                self.lines[*path, key_node.value] = key_node.start_mark.line + 1
                own[key_node.value] = self.value(value_node, (*path, key_node.value))
        return merged | own

    def _merge(self, node: yaml.Node, path: KeyPath, into: dict[str, Any]) -> None:
        """`<<: *anchor` or a list of anchors, of which earlier ones win."""
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.value(item, path)
            if isinstance(value, dict):
                into.update({key: entry for key, entry in value.items() if key not in into})
            else:
                self.problems.append(Problem(path, "`<<` merges mappings only"))

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        try:
            match node.tag.removeprefix(_TAG):
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() in ("true", "yes", "on")
                case "int":
                    return int(text)
                case "float":
                    special = text.lower().lstrip("-+") in (".inf", ".nan")
                    return float(text.lower().replace(".", "", 1) if special else text)
        except ValueError:
            self.problems.append(Problem(path, f"cannot be read as a number: {shorten(text)}"))
            return None
        self._refuse_tag(node, path)
        return None

    def _refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self.problems.append(Problem(path, f"tags are not allowed in recipes, got {shorten(tag)}"))


def dotted(path: KeyPath) -> str:
    """A key path as people write it: `models[0].parameters.weight`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shorten(value: object, limit: int = 60) -> str:
    """A value as it may stand in a message: quoted, and never longer than `limit` characters."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'density'?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.55)
    return f"; did you mean {near[0]!r}?" if near else ""
