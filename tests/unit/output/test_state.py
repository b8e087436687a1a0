"""Records of an unfinished output are believed only when they are what was written: everything else is made again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from anabranch.engine.errors import IntegrityError, OutputConflictError
from anabranch.engine.json_text import sealed_json, unsealed
from anabranch.engine.models import INDEX_NAME
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.output.manifest import MANIFEST_NAME, PLAN_NAME, TASKS_NAME
from anabranch.engine.output.tables import write_table
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.runner import run
from anabranch.engine.storage.local import LocalStore

from ...merging import local_runner, merge, write_checkpoint, write_recipe

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


class Told(Silent):
    """Remembers notes and phases."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[tuple[str, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def phase(self, name: str, total_bytes: int, done_bytes: int) -> None:
        self.phases.append((name, total_bytes))


@pytest.fixture(scope="module", params=["tadrop", "quantile", "model-wide"])
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Three shards of two tensors each, of two models, by methods that ask for each kind of survey."""
    folder = tmp_path_factory.mktemp(request.param)
    generator = torch.Generator().manual_seed(0)
    base = {f"w{i}": torch.randn(20, 10, generator=generator) for i in range(6)}
    write_checkpoint(folder / "base", base)
    models = []
    for name in ("a", "b"):
        tensors = {n: t + 0.1 * torch.randn(20, 10, generator=generator) for n, t in base.items()}
        models.append({"model": str(write_checkpoint(folder / name, tensors))})
    content = {"merge_method": "cabs", "base_model": str(folder / "base"), "models": models}
    content["output"] = {"shard_size": 1600}
    if request.param == "model-wide":
        content |= {"merge_method": "ties", "parameters": {"density": 0.3, "scope": "model"}}
    else:
        statistic = {"statistic": "quantile"} if request.param == "quantile" else {}
        content["parameters"] = {"density": {"tadrop": {"mean": 0.3, **statistic}}, "block": 16}
    merge(write_recipe(folder / "recipe.yml", content), folder / "out")
    return folder


@pytest.fixture
def killed(finished: Path, tmp_path: Path) -> Path:
    """The output as a kill right before the manifest leaves it."""
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    (out / MANIFEST_NAME).unlink()
    return out


def resume(finished: Path, out: Path, trust_sizes: bool = False) -> tuple[tuple[int, ...], Told]:
    """Which shards were made again, and what was said."""
    inputs = open_inputs(load_recipe(finished / "recipe.yml"), finished)
    told = Told()
    members = [Member(inputs, OutputDirectory(inputs.plan, LocalStore(str(out)), told.note))]
    [outcome] = run(members, local_runner(members), told, trust_sizes=trust_sizes)
    return outcome.merged_shards, told


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def changed_digit(data: bytes) -> bytes:
    """Another number somewhere behind the plan id, still JSON."""
    place = next(i for i in range(len(data) // 2, len(data)) if data[i : i + 1].isdigit())
    return data[:place] + (b"9" if data[place : place + 1] != b"9" else b"8") + data[place + 1 :]


def sealed_anew(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """A record that lacks something although its digest is right."""

    def damage(data: bytes) -> bytes:
        record = unsealed(data)
        change(record)
        return sealed_json(record)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "digit": changed_digit,
    "empty": lambda _: b"",
    "zeros": lambda data: bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "list": lambda _: b"[]",
    "deep": lambda _: b"[" * 100_000,
    "no digest": lambda data: json.dumps(unsealed(data)).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_receipt_is_not_believed(finished: Path, killed: Path, damage: Callable[[bytes], bytes]) -> None:
    path = killed / f".anabranch/receipts/{SHARDS[1]}.json"
    path.write_bytes(damage(path.read_bytes()))
    made, told = resume(finished, killed)
    assert made == (1,)
    assert [note for note in told.notes if path.name in note]
    assert contents(killed) == contents(finished / "out")


@pytest.mark.parametrize("damage", ["half", "zeros", "empty", "other"])
def test_a_damaged_table_of_rows_is_not_believed(finished: Path, killed: Path, damage: str) -> None:
    path = killed / f".anabranch/receipts/{SHARDS[1]}.parquet"
    other = (killed / f".anabranch/receipts/{SHARDS[0]}.parquet").read_bytes()
    path.write_bytes(other if damage == "other" else DAMAGES[damage](path.read_bytes()))
    assert resume(finished, killed)[0] == (1,)
    assert contents(killed) == contents(finished / "out")


def test_a_receipt_with_the_rows_of_another_shard_is_not_believed(finished: Path, killed: Path) -> None:
    folder = killed / ".anabranch/receipts"
    table = (folder / f"{SHARDS[0]}.parquet").read_bytes()
    (folder / f"{SHARDS[1]}.parquet").write_bytes(table)
    rows = unsealed((folder / f"{SHARDS[0]}.json").read_bytes())["rows"]
    path = folder / f"{SHARDS[1]}.json"
    path.write_bytes(sealed_anew(lambda record: record.update(rows=rows))(path.read_bytes()))
    assert resume(finished, killed)[0] == (1,)
    assert contents(killed) == contents(finished / "out")


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES.values(),
        sealed_anew(lambda record: record.update(rows=None, counts={})),
        sealed_anew(lambda record: record.update(rows={"size": 1, "sha256": "0" * 64}, counts={"7": 1})),
        sealed_anew(lambda record: record.update(counts={"70000": 400})),
        sealed_anew(lambda record: record.update(counts={"0": -1})),
        sealed_anew(lambda record: record.update(model=1 - record["model"])),
        sealed_anew(lambda record: record.update(shard=2)),
        sealed_anew(lambda record: record.update(kind="other")),
        sealed_anew(lambda record: record.pop("plan_id")),
    ],
)
def test_a_damaged_part_of_a_survey_is_taken_again(
    finished: Path, killed: Path, damage: Callable[[bytes], bytes]
) -> None:
    for path in killed.glob("*.safetensors"):
        path.unlink()
    for path in (killed / ".anabranch/survey").iterdir():
        if path.name in ("000-00001.json", "000-00001-high.json"):
            path.write_bytes(damage(path.read_bytes()))
    made, told = resume(finished, killed)
    assert made == (0, 1, 2)
    assert [note for note in told.notes if "000-00001" in note]
    assert contents(killed) == contents(finished / "out")


@pytest.mark.parametrize("damage", ["half", "zeros", "empty", "gone", "other", "fewer", "twice"])
def test_a_damaged_table_of_a_survey_is_taken_again(finished: Path, killed: Path, damage: str) -> None:
    folder = killed / ".anabranch/survey"
    path = folder / "000-00001.parquet"
    if not path.exists():
        assert finished.name.startswith("model-wide")  # where elements are counted, and no tensor has a row
        return
    for shard in killed.glob("*.safetensors"):
        shard.unlink()
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        shutil.copy(folder / "001-00001.parquet", path)
    elif damage in ("fewer", "twice"):
        table = parquet.read_table(path)
        data = write_table(table.slice(1) if damage == "fewer" else pyarrow.concat_tables([table, table]))
        path.write_bytes(data)
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record = path.with_suffix(".json")
        record.write_bytes(sealed_anew(lambda record: record.update(rows=entry))(record.read_bytes()))
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    made, told = resume(finished, killed)
    assert made == (0, 1, 2)
    assert damage == "gone" or [note for note in told.notes if "000-00001" in note]
    assert contents(killed) == contents(finished / "out")


@pytest.mark.parametrize("counts", [{}, {"5": 3}])
def test_the_second_count_of_a_survey_has_what_the_first_one_found(
    finished: Path, killed: Path, counts: dict[str, int]
) -> None:
    path = killed / ".anabranch/survey/000-00001-low.json"
    if not path.exists():
        assert not finished.name.startswith("model-wide")
        return
    for shard in killed.glob("*.safetensors"):
        shard.unlink()
    path.write_bytes(sealed_anew(lambda record: record.update(counts=counts))(path.read_bytes()))
    _, told = resume(finished, killed)
    assert [note for note in told.notes if "000-00001-low" in note and "the round before" in note]
    assert contents(killed) == contents(finished / "out")


@pytest.mark.parametrize("name", [PLAN_NAME, TASKS_NAME])
@pytest.mark.parametrize("damage", ["digit", "empty", "zeros", "half"])
def test_a_damaged_plan_is_made_again_from_the_recipe(finished: Path, killed: Path, name: str, damage: str) -> None:
    path = killed / name
    path.write_bytes(DAMAGES[damage](path.read_bytes() + b" 1 1 1 "))
    made, told = resume(finished, killed)
    assert made == ()
    assert [note for note in told.notes if path.name in note]
    assert contents(killed) == contents(finished / "out")


@pytest.mark.parametrize("damage", ["empty", "zeros", "half", "list", "deep"])
def test_a_damaged_manifest_is_made_again(finished: Path, tmp_path: Path, damage: str) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    path = out / MANIFEST_NAME
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    inputs = open_inputs(load_recipe(finished / "recipe.yml"), finished)
    assert OutputDirectory(inputs.plan, LocalStore(str(out))).check() == "started"
    made, told = resume(finished, out)
    assert made == ()
    assert [note for note in told.notes if MANIFEST_NAME in note]
    assert contents(out) == contents(finished / "out")


def test_a_damaged_manifest_of_nobody_is_left_alone(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST_NAME).write_bytes(b"{")
    with pytest.raises(IntegrityError, match="is not a manifest"):
        resume(finished, out)
    assert contents(out) == {MANIFEST_NAME: b"{"}


def test_a_directory_whose_plan_is_damaged_stays_that_of_its_receipts(finished: Path, killed: Path) -> None:
    (killed / PLAN_NAME).write_bytes(b"")
    for path in (killed / ".anabranch/receipts").glob("*.json"):
        path.write_bytes(sealed_anew(lambda record: record.update(plan_id="f" * 64))(path.read_bytes()))
    before = contents(killed)
    with pytest.raises(OutputConflictError, match="another plan"):
        resume(finished, killed)
    assert contents(killed) == before


@pytest.mark.parametrize("torn", ["zeros", "bit", "tail"])
def test_a_torn_shard_of_the_right_size_is_made_again(finished: Path, killed: Path, torn: str) -> None:
    path = killed / SHARDS[2]
    data = bytearray(path.read_bytes())
    if torn == "bit":
        data[len(data) // 2] ^= 1
    else:
        begin = 0 if torn == "zeros" else len(data) - 8
        data[begin:] = bytes(len(data) - begin)
    path.write_bytes(data)
    made, told = resume(finished, killed)
    assert made == (2,)
    assert [note for note in told.notes if SHARDS[2] in note]
    assert told.phases[0] == ("check", sum((killed / name).stat().st_size for name in SHARDS))
    assert contents(killed) == contents(finished / "out")


def test_sizes_are_trusted_where_that_is_asked_for(finished: Path, killed: Path) -> None:
    path = killed / SHARDS[2]
    path.write_bytes(bytes(path.stat().st_size))
    made, told = resume(finished, killed, trust_sizes=True)
    assert made == ()
    assert "check" not in [name for name, _ in told.phases]


def test_trusted_sizes_are_compared_all_the_same(finished: Path, killed: Path) -> None:
    path = killed / SHARDS[2]
    path.write_bytes(path.read_bytes()[:-1])
    assert resume(finished, killed, trust_sizes=True)[0] == (2,)
    assert contents(killed) == contents(finished / "out")


def test_rows_with_other_numbers_are_not_believed(finished: Path, killed: Path) -> None:
    path = killed / f".anabranch/receipts/{SHARDS[1]}.parquet"
    rows = parquet.read_table(path)
    other = pyarrow.array([7] * len(rows), pyarrow.int64())
    path.write_bytes(write_table(rows.set_column(rows.schema.get_field_index("overflowed"), "overflowed", other)))
    assert resume(finished, killed)[0] == (1,)
    assert contents(killed) == contents(finished / "out")


OTHERS = {
    "plan": lambda record: record.update(plan_id="0" * 64),
    "size": lambda record: record.update(size=record["size"] - 1),
    "name": lambda record: record.update(name=SHARDS[0]),
    "place": lambda record: record.update(shard=0),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_whole_receipt_of_something_else_is_not_believed(
    finished: Path, killed: Path, other: Callable[[dict], object]
) -> None:
    path = killed / f".anabranch/receipts/{SHARDS[1]}.json"
    path.write_bytes(sealed_anew(other)(path.read_bytes()))
    assert resume(finished, killed)[0] == (1,)
    assert contents(killed) == contents(finished / "out")


def test_an_undisturbed_rest_is_not_made_again(finished: Path, killed: Path) -> None:
    (killed / SHARDS[0]).unlink()
    (killed / INDEX_NAME).unlink()
    assert resume(finished, killed)[0] == (0,)
    assert contents(killed) == contents(finished / "out")
