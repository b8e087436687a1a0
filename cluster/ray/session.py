"""Connecting to Ray: an embedded cluster of this machine, or a running one; with a token unless told otherwise."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine.errors import RecipeError, TemporaryError
from ..supervision import connected

if TYPE_CHECKING:  # Ray is imported when it is connected to: it reads its environment then
    from ...engine.run import Execution, Member, MemoryPlan, Meter, Runner

_AGAIN = "Start the cluster or check its address, then run the same command again: it goes on where it stopped."
REACH_SECONDS = 10.0
"""For the head of a cluster to accept a connection."""
RAY_BYTES = 64 << 20
"""Ray inside an actor, beyond a plain process."""


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A place for merges: `anabranch.merge(recipe, out, anabranch.Execution(place=RayCluster("auto")))`."""

    address: str = "local"
    """`local` (a Ray of its own on this machine), `auto`, or the address of a cluster."""
    insecure: bool = False
    """Use a cluster that asks nobody for a token."""

    @property
    def worker_bytes(self) -> int:
        return RAY_BYTES

    @contextmanager
    def open(
        self,
        members: Sequence[Member],
        memory: MemoryPlan,
        execution: Execution,
        meter: Meter,
        note: Callable[[str], None],
    ) -> Iterator[Runner]:
        """Connect for the time of a merge; arguments as for `Place.open`, errors as for `ray_session`."""
        for member in members:
            if member.output.store.url.startswith("hf://"):
                raise RecipeError(
                    f"--ray: {member.output.store.url} is made on one machine, where its state lies",
                    "merge without --ray, or into S3 and `anabranch push` it",
                )
        with ray_session(self.address, self.insecure):
            from .actor import WorkerOptions
            from .driver import RayRunner

            options = WorkerOptions(tuple(member.output.store.url for member in members), memory, execution.device)
            yield RayRunner(members, options, meter, note, workers=execution.workers)


@contextmanager
def ray_session(address: str, insecure: bool) -> Iterator[None]:
    """Connect to Ray for the time of a merge.

    Args:
        address: `local` starts an embedded Ray with a token of its own, `auto` and others use a running cluster.
        insecure: accept a cluster without token authentication.

    Raises:
        RecipeError: the cluster has no authentication and `insecure` is not set, or it has and there is no token.
        TemporaryError: the cluster cannot be reached.
    """
    if address == "local":
        _protect_embedded()
    elif os.environ.get("RAY_AUTH_MODE") != "token" and not insecure:
        raise RecipeError(
            f"--ray {address}: this cluster is used without token authentication, so anyone who reaches its ports can "
            "run code on it",
            "start it and this command with RAY_AUTH_MODE=token, or pass --insecure-cluster on a trusted network",
        )
    asked = os.environ.get("RAY_AUTH_MODE") == "token"
    if address != "local" and (not asked or finds_token(os.environ, Path.home())):  # without one, Ray says so at once
        _check_reachable(address)
    # Ray would print its words on dying nodes on our standard output, among the report or JSON.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray
    from ray.exceptions import AuthenticationError, RayError

    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level="warning",
        )
    except AuthenticationError:
        raise RecipeError(
            f"--ray {address}: no token to show to the cluster",
            "put the cluster's token into ~/.ray/auth_token, or its file's name into RAY_AUTH_TOKEN_PATH",
        ) from None
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise TemporaryError(f"--ray {address}: no Ray cluster answers: {error}", _AGAIN) from None
    if callable(on_terminate) and signal.getsignal(signal.SIGTERM) is not on_terminate:
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler would end this process with 1
    connected()
    try:
        yield
    except RayError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TemporaryError(f"--ray {address}: the cluster was lost: {reason}", _AGAIN) from None
    finally:
        ray.shutdown()


def finds_token(environment: Mapping[str, str], home: Path) -> bool:
    """Whether Ray would find a token to show."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    return bool(environment.get("RAY_AUTH_TOKEN")) or path.is_file()


def _check_reachable(address: str) -> None:
    """TemporaryError where nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise TemporaryError(f"--ray {address}: no Ray cluster answers: {error}", _AGAIN) from None


def _protect_embedded() -> None:
    """Let the embedded Ray ask for a token that only this process and its children know.

    Ray's ports listen on all interfaces. It reads these variables when it is imported, so a program that imported Ray
    itself decides for itself.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
