"""As much of the Hugging Face hub's HTTP interface as pushing and reading models takes, as a process of its own.

Run as `python -m tests.hub.stub`; prints its port. What it holds and what it was asked is read, and what goes wrong is
scripted, through `/stub`, which no client of the hub knows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretOfTheTests0123456789"
SIGNATURE = "X-Amz-Signature=secretOfTheStore"
PART_BYTES = 300_000
"""Larger contents come in parts."""


class Hub:
    """Repositories with their commits, contents by digest, and the script of what goes wrong."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.private: dict[str, bool] = {}
        self.branches: dict[tuple[str, str], list[str]] = {}
        """By repository and branch, ids of commits."""
        self.trees: dict[str, dict[str, str]] = {}
        """By commit, digests of contents by path."""
        self.contents: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.faults: list[dict[str, Any]] = []

    def commit(self, repository: str, branch: str, tree: dict[str, str]) -> str:
        history = self.branches.setdefault((repository, branch), [])
        spelled = json.dumps([repository, branch, len(history), tree], sort_keys=True)
        made = hashlib.sha1(spelled.encode()).hexdigest()
        history.append(made)
        self.trees[made] = tree
        return made

    def at(self, repository: str, revision: str) -> str | None:
        """The commit of a branch, or one that is named."""
        if revision in self.trees:
            return revision
        history = self.branches.get((repository, revision))
        return history[-1] if history else None

    def due(self, method: str, target: str) -> dict[str, Any]:
        with self.lock:
            self.requests.append(f"{method} {target}")
            for fault in self.faults:
                if re.fullmatch(fault.get("method", ".*"), method) and re.search(fault.get("target", ""), target):
                    fault["seen"] = fault.get("seen", 0) + 1
                    first = fault.get("number", 1)
                    if first <= fault["seen"] < first + fault.get("times", 1):
                        return fault
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path).rstrip("?")
        if path == "/stub":
            return self._control(body)
        hub, fault = self.server.hub, self.server.hub.due(self.command, path)
        if "other commit" in fault:
            with hub.lock:
                repository, name = fault["other commit"], "notes.txt"
                hub.contents["0"] = b"others"
                hub.commit(repository, "main", {**hub.trees[hub.at(repository, "main") or ""], name: "0"})
        if "status" in fault:
            return self._answer(fault["status"], {"error": "scripted"}, fault.get("headers", {}))
        with hub.lock:
            status, answer, headers = self._route(path, body)
        if fault.get("lose"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return None
        return self._answer(status, answer, headers)

    do_GET = do_HEAD = do_PUT = do_POST = _serve  # noqa: N815 - names that the base class calls

    def _route(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        hub = self.server.hub
        # Where contents go the address itself is the permission, and holds a signature.
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            hub.contents[found[1]] = body
            assert hashlib.sha256(body).hexdigest() == found[1], "the store itself checks what comes"
            return 200, {}, {}
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})/(\d+)", path):
            hub.parts[found[1], int(found[2])] = body
            return 200, {}, {"ETag": f'"{len(body)}"'}
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})/complete", path):
            numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
            hub.contents[found[1]] = b"".join(hub.parts[found[1], number] for number in numbers)
            return 200, {}, {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}, {}
        if path in ("/lfs/verify", "/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return (
                200,
                {"transfer": "basic", "objects": [self._batch(each) for each in json.loads(body)["objects"]]},
                {},
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)/([^/]+)/?(.*))?", path):
            return self._model(found[1], found[2] or "revision", found[3] or "main", found[4] or "", body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3])
        return 404, {"error": path}, {}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        hub, repository = self.server.hub, f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.endpoint}/{repository}"}
        if repository in hub.private:
            return 409, url | {"error": "exists"}, {}
        hub.private[repository] = asked.get("visibility") == "private"
        hub.contents["git"] = b"*.safetensors filter=lfs\n"
        hub.commit(repository, "main", {".gitattributes": "git"})
        return 200, url, {}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size, place = asked["oid"], asked["size"], f"{self.server.endpoint}/lfs/{asked['oid']}"
        if oid in self.server.hub.contents:
            return asked
        upload: dict[str, Any] = {"href": f"{place}?{SIGNATURE}"}
        if size > PART_BYTES:
            count = -(-size // PART_BYTES)
            urls = {f"{number:05d}": f"{place}/{number}?{SIGNATURE}" for number in range(1, count + 1)}
            upload = {"href": f"{place}/complete", "header": {"chunk_size": str(PART_BYTES), **urls}}
        return asked | {"actions": {"upload": upload, "verify": {"href": f"{self.server.endpoint}/lfs/verify"}}}

    def _model(
        self, repository: str, verb: str, revision: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        hub = self.server.hub
        if repository not in hub.private:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if verb == "branch":
            if (repository, revision) in hub.branches:
                return 409, {"error": "exists"}, {}
            hub.commit(repository, revision, dict(hub.trees[hub.at(repository, "main") or ""]))
            return 200, {}, {}
        commit = hub.at(repository, revision)
        if commit is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        tree = hub.trees[commit]
        if verb == "revision":
            siblings = [{"rfilename": name} for name in sorted(tree)]
            return 200, {"id": repository, "sha": commit, "private": hub.private[repository], "siblings": siblings}, {}
        if verb == "tree":
            return 200, [self._entry(tree, name) for name in sorted(tree)], {}
        if verb == "paths-info":
            return 200, [self._entry(tree, name) for name in sorted(tree) if name in body.decode()], {}
        if verb == "preupload":
            return 200, {"files": [self._mode(tree, file) for file in json.loads(body)["files"]]}, {}
        if verb == "commit":
            return self._commit(repository, revision, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": verb}, {}

    def _entry(self, tree: dict[str, str], name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.server.hub.contents[tree[name]]), "oid": tree[name][:40]}

    def _mode(self, tree: dict[str, str], file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".parquet")) or file["size"] > 10_000_000
        known = {"oid": tree[file["path"]]} if large and file["path"] in tree else {}
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}

    def _commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
        hub, head = self.server.hub, self.server.hub.at(repository, branch) or ""
        tree = dict(hub.trees[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, head):
                return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                tree[value["path"]] = hashlib.sha256(data).hexdigest()
                hub.contents[tree[value["path"]]] = data
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.contents:
                    return 400, {"error": "LFS pointer pointed to a file that does not exist"}, {}
                tree[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        made = hub.commit(repository, branch, tree)
        return 200, {"commitUrl": f"{self.server.endpoint}/{repository}/commit/{made}", "commitOid": made}, {}

    def _resolve(self, repository: str, revision: str, name: str) -> tuple[int, Any, dict[str, str]]:
        hub = self.server.hub
        commit = hub.at(repository, revision)
        if commit is None or name not in hub.trees[commit]:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        data = hub.contents[hub.trees[commit][name]]
        if "Range" not in self.headers:
            return 200, data, {}
        begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        return 206, data[begin : end + 1], {}

    def _control(self, body: bytes) -> None:
        hub = self.server.hub
        with hub.lock:
            asked = json.loads(body or b"{}")
            if "faults" in asked:
                hub.faults, hub.requests = asked["faults"], []
            hub.contents.pop(asked.get("drop", ""), None)
            for name, text in asked.get("commit", {}).items():  # by somebody else
                hub.contents[hashlib.sha256(text.encode()).hexdigest()] = text.encode()
                head = hub.trees[hub.at(asked["repository"], "main") or ""]
                kept = {path: digest for path, digest in head.items() if path not in asked.get("remove", ())}
                hub.commit(asked["repository"], "main", {**kept, name: hashlib.sha256(text.encode()).hexdigest()})
            self._answer(
                200,
                {
                    "requests": hub.requests,
                    "private": hub.private,
                    "branches": [[*key, commits] for key, commits in hub.branches.items()],
                    "trees": hub.trees,
                    "contents": sorted(hub.contents),
                },
                {},
            )

    def _answer(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


if __name__ == "__main__":
    server = HubServer()
    print(server.endpoint, flush=True)
    server.serve_forever()
