"""Where models lie: links, `..`, the Hub's cache, copies of tensors; recipes and options as other tools write them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anabranch.cluster.cli import cli
from anabranch.cluster.mergekit_options import PLACES

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

BASE = {"a.weight": torch.arange(64.0).reshape(8, 8), "b.weight": torch.ones(8, 4)}
TUNED = {name: tensor + 0.5 for name, tensor in BASE.items()}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def arithmetic(folder: Path, base: object, *models: object) -> Path:
    entries = [{"model": str(model)} for model in models]
    content = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries}
    return write_recipe(folder / "recipe.yml", content)


# -- links -------------------------------------------------------------------------------------------------------------


def test_two_dots_after_a_link_leave_its_target(
    anabranch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "disk" / "base", BASE)
    write_checkpoint(tmp_path / "disk" / "deep" / "tuned", TUNED)
    write_checkpoint(tmp_path / "home" / "base", {name: tensor + 9 for name, tensor in BASE.items()})
    (tmp_path / "home" / "link").symlink_to(tmp_path / "disk" / "deep")
    monkeypatch.chdir(tmp_path / "home")
    recipe = arithmetic(tmp_path, "link/../base", tmp_path / "home" / "link" / "tuned")
    result = anabranch("merge", recipe, "link/../out")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "home" / "out").exists()
    found = load_output(tmp_path / "disk" / "out")
    assert all(torch.equal(found[name], TUNED[name]) for name in TUNED)


def test_the_base_through_a_link_is_the_base(anabranch: Command, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", BASE)
    write_checkpoint(tmp_path / "tuned", TUNED)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    spellings = [tmp_path / "link", f"file://{tmp_path}/base", f"{tmp_path}/tuned/../link"]
    plain = anabranch("plan", arithmetic(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", "--json")
    for spelling in spellings:
        recipe = arithmetic(tmp_path, tmp_path / "base", spelling, tmp_path / "tuned")
        result = anabranch("plan", recipe, tmp_path / "out", "--json")
        assert json.loads(result.output)["plan_id"] == json.loads(plain.output)["plan_id"], "not listed at all"
    result = anabranch("plan", arithmetic(tmp_path, tmp_path / "base", tmp_path / "link"), tmp_path / "out")
    assert result.exit_code == 2
    assert "expected at least one model to merge, besides the base" in result.stderr


def test_the_base_through_a_link_in_a_slice(anabranch: Command, tmp_path: Path) -> None:
    base = {f"model.layers.{i}.w": torch.ones(4, 4) + i for i in range(2)}
    config = {"num_hidden_layers": 2, "torch_dtype": "float32"}
    write_checkpoint(tmp_path / "base", base, config=config)
    write_checkpoint(tmp_path / "tuned", {name: tensor + 0.5 for name, tensor in base.items()}, config=config)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    sources = [{"model": str(tmp_path / name), "layer_range": [0, 2]} for name in ("link", "tuned")]
    content = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "slices": [{"sources": sources}],
    }
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = load_output(tmp_path / "out")
    assert all(torch.equal(found[name], base[name] + 0.5) for name in base)


def test_the_base_through_a_link_where_it_must_be_listed(anabranch: Command, tmp_path: Path) -> None:
    """slerp merges what `models` lists, and `base_model` says which of them comes first."""
    for name, tensors in (("base", BASE), ("tuned", TUNED)):
        write_checkpoint(tmp_path / name, tensors)
    (tmp_path / "link").symlink_to("base")
    ids = []
    for listed in ("base", "link", "../" + tmp_path.name + "/base"):
        models = [{"model": listed}, {"model": "tuned"}]
        content = {"merge_method": "slerp", "base_model": "base", "models": models, "parameters": {"t": 0.5}}
        result = anabranch("plan", write_recipe(tmp_path / "r.yml", content), tmp_path / "out", "--json")
        assert result.exit_code == 0, result.output
        ids.append(json.loads(result.output)["plan_id"])
    assert len(set(ids)) == 1


# -- copies and unlisted tensors ---------------------------------------------------------------------------------------


def write_copies(folder: Path, listed: str) -> None:
    """b.weight in both files, with other values in the second."""
    folder.mkdir()
    save_file(BASE, folder / "m-1.safetensors")
    save_file({"b.weight": BASE["b.weight"] * 3, "c": torch.ones(2)}, folder / "m-2.safetensors")
    places = {"a.weight": "m-1.safetensors", "b.weight": listed, "c": "m-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(("listed", "factor"), [("m-1.safetensors", 1), ("m-2.safetensors", 3)])
def test_the_index_says_which_copy_of_a_tensor_counts(
    listed: str, factor: int, anabranch: Command, tmp_path: Path
) -> None:
    write_copies(tmp_path / "model", listed)
    content = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "model")}]}
    recipe = write_recipe(tmp_path / "r.yml", content)
    result = anabranch("merge", recipe, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "1 tensors are in several files, of which the index says which one counts: b.weight" in result.output
    found = load_output(tmp_path / "out")
    assert found.keys() == {"a.weight", "b.weight", "c"}
    assert torch.equal(found["b.weight"], BASE["b.weight"] * factor)
    other = "m-1.safetensors" if factor == 3 else "m-2.safetensors"
    write = tmp_path / "model" / "model.safetensors.index.json"
    write.write_text(write.read_text().replace(f'"b.weight": "{listed}"', f'"b.weight": "{other}"'))
    assert anabranch("plan", recipe, tmp_path / "out").exit_code == 5, "another copy is another input"


def test_tensors_that_the_index_does_not_list_are_named_with_a_way_out(anabranch: Command, tmp_path: Path) -> None:
    write_copies(tmp_path / "model", "m-1.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {name: file for name, file in places.items() if name != "a.weight"}}))
    content = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "model")}]}
    result = anabranch("plan", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 3
    assert "lacks 1 tensors that are in the files: a.weight" in result.stderr
    assert "add them to the index's weight_map" in result.stderr


# -- the Hub's cache ---------------------------------------------------------------------------------------------------


def cache_model(cache: Path, name: str, tensors: dict[str, torch.Tensor], refs: tuple[str, ...] = ("main",)) -> Path:
    """A model as huggingface_hub keeps it: blobs by content, links to them by commit, commits by branch or tag."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True)
    write_checkpoint(home / "made", tensors)
    for file in sorted((home / "made").iterdir()):
        data = file.read_bytes()
        is_lfs = file.suffix == ".safetensors"
        blob = hashlib.sha256(data).hexdigest() if is_lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        file.rename(home / "blobs" / blob)
        (snapshot / file.name).symlink_to(os.path.relpath(home / "blobs" / blob, snapshot))
    for ref in refs:
        (home / "refs" / ref).write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    cache_model(folder, "owner/base", BASE)
    cache_model(folder, "owner/tuned", TUNED, ("main", "v1"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_names_on_the_hub_are_read_from_its_cache_when_offline(
    revision: str, cache: Path, anabranch: Command, tmp_path: Path
) -> None:
    result = anabranch("merge", arithmetic(tmp_path, "owner/base", f"owner/tuned{revision}"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = load_output(tmp_path / "out")
    assert all(torch.equal(found[name], TUNED[name]) for name in TUNED)
    manifest = (tmp_path / "out" / "anabranch.manifest.json").read_text()
    assert f"hf://owner/tuned@{COMMIT}" in manifest and str(cache) not in manifest
    assert anabranch("verify", tmp_path / "out").exit_code == 0


def test_names_on_the_hub_are_read_from_its_cache_without_a_network(
    cache: Path, anabranch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    result = anabranch("merge", arithmetic(tmp_path, "owner/base", "owner/tuned"), tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_what_the_cache_lacks_is_said(cache: Path, anabranch: Command, tmp_path: Path) -> None:
    for name in ("owner/other", "owner/base@v2", "owner/base@../../x"):
        result = anabranch("plan", arithmetic(tmp_path, "owner/base", name), tmp_path / "out")
        assert result.exit_code in (2, 6), result.output
    result = anabranch("plan", arithmetic(tmp_path, "owner/base", "owner/other"), tmp_path / "out")
    assert "cache on this machine (HF_HUB_CACHE) does not have it under this revision" in result.stderr
    weights = cache / "models--owner--tuned" / "snapshots" / COMMIT / "model.safetensors"
    weights.unlink()
    result = anabranch("plan", arithmetic(tmp_path, "owner/base", "owner/tuned"), tmp_path / "out")
    assert result.exit_code == 3
    assert "no *.safetensors file" in result.stderr


# -- recipes and commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8", "utf-8-sig"])
def test_recipes_as_windows_writes_them(encoding: str, anabranch: Command, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", BASE)
    write_checkpoint(tmp_path / "tünéd", TUNED)
    text = f"merge_method: task_arithmetic\r\nbase_model: {tmp_path}/base\r\nmodels:\r\n- model: {tmp_path}/tünéd\r\n"
    recipe = tmp_path / "recipe.yml"
    recipe.write_bytes(text.encode(encoding))
    result = anabranch("plan", recipe, tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_a_damaged_recipe_in_utf_16(anabranch: Command, tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_bytes(b"\xff\xfem\0e\0\x00\xd8x\0")
    result = anabranch("plan", tmp_path / "r.yml", tmp_path / "out")
    assert result.exit_code == 2
    assert "byte 6 is not" in result.stderr


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_options_of_mergekit_are_refused_with_what_takes_their_place(command: str, anabranch: Command) -> None:
    given = ["--cuda", "--lazy-unpickle", "--copy-tokenizer", "--out-shard-size=1B", "--no-allow-crimes"]
    result = anabranch(command, "r.yml", "out", *given)
    assert result.exit_code == 2
    for option, place in (
        ("--cuda", "`--device cuda`" if command == "merge" else "--device"),
        ("--lazy-unpickle", "`--memory` is a limit that holds"),
        ("--copy-tokenizer", "`tokenizer_source` in the recipe says whose"),
        ("--out-shard-size", "`output: {shard_size: 2GB}` in the recipe"),
        ("--no-allow-crimes", "tensors are matched by name"),
    ):
        [line] = [line for line in result.stderr.splitlines() if line.strip().startswith(f"{option}:")]
        assert place in line


def test_no_option_of_ours_is_taken_for_one_of_mergekit(anabranch: Command) -> None:
    own = {name for command in cli.commands.values() for parameter in command.params for name in parameter.opts}
    assert not own & {name for names in PLACES for name in names}
    assert "No such option" in anabranch("merge", "r.yml", "out", "--cudda").stderr
