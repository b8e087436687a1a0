"""Any fsspec file system: the contract on two of them, a hub of our own, and what URLs may say."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from anabranch.engine.errors import InputError, ResourceError, TemporaryError
from anabranch.engine.models.checkpoint import open_checkpoint
from anabranch.engine.models.header import build_header
from anabranch.engine.storage.fsspec_store import FsspecStore, _open_hub
from anabranch.engine.storage.opening import open_store
from anabranch.engine.storage.retry import Retry

from .store_contract import StoreContract


class TestLocalFilesThroughFsspec(StoreContract):
    keeps_attributes = False
    names_leftovers = False

    @pytest.fixture
    def store(self, tmp_path):
        (tmp_path / "root").mkdir()
        root = str(tmp_path / "root")
        return FsspecStore(f"local://{root}", fsspec.filesystem("file", use_listings_cache=False), root)

    @pytest.mark.skip(reason="exclusive creation needs conditional writes")
    def test_one_of_many_creators_wins(self, store):
        """See the contract."""


def test_a_store_that_shows_unfinished_files_is_refused_before_it_can():
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    store = FsspecStore("mem://root", file_system, "/root")
    for write in (lambda: store.writer("a", 1, {}, "run"), lambda: store.replace("a", b"1")):
        with pytest.raises(ResourceError, match="cannot write files unseen"):
            write()
    assert store.list() == []


def test_stores_whose_files_cannot_be_discarded_are_refused():
    class Visible(fsspec.AbstractFileSystem):
        def open(self, *arguments, **options):
            return open("/dev/null", "wb")

        def makedirs(self, *arguments, **options):
            pass

        def rm_file(self, path):
            raise FileNotFoundError(path)

    with pytest.raises(ResourceError, match="cannot write files unseen"):
        FsspecStore("visible://x", Visible(), "x").writer("a", 1, {}, "run")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x", "s3://bucket/x?token=secret", "s3://bucket/x#secret", "https://u:secret@host/x",
        "s3://", "s3://bucket/../x", "s3://bucket/a\nb", "simplecache::s3://bucket/secret", "nosuchscheme://x/secret",
        "hf://name", "hf://a/b/secret", "hf://a/b@c@secret",
    ],
)  # fmt: skip
def test_urls_with_secrets_or_tricks_are_rejected_without_showing_them(url):
    with pytest.raises(InputError) as caught:
        open_store(url)
    assert url.startswith("hf") or "secret" not in str(caught.value)


def test_s3_urls_are_normalised():
    assert open_store("S3A://bucket//a/b/").url == "s3://bucket/a/b"
    assert open_store("s3://bucket").url == "s3://bucket"


# -- a hub -----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as reading a model at a commit takes."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    failures: list[int]
    ranges: list[str]

    def do_GET(self):
        if self.failures:
            self.answer(self.failures.pop(0), b"{}")
        elif self.path.startswith("/api/models/owner/name/revision/") and "/tree" not in self.path:
            revision = self.path.rpartition("/")[2]
            known = revision in ("main", "v1", COMMIT)
            self.answer(200 if known else 404, json.dumps({"id": "owner/name", "sha": COMMIT}).encode())
        elif self.path.rstrip("?").endswith("/api/models/owner/name"):
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT}).encode())
        elif self.path.startswith(f"/api/models/owner/name/tree/{COMMIT}"):
            self.answer(200, json.dumps([self.entry(name) for name in self.files]).encode())
        elif self.path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            self.send_file(self.files.get(self.path.rpartition("/")[2]))
        else:
            self.answer(404, b"{}")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer(200, json.dumps([self.entry(name) for name in self.files if name in body]).encode())

    def entry(self, name):
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": f"{len(name):040x}"}

    def send_file(self, data):
        if data is None:
            self.answer(404, b"")
            return
        self.ranges.append(self.headers.get("Range", ""))
        if "Range" in self.headers:
            begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.answer(206, data[begin : end + 1])
        else:
            self.answer(200, data)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    data, infos = build_header([("layer.weight", "BF16", (64, 64))], {"format": "pt"})
    weights = data + bytes(range(256)) * (infos[0].nbytes // 256)
    handler = type(
        "H", (Hub,), {"files": {"model.safetensors": weights, "config.json": b"{}"}, "failures": [], "ranges": []}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_a_hub_model_is_pinned_to_a_commit(hub, revision):
    store = _open_hub(["owner", f"name{revision}"], hub.endpoint)
    assert store.url == f"hf://owner/name@{COMMIT}"
    checkpoint = open_checkpoint(store.url, store)
    assert list(checkpoint.tensors) == ["layer.weight"]
    assert checkpoint.side_files == ("config.json",)
    location = checkpoint.tensors["layer.weight"]
    buffer = bytearray(256)
    store.read_into("model.safetensors", location.info.offset, memoryview(buffer), checkpoint.files[0].version)
    assert bytes(buffer) == bytes(range(256))


def test_the_hub_sends_only_the_bytes_asked_for(hub):
    store = _open_hub(["owner", "name"], hub.endpoint)
    buffer = bytearray(10)
    store.read_into("model.safetensors", 100, memoryview(buffer))
    assert hub.ranges == ["bytes=100-109"]


def test_an_unknown_revision_is_an_input_error(hub):
    with pytest.raises(InputError, match="no such model or revision") as caught:
        _open_hub(["owner", "name@nope"], hub.endpoint)
    assert "If a directory was meant, there is none of that name." in caught.value.hint


def test_a_hub_that_nobody_reaches_may_be_a_directory_that_is_missing(hub, monkeypatch):
    monkeypatch.setattr("anabranch.engine.storage.fsspec_store.Retry", lambda: Retry(attempts=1))
    with pytest.raises(TemporaryError) as caught:
        _open_hub(["models", "nmae"], "http://127.0.0.1:9")
    assert "If a directory was meant, there is none of that name." in caught.value.hint


def test_offline_mode_is_explained_at_once(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):
        _open_hub(["owner", "name"], hub.endpoint)


def test_a_gated_model_says_what_to_do(hub):
    hub.failures.append(403)
    with pytest.raises(ResourceError, match="hf auth login"):
        _open_hub(["owner", "name"], hub.endpoint)
