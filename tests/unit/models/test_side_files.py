"""Which files go beside an output's weights: those of folders that loaders look into, none that misleads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.models.side_files import output_file_names
from anabranch.engine.storage.memory import MemoryStore


def names_of(files: dict[str, Any], quantised: bool = False) -> tuple[list[str], list[str]]:
    store = MemoryStore("memory://m")
    for name, content in files.items():
        store.replace(name, content if isinstance(content, bytes) else json.dumps(content).encode())
    return output_file_names(store, [name for name in store.list() if name.endswith(".json")], quantised)


def modules(*paths: Any) -> list[dict[str, Any]]:
    return [{"idx": i, "name": str(i), "path": path, "type": "x"} for i, path in enumerate(paths)]


def test_folders_of_modules_come_along_whole() -> None:
    files = {
        "modules.json": modules("", "1_Pooling", "2_Dense", "3_Normalize"),
        "1_Pooling/config.json": {},
        "2_Dense/config.json": {},
        "2_Dense/model.safetensors": b"",
        "2_Dense/pytorch_model.bin": b"",
        "2_Dense/.cache": b"",
        "onnx/model.json": {},
        "checkpoint-500/config.json": {},
    }
    names, notes = names_of(files)
    assert names == ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]
    [note] = notes
    assert "copied and not merged" in note
    assert "2_Dense/model.safetensors" in note


def test_a_module_that_has_a_pickle_only_keeps_it() -> None:
    names, _ = names_of({"modules.json": modules("", "2_Dense"), "2_Dense/pytorch_model.bin": b""})
    assert names == ["2_Dense/pytorch_model.bin", "modules.json"]


def test_modules_between_which_a_router_chooses() -> None:
    files = {
        "modules.json": modules("", "1_Router"),
        "1_Router/router_config.json": {"types": {"query_0_X": "x", "document_0_Y": "y"}, "structure": {}},
        "1_Router/query_0_X/config.json": {},
        "1_Router/document_0_Y/config.json": {},
    }
    assert set(names_of(files)[0]) == set(files)


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", ".git", "a//b"])
def test_modules_never_lead_out_of_the_folder(path: str) -> None:
    with pytest.raises(InputError, match=r"modules\.json"):
        names_of({"modules.json": modules("", path)})


@pytest.mark.parametrize("content", [b"{", {"a": 1}, [1], [{"idx": 0}], modules(3)])
def test_damaged_modules_are_named(content: Any) -> None:
    with pytest.raises(InputError, match=r"modules\.json"):
        names_of({"modules.json": content})


def test_further_chat_templates() -> None:
    files = {"config.json": {}, "additional_chat_templates/rag.jinja": b"", "additional_chat_templates/x.txt": b""}
    assert names_of(files)[0] == ["additional_chat_templates/rag.jinja", "config.json"]


@pytest.mark.parametrize("quantised", [False, True])
def test_what_would_mislead_a_loader_stays_behind(quantised: bool) -> None:
    files = dict.fromkeys(["config.json", "adapter_config.json", "params.json", "hf_quant_config.json"], b"{}")
    names, notes = names_of(files, quantised)
    assert names == ["config.json"] if not quantised else ["config.json", "hf_quant_config.json"]
    assert "adapter_config.json" in notes[0]


def test_the_only_description_of_a_model_stays() -> None:
    assert names_of({"params.json": {}})[0] == ["params.json"]
