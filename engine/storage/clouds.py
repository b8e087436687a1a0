"""Google's and Azure's stores by their schemes; each imports its client only when it is opened."""

from __future__ import annotations

from ..errors import ResourceError
from .protocol import Store

CLOUDS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""Extras of this package by the schemes that they open."""


def open_cloud_store(scheme: str, parts: list[str]) -> Store:
    """The store of a bucket or container and a prefix in it.

    Args:
        scheme: one of CLOUDS.
        parts: the bucket's name and those of the prefix.

    Raises:
        ResourceError: a package or credentials are missing.
    """
    from .object_store import ObjectStore

    prefix = "/".join(parts[1:])
    try:
        if CLOUDS[scheme] == "gcs":
            from .gcs import GcsBucket, shared_connection

            return ObjectStore(GcsBucket(parts[0], shared_connection()), prefix)
        from .azure import AzureBucket
        from .azure import shared_connection as shared_azure_connection

        return ObjectStore(AzureBucket(parts[0], shared_azure_connection()), prefix)
    except ImportError as error:
        raise ResourceError(
            f"{scheme}://…: a Python package for this kind of URL is missing ({error.name or error})",
            f"pip install 'anabranch[{CLOUDS[scheme]}]'",
        ) from error
