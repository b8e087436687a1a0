from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.models.checkpoint import model_url, open_checkpoint
from anabranch.engine.models.header import build_header
from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.opening import open_store
from anabranch.engine.storage.retry import Fault, FaultStore

INDEX = "model.safetensors.index.json"


def weights(*names: str) -> bytes:
    data, infos = build_header([(name, "BF16", (2, 3)) for name in names], {"format": "pt"})
    return data + b"\0" * sum(info.nbytes for info in infos)


def index(**placed: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": placed}).encode()


def opened(files: dict[str, bytes]):
    store = MemoryStore("memory://m")
    for name, data in files.items():
        store.replace(name, data)
    return open_checkpoint(store.url, store)


def rejected(files: dict[str, bytes]) -> str:
    with pytest.raises(InputError) as caught:
        opened(files)
    assert "memory://m" in str(caught.value)
    return str(caught.value)


def test_a_single_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(weights("b", "a"))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.url == str(tmp_path)
    assert [file.name for file in checkpoint.files] == ["model.safetensors"]
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.side_files == ("config.json",)
    assert checkpoint.ignored_files == ()
    location = checkpoint.tensors["b"]
    assert location.file == 0
    assert location.info.offset + location.info.nbytes == checkpoint.files[0].size


def test_shards_with_an_index_come_by_name_then_offset():
    checkpoint = opened(
        {
            "model-00002-of-00002.safetensors": weights("x", "c"),
            "model-00001-of-00002.safetensors": weights("y"),
            INDEX: index(
                x="model-00002-of-00002.safetensors",
                y="model-00001-of-00002.safetensors",
                c="model-00002-of-00002.safetensors",
            ),
        }
    )
    assert [file.name[6:11] for file in checkpoint.files] == ["00001", "00002"]
    assert [(name, place.file) for name, place in checkpoint.tensors.items()] == [("y", 0), ("c", 1), ("x", 1)]


def test_odd_shard_names_are_fine_when_the_index_says_so():
    checkpoint = opened({"part one.safetensors": weights("a"), INDEX: index(a="part one.safetensors")})
    assert list(checkpoint.tensors) == ["a"]


def test_another_library_s_index_name_counts_when_it_is_the_only_one():
    name = "diffusion_pytorch_model.safetensors.index.json"
    files = {"d-00001.safetensors": weights("a"), name: index(a="d-00001.safetensors")}
    assert list(opened(files).tensors) == ["a"]
    files["other.safetensors.index.fp16.json"] = files[name]
    assert "several indexes" in rejected(files)


def test_shards_without_an_index_are_one_checkpoint():
    files = {f"model-0000{i}-of-00002.safetensors": weights(f"t{i}") for i in (1, 2)}
    assert list(opened(files).tensors) == ["t1", "t2"]
    del files["model-00001-of-00002.safetensors"]
    assert "1 of 2 shards" in rejected(files)


def test_the_same_tensor_in_two_files_is_an_error():
    assert "'t' is in a.safetensors and again in b.safetensors" in rejected(
        {"a.safetensors": weights("t"), "b.safetensors": weights("t")}
    )


def test_the_index_wins_over_a_single_file_beside_it():
    files = {
        "model.safetensors": weights("whole"),
        "s.safetensors": weights("a"),
        "consolidated.safetensors": weights("a"),
        "adapter_model.safetensors": weights("lora"),
        "pytorch_model.bin": b"",
        INDEX: index(a="s.safetensors"),
    }
    checkpoint = opened(files)
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.ignored_files == (
        "adapter_model.safetensors", "consolidated.safetensors", "model.safetensors", "pytorch_model.bin",
    )  # fmt: skip


def test_a_stale_index_is_ignored_and_reported():
    checkpoint = opened({"model.safetensors": weights("a"), INDEX: index(a="gone.safetensors")})
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.ignored_files == (INDEX,)


def test_a_consolidated_file_counts_only_alone():
    both = opened({"consolidated.safetensors": weights("c"), "model-x.safetensors": weights("m")})
    assert list(both.tensors) == ["m"]
    assert both.ignored_files == ("consolidated.safetensors",)
    assert list(opened({"consolidated.safetensors": weights("c")}).tensors) == ["c"]


def test_side_files_are_text_and_never_weights_or_ours():
    texts = [
        "LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "modeling_x.py",
        "spiece.model", "tokenizer.json", "tokenizer.model.v3", "tokenizer_config.json",
    ]  # fmt: skip
    others = [
        ".gitattributes", "README.md", "anabranch.manifest.json", "pytorch_model.bin.index.json",
        "training_args.bin", "tf_model.h5", "trainer_state.json", "sub/config.json", "model.onnx",
    ]  # fmt: skip
    files = dict.fromkeys(texts + others, b"{}") | {"model.safetensors": weights("a")}
    assert list(opened(files).side_files) == texts


def test_missing_shards_are_listed():
    files = {"a.safetensors": weights("a"), INDEX: index(a="a.safetensors", b="b.safetensors", c="c.safetensors")}
    assert "2 of 3 shards are missing: b.safetensors, c.safetensors" in rejected(files)


def test_the_index_and_the_files_must_agree():
    shards = {"a.safetensors": weights("a1", "a2"), "b.safetensors": weights("b")}
    good = {"a1": "a.safetensors", "a2": "a.safetensors", "b": "b.safetensors"}
    assert list(opened(shards | {INDEX: index(**good)}).tensors) == ["a1", "a2", "b"]
    assert "names 1 tensors that are in no file: ghost" in rejected(
        shards | {INDEX: index(**good, ghost="a.safetensors")}
    )
    del good["a2"]
    assert "lacks 1 tensors that are in the files: a2" in rejected(shards | {INDEX: index(**good)})
    assert "places 'a2' in b.safetensors, it is in a.safetensors" in rejected(
        shards | {INDEX: index(**good, a2="b.safetensors")}
    )


def test_an_index_cannot_point_outside_the_folder():
    assert "path separator" in rejected({"a.safetensors": weights("a"), INDEX: index(a="../a.safetensors")})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no such folder"),
        (["README.md"], "no *.safetensors file (found README.md)"),
        (["pytorch_model.bin", "config.json"], "Pickles can run code"),
        (["consolidated.00.pth"], "Pickles can run code"),
        (["model.Q4_K.gguf"], "GGUF"),
        (["adapter_model.safetensors", "adapter_config.json"], "BASE+ADAPTER"),
    ],
)
def test_folders_without_usable_weights_say_what_to_do(names, message):
    assert message in rejected(dict.fromkeys(names, b""))


def test_damage_is_reported_with_the_file_s_name():
    good = weights("a")
    for data in (good[:-1], good + b"\0", good[:10], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        assert "memory://m/model.safetensors" in rejected({"model.safetensors": data})
    empty = build_header([], {"format": "pt"})[0]
    assert "no tensors" in rejected({"model.safetensors": empty})


def test_a_broken_link_is_reported(tmp_path):
    os.symlink("/nonexistent/blob", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="broken link"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(weights("a"))
    os.symlink("/nonexistent/blob", tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json.*broken link"):
        open_checkpoint(str(tmp_path))


def test_long_headers_take_a_second_read():
    names = [f"layer.{number}.weight" for number in range(2000)]
    store = MemoryStore("memory://m")
    store.replace("model.safetensors", weights(*names))
    watched = FaultStore(store)
    assert set(open_checkpoint("memory://m", watched).tensors) == set(names)
    assert watched.calls["read"] == 2


def test_a_file_that_changes_between_reads_is_an_error():
    names = [f"layer.{number}.weight" for number in range(2000)]
    store = MemoryStore("memory://m")
    store.replace("model.safetensors", weights(*names))
    change = Fault("read", number=2, action=lambda: store.replace("model.safetensors", weights("a")))
    with pytest.raises(InputError, match="changed"):
        open_checkpoint("memory://m", FaultStore(store, change))


def test_the_first_bad_file_by_name_is_reported_whatever_ends_first():
    files = {f"{number}.safetensors": weights(f"t{number}") for number in range(20)}
    files |= {"15.safetensors": b"bad", "3.safetensors": b"bad"}
    assert "15.safetensors" in rejected(files)


def test_the_fingerprint_identifies_the_bytes(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights("a"))
    os.utime(path, ns=(5, 5))
    first = open_checkpoint(str(tmp_path)).fingerprint()
    assert first == open_checkpoint(str(tmp_path)).fingerprint()
    assert [sorted(entry) for entry in first] == [["header_sha256", "name", "size", "version"]]
    assert json.loads(json.dumps(first)) == first
    os.utime(path, ns=(6, 6))
    assert open_checkpoint(str(tmp_path)).fingerprint() != first
    path.write_bytes(weights("b"))
    os.utime(path, ns=(5, 5))
    assert open_checkpoint(str(tmp_path)).fingerprint()[0]["header_sha256"] != first[0]["header_sha256"]


def test_equal_names_and_shapes_of_models_share_memory():
    one, two = (opened({"model.safetensors": weights("layer.weight")}) for _ in range(2))
    (name_one, place_one), (name_two, place_two) = *one.tensors.items(), *two.tensors.items()
    assert name_one is name_two
    assert place_one.info.dtype is place_two.info.dtype


def test_models_as_users_write_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    assert model_url("owner/name") == "owner/name"
    assert model_url("owner/other@main") == "hf://owner/other@main"
    assert model_url("s3://bucket/model") == "s3://bucket/model"
    for bad in ("missing", "/missing", "a/b/c", "../x"):
        with pytest.raises(InputError, match="no such folder"):
            model_url(bad)


def test_the_reads_name_their_version(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(weights("a"))
    checkpoint = open_checkpoint(str(tmp_path))
    file = checkpoint.files[0]
    buffer = bytearray(12)
    store = open_store(checkpoint.url)
    store.read_into(file.name, checkpoint.tensors["a"].info.offset, memoryview(buffer), file.version)
