"""Tables hold what grows with the number of tensors; damaged ones and those that unpack to gigabytes are refused."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from anabranch.engine.json_text import canonical_json
from anabranch.engine.output.manifest import MANIFEST_NAME, SURVEY_NAME
from anabranch.engine.output.tables import rows_digest, survey_table, table_problem, write_table
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.memory import MemoryStore

from ...merging import merge, write_checkpoint, write_recipe


def survey_rows(count: int) -> list[dict[str, object]]:
    numbers = {"density": 0.5, "redundancy": None, "numel": 3, "zeros": 1, "l1": 1.5, "squares": 2.0, "fourths": 4.0}
    return [{"model": 0, "tensor": f"tensor {i} ü", **numbers} for i in range(count)]


def test_the_digest_is_that_of_the_rows_however_they_are_cut() -> None:
    import hashlib

    table, digest = survey_table(survey_rows(5000))
    assert digest == hashlib.sha256(canonical_json(table.to_pylist())).hexdigest()
    assert digest == rows_digest(table.to_batches(max_chunksize=7))


def test_every_damage_of_a_table_is_a_problem_and_no_bug() -> None:
    table, digest = survey_table(survey_rows(50))
    data, store, draw = write_table(table), MemoryStore(), random.Random(7)
    store.replace("t", data)
    assert table_problem(store, "t", digest) is None
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 4])):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        store.replace("t", bytes(damaged[: draw.choice([len(data), draw.randrange(len(data))])]))
        problem = table_problem(store, "t", digest)  # a flipped bit of a statistic changes no row
        assert problem is None or problem.text.startswith("damaged: ")
    for end in range(0, len(data), 37):
        store.replace("t", data[:end])
        assert table_problem(store, "t", digest) is not None


def test_a_small_table_that_unpacks_to_gigabytes_is_not_unpacked() -> None:
    column = pyarrow.array([b"\0" * (1 << 20)] * 256, pyarrow.binary())
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"tensor": column}), sink, compression="zstd", use_dictionary=False)
    del column
    assert len(sink.getvalue()) < 1 << 20
    store = MemoryStore()
    store.replace("t", sink.getvalue())
    problem = table_problem(store, "t", "0" * 64)
    assert problem is not None
    assert "unpacks to" in problem.text


def test_receipts_and_manifest_do_not_grow_with_the_number_of_tensors(tmp_path: Path) -> None:
    sizes = {}
    for count in (4, 64):
        folder = tmp_path / str(count)
        for place, name in enumerate(("base", "model")):
            generator = torch.Generator().manual_seed(place)
            write_checkpoint(folder / name, {f"w{i}": torch.randn(64, generator=generator) for i in range(count)})
        recipe = {
            "merge_method": "cabs",
            "base_model": str(folder / "base"),
            "models": [{"model": str(folder / "model")}],
            "parameters": {"density": {"tadrop": {"mean": 0.3}}, "block": 16},
        }
        out = folder / "out"
        merge(write_recipe(folder / "recipe.yml", recipe), out)
        [receipt] = (out / ".anabranch/receipts").glob("*.json")
        sizes[count] = (receipt.stat().st_size, (out / MANIFEST_NAME).stat().st_size)
        rows = pyarrow.parquet.read_table(out / SURVEY_NAME).to_pylist()
        assert {row["tensor"] for row in rows} == {f"w{i}" for i in range(count)}
        assert LocalStore(str(out)).list().count(SURVEY_NAME) == 1
        assert merge(folder / "recipe.yml", out).already_complete
    few, many = sizes[4], sizes[64]
    assert [b - a for a, b in zip(few, many, strict=True)] == pytest.approx([0, 0], abs=60)
