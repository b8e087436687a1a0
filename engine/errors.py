"""Every way a run can end badly, as one tree of exceptions with one exit code each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class AnabranchError(Exception):
    """A problem that is explained to the user without a traceback.

    Args:
        message: what happened, where, what was expected and what was found.
        hint: what the user can do about it; empty when the message already says so.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RecipeError(AnabranchError, ValueError):
    """The command line or the recipe asks for something impossible."""

    exit_code = 2


class InputError(AnabranchError, ValueError):
    """An input checkpoint is damaged, inconsistent, or holds values that cannot be merged."""

    exit_code = 3


class IntegrityError(AnabranchError):
    """Bytes on disk are not the bytes that were written."""

    exit_code = 4


class OutputConflictError(AnabranchError, FileExistsError):
    """The output directory belongs to another plan."""

    exit_code = 5


class ResourceError(AnabranchError, OSError):
    """Disk, memory or permission is missing; more of it makes the same command work."""

    exit_code = 6


class TemporaryError(AnabranchError, OSError):
    """Something outside failed that usually recovers; the same command goes on where it stopped."""

    exit_code = 75


class Interrupted(AnabranchError):
    """The user stopped the run; the same command goes on where it stopped."""

    exit_code = 130


def some_names(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list for a message, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
