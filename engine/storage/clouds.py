"""Google's and Azure's stores by their schemes; each imports its client only when it is opened."""

from __future__ import annotations

import re

from ..errors import ResourceError
from .protocol import Store

CLOUDS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""Extras of this package by the schemes that they open."""


ACCOUNT = re.compile(r"(?P<container>[a-z0-9$-]+)@(?P<account>[a-z0-9]+)\.(dfs|blob)\.core\.windows\.net")
"""How Azure's own tools write a container of an account; no user's name, although it looks like one."""


def open_cloud_store(scheme: str, parts: list[str]) -> Store:
    """The store of a bucket or container and a prefix in it.

    Args:
        scheme: one of CLOUDS.
        parts: the bucket's name, for Azure perhaps with the account, and those of the prefix.

    Raises:
        ResourceError: a package or credentials are missing.
    """
    from .object_store import ObjectStore

    prefix = "/".join(parts[1:])
    try:
        if CLOUDS[scheme] == "gcs":
            from .gcs import GcsBucket
            from .gcs_client import shared_connection

            return ObjectStore(GcsBucket(parts[0], shared_connection()), prefix)
        from .azure import AzureBucket
        from .azure import shared_connection as shared_azure_connection

        named = ACCOUNT.fullmatch(parts[0])
        container, account = (named["container"], named["account"]) if named else (parts[0], None)
        return ObjectStore(AzureBucket(container, shared_azure_connection(account)), prefix)
    except ImportError as error:
        raise ResourceError(
            f"{scheme}://…: a Python package for this kind of URL is missing ({error.name or error})",
            f"pip install 'anabranch[{CLOUDS[scheme]}]'",
        ) from error
