"""Write the tables of docs/methods.md that follow from the signatures of the methods: `make docs`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from anabranch.engine.methods import METHODS, Parameter

PAGE = Path(__file__).with_name("methods.md")
HEADINGS = ("Parameters and defaults", "What parameters mean")


def main() -> None:
    """Put the tables of today in place of those that are there."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """The page with the first table below each of HEADINGS made anew."""
    for heading, lines in zip(HEADINGS, (defaults(), meanings()), strict=True):
        before, after = text.split(f"\n## {heading}\n", 1)
        introduction, rest = re.split(r"(?m)(?:^\|.*\n)+", after, maxsplit=1)
        text = "\n".join([f"{before}\n## {heading}\n{introduction}" + "\n".join(lines), rest])
    return text


def defaults() -> Iterator[str]:
    """One row per method: whether it needs a base, and every parameter with its default."""
    yield "| method | base | activations | parameters and defaults |"
    yield "|---|---|---|---|"
    for name, method in METHODS.items():
        base = "required" if method.schema.base == "required" else "optional"
        given = [f"`{key}: {_default(parameter)}`" for key, parameter in method.schema.parameters.items()]
        order = "order" if method.schema.orders_magnitudes else "no"
        yield f"| [`{name}`](#{name}) | {base} | {order} | {', '.join(given) or 'none'} |"


def meanings() -> Iterator[str]:
    """One row per parameter, in the order of the methods; where methods mean different things, a row for each."""
    yield "| parameter | values | set for | meaning |"
    yield "|---|---|---|---|"
    takers: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for name, method in METHODS.items():
        for key, parameter in method.schema.parameters.items():
            row = (parameter.expected, "each model" if parameter.per_model else "all models", parameter.meaning)
            takers.setdefault(key, {}).setdefault(row, []).append(f"`{name}`")
    for key, forms in takers.items():
        for (values, scope, meaning), names in forms.items():
            place = f" in {', '.join(names)}" if len(forms) > 1 else ""
            yield f"| `{key}`{place} | {values} | {scope} | {meaning} |"


def _default(parameter: Parameter) -> str:
    if parameter.default is None:
        return "required"
    return parameter.default if isinstance(parameter.default, str) else json.dumps(parameter.default)


if __name__ == "__main__":
    main()
