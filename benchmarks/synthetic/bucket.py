"""One bucket: files of synthetic checkpoints, which cannot be changed, and what is uploaded beside them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import TypeVar

from .objects import Synthetic
from .pool import Pool
from .uploads import Refused, Upload, Uploaded, whole

Stored = Synthetic | Uploaded
Value = TypeVar("Value")


class Bucket:
    """Objects by key; every method may be called by several threads."""

    def __init__(self, name: str, pool: Pool, inputs: Mapping[str, Synthetic]) -> None:
        self.name = name
        self.pool = pool
        self._objects: dict[str, Stored] = dict(inputs)
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def find(self, key: str) -> Stored:
        """An object; Refused (404) where there is none."""
        with self._lock:
            return self._found(self._objects, key, "NoSuchKey")

    def keys(self, prefix: str) -> list[str]:
        """In order."""
        with self._lock:
            return sorted(key for key in self._objects if key.startswith(prefix))

    def put(self, key: str, body: bytes, metadata: Mapping[str, str], *, exclusive: bool) -> Uploaded:
        """Store an object that came in one request; Refused (412) where it must not exist and does."""
        return self._publish(key, whole(body, metadata), exclusive=exclusive)

    def delete(self, key: str) -> None:
        """Remove what was uploaded."""
        with self._lock:
            if isinstance(self._objects.get(key), Synthetic):
                raise Refused(403, "AccessDenied")
            self._objects.pop(key, None)

    def begin(self, key: str, metadata: Mapping[str, str]) -> str:
        """Start an upload in parts; its id."""
        upload_id = secrets.token_hex(16)
        with self._lock:
            self._uploads[upload_id] = Upload(key, metadata)
        return upload_id

    def upload(self, key: str, upload_id: str) -> Upload:
        """An unfinished upload of this key."""
        with self._lock:
            upload = self._found(self._uploads, upload_id, "NoSuchUpload")
        if upload.key != key:
            raise Refused(404, "NoSuchUpload")
        return upload

    def finish(self, key: str, upload_id: str, listed: Sequence[tuple[int, str]], *, exclusive: bool) -> Uploaded:
        """Make an upload an object."""
        done = self._publish(key, self.upload(key, upload_id).finish(listed), exclusive=exclusive)
        with self._lock:
            self._uploads.pop(upload_id, None)
        return done

    def abort(self, key: str, upload_id: str) -> None:
        """Forget an upload."""
        self.upload(key, upload_id)
        with self._lock:
            self._uploads.pop(upload_id, None)

    def uploads(self, prefix: str) -> list[tuple[str, Upload]]:
        """Unfinished ones with their ids, by key."""
        with self._lock:
            found = [(name, upload) for name, upload in self._uploads.items() if upload.key.startswith(prefix)]
        return sorted(found, key=lambda each: (each[1].key, each[0]))

    def uploaded(self) -> dict[str, Uploaded]:
        """Everything that came."""
        with self._lock:
            return {key: each for key, each in self._objects.items() if isinstance(each, Uploaded)}

    def _publish(self, key: str, uploaded: Uploaded, *, exclusive: bool) -> Uploaded:
        with self._lock:
            if isinstance(self._objects.get(key), Synthetic):
                raise Refused(403, "AccessDenied")
            if exclusive and key in self._objects:
                raise Refused(412, "PreconditionFailed")
            self._objects[key] = uploaded
        return uploaded

    @staticmethod
    def _found(where: Mapping[str, Value], key: str, code: str) -> Value:
        try:
            return where[key]
        except KeyError:
            raise Refused(404, code) from None
