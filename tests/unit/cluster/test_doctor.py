"""What the examination of a machine says, without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from anabranch.cluster.doctor import cores_and_memory, credentials, disk, ray_token, write_speed

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "free", "state", "advice"),
    [
        (None, 8 * GIB, "ok", ""),
        (None, None, "ok", ""),
        (GIB, 8 * GIB, "note", "--memory 768MiB"),
        (None, GIB, "note", "--memory 768MiB"),
        (256 << 20, 8 * GIB, "problem", "512 MiB"),
    ],
)
def test_memory_of_machine_and_container(limit: int | None, free: int | None, state: str, advice: str) -> None:
    found = cores_and_memory(limit, free, 2 * GIB)
    assert found.state == state and advice in found.advice


def test_credentials_are_found_and_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("canary")
    found = {each.what: each for each in credentials({"HF_TOKEN": "canary", "AWS_PROFILE": ""})}
    assert found["S3"].text == "credentials in ~/.aws/credentials"
    assert found["Hugging Face Hub"].text == "credentials in HF_TOKEN"
    assert found["Azure"].state == "note"
    assert "canary" not in "".join(map(str, found.values()))


def test_tokens_of_clusters(tmp_path: Path) -> None:
    assert "RAY_AUTH_MODE=token" in ray_token({}, tmp_path).advice
    assert "~/.ray/auth_token" in ray_token({"RAY_AUTH_MODE": "token"}, tmp_path).advice
    found = ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "canary"}, tmp_path)
    assert found.state == "ok" and "canary" not in str(found)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("canary")
    assert ray_token({"RAY_AUTH_MODE": "token"}, tmp_path).state == "ok"


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert write_speed(tmp_path) > 0 and list(tmp_path.iterdir()) == []
    found = disk(str(tmp_path / "not" / "there"))
    assert found.text.startswith(f"{tmp_path}: ") and list(tmp_path.iterdir()) == []
    assert "no disk" in disk("s3://bucket/out").text
