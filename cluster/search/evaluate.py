"""The user's command looks at a merged model and says how good it is."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...engine.errors import RecipeError

LAST_LINES = 3
"""Of what a failing command wrote, for the message."""
TAIL_BYTES = 64 << 10
"""Of what a command wrote, that are looked at: it may write without end."""
ANY_TIME_SECONDS = 1e9
"""A wait that has an end polls, and only so it can be interrupted in a task of Ray."""
HARNESS = "lm-eval:"
METRICS = ("acc_norm,none", "acc,none", "exact_match,strict-match", "exact_match,none", "f1,none", "pass@1,none")
"""Of lm-evaluation-harness, in the order in which one is taken for a task; failing these, the first that it reports."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one evaluation: scores, or why there are none."""

    scores: Mapping[str, float] | None
    failure: str = ""
    seconds: float = 0.0


class Evaluations(Protocol):
    """Where models are evaluated."""

    def run(self, name: str, model: Path) -> Outcome:
        """Evaluate a model, in any thread; `name` is that of its files among the logs."""

    def stop(self) -> None:
        """End every evaluation that runs, and start no more."""


class Failed(Exception):
    """An evaluation gave no scores."""


class Evaluator:
    """Runs the command, in any number of threads.

    Args:
        command: with `{model}`, and `{scores}` where the command writes its scores to a file. It is split into words as
            a shell does, and no shell runs it.
        more: further arguments, for lm-evaluation-harness.
        logs: folder for what commands print.
        timeout_seconds: of one evaluation; None: any time.
        folder: where commands run; None: where this process does.

    Raises:
        RecipeError: the command names no `{model}` or is no command.
    """

    def __init__(
        self, command: str, more: str, logs: Path, timeout_seconds: float | None, folder: Path | None = None
    ) -> None:
        self._harness = command.startswith(HARNESS)
        if more and not self._harness:
            raise RecipeError(f"--evaluate-args goes with --evaluate {HARNESS}TASKS; write them into the command")
        try:
            self._words = _harness_words(command, more) if self._harness else shlex.split(command)
        except ValueError as error:
            raise RecipeError(f"--evaluate {command}: {error}") from None
        if not any("{model}" in word for word in self._words):
            raise RecipeError(
                f"--evaluate {command}: expected {{model}} where the path of a merged model goes",
                "such as --evaluate 'python score.py {model}'",
            )
        self._logs = logs
        self._timeout_seconds = timeout_seconds
        self._folder = folder
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, name: str, model: Path) -> Outcome:
        """Evaluate a model; `name` is that of its files among the logs."""
        began = time.monotonic()
        scores = self._logs / (f"{name}.harness" if self._harness else f"{name}.scores.json")
        shutil.rmtree(scores) if scores.is_dir() else scores.unlink(missing_ok=True)
        try:
            found = self._scores(name, model, scores)
        except Failed as failure:
            return Outcome(None, str(failure), time.monotonic() - began)
        return Outcome(found, "", time.monotonic() - began)

    def _scores(self, name: str, model: Path, scores: Path) -> dict[str, float]:
        places = {"{model}": str(model), "{scores}": str(scores)}
        words = [_placed(word, places) for word in self._words]
        out, err = self._logs / f"{name}.out", self._logs / f"{name}.err"
        self._finish(words, out, err)
        if self._harness:
            return read_harness(scores)
        if any("{scores}" in word for word in self._words):
            text = _tail(scores) if scores.is_file() else ""
            return read_scores(text, f"in {scores}", _last_lines(out, err))
        lines = _tail(out).strip().splitlines()
        return read_scores(lines[-1] if lines else "", "as its last line", _last_lines(out, err))

    def _finish(self, words: list[str], out: Path, err: Path) -> None:
        with out.open("wb") as out_file, err.open("wb") as err_file:
            try:
                with self._lock:
                    if self._stopped:
                        raise Failed("the search was stopped")
                    process = subprocess.Popen(
                        words,
                        stdin=subprocess.DEVNULL,
                        stdout=out_file,
                        stderr=err_file,
                        start_new_session=True,
                        cwd=self._folder,
                    )
                    self._running.add(process)
            except OSError as error:
                raise Failed(f"cannot run {words[0]}: {error.strerror or error}") from None
            try:
                code = process.wait(self._timeout_seconds or ANY_TIME_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"took longer than {self._timeout_seconds:g} s{_last_lines(out, err)}") from None
            finally:
                _kill(process)
                with self._lock:
                    self._running.discard(process)
        if code:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise Failed(how + _last_lines(out, err))

    def stop(self) -> None:
        """End every command that runs, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command with everything that it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _placed(word: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _last_lines(out: Path, err: Path) -> str:
    lines = [line[:200] for path in (out, err) for line in _tail(path).splitlines() if line.strip()]
    return "".join(f"\n    {line}" for line in lines[-LAST_LINES:])


def read_scores(text: str, where: str, last_lines: str = "") -> dict[str, float]:
    """`{"task": score, ...}` from what a command said.

    Raises:
        Failed: it is no JSON object, is empty, or holds what is no finite number.
    """
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found:
        raise Failed(f'printed no scores, expected a JSON object such as {{"task": 0.5}} {where}{last_lines}')
    for task, score in found.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not _is_finite(score):
            raise Failed(f"gave {str(score)[:60]} as the score of {task[:60]}, expected a finite number")
    return {task: float(score) for task, score in found.items()}


def _is_finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:
        return False


# -- lm-evaluation-harness -------------------------------------------------------------------------------------------


def _harness_words(command: str, more: str) -> list[str]:
    """Its command line, for a model of transformers."""
    tasks = command.removeprefix(HARNESS)
    if not tasks:
        raise ValueError("expected names of tasks, such as lm-eval:arc_easy,gsm8k")
    return [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained={model}"),
        *("--tasks", tasks, "--output_path", "{scores}", *shlex.split(more)),
    ]


def read_harness(folder: Path) -> dict[str, float]:
    """One score per task from the newest results file below a folder; `Failed` where there is none."""
    files = list(folder.rglob("results*.json"))
    if not files:
        raise Failed(f"wrote no results below {folder}")
    try:
        results = json.loads(max(files, key=lambda path: path.stat().st_mtime).read_bytes())["results"]
        scores = {task: _harness_score(task, row) for task, row in results.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failed(f"wrote results below {folder} that are not those of lm-evaluation-harness") from None
    return read_scores(json.dumps(scores), f"below {folder}")


def _harness_score(task: str, row: Mapping[str, Any]) -> Any:
    numbers = {key: value for key, value in row.items() if isinstance(value, (int, float)) and "stderr" not in key}
    names = [key for key in (*METRICS, *(key for key in numbers if "," in key)) if key in numbers]
    if not names:
        raise Failed(f"gave no number for {task}")
    return numbers[names[0]]
