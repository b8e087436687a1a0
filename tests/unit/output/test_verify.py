"""Whatever happens to a finished output, verify names the file and says what happened to it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anabranch.engine.errors import IntegrityError, RecipeError
from anabranch.engine.output import loading
from anabranch.engine.output.loading import check_loading
from anabranch.engine.output.problems import Problem
from anabranch.engine.output.verify import CHUNK_BYTES, Verification, read_manifest, verify
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.opening import open_store
from anabranch.engine.storage.retry import Fault, FaultStore

from ...merging import merge, write_merge

SHARD = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "anabranch.manifest.json"
TABLE = "anabranch.tensors.parquet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output of three shards."""
    folder = tmp_path_factory.mktemp("verify")
    keys = {"merge_method": "cabs", "parameters": {"density": 0.25, "block": 32}, "output": {"shard_size": "11KB"}}
    merge(write_merge(folder, {f"t{i}": (40, 32) for i in range(5)}, 3, **keys), folder / "out")
    return folder / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def verified(out: Path) -> Verification:
    return verify(open_store(str(out)), threads=2)


def edit_manifest(out: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = out / MANIFEST
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content))


def rewrite(out: Path, name: str, data: bytes) -> None:
    """Change a file and its entry in the manifest: only what the files say about each other can give it away."""
    (out / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(out, lambda manifest: manifest["files"].update({name: entry}))


def test_a_whole_output_has_no_problem_and_every_byte_was_read(out: Path) -> None:
    counted: list[int] = []
    manifest = read_manifest(open_store(str(out)))
    result = verify(open_store(str(out)), 2, counted.append)
    assert result.problems == ()
    assert result.files == len(manifest.files) == 7
    assert sum(counted) == result.size_bytes == sum((out / name).stat().st_size for name in manifest.files)


def test_files_larger_than_the_buffer_are_read_in_pieces(tmp_path: Path) -> None:
    store = MemoryStore("memory://large")
    data = bytes(range(256)) * (CHUNK_BYTES // 256) + b"end"
    store.replace("large.bin", data)
    manifest = {
        "plan_id": "x",
        "numerics": 1,
        "recipe": {},
        "inputs": [],
        "files": {"large.bin": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        "merged_tensors": 0,
        "copied_tensors": 0,
        "parameters": 0,
        "summary": [],
        "notes": [],
        "warnings": [],
        "tables": {},
        "survey": [],
    }
    store.replace(MANIFEST, json.dumps(manifest).encode())
    assert [problem.file for problem in verify(store).problems] == [MANIFEST]  # no plan has the id "x"
    store.replace("large.bin", data[:-1] + b"!")
    assert {problem.file for problem in verify(store).problems} == {MANIFEST, "large.bin"}


@pytest.mark.parametrize("name", [SHARD, INDEX, "config.json"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit_is_one_problem(out: Path, name: str, place: str) -> None:
    data = bytearray((out / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 1
    (out / name).write_bytes(data)
    (problem,) = verified(out).problems
    assert problem.file == name
    assert problem.text.startswith("damaged: its SHA-256 is")


def test_a_truncated_a_missing_and_an_unexpected_file_are_one_problem_each(out: Path) -> None:
    size = (out / SHARD).stat().st_size
    (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-1])
    (out / "config.json").unlink()
    (out / "pytorch_model.bin").write_bytes(b"")
    assert [(problem.file, problem.text) for problem in verified(out).problems] == [
        ("config.json", "missing"),
        (SHARD, f"damaged: {size - 1} bytes, expected {size}"),
        ("pytorch_model.bin", "unexpected"),
    ]


def replace_by_a_copy(path: Path, change: Callable[[bytearray], None] = lambda _: None) -> None:
    """As another program does it: a whole new file gets the name."""
    data = bytearray(path.read_bytes())
    change(data)
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def flip(data: bytearray) -> None:
    data[-1] ^= 1


@pytest.mark.parametrize("name", [SHARD, "config.json"])
@pytest.mark.parametrize(("verb", "number"), [("read", 1), ("info", 2)])
def test_a_file_that_is_replaced_while_it_is_read_is_judged_by_what_is_there_then(
    out: Path, name: str, verb: str, number: int
) -> None:
    """Before its bytes are read and after."""
    for change, problems in ((lambda _: None, []), (flip, [name])):
        spoil = Fault(verb, number, pattern=name, action=lambda change=change: replace_by_a_copy(out / name, change))
        found = verify(FaultStore(LocalStore(str(out)), spoil))
        assert [problem.file for problem in found.problems][:1] == problems
        assert spoil.calls > number


def test_a_file_that_never_stands_still_is_a_problem_and_no_endless_work(out: Path) -> None:
    spoil = Fault("info", times=1000, pattern=SHARD, action=lambda: replace_by_a_copy(out / SHARD))
    found = verify(FaultStore(LocalStore(str(out)), spoil))
    assert [(problem.file, "something else changes it" in problem.text) for problem in found.problems] == [
        (SHARD, True)
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_that_vanishes_while_it_is_read_is_missing(out: Path, number: int) -> None:
    """Before it is hashed, after it, and before its header is looked at."""
    for name in (SHARD, TABLE, INDEX):
        copy = Path(shutil.copytree(out, out.with_name(f"copy-{name}-{number}")))
        vanish = Fault("info" if number < 3 else "read", number if number < 3 else 2, pattern=name)
        vanish.action = (copy / name).unlink
        found = verify(FaultStore(LocalStore(str(copy)), vanish))
        if vanish.calls >= vanish.number:
            assert Problem(name, "missing") in found.problems, found.problems


def test_an_index_that_does_not_fit_the_shards_is_found(out: Path) -> None:
    index = json.loads((out / INDEX).read_bytes())
    moved = min(index["weight_map"])
    index["weight_map"][moved] = "model-00003-of-00003.safetensors"
    rewrite(out, INDEX, json.dumps(index).encode())
    (problem,) = verified(out).problems
    assert problem.file == INDEX
    assert repr(moved) in problem.text


def test_a_wrong_total_size_in_the_index_is_found(out: Path) -> None:
    index = json.loads((out / INDEX).read_bytes())
    index["metadata"]["total_size"] += 1
    rewrite(out, INDEX, json.dumps(index).encode())
    (problem,) = verified(out).problems
    assert problem.file == INDEX
    assert "total_size" in problem.text


def test_a_shard_whose_header_does_not_parse_is_found(out: Path) -> None:
    data = bytearray((out / SHARD).read_bytes())
    data[9:13] = b"}}}}"
    rewrite(out, SHARD, bytes(data))
    (problem,) = verified(out).problems
    assert problem.file == SHARD
    assert "damaged" in problem.text


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["recipe"].update(seed=99),
        lambda manifest: manifest["inputs"][0].update(url="/elsewhere"),
        lambda manifest: manifest.update(numerics=manifest["numerics"] + 1),
    ],
)
def test_a_manifest_that_tells_of_another_merge_is_found(out: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    edit_manifest(out, edit)
    (problem,) = verified(out).problems
    assert problem.file == MANIFEST
    assert "plan id" in problem.text


def test_a_changed_table_is_found(out: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(out / TABLE)
    pyarrow.parquet.write_table(table, out / TABLE, compression="none")
    assert verified(out).problems == ()  # other bytes, equal rows
    pyarrow.parquet.write_table(table.slice(1), out / TABLE)
    (problem,) = verified(out).problems
    assert (problem.file, "rows" in problem.text) == (TABLE, True)
    (out / TABLE).write_bytes(b"PAR1")
    assert [problem.file for problem in verified(out).problems] == [TABLE]


def test_without_a_manifest_an_output_is_not_finished(out: Path) -> None:
    (out / MANIFEST).unlink()
    with pytest.raises(IntegrityError, match="is not finished"):
        verified(out)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "anabranch.manifest"}', "\x00"])
def test_a_manifest_that_is_none_is_an_error(out: Path, text: str) -> None:
    (out / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match="is not a manifest"):
        verified(out)


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/etc/passwd", "a/../b", "a//b", "a/.b", "..", ""])
def test_names_in_a_manifest_never_lead_out_of_its_folder(out: Path, name: str) -> None:
    edit_manifest(out, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(IntegrityError, match="plain name"):
        verified(out)


# -- loading -----------------------------------------------------------------------------------------------------------


def small_model(folder: Path, tied: bool) -> Path:
    """A saved model of transformers, in several shards."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_tied_weights_are_stored_once_and_load(tmp_path: Path) -> None:
    found = check_loading(str(small_model(tmp_path, tied=True)))
    assert found.problems == ()
    assert found.architecture == "Qwen2ForCausalLM"
    assert found.tied == (("lm_head.weight", "model.embed_tokens.weight"),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "no shard has: model.layers.2."),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "does not know: model.layers.1."),
        ({"hidden_size": 64}, "another shape"),
    ],
)
def test_a_config_of_another_model_does_not_load(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    folder = small_model(tmp_path, tied=False)
    edit_config(folder, **changes)
    problems = check_loading(str(folder)).problems
    assert any(problem.file == "config.json" and text in problem.text for problem in problems)


@pytest.mark.slow
def test_a_tensor_that_would_start_anew_is_named(tmp_path: Path) -> None:
    folder = small_model(tmp_path, tied=False)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        tensors.pop("model.norm.weight", None)
        save_file(tensors | {f"more.{shard.stem}": torch.ones(1)}, shard, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    where = {name: file for name, file in content["weight_map"].items() if name != "model.norm.weight"}
    where |= {f"more.{file.removesuffix('.safetensors')}": file for file in where.values()}
    index.write_text(json.dumps(content | {"weight_map": where}))
    texts = [problem.text for problem in check_loading(str(folder)).problems]
    assert any("starts tensors anew that no shard has: model.norm.weight" in text for text in texts)
    assert any("does not know: more." in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "auto"),
    [
        ("Qwen2ForCausalLM", "AutoModelForCausalLM"),
        ("Qwen2Model", "AutoModel"),
        ("T5ForConditionalGeneration", "AutoModelFor"),
    ],
)
def test_users_load_through_an_auto_class(architecture: str, auto: str) -> None:
    transformers = pytest.importorskip("transformers")
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1,
    )  # fmt: skip
    found = loading._loader(model_class(config)).__name__
    assert found.startswith(auto)
    assert (found == "AutoModel") == (auto == "AutoModel")


@pytest.mark.slow
def test_modules_are_loaded_where_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sentence-transformers the check says so; with it, a module that is not there is a problem."""
    folder = small_model(tmp_path, tied=False)
    paths = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    paths.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (folder / "modules.json").write_text(json.dumps(paths))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "sentence_transformers", None)
        found = check_loading(str(folder))
    assert found.problems == ()
    assert found.modules == "modules.json: not loaded, because sentence-transformers is not installed"
    pytest.importorskip("sentence_transformers")
    [problem] = check_loading(str(folder)).problems
    assert problem.file == "modules.json"


@pytest.mark.slow
def test_an_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    folder = small_model(tmp_path, tied=False)
    edit_config(folder, architectures=["NobodyForCausalLM"])
    with pytest.raises(IntegrityError, match="has no NobodyForCausalLM"):
        check_loading(str(folder))


def test_only_a_local_output_can_be_loaded() -> None:
    with pytest.raises(RecipeError, match="local directory"):
        check_loading("s3://bucket/out")


def test_a_manifest_that_was_changed_with_its_shard_is_told_by_a_digest_kept_elsewhere(out: Path) -> None:
    from anabranch.engine.output.finished import check_manifest_is, open_outputs
    from anabranch.engine.output.manifest import manifest_sha256

    [output] = open_outputs(out)
    kept = manifest_sha256(output.manifest)
    assert kept == hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    check_manifest_is([output], kept.upper())
    shard = bytearray((out / SHARD).read_bytes())
    before = hashlib.sha256(shard).hexdigest()
    shard[-1] ^= 1
    (out / SHARD).write_bytes(shard)
    text = (out / MANIFEST).read_text().replace(before, hashlib.sha256(shard).hexdigest())
    (out / MANIFEST).write_text(text)
    [problem] = verified(out).problems
    assert problem.file == f".anabranch/receipts/{SHARD}.json"
    shutil.rmtree(out / ".anabranch")
    assert verified(out).problems == ()
    with pytest.raises(IntegrityError, match="is another one"):
        check_manifest_is(open_outputs(out), kept)


def state_files(out: Path) -> list[Path]:
    return [path for path in sorted((out / ".anabranch").rglob("*")) if path.is_file() and path.name != "tasks.parquet"]


def test_every_changed_byte_of_working_files_is_found(out: Path) -> None:
    assert len(state_files(out)) > 6
    for path in state_files(out):
        data = path.read_bytes()
        for place in (len(data) // 3, len(data) // 2):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert [problem.file for problem in verified(out).problems] == [str(path.relative_to(out))]
        path.write_bytes(data)
    assert verified(out).problems == ()


def test_working_files_of_another_plan_are_found(out: Path) -> None:
    from anabranch.engine.json_text import sealed_json, unsealed

    for path in state_files(out):
        if path.suffix == ".json":
            data = path.read_bytes()
            path.write_bytes(sealed_json({**unsealed(data), "plan_id": "0" * 64}))
            [problem] = verified(out).problems
            assert problem.file == str(path.relative_to(out))
            path.write_bytes(data)


def test_an_output_without_its_working_files_is_whole(out: Path) -> None:
    shutil.rmtree(out / ".anabranch")
    assert verified(out).problems == ()
