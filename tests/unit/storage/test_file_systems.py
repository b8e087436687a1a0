"""Every scheme that fsspec knows opens, or says in our words what is missing; none of it is a bug."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.registry import known_implementations

from anabranch.engine.errors import AnabranchError, InputError, ResourceError
from anabranch.engine.storage import file_systems, open_store

ASKS_THE_NETWORK = {"hf"}


@pytest.mark.parametrize("scheme", sorted(set(known_implementations) - ASKS_THE_NETWORK))
def test_every_kind_of_url_is_opened_or_refused_in_our_words(scheme: str) -> None:
    refused = None
    try:
        open_store(f"{scheme.replace('_', '-')}://nowhere/folder")
    except AnabranchError as error:
        refused = error
    assert refused is None or (refused.exit_code in (3, 6) and refused.hint)


@pytest.mark.parametrize(("scheme", "setting"), [("reference", "fo"), ("gist", "gist_id"), ("jlab", "url")])
def test_what_a_url_does_not_say_is_named(scheme: str, setting: str) -> None:
    with pytest.raises(InputError, match=f"without settings .*{setting}"):
        open_store(f"{scheme}://nowhere/folder")


class DefaultCredentialsError(Exception):
    """As of google.auth, which is not installed here."""


@pytest.mark.parametrize(
    "error", [ValueError("Must provide either a connection_string or account_name"), DefaultCredentialsError()]
)
def test_missing_credentials_are_no_missing_package(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "locked"
        cachable = False

        def __init__(self, **_: object) -> None:
            raise error

    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(ResourceError, match="credentials or settings are missing") as caught:
        file_systems.open_file_system("locked")
    assert "package" not in str(caught.value)


def test_credentials_that_are_missed_later_are_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "late"

        def ls(self, *_: object, **__: object) -> list[str]:
            raise DefaultCredentialsError

    fsspec.register_implementation("late", Late, clobber=True)
    with pytest.raises(ResourceError, match="late://bucket/folder: no usable credentials"):
        open_store("late://bucket/folder").list()
