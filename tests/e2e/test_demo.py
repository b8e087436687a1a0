"""The demo on models that learn for a moment, and (slow) the claims that its table makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anabranch.cluster.demo import demo
from anabranch.cluster.demo.models import TASKS, VIEWS, Training, accuracies, load_tasks, train_base, train_specialist
from anabranch.engine.errors import OutputConflictError

BRIEF = Training(base_steps=20, base_batch=32, steps=15, batch=32)


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """The demo sets them for its process; other tests in this one want their own back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_training_gives_the_same_bytes_again(tmp_path: Path) -> None:
    for run in ("first", "second"):
        train_base(tmp_path / run / "base", BRIEF)
        train_specialist("wine", tmp_path / run / "base", tmp_path / run / "wine", BRIEF)
    for name in ("base", "wine"):
        first = checkpoint_bytes(tmp_path / "first" / name)
        assert first == checkpoint_bytes(tmp_path / "second" / name)
        assert sum(file.endswith(".safetensors") for file in first) > 1
    base, wine = (
        {k: v for file in (tmp_path / "first" / name).glob("*.safetensors") for k, v in load_file(file).items()}
        for name in ("base", "wine")
    )
    changed = (base["classifier.weight"] != wine["classifier.weight"]).any(1)
    assert changed.nonzero().flatten().tolist() == list(range(*load_tasks()["wine"].rows.indices(len(changed))))


def test_no_view_shows_a_test_digit_to_training() -> None:
    tasks = load_tasks()
    upright = tasks["upright"]
    for name, view in VIEWS.items():
        shown = torch.tensor(view(upright.test.pictures[:, 0].double().numpy()).copy())
        assert torch.equal(tasks[name].test.pictures[:, 0], shown.float())
        assert torch.equal(tasks[name].test.classes, upright.test.classes)
    for task in tasks.values():
        sizes = [len(split.classes) for split in (task.train, task.validation, task.test)]
        assert sizes[0] == sum(sizes) // 2
        assert min(sizes) > 25


def test_a_brief_demo_from_training_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tuple(m for m in demo.METHODS if m.title in ("task arithmetic", "CABS"))
    monkeypatch.setattr(demo, "METHODS", few)
    monkeypatch.setattr(demo, "LAMBDAS", (0.3, 0.8))
    rows = demo.main(str(tmp_path / "out"), training=BRIEF)
    printed = capsys.readouterr().out
    merged = [*(m.title for m in few), demo.EMR]
    assert [row.title for row in rows] == ["base", *(f"{name} specialist" for name in TASKS), *merged]
    for row in rows:
        assert set(row.accuracy) == set(TASKS)
        assert row.title in printed
    arithmetic, cabs, own_masks = rows[-3:]
    assert own_masks.factor is None
    assert f"{demo.EMR}: each task is answered by a model of its own" in printed
    assert (arithmetic.density, arithmetic.overlap) == (1.0, 1.0)
    assert cabs.density == pytest.approx(demo.DENSITY, abs=0.01)
    assert cabs.overlap is not None
    assert cabs.overlap < 0.001
    for row in (arithmetic, cabs):
        assert row.factor in (0.3, 0.8)
        assert 0 < (row.peak_bytes or 0) < 1 << 30

    models = checkpoint_bytes(tmp_path / "out" / "models" / "wine")
    (tmp_path / "out" / "models" / "base" / "config.json").unlink()  # would not be missed, as nothing is trained
    demo.Demo(tmp_path / "out", BRIEF).train(fresh=False)
    assert "trained before" in capsys.readouterr().out
    assert models == checkpoint_bytes(tmp_path / "out" / "models" / "wine")
    assert not (tmp_path / "out" / "models" / "base" / "config.json").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputConflictError, match="not made by a demo"):
        demo.main(str(tmp_path), training=BRIEF)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_remarks_say_who_wins() -> None:
    def row(title: str, accuracy: float) -> demo.Row:
        return demo.Row(title, {"a": accuracy, "b": accuracy}, 0.5, 0.1, 0.0, 1.0, 1)

    rows = [demo.Row("base", {"a": 0.1, "b": 0.1}), row("TIES", 0.6), row("DARE", 0.7), row("CABS", 0.75)]
    rows.append(row("CABS + TADrop", 0.65))
    said = list(demo.remarks(rows, {"a": 100, "b": 400}))
    assert said[0] == "CABS: 5.0 points above the best other method, DARE."
    assert said[1] == "CABS + TADrop does not win here: 5.0 points below DARE."
    assert "a 100, b 400" in said[2]
    assert "about 2.4 points" in said[2]  # sqrt(0.75 * 0.25 * (1/100 + 1/400)) / 2
    even = [replace(r, accuracy={"a": 0.7, "b": 0.7}) for r in rows]
    assert "does not win" in next(iter(demo.remarks(even, {"a": 100, "b": 400})))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_table_tells_methods_apart(tmp_path: Path) -> None:
    """Base poor at everything, a specialist good at its own task only, merges good at all; methods differ."""
    rows = {row.title: row for row in demo.main(str(tmp_path / "out"))}
    assert rows["base"].mean < 0.3
    for name in TASKS:
        specialist = rows[f"{name} specialist"]
        assert specialist.accuracy[name] > 0.9
        assert specialist.mean < 0.45
    merges = [rows[method.title] for method in demo.METHODS]
    assert all(row.mean > 0.5 for row in merges)
    assert max(row.mean for row in merges) - min(row.mean for row in merges) > 0.04
    for name in TASKS:  # with its own mask a task is answered nearly as well as by its specialist
        assert rows[demo.EMR].accuracy[name] > rows[f"{name} specialist"].accuracy[name] - 0.08
    assert rows[demo.EMR].mean > max(row.mean for row in merges)
    for row in merges:
        loaded = accuracies(tmp_path / "out" / "merged" / _method(row.title).name, "test")
        assert loaded == row.accuracy


def _method(title: str) -> demo.Method:
    return next(method for method in demo.METHODS if method.title == title)
