"""The measurements measure what they say: generated checkpoints, costs of commands, comparisons, tables."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from anabranch.engine.recipe.parse import parse_recipe
from benchmarks import differences, generate, measure, merge, planning, table, thirty_billion, tiny_tensors
from benchmarks.synthetic.processes import Processes

from .. import merging


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return generate.checkpoints("tiny", 2, tmp_path_factory.mktemp("tiny"))


def bf16(path: Path, name: str) -> np.ndarray:
    place = differences.places(path)[name]
    bits = np.fromfile(place.path, np.uint16, place.numel, offset=place.offset)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def digests(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def test_same_arguments_give_the_same_bytes(tiny, tmp_path):
    again = generate.checkpoints("tiny", 2, tmp_path)
    assert [digests(path) for path in again] == [digests(path) for path in tiny]
    assert digests(again[1]) != digests(again[2])


def test_another_seed_gives_other_weights(tiny, tmp_path):
    (other,) = generate.checkpoints("tiny", 0, tmp_path, seed=1)
    assert not np.array_equal(bf16(other, "lm_head.weight"), bf16(tiny[0], "lm_head.weight"))


def test_a_folder_that_is_there_is_kept(tmp_path):
    (path,) = generate.checkpoints("tiny", 0, tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    generate.checkpoints("tiny", 0, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


@pytest.mark.parametrize("size", ["tiny", "moe-tiny"])
def test_shards_open_with_the_library_and_agree_with_the_index(size, tmp_path):
    for path in generate.checkpoints(size, 1, tmp_path):
        where = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        found = {}
        for shard in path.glob("*.safetensors"):
            with safe_open(shard, "np") as file:
                found |= dict.fromkeys(file.keys(), shard.name)
        assert found == where
        assert len(set(where.values())) > 1


def test_models_are_cut_differently(tiny):
    cuts = [sorted(file.stat().st_size for file in path.glob("*.safetensors")) for path in tiny]
    assert len({tuple(cut) for cut in cuts}) == len(cuts)


def test_changes_look_like_those_of_fine_tuned_bf16_models(tiny):
    """40-50 % of the elements do not move; nearly every block of 256 has equal magnitudes at the 25 % cut."""
    name = "model.embed_tokens.weight"
    change = np.abs(bf16(tiny[1], name) - bf16(tiny[0], name))
    assert 0.40 <= np.mean(change == 0) <= 0.50
    blocks = np.sort(change[: len(change) // 256 * 256].reshape(-1, 256))
    assert np.mean(blocks[:, -64] == blocks[:, -65]) > 0.9
    heaviness = np.sum(change) ** 2 / (change.size * np.sum(change**2))
    assert heaviness < 0.5  # a normal distribution has 0.64


def test_a_cost_has_the_memory_the_work_and_the_bytes_of_its_command(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "input").write_bytes(bytes(3 << 20))
    program = (
        "import sys, pathlib; here = pathlib.Path(sys.argv[1]); data = (here / 'input').read_bytes();"
        "held = bytearray(b'x') * (200 << 20); sum(range(3_000_000)); (here / 'out' / 'f').write_bytes(data)"
    )
    # A child counts its parent's memory as its own peak, and this parent is large: measure from a fresh one.
    measuring = (
        "import sys, pathlib, json, dataclasses; from benchmarks import measure;"
        "here = pathlib.Path(sys.argv[1]); command = [sys.executable, '-c', sys.argv[2], str(here)];"
        "cost = measure.run(command, open(here / 'log', 'wb'), here / 'out');"
        "print(json.dumps(dataclasses.asdict(cost)))"
    )
    command = [sys.executable, "-c", measuring, str(tmp_path), program]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    cost = measure.Cost(**json.loads(said.stdout))
    assert 200 << 20 < cost.peak_bytes < 400 << 20
    assert cost.cpu_seconds > 0.01
    assert 0 < cost.seconds < 60
    assert 3 << 20 <= cost.read_bytes < 16 << 20
    assert cost.disk_written_bytes <= 4 << 20


def test_processes_are_told_apart_with_what_they_used_until_they_ended():
    """A process, and the child in which it works, as the driver of a merge has one."""
    work = "held = bytearray(b'x') * (100 << 20); sum(range(20_000_000)); input()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        watch = Processes({process.pid: "driver"})
        deadline = time.monotonic() + 60
        while not any(used.peak_bytes > 100 << 20 for used in watch.so_far()) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.communicate(b"\n")
        used = watch.close()
    mine = [each for each in used if each.part == "driver"]
    assert sorted(each.peak_bytes > 100 << 20 for each in mine) == [False, True]
    assert sum(each.cpu_seconds for each in mine) > 0.01
    assert watch.workers() == []


def test_the_model_of_a_large_merge_counts_both_passes_and_shares_them_between_workers():
    shards = [2_000_000_000] * 32
    one = thirty_billion.predicted_seconds(shards, 200e6, 1)
    assert one == pytest.approx(32 * (3 + 4) * 2e9 / 200e6, rel=0.1)
    assert thirty_billion.predicted_seconds(shards, 200e6, 4) == pytest.approx(one / 4, rel=0.15)


def test_a_failing_command_is_an_error_and_leaves_its_words_in_the_log(tmp_path):
    with open(tmp_path / "log", "wb") as log, pytest.raises(measure.CommandFailed, match="exit status 3"):
        measure.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], log)
    assert (tmp_path / "log").read_text() == "why\n"


def test_differences_are_counted_by_value_and_not_by_shards(tiny, tmp_path):
    same = differences.compare(tiny[0], tiny[0])
    assert same["differing"] == 0
    moved = differences.compare(tiny[0], tiny[1])
    assert moved["elements"] == same["elements"]
    assert 0.4 < moved["share"] < 0.6
    assert moved["only_in_one"] == []


def test_differences_take_zeros_of_both_signs_as_equal(tmp_path):
    for number, bits in enumerate((0x0000, 0x8000)):
        header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
        folder = tmp_path / str(number)
        folder.mkdir()
        content = len(header).to_bytes(8, "little") + header + bits.to_bytes(2, "little")
        (folder / "model.safetensors").write_bytes(content)
    assert differences.compare(tmp_path / "0", tmp_path / "1")["differing"] == 0


@pytest.mark.parametrize("method", merge.METHODS)
def test_recipes_of_the_measurements_are_accepted(method, tmp_path):
    models = [tmp_path / "a", tmp_path / "b"]
    text = merge.recipe_text(method, tmp_path / "base", models, 0.25, "bfloat16")
    recipe = parse_recipe(text, "recipe.yml")
    assert recipe.merge_method == method
    assert len(yaml.safe_load(text)["models"]) == (merge.FORMS[method].most or 2)


def test_catalogs_of_holes_have_true_headers_and_take_no_space(tmp_path):
    planning.write_catalog(tmp_path / "c", 300, 4)
    shards = sorted((tmp_path / "c").glob("*.safetensors"))
    count = 0
    for shard in shards:
        with safe_open(shard, "np") as file:
            count += len(list(file.keys()))
    assert (len(shards), count) == (4, 300)
    assert sum(shard.stat().st_size for shard in shards) > 300 * 256 * 1024
    assert sum(shard.stat().st_blocks * 512 for shard in shards) < 1 << 20


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "cabs"])
def test_tiny_tensors_are_merged_by_their_recipe(method, tmp_path):
    folders = tiny_tensors.write_models(tmp_path, 5, 2)
    tiny_tensors.write_recipe(tmp_path / "recipe.yml", method, folders)
    merging.merge(tmp_path / "recipe.yml", tmp_path / "out")
    first = next(planning.names(5))
    values = []
    for folder in (*folders, tmp_path / "out"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert sorted(file.keys()) == sorted(planning.names(5))
            values.append(file.get_tensor(first).float().numpy())
    assert all(value.shape == (tiny_tensors.ELEMENTS,) and np.isfinite(value).all() for value in values)
    assert len({value.tobytes() for value in values}) == 4


def test_the_table_shows_medians_and_ratios():
    def row(contender, seconds, unlike):
        runs = [
            {
                "seconds": value,
                "cpu_seconds": 1.0,
                "peak_bytes": 2 << 20,
                "disk_read_bytes": 0,
                "disk_written_bytes": 0,
                "others_cores": 0.5,
            }
            for value in seconds
        ]
        return {
            "method": "cabs",
            "case": "warm",
            "contender": contender,
            "unlike_ours": unlike,
            "runs": runs,
        }

    facts = {
        "size": "tiny",
        "models": 2,
        "density": 0.25,
        "repeats": 3,
        "processor": "some",
        "memory_bytes": 1 << 30,
        "python": "3",
        "versions": "numpy 2",
        "date": "today",
        "commit": "abc",
    }
    results = {"facts": facts, "rows": [row("floor", [9, 2, 1], None), row("anabranch 2GiB", [5, 4, 9], 0.0)]}
    lines = table.markdown(results).splitlines()
    assert lines[-1].startswith("| cabs | warm | anabranch 2GiB | 5.00 | 2.0 | 1.0 |")
    assert lines[-1].endswith("| 0.000 % |")


def test_the_torch_peer_keeps_the_largest_of_each_block(tmp_path):
    program = (
        "import sys; sys.path.insert(0, 'benchmarks/peers'); import torch, torch_loop\n"
        "change = torch.tensor([1., -5., 3., 0., 2., 2., 0., 0., 7.])\n"
        "taken = torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, 0], dtype=torch.bool)\n"
        "print(torch_loop.top_in_blocks(change, taken, 0.5, 4).int().tolist())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == [1, 0, 1, 0, 1, 1, 0, 0, 1]
