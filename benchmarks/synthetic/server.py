"""An S3 server on this machine for checkpoints that nobody could store here: it makes, hashes and forgets.

    python -m benchmarks.synthetic.server 0.5b --models 2

Objects under `base/`, `model-1/` and so on are made while they are read, by sendfile from a pool of weights. What is
uploaded is hashed as it comes; only objects up to 32 MiB are kept. The first line that it prints is its endpoint.
Signatures are not looked at, so it listens on 127.0.0.1 alone. `GET /-/report` says what it did, in JSON.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import resource
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from .bucket import Bucket, Stored
from .objects import SHARD_BYTES, Synthetic, catalog, checkpoint_files
from .pool import FAMILY_BYTES, Pool, Span
from .uploads import Refused, Uploaded

BUCKET = "bench"
REPORT = "/-/report"
PAGE_KEYS = 1000
_METADATA = "x-amz-meta-"


class Server(ThreadingHTTPServer):
    """The bucket behind a port of 127.0.0.1; a thread per connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, bucket: Bucket, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.bucket = bucket
        self._lock = threading.Lock()
        self._counts = {"requests": 0, "sent_bytes": 0, "received_bytes": 0}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away, as one that is killed does."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        self.bucket.pool.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, what: str, number: int) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[what] += number

    def report(self) -> dict[str, object]:
        """What came and went, what it cost, and the digests of all that was uploaded."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **self._counts,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss << 10,
            "unfinished": len(self.bucket.uploads("")),
            "objects": {
                key: {"size": each.size, "sha256": each.sha256} for key, each in self.bucket.uploaded().items()
            },
        }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        """Have one buffer for all bodies of the connection: fresh memory would cost more than what is done with it."""
        super().setup()
        self._buffer = bytearray()

    def do_GET(self) -> None:
        self._answer({"": self._get, "list-type": self._list, "uploads": self._list_uploads, "uploadId": self._parts})

    def do_HEAD(self) -> None:
        self._answer({"": self._head})

    def do_PUT(self) -> None:
        self._answer({"": self._put, "partNumber": self._put_part})

    def do_POST(self) -> None:
        self._answer({"uploads": self._begin, "uploadId": self._finish, "delete": self._delete_several})

    def do_DELETE(self) -> None:
        self._answer({"": self._delete, "uploadId": self._abort})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing of requests."""

    # -- what all requests share -------------------------------------------------------------------------------------

    def _answer(self, ways: Mapping[str, Callable[[], None]]) -> None:
        """Answer by the first of these keys that the query has."""
        split = urlsplit(self.path)
        self._query = {key: values[0] for key, values in parse_qs(split.query, keep_blank_values=True).items()}
        bucket, _, self._key = unquote(split.path).lstrip("/").partition("/")
        self._bucket = self.server.bucket
        self.server.count("requests", 1)
        self._body = self._receive()  # in any case: the next request follows it
        try:
            if split.path == REPORT:
                self._send(200, json.dumps(self.server.report()).encode())
                return
            if bucket != self._bucket.name:
                raise Refused(404, "NoSuchBucket")
            way = next((way for key, way in ways.items() if key in self._query), ways.get("" if self._key else "list"))
            if way is None:
                raise Refused(501, "NotImplemented")
            way()
        except Refused as refused:
            text = f"<Error><Code>{refused.code}</Code><Message>{refused.code}</Message></Error>"
            self._send(refused.status, text.encode())

    def _receive(self) -> memoryview:
        size = int(self.headers.get("Content-Length", 0))
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        data = memoryview(self._buffer)[:size]
        done = 0
        while done < len(data):
            count = self.rfile.readinto(data[done:])
            if not count:
                raise ConnectionAbortedError("the client went away in the middle of a body")
            done += count
        self.server.count("received_bytes", len(data))
        return data

    def _check_body(self) -> None:
        """Compare the body with the checksum that came with it."""
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            raise Refused(501, "NotImplemented")
        said = self.headers.get("x-amz-checksum-crc32")
        if said is not None and base64.b64decode(said) != zlib.crc32(self._body).to_bytes(4, "big"):
            raise Refused(400, "BadDigest")

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_xml(self, name: str, content: str, **headers: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        self._send(200, f"{text}{content}</{name}>".encode(), Content_Type="application/xml", **headers)

    def _metadata(self) -> dict[str, str]:
        return {
            name.lower().removeprefix(_METADATA): value
            for name, value in self.headers.items()
            if name.lower().startswith(_METADATA)
        }

    # -- reading -----------------------------------------------------------------------------------------------------

    def _found(self) -> Stored:
        found = self._bucket.find(self._key)
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted.strip('"') not in ("*", found.version):
            raise Refused(412, "PreconditionFailed")
        return found

    def _send_head(self, status: int, found: Stored, count: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{found.version}"')
        self.send_header("Last-Modified", self.date_time_string(0))
        self.send_header("Accept-Ranges", "bytes")
        for name, value in found.metadata.items() if isinstance(found, Uploaded) else ():
            self.send_header(_METADATA + name, value)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(count))
        self.end_headers()

    def _head(self) -> None:
        if self._key:
            found = self._found()
            self._send_head(200, found, found.size)
        else:
            self._send(200)

    def _get(self) -> None:
        found = self._found()
        if isinstance(found, Uploaded) and found.data is None:
            raise Refused(410, "Forgotten")
        said = self.headers.get("Range")
        begin, end = (0, found.size) if said is None else _range(said, found.size)
        part = {} if said is None else {"Content_Range": f"bytes {begin}-{end - 1}/{found.size}"}
        self._send_head(206 if part else 200, found, end - begin, **part)
        if isinstance(found, Synthetic):
            self._send_pieces(found.pieces(self._bucket.pool, begin, end))
        else:
            self.wfile.write(memoryview(found.data or b"")[begin:end])
        self.server.count("sent_bytes", end - begin)

    def _send_pieces(self, pieces: Sequence[bytes | Span]) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                self.wfile.write(piece)
                continue
            at, end = piece.offset, piece.offset + piece.length
            while at < end:
                at += os.sendfile(self.connection.fileno(), self._bucket.pool.descriptor, at, end - at)

    def _list(self) -> None:
        """ListObjectsV2."""
        query = self._query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", PAGE_KEYS)), PAGE_KEYS)
        entries: dict[str, str] = {}  # keys and common prefixes, each once
        for key in self._bucket.keys(prefix):
            rest = key[len(prefix) :]
            folder = prefix + rest[: rest.index(delimiter) + 1] if delimiter and delimiter in rest else ""
            if (folder or key) > after:
                entries[folder or key] = folder
        page = list(entries)[:most]
        text = ""
        for name in page:
            if entries[name]:
                text += f"<CommonPrefixes><Prefix>{quote(name)}</Prefix></CommonPrefixes>"
                continue
            with contextlib.suppress(Refused):  # removed meanwhile
                found = self._bucket.find(name)
                text += f"<Contents><Key>{quote(name)}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
                text += f"<ETag>&quot;{found.version}&quot;</ETag><Size>{found.size}</Size></Contents>"
        truncated = len(entries) > len(page)
        text += f"<EncodingType>url</EncodingType><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(truncated).lower()}"
        text += "</IsTruncated>"
        if truncated:
            text += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        self._send_xml("ListBucketResult", text)

    # -- writing -----------------------------------------------------------------------------------------------------

    @property
    def _exclusive(self) -> bool:
        return self.headers.get("If-None-Match") == "*"

    def _put(self) -> None:
        self._check_body()
        done = self._bucket.put(self._key, bytes(self._body), self._metadata(), exclusive=self._exclusive)
        self._send(200, ETag=f'"{done.version}"')

    def _begin(self) -> None:
        upload_id = self._bucket.begin(self._key, self._metadata())
        text = f"<Bucket>{self._bucket.name}</Bucket><Key>{escape(self._key)}</Key><UploadId>{upload_id}</UploadId>"
        self._send_xml("InitiateMultipartUploadResult", text)

    def _put_part(self) -> None:
        self._check_body()
        part = self._bucket.upload(self._key, self._query["uploadId"]).add(int(self._query["partNumber"]), self._body)
        self._send(200, ETag=f'"{part.version}"')

    def _finish(self) -> None:
        parts = ElementTree.fromstring(bytes(self._body))
        listed = [(int(_text(part, "PartNumber")), _text(part, "ETag").strip('"')) for part in parts]
        done = self._bucket.finish(self._key, self._query["uploadId"], listed, exclusive=self._exclusive)
        text = f"<Key>{escape(self._key)}</Key><ETag>&quot;{done.version}&quot;</ETag>"
        self._send_xml("CompleteMultipartUploadResult", text)

    def _abort(self) -> None:
        self._bucket.abort(self._key, self._query["uploadId"])
        self._send(204)

    def _list_uploads(self) -> None:
        text = ""
        for upload_id, upload in self._bucket.uploads(self._query.get("prefix", "")):
            text += f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{upload_id}</UploadId>"
            text += f"<Initiated>{_time(upload.began)}</Initiated></Upload>"
        self._send_xml("ListMultipartUploadsResult", f"{text}<IsTruncated>false</IsTruncated>")

    def _parts(self) -> None:
        after = int(self._query.get("part-number-marker", 0))
        most = min(int(self._query.get("max-parts", PAGE_KEYS)), PAGE_KEYS)
        came = self._bucket.upload(self._key, self._query["uploadId"]).parts()
        following = [(number, part) for number, part in came if number > after]
        text = ""
        for number, part in following[:most]:
            text += f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{part.version}&quot;</ETag>"
            text += f"<Size>{part.size}</Size></Part>"
        truncated = len(following) > most
        text += f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
        if truncated:
            text += f"<NextPartNumberMarker>{following[most - 1][0]}</NextPartNumberMarker>"
        self._send_xml("ListPartsResult", text)

    def _delete(self) -> None:
        self._bucket.delete(self._key)
        self._send(204)

    def _delete_several(self) -> None:
        listed = ElementTree.fromstring(bytes(self._body))
        keys = [_text(each, "Key") for each in listed if each.tag.endswith("Object")]
        for key in keys:
            self._bucket.delete(key)
        self._send_xml("DeleteResult", "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys))


def _text(element: ElementTree.Element, name: str) -> str:
    return next((child.text or "" for child in element if child.tag.rpartition("}")[2] == name), "")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _range(said: str, size: int) -> tuple[int, int]:
    """First byte and the one after the last of `bytes=a-b`, `bytes=a-` or `bytes=-n`."""
    first, _, last = said.removeprefix("bytes=").partition("-")
    begin = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if begin >= end:
        raise Refused(416, "InvalidRange")
    return begin, end


def model_server(
    size: str, models: int, seed: int = 0, *, shard_bytes: int = SHARD_BYTES, family_bytes: int = FAMILY_BYTES
) -> Server:
    """A server, not yet serving, with a base and `models` fine-tunes in the bucket `bench`."""
    content = catalog(size)
    inputs = {}
    for number in range(models + 1):
        folder = f"model-{number}" if number else "base"
        for name, file in checkpoint_files(content, number, seed, shard_bytes).items():
            inputs[f"{folder}/{name}"] = file
    return Server(Bucket(BUCKET, Pool(content.kinds, models + 1, seed, family_bytes), inputs))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Serve synthetic checkpoints by S3's protocol on 127.0.0.1.")
    parser.add_argument("size", help="a size of benchmarks.generate or 405b; with -fp8 at its end, in FP8")
    parser.add_argument("--models", type=int, default=2, help="fine-tuned models beside the base (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    server = model_server(options.size, options.models, options.seed)
    print(server.endpoint, flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
