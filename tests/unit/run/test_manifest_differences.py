"""What two manifests and tables say of why outputs differ."""

from __future__ import annotations

from typing import Any

from anabranch.engine.run.manifest_differences import Change, changes, flat, input_facts, moves


def test_leaves_have_the_path_that_a_reader_looks_for() -> None:
    recipe = {"models": [{"model": "m", "parameters": {"weight": [1, 2]}}], "exclude": [], "seed": 0}
    assert flat(recipe) == {
        "models[0].model": "m",
        "models[0].parameters.weight": [1, 2],
        "exclude": [],
        "seed": 0,
    }


def test_changes_name_what_one_side_lacks() -> None:
    assert changes({"a": 1, "b": 2}, {"b": 3, "c": 4}) == [
        Change("a", 1, None),
        Change("b", 2, 3),
        Change("c", None, 4),
    ]


def test_an_input_is_its_place_and_its_files() -> None:
    def inputs(version: str) -> list[dict[str, Any]]:
        file = {"name": "model.safetensors", "size": 8, "version": version, "header_sha256": "x"}
        return [{"url": "/base", "files": [file]}, {"side_files": []}]

    found = changes(input_facts(inputs("1")), input_facts(inputs("2")))
    assert [str(change) for change in found] == ["input 0 model.safetensors: 8 bytes, 1 -> 8 bytes, 2"]


def row(tensor: str, density: float | None, kept: int, overlaps: list[int], model: int = 0) -> dict[str, Any]:
    share = kept / 10
    return {
        "tensor": tensor, "model": model, "numel": 10, "density": density, "kept_fraction": share, "overlaps": overlaps,
    }  # fmt: skip


def test_moves_say_how_many_rows_and_where_most() -> None:
    first = [row("a", 0.2, 2, [0, 1]), row("b", 0.2, 2, [0, 1]), row("c", None, 5, [0, 0]), row("gone", 0.1, 1, [])]
    second = [row("c", None, 9, [0, 0]), row("a", 0.3, 3, [0, 1]), row("b", 0.6, 2, [0, 3]), row("a", 0.9, 9, [], 1)]
    found = {move.what: move for move in moves(first, second)}
    assert (found["density"].rows, found["density"].tensor) == (2, "b") and abs(found["density"].largest - 0.4) < 1e-9
    assert (found["kept share"].rows, found["kept share"].tensor) == (2, "c")
    assert str(found["overlapping share"]) == "overlapping share: other in 1 row, by at most 0.2 (b, model 0)"
    assert moves(first, first) == []
