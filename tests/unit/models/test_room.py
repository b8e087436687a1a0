"""Headers and texts that would take more memory than there is are refused before they are parsed."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest

from anabranch.engine.errors import ResourceError
from anabranch.engine.models.checkpoint import open_checkpoint
from anabranch.engine.models.header import parse_header
from anabranch.engine.models.lora import read_adapter_config
from anabranch.engine.models.opening import Opened, open_models
from anabranch.engine.models.references import ModelUrl
from anabranch.engine.models.room import BASE_BYTES, Room
from anabranch.engine.models.tokens.decide import Folders
from anabranch.engine.storage.memory import MemoryStore

COUNT = 30_000
TEXTS = {
    "lists": '{"a":[' + ",".join(["[]"] * COUNT) + "]}",
    "objects": '{"a":[' + ",".join(["{}"] * COUNT) + "]}",
    "keys": "{" + ",".join(f'"{i:x}":{{}}' for i in range(COUNT)) + "}",
    "words": '{"a":[' + ",".join(f'"{i:x}"' for i in range(COUNT)) + "]}",
    "numbers": '{"a":[' + ",".join(map(str, range(1000, 1000 + COUNT))) + "]}",
    "vocabulary": "{" + ",".join(f'"\u0120token{i}":{i}' for i in range(COUNT)) + "}",
    "wide": json.dumps({"a": "a" * 20 * COUNT + "\U0001f600"}, ensure_ascii=False),
}


def header(count: int, shape: str = "[0]", blank: str = "", name: str = "{}") -> bytes:
    """A header of tensors without elements."""
    entry = f'{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}}'
    text = "{" + f",{blank}".join(f'"{name.format(i)}":{entry}' for i in range(count)) + "}"
    return struct.pack("<Q", len(text)) + text.encode()


def needed(error: ResourceError) -> int:
    """Bytes that a message asks for."""
    return int(error.hint.partition("--memory ")[2].partition("MiB")[0]) << 20


@pytest.mark.parametrize("kind", TEXTS)
def test_no_text_takes_more_than_is_estimated(kind: str) -> None:
    data = TEXTS[kind].encode()
    tracemalloc.start()
    value = json.loads(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value
    with pytest.raises(ResourceError) as caught:
        Room(0).check_text(data * 100, "t")
    assert 100 * peak + BASE_BYTES < needed(caught.value) < 100 * 8 * peak + BASE_BYTES


@pytest.mark.parametrize(("shape", "blank"), [("[0]", ""), ("[0]", " "), ("[0" + ",3" * 30 + "]", " ")])
def test_no_header_takes_more_than_is_estimated(shape: str, blank: str) -> None:
    data = header(COUNT, shape, blank)
    tracemalloc.start()
    assert len(parse_header(data, len(data), "h").tensors) == COUNT
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    room = Room(0)
    room.keep_header(header(20_000), "first")
    with pytest.raises(ResourceError, match=r"h: \d+ bytes of JSON with up to \d+ tensors") as caught:
        room.keep_header(data, "h")
    assert needed(caught.value) > BASE_BYTES + 20_000 * 1000 + peak


def test_a_header_that_does_not_fit_is_refused_with_the_memory_that_it_needs() -> None:
    store = MemoryStore()
    store.replace("model.safetensors", header(50_000))
    with pytest.raises(
        ResourceError, match=r"model\.safetensors: \d+ bytes of JSON with up to 50001 tensors"
    ) as caught:
        open_checkpoint(store.url, store, Room(0))
    assert len(open_checkpoint(store.url, store, Room(needed(caught.value))).tensors) == 50_000


def test_headers_of_all_models_count() -> None:
    opened = Opened(room=Room(BASE_BYTES + (32 << 20)))
    for model in range(3):
        store = opened.stores[f"memory://{model}"] = MemoryStore()
        store.replace("model.safetensors", header(12_000))
    urls = [ModelUrl(f"memory://{model}", None) for model in range(3)]
    open_models(urls[:2], opened)
    with pytest.raises(ResourceError, match=r"23 MiB are taken by what was read before"):
        open_models(urls, opened)


def test_eight_models_of_100000_tensors_fit_into_the_default() -> None:
    room, data = Room(2 << 30), header(100_000, "[4096,0]", name="model.layers.12.mlp.experts.{}.down_proj.weight")
    for model in range(8):
        room.keep_header(data, str(model))


def test_other_texts_count_too() -> None:
    store, keys = MemoryStore(), TEXTS["keys"].encode()
    text = b'{"a":[' + b",".join([keys] * 10) + b"]}"
    store.replace("model.safetensors", header(1))
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json", "model.safetensors.index.json"):
        store.replace(name, text)
    room = Room(0)
    with pytest.raises(ResourceError, match=r"adapter_config\.json: \d+ bytes of JSON may take"):
        read_adapter_config(store, room)
    with pytest.raises(ResourceError, match=r"tokenizer_config\.json: \d+ bytes of JSON may take"):
        Folders(room).read(store, ["tokenizer_config.json"])
    with pytest.raises(ResourceError, match=r"index\.json: \d+ bytes of JSON may take"):
        open_checkpoint(store.url, store, room)
    store.delete("model.safetensors.index.json")
    url = ModelUrl("memory://m", None)
    with pytest.raises(ResourceError, match=r"/config\.json: \d+ bytes of JSON may take"):
        open_models([url], Opened(stores={url.base: store}, room=room))
