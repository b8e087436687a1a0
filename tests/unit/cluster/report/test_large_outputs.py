"""The report of any output is small and soon made: tables are read in pieces, and pictures add up layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from anabranch.cluster.report.facts import read_facts
from anabranch.engine.output import MANIFEST_NAME, TASKS_NAME, TENSORS_NAME, Finished, Manifest, write_table
from anabranch.engine.output.tables import tasks_table, tensors_table
from anabranch.engine.plan import ModelRow, Receipt, TensorRow
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.memory import MemoryStore

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "norm")


def output_of(layers: int, models: int, experts: int = 1) -> Finished:
    """A finished output with the tables that the real writer makes of made-up receipts."""
    names = [f"model.layers.{i}.{k}.{e}.weight" for i in range(layers) for k in KINDS for e in range(experts)]
    base = SimpleNamespace(info=SimpleNamespace(dtype="BF16", shape=(8, 128)))
    tasks = [
        SimpleNamespace(
            name=name,
            numel=1024,
            method="cabs",
            reason="",
            base=base,
            out_dtype="BF16",
            read_bytes=1,
            write_bytes=2048,
            model_of=lambda position: position,
        )
        for name in names
    ]
    urls = [SimpleNamespace(url=f"s3://models/model-{i}-with-a-rather-long-name") for i in range(models)]
    shards = [SimpleNamespace(name="model.safetensors", tasks=range(len(tasks)))]
    plan = cast(Any, SimpleNamespace(tasks=tasks, models=urls, shards=shards))
    pairs = tuple((a, b, 30) for a in range(models) for b in range(a + 1, models))
    rows = []
    for place, name in enumerate(names):
        given = tuple(
            ModelRow(density=0.25, kept=200 + place % 56 + i, l1=1.0, l2=1.0 + place % 7, kept_l2=0.5)
            for i in range(models)
        )
        rows.append(TensorRow(name=name, action="merged", models=given, overlaps=pairs, claims=(1024,) + (0,) * models))
    receipt = Receipt(plan_id="p", shard=0, name="model.safetensors", size=1, sha256="0", tensors=tuple(rows))
    table, store = tensors_table(plan, [receipt]), MemoryStore()
    store.replace(TENSORS_NAME, write_table(table.arrow))
    store.replace(TASKS_NAME, write_table(tasks_table(plan)))
    manifest = Manifest(
        plan_id="p",
        numerics=2,
        recipe={"merge_method": "cabs"},
        inputs=[],
        files={},
        merged_tensors=len(rows),
        copied_tensors=0,
        parameters=1024 * len(rows),
        warnings=[],
        summary=table.summary,
        tables={TENSORS_NAME: table.digest},
        survey=[],
    )
    return Finished("", store, manifest)


def test_sums_over_layers_are_those_of_the_rows() -> None:
    facts = read_facts(output_of(layers=5, models=3, experts=4))
    assert {key[1:] for key in facts.cells} == {(str(i), f"{kind}.*") for i in range(5) for kind in KINDS}
    assert facts.cells[2, "1", "norm.*"].tensors == 4
    assert facts.model(0).numel == 5 * 6 * 4 * 1024
    assert facts.model(1).kept == sum(201 + place % 56 for place in range(120))
    assert [pair.both for pair in facts.pairs] == [30 * 120] * 3
    assert facts.claims == {0: 1024 * 120, 1: 0, 2: 0, 3: 0}


@pytest.mark.parametrize(("layers", "models"), [(400, 3), (90, 30), (1, 1)])
def test_a_page_has_less_than_three_megabytes_whatever_was_merged(layers: int, models: int) -> None:
    pytest.importorskip("vl_convert", reason="pictures need vl-convert-python: pip install 'anabranch[report]'")
    from anabranch.cluster.report.output import output_page
    from anabranch.cluster.report.page import MAX_PAGE_BYTES, render

    assert len(render(output_page(output_of(layers, models)))) < MAX_PAGE_BYTES


MADE_IN = """
import resource, sys, time
from anabranch.cluster.report.output import output_page
from anabranch.cluster.report.page import render
from anabranch.engine.output import open_outputs
begin = time.process_time()
[output] = open_outputs(sys.argv[1])
size = len(render(output_page(output)))
print(time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, size)
"""


@pytest.mark.slow
def test_the_report_of_100_000_tensors_is_made_in_30_seconds_and_a_gibibyte(tmp_path: Path) -> None:
    """Seconds of the processor, so that other work on the machine does not count; in a process of its own."""
    pytest.importorskip("vl_convert", reason="pictures need vl-convert-python: pip install 'anabranch[report]'")
    made, out = output_of(layers=60, models=2, experts=278), LocalStore(tmp_path)
    for name in (TENSORS_NAME, TASKS_NAME):
        out.replace(name, made.store.read_bytes(name, 1 << 30))
    out.replace(MANIFEST_NAME, made.manifest.model_dump_json().encode())
    done = subprocess.run([sys.executable, "-c", MADE_IN, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak, size = map(float, done.stdout.split())
    print(f"{seconds:.1f} s, {peak / 2**20:.0f} MiB, {size / 1e6:.2f} MB")
    assert seconds < 30 and peak < 1 << 30 and size < 3e6
