"""The licence that a model's own card names, on the first lines of its README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from ..errors import InputError
from ..storage import Store

CARD_NAME = "README.md"
MAX_CARD_BYTES = 4 << 20
MAX_FRONT_BYTES = 64 << 10
"""Of the lines between the two rulers at the top of a card."""
_FRONT = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_FITTING = {
    "license": re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}"),
    "license_name": re.compile(r"\w[\w.+() -]{0,99}"),
    "license_link": re.compile(r"https://huggingface\.co/[\w./-]{1,200}|[\w.-]{1,100}"),
}
"""A link leads to the Hub or names a file beside the card: no other place of an input's is told on."""


def licence_of(folder: Store) -> dict[str, str]:
    """What a folder's card says of its licence, by key; {} where it says nothing that can be read."""
    try:
        if folder.info(CARD_NAME).size > MAX_CARD_BYTES:
            return {}
        return read_licence(folder.read_bytes(CARD_NAME))
    except (FileNotFoundError, InputError):  # a card decides nothing: one that cannot be read says nothing
        return {}


def read_licence(card: bytes) -> dict[str, str]:
    """`license`, and of one that is `other` its name and link, from a card's front matter; {} where it has none."""
    front = _FRONT.match(card[: MAX_FRONT_BYTES + 1])
    if front is None:
        return {}
    try:
        # The loader that makes texts of all scalars: no dates, no numbers, no objects.
        said = yaml.load(front[1].decode(), yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    texts = {key: said[key].strip() for key in _FITTING if isinstance(said.get(key), str)}
    found = {key: text for key, text in texts.items() if _FITTING[key].fullmatch(text)}
    return found if "license" in found else {}


def common_licence(licences: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The licence of what is made of several models: what all say; {} where one says nothing or another thing."""
    first = licences[0] if licences else {}
    return dict(first) if all(licence == first for licence in licences) else {}
