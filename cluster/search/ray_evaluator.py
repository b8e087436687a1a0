"""Evaluations on the nodes of a Ray cluster, each a task; models and logs lie in a folder that all nodes share."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, TaskCancelledError, WorkerCrashedError

from ...engine.errors import ResourceError
from ...engine.output import MANIFEST_NAME
from .evaluate import Evaluator, Outcome

LOST_RETRIES = 2
"""How often an evaluation is begun again whose process or node was lost; what the command itself does never is."""


class RayEvaluator:
    """As `Evaluator`, whose arguments these are, for a session that is connected to Ray.

    Args:
        gpus: what each evaluation asks for, beside one core; a share of one, too.

    Raises:
        ResourceError: no node has so many GPUs.
    """

    def __init__(
        self, command: str, more: str, logs: Path, timeout_seconds: float | None, folder: Path, gpus: float
    ) -> None:
        self._arguments = (command, more, logs, timeout_seconds, folder)
        most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if gpus > most:
            raise ResourceError(
                f"--evaluator-gpus {gpus:g}: the node with the most GPUs has {most:g}",
                "add such a node to the cluster, or ask for less",
            )
        self._task = ray.remote(_evaluate).options(num_cpus=1, num_gpus=gpus, max_retries=LOST_RETRIES)
        self._running: set[ray.ObjectRef] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, name: str, model: Path) -> Outcome:
        """Evaluate a model on some node.

        Raises:
            ResourceError: that node does not see the model.
            RayError: the cluster was lost.
        """
        with self._lock:
            if self._stopped:
                return Outcome(None, "the search was stopped")
            task = self._task.remote(self._arguments, name, model)
            self._running.add(task)
        try:
            found: Outcome | str = ray.get(task)
        except TaskCancelledError:
            return Outcome(None, "the search was stopped")
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Outcome(None, f"was lost {1 + LOST_RETRIES} times with its process or node: {reason[:200]}")
        finally:
            with self._lock:
                self._running.discard(task)
        if isinstance(found, str):
            raise ResourceError(
                f"{model}: node {found} of the cluster does not see it",
                "search into a folder that all nodes share under the same path, such as one on NFS",
            )
        return found

    def stop(self) -> None:
        """End every evaluation that runs, and start no more."""
        with self._lock:
            self._stopped = True
            for task in self._running:
                ray.cancel(task, force=False)  # an exception there, which ends the command; force would leave it alone


def _evaluate(arguments: tuple[str, str, Path, float | None, Path], name: str, model: Path) -> Outcome | str:
    """Runs on a node: the outcome, or the name of the node where it does not see the model."""
    if not (model / MANIFEST_NAME).is_file():
        return socket.gethostname()
    command, more, logs, timeout_seconds, folder = arguments
    return Evaluator(command, more, logs, timeout_seconds, folder if folder.is_dir() else None).run(name, model)
