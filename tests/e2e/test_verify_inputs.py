"""`anabranch verify --inputs`: which inputs are no longer what was merged, and what is said of those that are gone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner, Result

import anabranch
from anabranch.cluster.cli import cli
from anabranch.engine.json_text import readable_json
from anabranch.engine.output import verify_inputs
from anabranch.engine.output.finished import open_outputs
from anabranch.engine.output.tables import rows_digest, write_table

from ..merging import merge, merge_parts, write_checkpoint, write_emr, write_merge

TENSORS = {"a.weight": (300, 500), "b.weight": (7, 5), "c": (3,)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    recipe = write_merge(tmp_path, TENSORS, 1, merge_method="ties", parameters={"density": 0.5, "weight": 1.0})
    merge(recipe, tmp_path / "out")
    return tmp_path / "out"


def verify(out: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(out), "--inputs", *more])


def flip(file: Path, place: int) -> None:
    """A bit of a byte, with the times that the file had."""
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_unchanged_inputs_are_what_was_merged(out: Path) -> None:
    told = verify(out)
    assert told.exit_code == 0, told.output
    size = 2 * 4 * (300 * 500 + 35 + 3)
    assert told.stdout.splitlines()[-1] == f"2 files of inputs, {size} bytes are what was merged"
    answer = json.loads(verify(out, "--json").stdout)
    assert answer["inputs"] == {"outcome": "same", "files": 2, "bytes": size, "problems": []}


@pytest.mark.parametrize(("place", "tensor"), [(-1, "c"), (-13, "b.weight"), (-200, "a.weight"), (400, "a.weight")])
def test_a_flipped_bit_is_found_in_its_tensor(out: Path, place: int, tensor: str) -> None:
    file = out.parent / "model" / "model.safetensors"
    flip(file, place)
    told = verify(out)
    assert told.exit_code == 4
    line, whole = told.stdout.splitlines()
    assert line.startswith(f"{file}: not what was merged: {tensor!r} (bytes ")
    assert whole.endswith("bytes are what was written")
    assert "a file of its inputs is not what was merged" in told.stderr
    assert verify(out, "--json").exit_code == 4


def test_a_copy_elsewhere_or_with_another_time_is_the_same_input(out: Path) -> None:
    file = out.parent / "model" / "model.safetensors"
    os.utime(file, (0, 0))
    shutil.copy(file, file.with_name("copy"))
    os.replace(file.with_name("copy"), file)
    assert verify(out).exit_code == 0


def shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def another(file: Path) -> None:
    write_checkpoint(file.parent, {"other": torch.zeros(3)})


def no_checkpoint(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (Path.unlink, "missing: it cannot be compared"),
    "moved": (lambda file: file.parent.rename(file.parent.with_name("moved")), "missing: it cannot be compared"),
    "shorter": (shorter, "not what was merged: "),
    "another": (another, "not what was merged: it has another header"),
    "no checkpoint": (no_checkpoint, "not what was merged: "),
    "a folder": (a_folder, "expected a regular file"),
}


@pytest.mark.parametrize("change", WRONG)
def test_other_inputs_are_told_in_words(out: Path, change: str) -> None:
    file = out.parent / "base" / "model.safetensors"
    do, text = WRONG[change]
    do(file)
    told = verify(out)
    assert told.exit_code == 4, told.output
    lines = [line for line in told.stdout.splitlines() if line.startswith(f"{file}: ")]
    assert len(lines) == 1 and text in lines[0]
    assert "Traceback" not in told.output


def test_a_damaged_output_is_told_first(out: Path) -> None:
    flip(out / "model.safetensors", -1)
    answer = json.loads(verify(out, "--json").stdout)
    assert answer["outcome"] == "damaged" and "inputs" not in answer


def edited(out: Path, change: Callable[[dict[str, Any]], Any]) -> Result:
    path = out / "anabranch.manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_bytes(readable_json(manifest))
    return verify(out)


def test_an_output_of_an_older_version_says_so(out: Path) -> None:
    (out / "anabranch.inputs.parquet").unlink()

    def older(manifest: dict[str, Any]) -> None:
        del manifest["read"], manifest["tables"]["anabranch.inputs.parquet"]

    told = edited(out, older)
    assert told.exit_code == 4
    assert "does not say what was read of its inputs" in told.stderr


@pytest.mark.parametrize("key", ["url", "sha256", "header_sha256", "bytes", "ranges"])
def test_what_the_manifest_says_of_inputs_fits_its_table(out: Path, key: str) -> None:
    def other(manifest: dict[str, Any]) -> None:
        entry = manifest["read"][0]
        entry[key] = entry[key] + 1 if isinstance(entry[key], int) else entry[key][::-1]

    told = edited(out, other)
    assert told.exit_code == 4
    assert "what it says of inputs that were read does not fit anabranch.inputs.parquet" in told.stdout


HOSTILE: dict[str, dict[str, Any]] = {
    "no blocks": {"block": 0},
    "backwards": {"end": 3},
    "before the file": {"begin": -8},
    "another column": {"more": 1},
    "no number": {"end": None},
}


@pytest.mark.parametrize("change", HOSTILE)
def test_tables_that_no_merge_writes_are_damage(out: Path, change: str) -> None:
    """Even where whoever made them knows how to make their digest."""
    path = out / "anabranch.inputs.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows[0] |= HOSTILE[change]
    table = pyarrow.table({key: [row.get(key) for row in rows] for key in rows[0]})
    path.write_bytes(write_table(table))

    def fitting(manifest: dict[str, Any]) -> None:
        manifest["tables"][path.name] = rows_digest(table.to_batches())

    told = edited(out, fitting)
    assert told.exit_code == 4, told.output
    assert "Traceback" not in told.output and path.name in told.stdout


@pytest.mark.parametrize("chunk", [64, 1000, 1 << 18, 1 << 20])
def test_blocks_are_read_in_pieces_of_any_size(out: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.engine.storage.digests.CHUNK_BYTES", chunk)
    assert not verify_inputs(open_outputs(out)).problems
    flip(out.parent / "model" / "model.safetensors", 300_000)
    [problem] = verify_inputs(open_outputs(out)).problems
    assert "'a.weight'" in problem.text


def test_parts_read_shared_inputs_once(tmp_path: Path) -> None:
    merge_parts(write_emr(tmp_path, TENSORS), tmp_path / "parts")
    told = verify(tmp_path / "parts")
    assert told.exit_code == 0
    assert told.stdout.splitlines()[-1].startswith(f"2 files of inputs, {2 * 4 * 150038} bytes")
    flip(tmp_path / "model" / "model.safetensors", -1)
    assert "'c'" in verify(tmp_path / "parts").stdout


def test_python_does_the_same(out: Path) -> None:
    assert not anabranch.verify(out, inputs=True).problems
    flip(out.parent / "base" / "model.safetensors", -1)
    [problem] = anabranch.verify(out, inputs=True).problems
    assert problem.file == str(out.parent / "base" / "model.safetensors")
    assert not anabranch.verify(out).problems
