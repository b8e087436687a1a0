"""Values for modules whose names match a pattern, as PEFT's `rank_pattern` and `alpha_pattern` give them.

The patterns come from an input file, so they meet RE2 (docs/dependencies.md), whose time is linear in the name, and not
Python's `re`, in which 22 characters can take for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import re2

from ..errors import InputError

MAX_PATTERN = 300
"""Longest pattern, in characters."""
MAX_TRIES = 2_000_000
"""Patterns times modules of one adapter: some 20 s."""
PROGRAM_BYTES = 8 << 20
"""Memory of one pattern; RE2 refuses what needs more."""


class ModulePatterns:
    """Values by pattern; the first pattern that a module's name, or its end after a dot, matches counts.

    Args:
        values: numbers by pattern.
        where: what to call the place of the patterns in messages.

    Raises:
        InputError: a pattern is too long, or none that RE2 takes.
    """

    def __init__(self, values: Mapping[str, float], where: str) -> None:
        self.values = values
        self._where = where
        self._left = MAX_TRIES
        options = re2.Options()
        options.log_errors, options.never_capture, options.max_mem = False, True, PROGRAM_BYTES
        self._compiled = [(self._compile(pattern, options), value) for pattern, value in values.items()]

    def _compile(self, pattern: str, options: Any) -> Any:
        if len(pattern) > MAX_PATTERN:
            raise InputError(
                f"{self._where} has a pattern of {len(pattern)} characters, at most {MAX_PATTERN} are read"
            )
        try:
            re2.compile(pattern.encode(), options)  # alone, so that no parenthesis of ours closes one of its own
            return re2.compile(rf"(?:.*\.)?(?:{pattern})".encode(), options)
        except (re2.error, UnicodeError):
            raise InputError(
                f"{self._where} has the unreadable pattern {pattern[:80]!r}",
                "Patterns are regular expressions without look-around and back-references (RE2's syntax).",
            ) from None

    def value(self, module: str, default: float) -> float:
        """The value of a module.

        Raises:
            InputError: the adapter has so many patterns and modules that trying them would take minutes.
        """
        self._left -= len(self._compiled)
        if self._left < 0:
            raise InputError(
                f"{self._where} has {len(self._compiled)} patterns, too many for the modules of this adapter "
                f"(at most {MAX_TRIES} patterns times modules are tried)",
                "Merge it into its base with peft (merge_and_unload, then save_pretrained) and name the result.",
            )
        name = module.encode()
        return next((value for pattern, value in self._compiled if pattern.fullmatch(name)), default)
