"""A merge into a repository of the hub: nothing to be seen before all of it, and no shard sent twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..merging import write_recipe
from .conftest import SHARDS, Hub, assert_whole
from .stub import TOKEN

REPOSITORY = "hf://owner/name"


def test_the_bytes_are_those_of_a_folder_and_a_second_run_does_nothing(hub: Hub, recipe: Path, out: Path) -> None:
    done = hub.run("merge", recipe, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)
    assert hub.ask()["private"] == {"owner/name": True}
    assert len(hub.uploads()) >= SHARDS
    hub.script()
    again = hub.run("merge", recipe, REPOSITORY)
    assert again.returncode == 0, again.stderr
    assert "already complete" in again.stdout
    assert not hub.uploads()
    assert hub.run("verify", REPOSITORY).returncode == 0
    assert "has all of it; nothing was done" in hub.run("push", out, REPOSITORY).stdout


def test_no_weights_and_no_token_stay_on_this_machine(hub: Hub, recipe: Path) -> None:
    assert hub.run("merge", recipe, REPOSITORY).returncode == 0
    left = [path for path in (hub.folder / "state").rglob("*") if path.is_file()]
    assert left
    for path in left:
        assert path.suffix != ".safetensors"
        assert TOKEN.encode() not in path.read_bytes()


def test_a_branch_is_named_in_the_url(hub: Hub, recipe: Path, out: Path) -> None:
    done = hub.run("merge", recipe, f"{REPOSITORY}@trial")
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out, "trial")
    assert len(hub.history("main")) == 1


def receipts(hub: Hub) -> dict[str, int]:
    """When each receipt was written."""
    return {path.name: path.stat().st_mtime_ns for path in (hub.folder / "state").rglob("receipts/*.json")}


@pytest.mark.parametrize("shard", [2, *(pytest.param(shard, marks=pytest.mark.slow) for shard in (1, 3))])
def test_a_killed_merge_goes_on_without_sending_shards_again(hub: Hub, recipe: Path, out: Path, shard: int) -> None:
    """Killed while a shard is being sent; those before it are neither made nor sent again."""
    hub.kill_at_shard(shard, "merge", recipe, REPOSITORY)
    assert len(hub.history()) == 1
    sent = hub.uploads()
    made = receipts(hub)
    assert len(sent) == len(made) == shard - 1
    hub.script()
    done = hub.run("merge", recipe, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert {name: when for name, when in receipts(hub).items() if name in made} == made
    assert_whole(hub, out)
    assert not hub.uploads() & sent


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "PUT", "lose": True},
        {"target": "/commit/", "other commit": "owner/name"},
        pytest.param({"target": "/preupload/", "status": 503, "times": 2}, marks=pytest.mark.slow),
        pytest.param({"target": "/commit/", "lose": True}, marks=pytest.mark.slow),
        pytest.param({"target": "/commit/", "status": 429, "headers": {"Retry-After": "1"}}, marks=pytest.mark.slow),
    ],
    ids=lambda fault: "-".join(str(value).strip("/") for value in fault.values() if not isinstance(value, dict)),
)
def test_what_a_busy_hub_does_is_survived(hub: Hub, recipe: Path, out: Path, fault: dict[str, Any]) -> None:
    hub.script(fault)
    done = hub.run("merge", recipe, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)


def test_an_expired_token_is_told_and_gone_on_from(hub: Hub, recipe: Path, out: Path) -> None:
    hub.script({"target": "/preupload/", "number": 3, "times": 1000, "status": 401})
    done = hub.run("merge", recipe, REPOSITORY)
    assert done.returncode == 6, done.stderr
    assert "the hub answered 401" in done.stderr
    assert len(hub.history()) == 1
    sent = hub.uploads()
    hub.script()
    assert hub.run("merge", recipe, REPOSITORY).returncode == 0
    assert_whole(hub, out)
    assert not hub.uploads() & sent


def test_what_the_hub_has_dropped_meanwhile_is_made_again(hub: Hub, recipe: Path, out: Path) -> None:
    hub.script({"target": "/commit/", "times": 1000, "status": 403})
    assert hub.run("merge", recipe, REPOSITORY).returncode == 6
    sent = hub.uploads()
    dropped = min(sent)
    hub.ask(drop=dropped, faults=[])
    done = hub.run("merge", recipe, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)
    assert hub.uploads() & sent == {dropped}


def test_other_models_and_other_recipes_are_refused_before_anything_is_read(
    hub: Hub, recipe: Path, out: Path, tmp_path: Path
) -> None:
    assert hub.run("push", out, REPOSITORY).returncode == 0
    other = write_recipe(
        tmp_path / "other.yml",
        {"merge_method": "passthrough", "models": [{"model": str(recipe.parent / "model")}]},
    )
    done = hub.run("merge", other, REPOSITORY)
    assert done.returncode == 5, done.stderr
    assert "another plan" in done.stderr
    hub.ask(repository="owner/name", commit={"pytorch_model.bin": "old"}, remove=["anabranch.manifest.json"])
    done = hub.run("merge", other, REPOSITORY)
    assert done.returncode == 5, done.stderr
    assert "holds another model" in done.stderr


def test_a_cluster_is_refused(hub: Hub, recipe: Path) -> None:
    done = hub.run("merge", recipe, REPOSITORY, "--ray", "local")
    assert done.returncode == 2, done.stderr
    assert "is made on one machine" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "hf://owner/name@a@b",
        *(pytest.param(url, marks=pytest.mark.slow) for url in ("hf://owner", "hf://owner/name/folder")),
    ],
)
def test_what_is_no_repository_is_told(hub: Hub, recipe: Path, url: str) -> None:
    done = hub.run("merge", recipe, url)
    assert done.returncode == 3, done.stderr
    assert "expected hf://owner/name" in done.stderr
