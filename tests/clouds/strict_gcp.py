"""gcp-storage-emulator with what Google says of conditions and of composing, and the emulator lets pass.

Objects may be written on the condition of a generation, sources of a composed object are named by theirs, there are at
most 32 of them, and a composed object has no MD5. A program: handlers are replaced before the server is made of them.
"""

from __future__ import annotations

import sys
import threading
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

MOST_SOURCES = 32
one_at_a_time = threading.Lock()
plain_insert, plain_compose = objects.insert, objects.compose


def generation(storage: Any, bucket: str, key: str) -> str:
    """Of an object; "0" where there is none."""
    try:
        return str(storage.get_file_obj(bucket, key)["generation"])
    except NotFound:
        return "0"


def refuse(response: Any, status: HTTPStatus, message: str) -> None:
    response.status = status
    response.json({"error": {"code": status.value, "message": message, "errors": [{"reason": status.phrase}]}})


def holds(request: Any, storage: Any, key: str) -> bool:
    """Whether the condition of a request holds, if it has one."""
    wanted = request.query.get("ifGenerationMatch")
    return wanted is None or wanted[0] == generation(storage, request.params["bucket_name"], key)


def insert(request: Any, response: Any, storage: Any, *_: Any, **__: Any) -> None:
    with one_at_a_time:
        if request.query["uploadType"] == ["multipart"] and not holds(request, storage, request.data["meta"]["name"]):
            refuse(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
        else:
            plain_insert(request, response, storage)


def compose(request: Any, response: Any, storage: Any, *_: Any, **__: Any) -> None:
    bucket, key, sources = request.params["bucket_name"], request.params["object_id"], request.data["sourceObjects"]
    with one_at_a_time:
        if len(sources) > MOST_SOURCES:
            refuse(response, HTTPStatus.BAD_REQUEST, f"{len(sources)} sources")
        elif not all(source["generation"] == generation(storage, bucket, source["name"]) for source in sources):
            refuse(response, HTTPStatus.NOT_FOUND, "a source is not there")
        elif not holds(request, storage, key):
            refuse(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
        else:
            plain_compose(request, response, storage)
            made = storage.get_file_obj(bucket, key)
            made["md5Hash"] = None  # the emulator asks for the name when it sends the object
            storage.patch_object(bucket, key, made)


objects.insert, objects.compose = insert, compose

if __name__ == "__main__":
    from gcp_storage_emulator.__main__ import main

    sys.exit(main())
