"""Pipes, devices, loops of links, a working directory that is gone, limits of the system: our words, the right code."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from anabranch.engine.errors import RecipeError, ResourceError
from anabranch.engine.recipe import load_recipe, parse
from anabranch.engine.storage import absolute_path

from .conftest import Disturbed

COMMAND = [sys.executable, "-m", "anabranch.cluster.cli"]


def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "PIPE_SECONDS", 0.2)
    os.mkfifo(tmp_path / "recipe.yml")
    with pytest.raises(RecipeError, match="nothing comes out of this pipe or device"):
        load_recipe(tmp_path / "recipe.yml")


def test_a_recipe_may_come_through_a_pipe(disturbed: Disturbed, tmp_path: Path) -> None:
    pipe = tmp_path / "recipe.yml"
    os.mkfifo(pipe)
    writer = threading.Timer(0.2, lambda: pipe.write_text(disturbed.recipe.read_text()))
    writer.start()
    assert load_recipe(pipe) == load_recipe(disturbed.recipe)
    writer.join()


def test_a_plan_reads_its_recipe_once(disturbed: Disturbed, tmp_path: Path) -> None:
    line = f"{shlex.join(COMMAND)} plan <(cat {disturbed.recipe}) {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plan ")


@pytest.mark.parametrize("path", ["/", "/dev/null", "/dev/zero"])
def test_a_folder_or_device_is_no_recipe(path: str) -> None:
    with pytest.raises(RecipeError, match=f"^{path}: "):
        load_recipe(path)


@pytest.mark.parametrize("arguments", ["merge RECIPE out", "verify out", "gc out"])
def test_a_working_directory_that_is_gone_is_told(disturbed: Disturbed, tmp_path: Path, arguments: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    command = shlex.join(arguments.replace("RECIPE", str(disturbed.recipe)).split())
    done = subprocess.run(
        ["bash", "-c", f"cd {here} && rmdir {here} && exec {shlex.join(COMMAND)} {command}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "error: the working directory is gone" in done.stderr


def test_absolute_paths_need_no_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    assert absolute_path("/a/b/../c") == "/a/c"
    with pytest.raises(ResourceError, match="working directory is gone"):
        absolute_path("a")


def test_a_loop_of_links_is_told_as_what_it_is(disturbed: Disturbed, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    done = disturbed.run(loop)
    assert done.returncode == 6
    assert "Too many levels of symbolic links" in done.stderr
    with pytest.raises(RecipeError, match="Too many levels of symbolic links"):
        load_recipe(loop)


LIMITED = """
import resource, sys
from anabranch.cluster.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
sys.argv = ["anabranch", "merge", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize("files", [4, 7])
def test_no_more_open_files_is_exit_6(disturbed: Disturbed, tmp_path: Path, files: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(files), str(disturbed.recipe), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs another user's limit")
@pytest.mark.parametrize("threads", [2, 5])
def test_no_more_threads_is_exit_6(disturbed: Disturbed, tmp_path: Path, threads: int) -> None:
    reads = "+dac_override,+dac_read_search"  # may read what this test has made, and no more than another user else
    user = 54321 + os.getpid() % 10_000  # another one in each process of tests: the limit counts all that a user runs
    limit = ["prlimit", f"--nproc={threads}", "setpriv", f"--reuid={user}", "--clear-groups"]
    done = disturbed.run(tmp_path / "out", *limit, f"--inh-caps={reads}", f"--ambient-caps={reads}")
    assert done.returncode == 6, done.stderr
    assert "no more threads" in done.stderr
    assert "Traceback" not in done.stderr


def test_numpy_starts_no_threads_and_commands_that_we_start_may() -> None:
    code = (
        "import os, sys; from anabranch.cluster import cli; cli._load_numpy(); "
        "print(len(os.listdir('/proc/self/task')), 'numpy' in sys.modules, cli.BLAS_THREADS in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "True", "False"]
