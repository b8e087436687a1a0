"""A full disk, a read-only or forbidden directory, a file size limit: exit 6, and with room the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Disturbed


def in_small_file_system(unshare: str, mount: Path, size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a name space of its own where `mount` is a tmpfs of that size."""
    mount.mkdir(exist_ok=True)
    whole = f"mount -t tmpfs -o size={size} tmpfs {mount} && {script}"
    return subprocess.run([unshare, "-m", "sh", "-c", whole], capture_output=True, text=True, timeout=120, check=False)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    disturbed: Disturbed, unshare: str, tmp_path: Path
) -> None:
    out = tmp_path / "small" / "out"
    script = f"{' '.join(disturbed.command(out))}; code=$?; ls -A {out} 2>/dev/null | wc -l; exit $code"
    done = in_small_file_system(unshare, tmp_path / "small", "600k", script)
    assert done.returncode == 6, done.stderr
    assert "free" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split()[-1] == "0"


def test_a_disk_that_fills_up_in_the_middle_is_exit_6_and_resumes_with_room(
    disturbed: Disturbed, unshare: str, tmp_path: Path
) -> None:
    mount, kept = tmp_path / "small", tmp_path / "kept"
    out = mount / "out"
    command = " ".join(disturbed.command(out))
    # Something else takes the space as soon as the run has looked at it and begun.
    eater = (
        f"(while [ ! -e {out}/.anabranch/plan.json ]; do sleep 0.002; done;"
        f" dd if=/dev/zero of={mount}/eater bs=64k 2>/dev/null) &"
    )
    script = (
        f"{eater} {command}; code=$?; wait; ls {out}; rm {mount}/eater; {command} >/dev/null 2>&1; echo again $?;"
        f" cp -a {out} {kept}; exit $code"
    )
    done = in_small_file_system(unshare, mount, "4m", script)
    if done.returncode == 0:
        pytest.skip("the merge was faster than what takes the space")
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    listing, _, again = done.stdout.rpartition("again ")
    assert "anabranch.manifest.json" not in listing
    assert again.strip() == "0"
    disturbed.assert_done(kept)


AS_NOBODY = """
import os, sys
from anabranch.cluster.cli import main
recipe, allowed, forbidden = sys.argv[1:]
def run(out):
    sys.argv = ["anabranch", "merge", recipe, out]
    try:
        main()
    except SystemExit as end:
        return end.code
run(allowed)  # everything is loaded while this process may still read the program's files
os.setgid(65534)
os.setuid(65534)
code = run(forbidden)
sys.stderr.flush()
os._exit(code)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permission")
def test_a_directory_that_may_not_be_written_is_exit_6(disturbed: Disturbed, tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents, disturbed.recipe.parent, *disturbed.recipe.parents):
        if folder not in (Path("/"), Path("/tmp")):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(disturbed.recipe), str(tmp_path / "allowed"), str(forbidden)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "ermission" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(forbidden.iterdir())


def test_a_read_only_file_system_is_exit_6(disturbed: Disturbed, unshare: str, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    script = f"mkdir {mount}/out && mount -o remount,ro {mount} && {' '.join(disturbed.command(mount / 'out'))}"
    done = in_small_file_system(unshare, mount, "8m", script)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_size_limit_is_exit_6(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"ulimit -f 100; exec {' '.join(disturbed.command(out))}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "anabranch.manifest.json").exists()
    assert disturbed.run(out).returncode == 0
    disturbed.assert_done(out)
