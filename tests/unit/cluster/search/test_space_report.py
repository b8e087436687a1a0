"""What `plan` says of a search: it opens inputs within the memory limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anabranch.cluster.search.space_report import plan_search
from anabranch.engine.errors import ResourceError
from anabranch.engine.models.room import BASE_BYTES

from ....merging import write_recipe


def test_headers_of_a_search_count_against_the_memory(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{i}": empty for i in range(60_000)}).encode()
    for name in ("base", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    content = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "model")}],
        "parameters": {"density": {"search": {"from": 0.1, "to": 0.5}}},
    }
    recipe = write_recipe(tmp_path / "r.yml", content)
    with pytest.raises(ResourceError, match=r"model\.safetensors: \d+ bytes of JSON with up to 60001 tensors"):
        plan_search(str(recipe), str(tmp_path / "out"), BASE_BYTES)
