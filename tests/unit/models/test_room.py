"""Headers and texts that would take more memory than there is are refused before they are parsed."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import pytest

from anabranch.engine.errors import ResourceError
from anabranch.engine.models.checkpoint import open_checkpoint
from anabranch.engine.models.header import parse_header
from anabranch.engine.models.lora import read_adapter_config
from anabranch.engine.models.opening import Opened, open_models
from anabranch.engine.models.references import ModelUrl
from anabranch.engine.models.room import BASE_BYTES, Room
from anabranch.engine.models.tokens.decide import Folders
from anabranch.engine.models.tokens.tokenizer_json import AddedToken, read_tokenizer
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.commands import compare, survey
from anabranch.engine.storage.memory import MemoryStore

from ...merging import write_recipe

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


def tokenizer(kind: str, count: int) -> bytes:
    """A tokenizer.json of so many tokens."""
    added = [AddedToken(f"<{i:x}>").flags() | {"id": i} for i in range(count if kind == "added" else 0)]
    if kind == "scored":
        model = {"type": "Unigram", "unk_id": 0, "vocab": [[f"t{i:x}", -1.5] for i in range(count)]}
    else:
        vocabulary = {f"t{i:x}": i for i in range(0 if kind == "added" else count)}
        model = {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]] * 10}
    return json.dumps({"added_tokens": added, "model": model}).encode()


@pytest.mark.parametrize("kind", ["plain", "scored", "added"])
def test_no_tokenizer_takes_more_than_is_estimated(kind: str) -> None:
    data = tokenizer(kind, COUNT)
    tracemalloc.start()
    read = read_tokenizer(data, "t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read.vocabulary) + len(read.added) == COUNT
    room = Room(0)
    room.keep_header(header(20_000), "first")
    with pytest.raises(ResourceError, match=r"t: \d+ bytes of JSON with up to \d+ tokens") as caught:
        room.keep_tokenizer(data + b":" * 400_000, "t")
    estimated = needed(caught.value) - BASE_BYTES - 20_000 * 1000 - 400_000 * 151
    assert peak < estimated < 6 * (peak + len(data))


def test_a_tokenizer_of_too_many_tokens_is_refused_with_the_memory_that_it_needs() -> None:
    store = MemoryStore()
    store.replace("tokenizer.json", tokenizer("plain", 300_000))
    with pytest.raises(ResourceError, match=r"tokenizer\.json: \d+ bytes of JSON with up to 30\d{4} tokens") as caught:
        Folders(Room(BASE_BYTES + (32 << 20))).tokenizer(store)
    found = Folders(Room(needed(caught.value))).tokenizer(store)
    assert found is not None
    assert len(found.vocabulary) == 300_000


def test_a_plan_of_too_many_tensors_is_refused_before_it_is_made(tmp_path: Path) -> None:
    content = header(60_000)
    for name in ("base", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    models = [{"model": str(tmp_path / "model")}]
    recipe = write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models * 2})
    Room(BASE_BYTES + (60_000 * 3 * 2500)).check_plan(60_000, 3, "r")
    with pytest.raises(ResourceError, match=r"has 60000 tensors: planning.* takes 430 MiB with 3 sources"):
        open_inputs(load_recipe(recipe), tmp_path, Opened(room=Room(BASE_BYTES + (400 << 20))))


@pytest.mark.parametrize("command", ["survey", "compare"])
def test_every_command_that_opens_inputs_counts_their_headers(tmp_path: Path, command: str) -> None:
    for name in ("base", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(header(60_000))
    base, model = str(tmp_path / "base"), str(tmp_path / "model")
    content = {"merge_method": "ties", "base_model": base, "models": [{"model": model}]}
    recipe = write_recipe(tmp_path / "r.yml", {**content, "parameters": {"density": 0.3}})
    actions = {
        "survey": lambda: survey(recipe, memory_bytes=BASE_BYTES),
        "compare": lambda: compare(base, model, memory_bytes=BASE_BYTES),
    }
    with pytest.raises(ResourceError, match=r"model\.safetensors: \d+ bytes of JSON with up to 60001 tensors"):
        actions[command]()
