"""Kills and faults by the hundreds over local folders, S3 and Ray, drawn from a seed: `make soak`.

A round disturbs one output one to three times and then has it finished. After each misfortune: the exit code is one
that the misfortune may have, in our words; whatever stands beside a manifest has the bytes of an undisturbed run. At
the end of the round: the same command ends with 0, every file has the bytes of an undisturbed run, no shard that was
finished and whole was made again, and `verify` finds nothing.

Run as `python -m tests.soak.soak`. Every round is a line of JSON in the log; a log of the same seed is continued.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ..faults.case import write_case
from ..merging import merge
from .helpers import Helper
from .kinds import LOCAL, RAY, S3, Outcome, Scene
from .places import RECEIPTS, Folder, Place, Prefix, finished
from .runs import Run

MANIFEST, PLAN, INPUTS = "anabranch.manifest.json", ".anabranch/plan.json", ".anabranch/inputs.json"
CONFLICT = 5
USUAL_ROUNDS = 3
"""Undisturbed runs that say how long one takes."""


class Soak:
    """Rounds over one small merge.

    Args:
        folder: for checkpoints, outputs and what a failed round left.
        seed: of every round.
        servers: `s3` and `ray` helpers, where those places take part.
        shares: of rounds on S3 and on Ray, where these take part.
    """

    def __init__(self, folder: Path, seed: int, servers: Mapping[str, Helper], shares: Mapping[str, float]) -> None:
        self._folder = folder
        self._seed = seed
        self._servers = servers
        self._shares = shares
        self._recipe = write_case(folder)
        merge(self._recipe, folder / "expected")  # loads kernels for all that are forked from here
        expected = Folder(folder / "expected")
        self._expected = {name: expected.read(name) for name in expected.files()}
        self._usual = {name: self._usual_seconds(name) for name in ("local", *servers)}

    def _usual_seconds(self, where: str) -> float:
        seconds = []
        for number in range(USUAL_ROUNDS):
            place = self._place(where, f"usual-{number}")
            seconds.append(self._start(place, where).end().seconds)
            place.clear()
        return min(seconds)

    def round(self, number: int) -> dict[str, Any]:
        """One round, as a line of the log."""
        chance = random.Random(f"{self._seed}-{number}")
        where = self._where(chance)
        place = self._place(where, f"round-{number}")
        start = functools.partial(self._start, place, where)
        on_cluster = functools.partial(self._start_on_cluster, place) if where == "ray" else None
        scene = Scene(chance, place, start, self._usual[where], self._servers.get(where), on_cluster)
        kinds = {"local": LOCAL, "s3": S3, "ray": RAY}[where]
        events: list[dict[str, Any]] = []
        began, problem = time.monotonic(), ""
        try:
            for _ in range(1 if where == "ray" else chance.randint(1, 3)):
                [kind] = chance.choices(list(kinds), [weight for _, weight in kinds.values()])
                outcome = kinds[kind][0](scene)
                events.append(told(kind, outcome))
                self._check(scene, outcome)
            refused = self._finish(scene)
            if refused:
                events.append({"kind": "refused: a damaged plan", "detail": "", "hit": False, "code": CONFLICT})
            place.clear()
        except AssertionError as error:
            problem = str(error)
        whole = {"round": number, "seed": self._seed, "place": where, "events": events, "problem": problem}
        return whole | {"seconds": round(time.monotonic() - began, 3)}

    def _where(self, chance: random.Random) -> str:
        value, upto = chance.random(), 0.0
        for where in self._servers:
            upto += self._shares[where]
            if value < upto:
                return where
        return "local"

    def _place(self, where: str, name: str) -> Place:
        if where != "s3":
            return Folder(self._folder / "out" / name)
        about = self._servers["s3"].about
        return Prefix(about["endpoint"], about["bucket"], name)

    def _start(self, place: Place, where: str, words: str = "words", **options: Any) -> Run:
        environment = self._servers["s3"].about["environment"] if where == "s3" else {}
        arguments = ["merge", str(self._recipe), place.url, "--workers", "2", "--memory", "600MiB"]
        return Run(arguments, self._folder / words, environment, **options)

    def _start_on_cluster(self, place: Place) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(self._recipe), place.url]
        options = ["--ray", self._servers["ray"].about["address"], "--insecure-cluster", "--memory", "600MiB"]
        return subprocess.Popen([*program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    # -- what must hold ------------------------------------------------------------------------------------------

    def _check(self, scene: Scene, outcome: Outcome) -> None:
        if outcome.ended is None:
            return  # between runs: what it did is seen by the next one
        ended, allowed = outcome.ended, {*outcome.allowed, *([CONFLICT] if PLAN in scene.damaged else [])}
        assert ended.code in allowed, f"exit {ended.code}, expected one of {sorted(allowed)}: {ended.words[-1500:]}"
        assert "Traceback" not in ended.words, ended.words[-1500:]
        deaf = outcome.detail.startswith("write ")  # standard error is written by the same call
        if ended.code > 0 and ended.words and not deaf:
            assert "error: " in ended.words, f"exit {ended.code} without a word of ours: {ended.words[-500:]}"
        files = scene.place.files()
        if MANIFEST in files:
            self._compare(scene, files, "beside a manifest", only_made=ended.code != 0)
        if ended.code == 0:
            assert MANIFEST in files, "exit 0 without a manifest"

    def _compare(self, scene: Scene, files: Mapping[str, object], where: str, *, only_made: bool = False) -> None:
        """Bytes of all files that count, but those that were damaged and not looked at since."""
        for name, data in self._expected.items():
            working = name.startswith(".anabranch/")
            # A manifest that is damaged and still reads as one is for `verify` to find.
            if name in scene.damaged and (working or only_made or name == MANIFEST):
                continue
            assert name in files, f"{where}: {name} is missing"
            if not name.endswith(".parquet"):
                assert scene.place.read(name) == data, f"{where}: other bytes in {name}"

    def _finish(self, scene: Scene) -> bool:
        """The undisturbed run at the end of a round; whether it was refused over a plan that was damaged."""
        before = finished(scene.place)
        ended = scene.start().end()
        if ended.code == CONFLICT and PLAN in scene.damaged:
            return True
        assert ended.code == 0, f"the run at the end: exit {ended.code}: {ended.words[-1500:]}"
        files = scene.place.files()
        kept = {} if INPUTS in scene.damaged else {n: old for n, old in before.items() if not touched(n, scene.damaged)}
        again = [name for name, old in kept.items() if files.get(name) != old]
        assert not again, f"finished shards were made again: {again}"
        self._compare(scene, files, "at the end")
        strays = files.keys() - self._expected.keys()
        assert not strays, f"left over: {sorted(strays)}"
        if not scene.damaged:
            self._verify(scene)
        return False

    def _verify(self, scene: Scene) -> None:
        environment = self._servers["s3"].about["environment"] if scene.place.url.startswith("s3:") else {}
        ended = Run(["verify", scene.place.url], self._folder / "words", environment).end()
        assert ended.code == 0, f"verify: exit {ended.code}: {ended.words[-1500:]}"


def touched(shard: str, damaged: set[str]) -> bool:
    """Whether a shard or what is kept of it was damaged, so that making it again is right."""
    return any(name == shard or name.startswith(f"{RECEIPTS}{shard}.") for name in damaged)


def told(kind: str, outcome: Outcome) -> dict[str, Any]:
    code = None if outcome.ended is None else outcome.ended.code
    return {"kind": kind, "detail": outcome.detail, "hit": outcome.hit, "code": code}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """By kind: how often, how often in time, and how runs ended."""
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    hits: Counter[str] = Counter()
    for event in (event for row in rows for event in row["events"]):
        ends[event["kind"]][str(event["code"])] += 1
        hits[event["kind"]] += event["hit"]
    yield f"{'kind':36} {'times':>6} {'hit':>6}  exit codes"
    for kind, codes in sorted(ends.items()):
        shown = ", ".join(f"{code}: {count}" for code, count in codes.most_common() if code != "None")
        yield f"{kind:36} {codes.total():6} {hits[kind]:6}  {shown}"
    failed = [row["round"] for row in rows if row["problem"]]
    yield f"{sum(map(Counter.total, ends.values()))} faults, {hits.total()} of them in time, in {len(rows)} rounds"
    yield f"{sum(row['seconds'] for row in rows):.0f} s; rounds with a finding: {failed or 'none'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1800, help="go on at least so long")
    parser.add_argument("--faults", type=int, default=1000, help="and until there were so many")
    parser.add_argument("--log", type=Path, default=Path("soak.jsonl"), help="lines of JSON; continued")
    parser.add_argument("--places", nargs="*", default=["s3", "ray"], choices=["s3", "ray"], help="besides local")
    parser.add_argument("--s3-share", type=float, default=0.12, help="of rounds")
    parser.add_argument("--ray-share", type=float, default=0.06, help="of rounds")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.log.read_text().splitlines()] if options.log.exists() else []
    rows = [row for row in rows if row["seed"] == options.seed]
    with tempfile.TemporaryDirectory(prefix="anabranch-soak-") as name, ExitStack() as stack:
        folder = Path(name)
        commands = {"s3": ("s3", str(folder)), "ray": ("cluster",)}
        servers = {kind: stack.enter_context(closing(Helper(*commands[kind]))) for kind in options.places}
        soak = Soak(folder, options.seed, servers, {"s3": options.s3_share, "ray": options.ray_share})
        with options.log.open("a") as log:
            while (
                sum(row["seconds"] for row in rows) < options.seconds
                or sum(len(row["events"]) for row in rows) < options.faults
            ):
                done = {row["round"] for row in rows}
                row = soak.round(next(number for number in itertools.count() if number not in done))
                rows.append(row)
                print(json.dumps(row), file=log, flush=True)
                if row["problem"]:
                    print(f"round {row['round']} on {row['place']}: {row['problem']}", flush=True)
                    left = folder / "out" / f"round-{row['round']}"
                    if left.exists():
                        shutil.copytree(left, options.log.with_suffix(f".{row['round']}"), dirs_exist_ok=True)
    print("\n".join(table(rows)))
    return 1 if any(row["problem"] for row in rows) else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
