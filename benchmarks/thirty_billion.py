"""A merge far larger than this machine's disk and memory: S3 to S3 on two Ray workers, one of which is killed.

    python -m benchmarks.thirty_billion --size 30b

The server (`benchmarks.synthetic`) makes a base and two fine-tunes while they are read, and hashes and forgets what is
uploaded. CABS with TADrop reads everything twice, once for statistics. When a third of the shards is done a worker is
killed; the merge has to go on by itself. In the end every digest in manifest and receipts is compared with what the
server computed. Seconds are compared with a replay of the cluster's model (`benchmarks.scale`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from anabranch.cluster.ray.events import ShardTask
from anabranch.engine.methods import METHODS

from .measure import Cost, busy_seconds, run
from .scale import FAULTS, SHARD_BYTES, START_SECONDS, Replay
from .synthetic.objects import catalog
from .synthetic.processes import Processes, Used
from .synthetic.server import BUCKET, REPORT

WORK = Path(".bench")
MODELS = 2
DENSITY = 0.25
WORKERS = 2
WORKER_MEMORY = 2 << 30
GB = 1e9
LOOK_SECONDS = 1.0
CORES = (2, 8, 16, 32)
LINKS = (5, 10, 25, 100)
LEAST_SHARDS = 12
"""Small models are cut finer than by default, so that a worker is lost in the middle."""
OUT = "out"
COMMAND = (sys.executable, "-m", "anabranch.cluster.cli")


@dataclass(frozen=True)
class Outcome:
    """What a run came to. Times in seconds."""

    size: str
    parameters: int
    shard_bytes: list[int]
    """Of every shard of the output, by the plan."""
    plan: dict[str, float]
    """Cost of `anabranch plan`."""
    seconds: float
    """Of `anabranch merge`, both of its commands if the first did not end by itself."""
    first_shard_seconds: float
    """Until it was done: most of it is the survey."""
    commands: int
    killed_after: int
    """Receipts that were there when a worker was killed."""
    sent_bytes: int
    received_bytes: int
    requests: int
    cpu_seconds: dict[str, float]
    """By part."""
    peak_bytes: dict[str, int]
    """Largest process of each part."""
    others_cores: float
    """Cores that everything else on the machine used meanwhile."""
    checked_files: int
    checked_bytes: int
    problems: list[str]

    @property
    def bytes_per_cpu_second(self) -> float:
        """That workers moved, both passes together."""
        workers = sum(seconds for part, seconds in self.cpu_seconds.items() if part.startswith("worker"))
        return (self.sent_bytes + self.received_bytes) / workers

    @property
    def cores_for_workers(self) -> float:
        """What this machine had left for them."""
        rest = sum(seconds for part, seconds in self.cpu_seconds.items() if not part.startswith("worker"))
        return (os.cpu_count() or 1) - self.others_cores - rest / self.seconds


class Site:
    """The server as a process, and what commands need to find it."""

    def __init__(self, size: str, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.synthetic.server", size, "--models", str(MODELS)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()
        if not self.endpoint:
            raise SystemExit("the server did not start")
        self.environment = {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.recipe = folder / "recipe.yml"
        self._shard_bytes = min(SHARD_BYTES, 2 * catalog(size).parameters // LEAST_SHARDS)
        self.write_recipe({"tadrop": {"mean": DENSITY}})

    def write_recipe(self, density: object, method: str = "cabs") -> None:
        """With densities by TADrop a pass over all weights decides them; a method that takes none gets none."""
        takes = "density" in METHODS[method].schema.parameters
        content = {
            "merge_method": method,
            "base_model": f"s3://{BUCKET}/base",
            "models": [{"model": f"s3://{BUCKET}/model-{number}"} for number in range(1, MODELS + 1)],
            "parameters": {"density": density} if takes else {},
            "output": {"shard_size": self._shard_bytes},
        }
        self.recipe.write_text(json.dumps(content))  # JSON is YAML

    def report(self) -> dict[str, Any]:
        return self._json(REPORT)

    def objects(self) -> dict[str, dict[str, Any]]:
        """Size and digest of every file of the output, as they came."""
        return {key.removeprefix(f"{OUT}/"): entry for key, entry in self.report()["objects"].items()}

    def file(self, name: str) -> dict[str, Any]:
        """A JSON file of the output."""
        return self._json(f"/{BUCKET}/{OUT}/{name}")

    def records(self, folder: str) -> list[str]:
        """Names of the receipts, or of the parts of the survey, in the output."""
        names = self.objects()
        return [name for name in names if name.startswith(f".anabranch/{folder}/") and name.endswith(".json")]

    def _json(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.endpoint + path) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Ray with room for two workers; its address."""
    running = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": WORKERS,
            "memory": WORKERS * WORKER_MEMORY,
            "object_store_memory": 256 << 20,
            "include_dashboard": False,
            "_system_config": {"worker_niceness": 0},  # else other work on the machine starves workers, not the rest
        },
    )
    try:
        yield str(running.address)
    finally:
        running.shutdown()


def plan(site: Site, folder: Path) -> tuple[Cost, dict[str, Any]]:
    """What `anabranch plan` costs and says."""
    with open(folder / "plan.json", "wb") as log:
        cost = run(
            [*COMMAND, "plan", str(site.recipe), f"s3://{BUCKET}/{OUT}", "--json"],
            log,
            extra_environment=site.environment,
        )
    content: dict[str, Any] = json.loads((folder / "plan.json").read_text().splitlines()[-1])
    return cost, content


def merge(site: Site, address: str, shards: int, watch: Processes, log: Path) -> tuple[int, int, float]:
    """Merge, and kill a worker when a third of the shards is done.

    Returns:
        How many commands it took, how many receipts there were when the worker was killed, and the seconds until the
        first of them.
    """
    began, first = time.perf_counter(), 0.0
    options = ["--ray", address, "--insecure-cluster", "--workers", str(WORKERS), "--memory", "2GiB"]
    killed_after = 0
    for commands in (1, 2):
        with open(log, "ab") as words:
            process = subprocess.Popen(
                [*COMMAND, "merge", str(site.recipe), f"s3://{BUCKET}/{OUT}", *options],
                stdout=words, stderr=words, env=os.environ | site.environment,
            )  # fmt: skip
        watch.name(process.pid, "driver")
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            done = 0 if killed_after else len(site.records("receipts"))
            if done and not first:
                first = time.perf_counter() - began
            if done >= max(1, shards // 3):
                victim = watch.workers()[0]
                os.kill(victim, signal.SIGKILL)
                killed_after = done
                said = f"killed {watch.part(victim)} after {done} of {shards} shards"
                print(said, file=sys.stderr, flush=True)
        if process.returncode == 0:
            return commands, killed_after, first
        print(f"the merge ended with {process.returncode}", file=sys.stderr, flush=True)
    raise SystemExit(f"the merge did not go on: {log.read_text()[-2000:]}")


def check(site: Site, shards: Sequence[str]) -> tuple[int, int, list[str]]:
    """Compare manifest and receipts with what the server saw: (files, bytes, what differs)."""
    files = site.file("anabranch.manifest.json")["files"]
    objects = site.objects()
    problems = [f"{name}: manifest {entry}, server {objects.get(name)}" for name, entry in files.items()
                if objects.get(name) != entry]  # fmt: skip
    receipts, differ = check_receipts(site)
    if {receipt["name"] for receipt in receipts} != set(shards):
        differ.append(f"{len(receipts)} receipts, expected {len(shards)}")
    if missing := set(shards) - set(files):
        differ.append(f"not in the manifest: {sorted(missing)[:3]}")
    return len(files), sum(entry["size"] for entry in files.values()), problems + differ


def check_receipts(site: Site) -> tuple[list[dict[str, Any]], list[str]]:
    """All receipts, and where they and the server do not agree on a shard or on the table beside the receipt."""
    receipts, objects, problems = [site.file(name) for name in site.records("receipts")], site.objects(), []
    for receipt in receipts:
        rows = f".anabranch/receipts/{receipt['name']}.parquet"
        for name, said in ((receipt["name"], receipt), (rows, receipt["rows"])):
            if objects.get(name) != {"size": said["size"], "sha256": said["sha256"]}:
                problems.append(f"{name}: receipt {said['sha256']}, server {objects.get(name)}")
    return receipts, problems


def measure(size: str, folder: Path) -> Outcome:
    """Plan, merge with a loss, check."""
    site = Site(size, folder)
    try:
        plan_cost, planned = plan(site, folder)
        names = [shard["name"] for shard in planned["shards"]]
        os.environ.update(site.environment)  # of the nodes that Ray starts, and of their workers
        with cluster() as address:
            before, watch = site.report(), Processes({site.process.pid: "server"})
            busy, began = busy_seconds(), time.perf_counter()
            commands, killed_after, first = merge(site, address, len(names), watch, folder / "merge.log")
            seconds, busy = time.perf_counter() - began, busy_seconds() - busy
            used = watch.close()
        after = site.report()
        files, size_bytes, problems = check(site, names)
        counts = {name: after[name] - before[name] for name in ("sent_bytes", "received_bytes", "requests")}
        parts = by_part(used)
        cpu_seconds = {part: sum(each.cpu_seconds for each in those) for part, those in parts.items()}
        return Outcome(
            size=size, parameters=planned["parameters"],
            shard_bytes=[shard["bytes"] for shard in planned["shards"]], plan=asdict(plan_cost), seconds=seconds,
            first_shard_seconds=first, commands=commands, killed_after=killed_after, **counts, cpu_seconds=cpu_seconds,
            peak_bytes={part: max(each.peak_bytes for each in those) for part, those in parts.items()},
            others_cores=max(0.0, busy - sum(cpu_seconds.values())) / seconds,
            checked_files=files, checked_bytes=size_bytes, problems=problems,
        )  # fmt: skip
    finally:
        site.close()


def measure_beginning(size: str, shards: int, folder: Path) -> int:
    """Plan with TADrop; then merge with one density until so many shards are done, and check these. An exit status."""
    site = Site(size, folder)
    try:
        cost, planned = plan(site, folder)
        print(
            f"plan of {planned['parameters'] / 1e9:.1f} billion parameters, {planned['tensors']} tensors, "
            f"{len(planned['shards'])} shards: {cost.seconds:.1f} s, CPU {cost.cpu_seconds:.1f} s, "
            f"{cost.peak_bytes / 2**20:.0f} MiB, {site.report()['sent_bytes'] / 1e6:.1f} MB read",
            flush=True,
        )
        if not shards:
            return 0
        site.write_recipe(DENSITY)
        with open(folder / "merge.log", "wb") as words:
            command = [*COMMAND, "merge", str(site.recipe), f"s3://{BUCKET}/{OUT}", "--memory", "2GiB"]
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=words, stderr=words, env=os.environ | site.environment)
            watch = Processes({site.process.pid: "server", process.pid: "merge"})
            while process.poll() is None and len(site.records("receipts")) < shards:
                time.sleep(LOOK_SECONDS)
            seconds, used = time.perf_counter() - began, by_part(watch.close())["merge"]
            process.terminate()  # a shell without jobs lets no SIGINT through
            ended = process.wait()
        receipts, problems = check_receipts(site)
        size_bytes = sum(receipt["size"] for receipt in receipts)
        cpu_seconds = sum(each.cpu_seconds for each in used)
        print(
            f"{len(receipts)} shards, {size_bytes / GB:.1f} GB: {seconds:.0f} s, CPU {cpu_seconds:.0f} s, "
            f"{max(each.peak_bytes for each in used) / 2**20:.0f} MiB, {site.report()['sent_bytes'] / GB:.1f} GB read; "
            f"stopped, exit status {ended}; {len(problems)} digests differ from the server's"
        )
        return 1 if problems or len(receipts) < shards else 0
    finally:
        site.close()


def by_part(used: Sequence[Used]) -> dict[str, list[Used]]:
    parts: dict[str, list[Used]] = defaultdict(list)
    for each in used:
        parts[each.part].append(each)
    return dict(sorted(parts.items()))


def predicted_seconds(shard_bytes: Sequence[int], rate: float, workers: int) -> float:
    """What the cluster's model says: all shards of the survey, then all of the merge, by the same workers.

    Args:
        shard_bytes: of the output.
        rate: bytes per second that a worker moves.
        workers: at once, all alike.
    """
    seconds = -START_SECONDS  # which each replay has
    for traffic in (MODELS + 1, MODELS + 2):  # read, and written in the second pass
        tasks = [ShardTask(number, traffic * size, f"shard {number}") for number, size in enumerate(shard_bytes)]
        seconds += Replay(tasks, workers, FAULTS["none"], seed=0, bytes_per_second=rate).run().makespan
    return seconds


def machines(outcome: Outcome) -> str:
    """Seconds of this merge on machines with so many cores, each a worker, and such a link to the store."""
    lines = ["| cores | " + " | ".join(f"{link} Gbit/s" for link in LINKS) + " |", "|---|" + "---:|" * len(LINKS)]
    for cores in CORES:
        rates = [min(outcome.bytes_per_cpu_second, link / 8 * GB / cores) for link in LINKS]
        seconds = [predicted_seconds(outcome.shard_bytes, rate, cores) for rate in rates]
        lines.append(f"| {cores} | " + " | ".join(f"{each:.0f} s" for each in seconds) + " |")
    return "\n".join(lines)


def table(outcome: Outcome) -> str:
    """As in the README."""
    rows = [
        ("parameters", f"{outcome.parameters / 1e9:.2f} billion"),
        ("plan", f"{outcome.plan['seconds']:.1f} s, {outcome.plan['peak_bytes'] / 2**20:.0f} MiB"),
        ("merge", f"{outcome.seconds:.0f} s in {outcome.commands} command(s)"),
        ("until the first shard was done", f"{outcome.first_shard_seconds:.0f} s"),
        ("killed", f"one worker after {outcome.killed_after} of {len(outcome.shard_bytes)} shards"),
        ("read", f"{outcome.sent_bytes / GB:.1f} GB"),
        ("uploaded", f"{outcome.received_bytes / GB:.1f} GB"),
        ("requests", f"{outcome.requests}"),
        *(
            (f"{part}: CPU, peak memory", f"{seconds:.0f} s, {outcome.peak_bytes[part] / 2**20:.0f} MiB")
            for part, seconds in outcome.cpu_seconds.items()
        ),
        ("everything else on the machine", f"{outcome.others_cores:.2f} cores"),
        ("left for workers", f"{outcome.cores_for_workers:.2f} cores"),
        ("moved by a core of a worker", f"{outcome.bytes_per_cpu_second / 1e6:.0f} MB/s"),
        ("digests compared with the server's", f"{outcome.checked_files} files, {outcome.checked_bytes / GB:.1f} GB"),
        ("that differ", f"{len(outcome.problems)}"),
    ]
    return "\n".join(["| what | measured |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="30b", help="a size of benchmarks.generate (default 30b)")
    parser.add_argument("--constants", type=Path, help="outcome.json of another run, from which this one is predicted")
    parser.add_argument("--stop-after", type=int, help="density 0.25 without a survey, and only so many shards")
    parser.add_argument("--plan-only", action="store_true")
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{options.size}-", dir=WORK)).resolve()
    print(f"logs are in {folder}", file=sys.stderr, flush=True)
    if options.plan_only or options.stop_after:
        return measure_beginning(options.size, options.stop_after or 0, folder)
    outcome = measure(options.size, folder)
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome), indent=2))
    print(table(outcome))
    if options.constants:
        earlier = Outcome(**json.loads(options.constants.read_text()))
        rate = earlier.bytes_per_cpu_second * outcome.cores_for_workers / WORKERS
        predicted = predicted_seconds(outcome.shard_bytes, rate, WORKERS)
        error = 100 * (predicted / outcome.seconds - 1)
        print(f"\nPredicted from {earlier.size} with the cores that were left: {predicted:.0f} s, {error:+.0f} %.")
    print(f"\nThe same merge elsewhere, by the model:\n\n{machines(outcome)}")
    print(*outcome.problems, sep="\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
