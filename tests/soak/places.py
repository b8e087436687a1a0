"""Outputs as the soak looks at them, past the engine: a folder, or a prefix of a bucket over plain HTTP."""

from __future__ import annotations

import re
import shutil
import urllib.request
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

RECEIPTS = ".anabranch/receipts/"


class Place(Protocol):
    url: str

    def files(self) -> dict[str, object]:
        """Every file by name, with what another file would have differently."""

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None:
        """In place, as something that knows nothing of us would."""

    def delete(self, name: str) -> None: ...

    def clear(self) -> None: ...


class Folder:
    """A local output."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = str(path)

    def files(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in self._path.rglob("*"):
            if path.is_file():
                status = path.stat()
                found[str(path.relative_to(self._path))] = (status.st_ino, status.st_mtime_ns)
        return found

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with (self._path / name).open("r+b") as file:
            file.write(data)
            file.truncate()

    def delete(self, name: str) -> None:
        (self._path / name).unlink()

    def clear(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


class Prefix:
    """An output in a bucket; the server's simulator looks at no signature."""

    def __init__(self, endpoint: str, bucket: str, prefix: str) -> None:
        self._bucket = f"{endpoint}/{bucket}"
        self._prefix = prefix
        self.url = f"s3://{bucket}/{prefix}"

    def files(self) -> dict[str, object]:
        listing = self._ask("GET", f"?list-type=2&max-keys=1000&prefix={self._prefix}/").decode()
        entries = re.findall(r"<Key>(.*?)</Key>.*?<LastModified>(.*?)</LastModified>", listing, flags=re.DOTALL)
        return {key.removeprefix(f"{self._prefix}/"): when for key, when in entries}

    def read(self, name: str) -> bytes:
        return self._ask("GET", f"/{quote(f'{self._prefix}/{name}')}")

    def write(self, name: str, data: bytes) -> None:
        self._ask("PUT", f"/{quote(f'{self._prefix}/{name}')}", data)

    def delete(self, name: str) -> None:
        self._ask("DELETE", f"/{quote(f'{self._prefix}/{name}')}")

    def clear(self) -> None:
        for name in self.files():
            self.delete(name)

    def _ask(self, method: str, target: str, data: bytes | None = None) -> bytes:
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=testkey/20260101/us-east-1/s3/aws4_request"}
        request = urllib.request.Request(self._bucket + target, data, signed, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
            return content


def finished(place: Place) -> dict[str, object]:
    """Shards with a receipt, and what another file in their place would have differently."""
    files = place.files()
    shards = [name.removeprefix(RECEIPTS).removesuffix(".json") for name in files if name.startswith(RECEIPTS)]
    return {name: files[name] for name in shards if name in files}
