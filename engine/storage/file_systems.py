"""fsspec's file system for the scheme of a URL, or what is missing: a package, credentials or settings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import fsspec

from ..errors import AnabranchError, InputError, ResourceError, TemporaryError

_CREDENTIALS = re.compile(r"credential|auth|token|login|denied|forbidden", re.IGNORECASE)
_SETTINGS = (
    "Credentials and settings come from the environment or from fsspec's configuration (~/.config/fsspec), not from "
    "recipes and URLs."
)
_OTHERS = "Copy the files to a local folder, to S3 or to another store whose URLs stand alone."


def open_file_system(scheme: str) -> Any:
    """The file system of a scheme, made from the environment and fsspec's configuration alone.

    Raises:
        InputError: the scheme is unknown, or its URLs say too little to open anything.
        ResourceError: a package, credentials or settings are missing.
        TemporaryError: what it asks does not answer.
    """
    where = f"{scheme}://…"
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ResourceError(
            f"{where}: a Python package for this kind of URL is missing ({error})",
            "Install the package, or copy the files.",
        ) from error
    except ValueError as error:
        raise InputError(f"{where}: this kind of URL is not known", _OTHERS) from error
    except AttributeError as error:  # as of the first Azure Data Lake, which adlfs has given up
        raise InputError(f"{where}: the installed package knows this kind of URL no more", _OTHERS) from error
    missing = _needs(kind, fsspec.config.conf.get(scheme, {}))
    if missing:
        raise InputError(
            f"{where}: this kind of URL cannot be opened without settings ({', '.join(missing)})",
            f"{_SETTINGS} {_OTHERS}",
        )
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except Exception as error:
        raise _refused(error, where) from error


def _needs(kind: type, settings: dict[str, Any]) -> list[str]:
    """Names of what a file system must be told and fsspec's configuration does not tell."""
    _, *parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in plain and p.default is p.empty and p.name not in settings]


def _refused(error: Exception, where: str) -> AnabranchError:
    if isinstance(error, AnabranchError):
        return error
    if isinstance(error, ConnectionError | TimeoutError):
        return TemporaryError(f"{where}: {type(error).__name__}", "Run the same command again.")
    if lacks_credentials(error) or isinstance(error, ValueError):
        return ResourceError(f"{where}: credentials or settings are missing ({type(error).__name__})", _SETTINGS)
    if isinstance(error, ImportError):
        return ResourceError(f"{where}: a Python package for this kind of URL is missing ({error})", "Install it.")
    return InputError(f"{where}: this kind of URL does not stand alone ({type(error).__name__})", _OTHERS)


def lacks_credentials(error: Exception) -> bool:
    """Whether a foreign library misses credentials or rights: each has exceptions of its own, with such names."""
    return any(_CREDENTIALS.search(kind.__name__) for kind in type(error).__mro__)


def is_no_outage(error: Exception) -> bool:
    """Whether a foreign library fails in a way that trying again does not mend: it cannot do what it was asked."""
    return isinstance(error, NotImplementedError | TypeError | AttributeError | LookupError | AssertionError)
