"""The commit protocol: what is published in which order, what a rerun trusts, and twins on one output."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from anabranch.engine.errors import InputError, OutputConflictError, ResourceError, TemporaryError
from anabranch.engine.models import INDEX_NAME
from anabranch.engine.models.config_json import patch_config
from anabranch.engine.output.commit import OutputDirectory, index_json
from anabranch.engine.output.manifest import (
    INPUT_RANGES_NAME,
    INPUTS_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    SURVEY_NAME,
    TASKS_NAME,
    TENSORS_NAME,
)
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.plan import Plan
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run import shard
from anabranch.engine.run.protocols import Outcome
from anabranch.engine.storage import local
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.protocol import Store
from anabranch.engine.storage.retry import Fault, FaultStore

from ...merging import merge, write_checkpoint, write_recipe

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
RECEIPTS = [f".anabranch/receipts/{name}.json" for name in SHARDS]
TABLES = [f".anabranch/receipts/{name}.parquet" for name in SHARDS]
CHANGES = ("create", "replace", "commit", "delete")


class Recorder(FaultStore):
    """Remembers every change that succeeded."""

    def __init__(self, inner: Store, *faults: Fault) -> None:
        super().__init__(inner, *faults)
        self.events: list[tuple[str, str]] = []

    def around(self, verb, name, operation, /):
        result = super().around(verb, name, operation)
        if verb in CHANGES:
            self.events.append((verb, name))
        return result

    _around = around


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Three shards of two tensors each, with a survey, so that every kind of file is written."""
    generator = torch.Generator().manual_seed(0)
    base = {f"w{i}": torch.randn(20, 10, generator=generator) for i in range(6)}
    write_checkpoint(tmp_path / "base", base)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    model = {n: t + 0.1 * torch.randn(20, 10, generator=generator) for n, t in base.items()}
    write_checkpoint(tmp_path / "model", model)
    content = {
        "merge_method": "cabs",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "model")}],
        "parameters": {"density": {"tadrop": {"mean": 0.3}}, "block": 16},
        "output": {"shard_size": 1600},
    }
    return write_recipe(tmp_path / "recipe.yml", content)


def contents(store: Store) -> dict[str, bytes]:
    """Every file but Parquet tables, whose rows the manifest vouches for."""
    names = [*store.list(), *store.list(".anabranch"), *store.list(".anabranch/receipts")]
    return {name: store.read_bytes(name) for name in names if not name.endswith(".parquet")}


def leftovers(store: Store) -> object:
    names = [
        *SHARDS,
        *RECEIPTS,
        *TABLES,
        PLAN_NAME,
        INPUTS_NAME,
        TASKS_NAME,
        TENSORS_NAME,
        SURVEY_NAME,
        INPUT_RANGES_NAME,
        MANIFEST_NAME,
        INDEX_NAME,
        "config.json",
    ]
    return store.leftovers([*names, "tokenizer.json", *store.list(".anabranch/survey")])


def test_everything_is_published_in_the_one_order(recipe: Path) -> None:
    store = Recorder(MemoryStore())
    merge(recipe, store)
    events = store.events
    assert events[:3] == [("create", PLAN_NAME), ("replace", TASKS_NAME), ("replace", INPUTS_NAME)]
    survey = [("replace", f".anabranch/survey/000-0000{i}.{kind}") for i in (1, 2, 3) for kind in ("parquet", "json")]
    assert events[3:9] == survey
    shards = [
        event
        for shard, table, receipt in zip(SHARDS, TABLES, RECEIPTS, strict=True)
        for event in (("commit", shard), ("replace", table), ("replace", receipt))
    ]
    assert events[9:18] == shards
    tables = [TENSORS_NAME, SURVEY_NAME, INPUT_RANGES_NAME]
    last = ["README.md", "config.json", "mergekit_config.yml", "tokenizer.json", *tables, INDEX_NAME]
    assert events[18:] == [("replace", name) for name in last] + [("create", MANIFEST_NAME)]


def test_a_single_shard_has_no_index(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("1600", "1GB"))
    store = MemoryStore()
    merge(recipe, store)
    names = store.list()
    assert "model.safetensors" in names
    assert INDEX_NAME not in names


def test_the_index_is_what_hugging_face_writes(recipe: Path) -> None:
    plan = plan_of(recipe)
    index = json.loads(index_json(plan))
    assert index["metadata"] == {"total_size": 6 * 800}
    assert index["weight_map"] == {f"w{i}": SHARDS[i // 2] for i in range(6)}


def plan_of(recipe: Path) -> Plan:
    return open_inputs(load_recipe(recipe), recipe.parent).plan


def undisturbed(recipe: Path) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    store = Recorder(MemoryStore())
    merge(recipe, store)
    return contents(store), store.events


@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer-lost"])
@pytest.mark.parametrize("local", [False, True], ids=["memory", "local"])
def test_a_run_that_fails_at_any_change_is_resumed_to_the_same_bytes(
    recipe: Path, tmp_path: Path, local: bool, after: bool
) -> None:
    expected, events = undisturbed(recipe)
    for verb in ("create", "replace", "writer", "write", "commit"):
        count = sum(v == {"writer": "commit", "write": "commit"}.get(verb, verb) for v, _ in events)
        for number in range(1, count + 1):
            inner = LocalStore(str(tmp_path / f"{verb}{number}"), create=True) if local else MemoryStore()
            fault = Fault(verb, number, error=TemporaryError("the connection is gone"), after=after)
            with pytest.raises(TemporaryError):
                merge(recipe, FaultStore(inner, fault))
            lost_manifest = after and (verb, number) == ("create", 2)
            assert lost_manifest or MANIFEST_NAME not in inner.list()
            finished = {name for name in SHARDS if name in inner.list()}
            store = Recorder(inner)
            outcome = merge(recipe, store)
            assert contents(inner) == expected, (verb, number)
            again = {name for v, name in store.events if v == "commit"}
            kept = set(SHARDS) - again
            assert kept == {SHARDS[i] for i in outcome.resumed_shards}
            assert len(finished - kept) <= 1, "at most the shard whose receipt was not written is made again"
            assert not leftovers(inner), (verb, number)


@pytest.mark.parametrize("verb", ["write", "commit"])
def test_what_stops_a_merge_is_said_also_where_its_file_cannot_be_removed(
    recipe: Path, tmp_path: Path, verb: str
) -> None:
    inner = LocalStore(str(tmp_path / "out"), create=True)
    faults = Fault(verb, 2, error=ResourceError("no room")), Fault("discard", 1, error=TemporaryError("no answer"))
    with pytest.raises(ResourceError, match="no room"):
        merge(recipe, FaultStore(inner, *faults))


def test_a_damaged_or_foreign_receipt_is_not_trusted(recipe: Path) -> None:
    expected, _ = undisturbed(recipe)
    store = MemoryStore()
    merge(recipe, store)
    receipt = store.read_bytes(RECEIPTS[1])
    foreign = json.loads(receipt) | {"plan_id": "0" * 64}
    smaller = json.loads(receipt) | {"size": 5}
    other_name = json.loads(receipt) | {"name": SHARDS[0]}
    damaged = [b"", receipt[:-20], b"{}", *(json.dumps(d).encode() for d in (foreign, smaller, other_name))]
    for data in damaged:
        store.delete(MANIFEST_NAME)
        store.replace(RECEIPTS[1], data)
        assert merge(recipe, store).merged_shards == (1,)
        assert contents(store) == expected


def test_a_shard_that_is_missing_or_too_short_is_made_again(recipe: Path) -> None:
    expected, _ = undisturbed(recipe)
    store = MemoryStore()
    merge(recipe, store)
    store.delete(MANIFEST_NAME)
    store.delete(SHARDS[0])
    store.replace(SHARDS[2], store.read_bytes(SHARDS[2])[:-1])
    assert merge(recipe, store).merged_shards == (0, 2)
    assert contents(store) == expected


def test_a_finished_output_is_left_alone(recipe: Path) -> None:
    store = Recorder(MemoryStore())
    merge(recipe, store)
    store.events.clear()
    outcome = merge(recipe, store)
    assert outcome.already_complete
    assert outcome.merged_shards == ()
    assert store.events == []


def test_another_plan_is_refused_whatever_the_directory_has(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yml"
    other.write_text(recipe.read_text().replace("block: 16", "block: 8"))
    finished, started, foreign, unreadable = (MemoryStore() for _ in range(4))
    merge(recipe, finished)
    OutputDirectory(plan_of(recipe), started).open()
    foreign.replace("notes.txt", b"mine")
    unreadable.replace(PLAN_NAME, b"not json")
    unreadable.replace(SHARDS[0], b"whose?")
    for store, said in (
        (finished, "another plan"),
        (started, "belongs to another plan"),
        (foreign, "is not empty and holds no plan"),
        (unreadable, "unreadable"),
    ):
        before = contents(store)
        with pytest.raises(OutputConflictError, match=said):
            merge(other, store)
        assert contents(store) == before


def test_the_same_plan_may_open_an_output_twice(recipe: Path) -> None:
    store, plan = MemoryStore(), plan_of(recipe)
    OutputDirectory(plan, store).open()
    before = contents(store)
    OutputDirectory(plan, store).open()
    assert contents(store) == before


# -- twins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "name"), [("commit", SHARDS[0]), ("replace", RECEIPTS[1]), ("create", MANIFEST_NAME)])
def test_a_twin_that_finishes_and_cleans_up_in_between_is_no_failure(
    recipe: Path, tmp_path: Path, verb: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment another process may finish the same plan and remove our temporary files."""
    out = tmp_path / "out"
    twins: list[Outcome] = []
    write = local._write_temporary

    def overtaken(folder: int, base: str, data: bytes) -> str:
        """A small file's temporary vanishes, because a twin finishes before it gets its name."""
        temporary = write(folder, base, data)
        if verb != "commit" and base == os.path.basename(name) and not twins:
            monkeypatch.setattr(local, "_write_temporary", write)
            twins.append(merge(recipe, out))
        return temporary

    monkeypatch.setattr(local, "_write_temporary", overtaken)
    store: Store = LocalStore(str(out), create=True)
    if verb == "commit":
        store = FaultStore(store, Fault(verb, pattern=name, action=lambda: twins.append(merge(recipe, out))))
    outcome = merge(recipe, store)
    assert len(twins) == 1
    assert outcome.manifest == twins[0].manifest
    assert contents(LocalStore(str(out))) == undisturbed(recipe)[0]
    assert not leftovers(LocalStore(str(out)))


def test_what_a_killed_run_left_behind_is_removed_even_when_the_manifest_was_there(
    recipe: Path, tmp_path: Path
) -> None:
    """Killed between the manifest and the clean-up, or while a twin finished."""
    store = LocalStore(str(tmp_path / "out"), create=True)
    merge(recipe, store)
    store.writer(SHARDS[0], 10, {}, "killed").write(b"12345")
    assert leftovers(store)
    assert merge(recipe, store).already_complete
    assert not leftovers(store)


def test_a_shard_without_room_leaves_nothing_behind(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: the header's write, a tensor's, or the commit of the shard before the one being written."""
    monkeypatch.setattr(shard, "GATHERED_BYTES", 0)  # as large tensors are written: each by itself
    for verb, number in (("writer", 2), ("write", 1), ("write", 3), ("write", 4), ("commit", 1), ("commit", 2)):
        inner = LocalStore(str(tmp_path / f"{verb}{number}"), create=True)
        with pytest.raises(ResourceError):
            merge(recipe, FaultStore(inner, Fault(verb, number, error=ResourceError("no room"))))
        assert not leftovers(inner), (verb, number)


# -- config.json -------------------------------------------------------------------------------------------------------


def test_the_config_says_the_output_dtype() -> None:
    config = b'{\n  "model_type": "x",\n  "torch_dtype": "float32"\n}\n'
    assert patch_config(config, None, "c") == config
    assert patch_config(config, "F32", "c") == config
    assert json.loads(patch_config(config, "BF16", "c")) == {"model_type": "x", "torch_dtype": "bfloat16"}
    both = json.loads(patch_config(b'{"dtype": "float16", "torch_dtype": "float32"}', "F16", "c"))
    assert both == {"dtype": "float16", "torch_dtype": "float16"}
    neither = b'{"hidden_size": 4}'
    assert patch_config(neither, "F16", "c") == neither
    for bad in (b"[]", b"{", b"\xff", b'{"a": ' + b"[" * 100_000):
        with pytest.raises(InputError, match="not a JSON object"):
            patch_config(bad, "F16", "base/config.json")
    deep = b'{"dtype": "float32", "a": ' + b"[" * 900 + b"]" * 900 + b"}"  # what can be read, but not written again
    with pytest.raises(InputError, match="nested too deeply"):
        patch_config(deep, "F16", "base/config.json")


def test_side_files_of_any_size_are_copied_in_pieces(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * (36 << 10) + b"end"
    (recipe.parent / "base" / "extra.json").write_bytes(content)
    whole: list[str] = []
    read = LocalStore.read_bytes

    def watched(store: LocalStore, name: str, *limit: int) -> bytes:
        whole.append(name)
        return read(store, name, *limit)

    monkeypatch.setattr(LocalStore, "read_bytes", watched)
    out = Recorder(MemoryStore())
    manifest = merge(recipe, out).manifest
    assert out.read_bytes("extra.json") == content
    assert manifest.files["extra.json"].sha256 == hashlib.sha256(content).hexdigest()
    assert manifest.files["extra.json"].size == len(content)
    assert ("commit", "extra.json") in out.events  # a stream, where small files are replaced at once
    assert ("replace", "tokenizer.json") in out.events
    assert "extra.json" not in whole
