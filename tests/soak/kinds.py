"""The kinds of misfortune that the soak draws from, and what each may end in."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .helpers import Helper, fault
from .places import Place
from .runs import Ended, Run, killed_at, random_call, traced

RENAME, LINK, UNLINK = "rename,renameat,renameat2", "link,linkat", "unlink,unlinkat"
CHANGES = {"fsync": 12, RENAME: 8, LINK: 2, "pwrite64": 5, "write": 8, UNLINK: 6, "ftruncate": 3}
"""How many of each call a thread of the small merge does at most, about."""
ROOM = {"write": 8, "pwrite64": 5, "fsync": 12, "ftruncate": 3}
DONE, TEMPORARY, RESOURCES, INTERRUPTED = 0, 75, 6, 130


@dataclass
class Scene:
    """What a kind of misfortune needs to happen."""

    chance: random.Random
    place: Place
    start: Callable[..., Run]
    """A run of the merge into the place; keywords as for `Run`."""
    usual_seconds: float
    """What an undisturbed run takes."""
    servers: Helper | None = None
    """The S3 servers, or the Ray cluster."""
    start_on_cluster: Callable[[], Any] | None = None
    damaged: set[str] = field(default_factory=set)
    """Files that were damaged by hand since the last whole run."""


@dataclass(frozen=True)
class Outcome:
    """What became of one misfortune."""

    detail: str
    hit: bool
    """Whether it came in time to disturb anything."""
    ended: Ended | None = None
    allowed: tuple[int, ...] = (DONE,)
    """Exit codes; negative: signals."""


def kill_at_a_moment(scene: Scene) -> Outcome:
    run = scene.start()
    seconds = scene.chance.uniform(0, 1.1 * scene.usual_seconds)
    killed_at(run, seconds)
    ended = run.end()
    return Outcome(f"{seconds:.3f} s", ended.code < 0, ended, (DONE, -signal.SIGKILL))


def kill_at_a_call(scene: Scene) -> Outcome:
    call, number = random_call(scene.chance, CHANGES)
    ended = traced(lambda: scene.start(stopped=True), f"{call}:signal=KILL:when={number}").end()
    return Outcome(f"{call} {number}", ended.code < 0, ended, (DONE, -signal.SIGKILL))


def input_output_error(scene: Scene) -> Outcome:
    call, number = random_call(scene.chance, {**CHANGES, "preadv,preadv2": 8})
    ended = traced(lambda: scene.start(stopped=True), f"{call}:error=EIO:when={number}").end()
    # Standard output is written, too: what cannot be told there is no failure.
    return Outcome(f"{call} {number}", ended.code != DONE, ended, (DONE, TEMPORARY))


def no_room(scene: Scene) -> Outcome:
    call, number = random_call(scene.chance, ROOM)
    more = scene.chance.choice(["", "+"])
    ended = traced(lambda: scene.start(stopped=True), f"{call}:error=ENOSPC:when={number}{more}").end()
    return Outcome(f"{call} {number}{more}", ended.code != DONE, ended, (DONE, RESOURCES))


def interrupt(scene: Scene) -> Outcome:
    run, number = scene.start(), scene.chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    time.sleep(scene.chance.uniform(0.05, scene.usual_seconds))
    if run.alive():
        run.send(number)
    ended = run.end()
    # Before the command has its handlers the system's own end it.
    return Outcome(number.name, ended.code != DONE, ended, (DONE, INTERRUPTED, -number))


def twins(scene: Scene) -> Outcome:
    first, second = scene.start(), scene.start(words="twin")
    killed_at(second, scene.chance.uniform(0, 1.5 * scene.usual_seconds))
    ended, other = first.end(), second.end()
    assert other.code in (DONE, -signal.SIGKILL), f"the twin ended with {other.code}: {other.words[-500:]}"
    return Outcome("the second is killed", other.code < 0, ended)


def no_streams(scene: Scene) -> Outcome:
    streams = scene.chance.choice(["closed", "full"])
    return Outcome(streams, True, scene.start(streams=streams).end())


def damage(scene: Scene) -> Outcome:
    """Between runs: a bit, half a file or a whole one, of weights and of what is kept beside them."""
    names = sorted(scene.place.files())
    if not names:
        return Outcome("nothing is there", False)
    name = scene.chance.choice(names)
    how = scene.chance.choice(["bit", "half", "zeros", "removed"])
    scene.damaged.add(name)
    if how == "removed":
        scene.place.delete(name)
        return Outcome(f"{name} {how}", True)
    data = bytearray(scene.place.read(name))
    if data and how == "bit":
        data[scene.chance.randrange(len(data))] ^= 1 << scene.chance.randrange(8)
    scene.place.write(
        name, bytes(data[: len(data) // 2] if how == "half" else bytes(len(data)) if how == "zeros" else data)
    )
    return Outcome(f"{name} {how}", True)


def server_fault(scene: Scene) -> Outcome:
    assert scene.servers is not None
    chance = scene.chance
    target = {"method": chance.choice(["GET", "HEAD", "PUT", "DELETE", ".*"]), "number": chance.randint(1, 12)}
    way: dict[str, Any] = chance.choice(
        [
            {"status": 500, "code": "InternalError"},
            {"status": 503, "code": "SlowDown"},
            {"status": 429, "code": "Throttling"},
            {"reset": True},
            {"lose_answer": True},
            {"cut_after": chance.randint(0, 2000)},
        ]
    )
    scene.servers.ask("script", faults=[fault(**target, **way, times=chance.randint(1, 4))])
    ended = scene.start().end()
    hit = scene.servers.ask("script", faults=[])["hit"]
    return Outcome(f"{target['method']} {target['number']} {way}", bool(hit), ended, (DONE, TEMPORARY))


def server_gone(scene: Scene) -> Outcome:
    """From some request on the server answers nobody, longer than anybody tries again: killed before that."""
    assert scene.servers is not None
    number = scene.chance.randint(1, 30)
    scene.servers.ask("script", faults=[fault(number=number, times=1_000_000, reset=True)])
    run = scene.start()
    killed_at(run, scene.usual_seconds + scene.chance.uniform(0.5, 3.0))
    ended = run.end()
    hit = scene.servers.ask("script", faults=[])["hit"]
    return Outcome(f"from request {number} on", bool(hit), ended, (DONE, TEMPORARY, -signal.SIGKILL))


def on_cluster(verb: str) -> Callable[[Scene], Outcome]:
    """A merge on Ray during which a worker, a node or the driver is killed."""

    def happen(scene: Scene) -> Outcome:
        assert scene.servers is not None
        assert scene.start_on_cluster is not None
        driver = scene.start_on_cluster()
        while driver.poll() is None and ".anabranch/plan.json" not in scene.place.files():
            time.sleep(0.02)
        time.sleep(scene.chance.uniform(0, 3.0))
        hit = driver.poll() is None
        if hit and verb == "kill driver":
            driver.kill()
        elif hit:
            hit = scene.servers.ask(verb)["hit"]
        _, words = driver.communicate(timeout=300)
        scene.servers.ask("restore")
        killed = (-signal.SIGKILL,) if verb == "kill driver" else ()
        return Outcome("", hit, Ended(driver.returncode, words, 0.0), (DONE, *killed))

    return happen


LOCAL: dict[str, tuple[Callable[[Scene], Outcome], int]] = {
    "SIGKILL at a moment": (kill_at_a_moment, 5),
    "SIGKILL at a system call": (kill_at_a_call, 5),
    "EIO": (input_output_error, 4),
    "ENOSPC": (no_room, 2),
    "SIGINT, SIGTERM, SIGHUP": (interrupt, 2),
    "two drivers, one killed": (twins, 2),
    "streams closed or full": (no_streams, 1),
    "own files damaged": (damage, 4),
}
"""Kinds by name with their weights."""
S3: dict[str, tuple[Callable[[Scene], Outcome], int]] = {
    "S3: SIGKILL at a moment": (kill_at_a_moment, 3),
    "S3: errors, resets, lost answers": (server_fault, 5),
    "S3: server gone": (server_gone, 1),
    "S3: two drivers, one killed": (twins, 1),
    "S3: own files damaged": (damage, 2),
}
RAY: dict[str, tuple[Callable[[Scene], Outcome], int]] = {
    "Ray: worker killed": (on_cluster("kill worker"), 2),
    "Ray: node killed": (on_cluster("kill node"), 2),
    "Ray: driver killed": (on_cluster("kill driver"), 2),
}
