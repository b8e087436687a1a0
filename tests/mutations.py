"""Break one promise of the commit protocol at a time and see that the tests notice: `make mutations`.

Every mutation is an edit of a copy of the checkout; the tests that guard the promise then run on it and must fail.
They run once without an edit before, and must pass. Exit status 1 where a mutation survives. Words of the command line
choose mutations by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("anabranch", "benchmarks", "cluster", "configs", "docs", "engine", "tests", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutation:
    """One promise that is broken."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    """Texts that occur once in the file, and what stands in their place."""
    tests: tuple[str, ...]
    """Files of tests, or single tests."""


COMMIT = "engine/output/commit.py"
MUTATIONS = (
    Mutation(
        "the manifest before the index",
        COMMIT,
        (
            (
                "files[INDEX_NAME] = self._publish(INDEX_NAME, index_json(self.plan))",
                "files[INDEX_NAME] = _later(self)",
            ),
            (
                "        self._check_published(manifest)\n        self._publish_manifest(manifest)\n",
                (
                    "        self._publish_manifest(manifest)\n"
                    "        if len(ordered) > 1:\n            self._publish(INDEX_NAME, index_json(self.plan))\n"
                ),
            ),
            (
                "def index_json(plan: Plan)",
                (
                    "def _later(output):\n"
                    "    data = index_json(output.plan)\n"
                    "    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())\n\n\n"
                    "def index_json(plan: Plan)"
                ),
            ),
        ),
        ("tests/unit/output/test_commit.py",),
    ),
    Mutation(
        "receipts before shards",
        "engine/run/shard.py",
        (
            (
                (
                    '        assert self._written == self._shard.size, "every tensor of the plan has been written"\n'
                    "        self._writer.commit()\n        return Receipt("
                ),
                (
                    '        assert self._written == self._shard.size, "every tensor of the plan has been written"\n'
                    "        return Receipt("
                ),
            ),
            (
                "        output.publish_receipt(receipt)\n",
                "        output.publish_receipt(receipt)\n        sink._writer.commit()\n",
            ),
        ),
        ("tests/unit/output/test_commit.py",),
    ),
    Mutation(
        "a receipt before its rows",
        COMMIT,
        (
            (
                (
                    "        self.store.replace(self._rows_name(receipt.shard), table)\n"
                    "        self.store.replace(self._receipt_name(receipt.shard), record)\n"
                ),
                (
                    "        self.store.replace(self._receipt_name(receipt.shard), record)\n"
                    "        self.store.replace(self._rows_name(receipt.shard), table)\n"
                ),
            ),
        ),
        ("tests/unit/output/test_commit.py",),
    ),
    Mutation(
        "a shard that is not flushed",
        "engine/storage/local_writer.py",
        (("            os.fsync(descriptor)\n", ""),),
        ("tests/contract/test_local.py", "tests/contract/test_local_writer.py"),
    ),
    Mutation(
        "a folder that is not flushed",
        "engine/storage/local_folders.py",
        (("dst_dir_fd=folder)\n    os.fsync(folder)\n", "dst_dir_fd=folder)\n"),),
        ("tests/contract/test_local.py",),
    ),
    Mutation(
        "records whose digest is not checked",
        "engine/json_text.py",
        (("    if seal != hashlib.sha256(canonical_json(value)).hexdigest():", "    if False:"),),
        ("tests/unit/output/test_state.py",),
    ),
    Mutation(
        "shards that are not read again on resume",
        "engine/run/resumed.py",
        (("    if not doubted:\n", "    if doubted or not doubted:\n"),),
        ("tests/unit/output/test_state.py",),
    ),
    Mutation(
        "a manifest without a look at what was published",
        COMMIT,
        (("        if problems := self._watch.problems(manifest):\n", "        if problems := []:\n"),),
        ("tests/unit/output/test_watch.py",),
    ),
    Mutation(
        "inputs that are not looked at again",
        "engine/plan/inputs.py",
        (
            (
                "                if file.inode is None:\n",
                "                if file.inode is not None or not file.name:\n",
            ),
        ),
        ("tests/unit/run/test_replaced_inputs.py",),
    ),
    Mutation(
        "a second reading that is not compared with the first",
        "engine/run/taken.py",
        (("                return self._digests[number] == digest\n", "                return True\n"),),
        ("tests/unit/run/test_input_digests.py",),
    ),
    Mutation(
        "statistics that may come from other bytes than the merge",
        "engine/run/surveys.py",
        (("        if read != {ranges_digest(ranges)}:\n", "        if read == set():\n"),),
        ("tests/unit/run/test_input_digests.py",),
    ),
    Mutation(
        "shards that may be made from different bytes of one input",
        "engine/output/input_ranges.py",
        (("        if one[:4] == other[:4]:\n", "        if one == other:\n"),),
        ("tests/unit/run/test_input_digests.py",),
    ),
    Mutation(
        "no look after the manifest",
        COMMIT,
        (
            (
                "        try:\n            self._check_published(manifest)\n        except IntegrityError:\n",
                "        try:\n            pass\n        except IntegrityError:\n",
            ),
        ),
        ("tests/unit/output/test_watch.py",),
    ),
    Mutation(
        "a finished output that is believed",
        COMMIT,
        (("        problems = self._watch.problems_since(", "        problems = [] and self._watch.problems_since("),),
        ("tests/unit/output/test_watch.py",),
    ),
    Mutation(
        "a plan that replaces another",
        COMMIT,
        (
            (
                "        if not self.store.create(PLAN_NAME, plan):\n",
                "        if self.store.replace(PLAN_NAME, plan):\n",
            ),
        ),
        ("tests/unit/output/test_commit.py",),
    ),
    Mutation(
        "another plan that is not refused",
        COMMIT,
        (("        if found not in (None, self.plan.plan_id):\n", "        if found is False:\n"),),
        ("tests/unit/output/test_commit.py",),
    ),
    Mutation(
        "receipts of another plan",
        COMMIT,
        (
            (
                "        return stored.plan_id == owner == self.plan.plan_id and stored.size == size",
                "        return stored.size == size",
            ),
        ),
        ("tests/unit/output/test_state.py",),
    ),
    Mutation(
        "shards of another size",
        COMMIT,
        (("stored.size == size == expected.size\n", "stored.size == expected.size\n"),),
        ("tests/unit/output/test_state.py",),
    ),
    Mutation(
        "rows of a receipt that are another's",
        "engine/output/receipts.py",
        (
            (
                "    if (len(table), hashlib.sha256(table).hexdigest()) != (expected.size, expected.sha256):\n",
                "    if False:\n",
            ),
        ),
        ("tests/unit/output/test_state.py",),
    ),
    Mutation(
        "inputs that were replaced since an earlier run",
        COMMIT,
        (("        for name in made:\n            self.store.delete(name)\n", ""),),
        ("tests/unit/run/test_replaced_inputs.py",),
    ),
    Mutation(
        "inputs whose version is not checked while they are read",
        "engine/storage/local_open_files.py",
        (("    if info.version != version:\n", "    if False:\n"),),
        ("tests/contract/test_local.py",),
    ),
    Mutation(
        "records that are not flushed",
        "engine/storage/local.py",
        (("        os.fsync(descriptor)\n", ""),),
        ("tests/contract/test_local.py",),
    ),
    Mutation(
        "a plan that is visible before it is whole",
        "engine/storage/local.py",
        (
            (
                "            try:\n                return _link",
                (
                    "            try:\n                os.close(create_file(path))\n"
                    "                os.replace(temporary, path)\n                return True\n"
                    "            except FileExistsError:\n                return False\n"
                    "            try:\n                return _link"
                ),
            ),
        ),
        ("tests/faults/test_kill_sweep.py", "tests/faults/test_kills.py"),
    ),
    Mutation(
        "a shard that is visible before it is whole",
        "engine/storage/local_writer.py",
        (
            ("        self._temporary = temporary\n", "        self._temporary = self._base\n"),
            ("open_below(folder, temporary, flags, temporary)", "open_below(folder, self._base, flags, self._base)"),
        ),
        ("tests/contract/test_local.py",),
    ),
    Mutation(
        "an unfinished shard that stays after an error",
        "engine/run/shard.py",
        (("            self._writer.discard()\n", "            pass\n"),),
        ("tests/unit/output/test_commit.py",),
    ),
    Mutation(
        "an object that a failed upload leaves visible",
        "engine/storage/object_writer.py",
        (
            (
                "            self._parts.cancel()\n",
                (
                    "            if self._filled:\n                self._send_part()\n"
                    "            self._parts.settle()\n"
                    "            self._client.request(self._where, lambda: self._finish(b''))\n"
                ),
            ),
        ),
        ("tests/s3/test_s3_contract_moto.py",),
    ),
    Mutation(
        "bytes that verify does not compare",
        "engine/output/problems.py",
        (("    if digest.hexdigest() != entry.sha256:\n", "    if False:\n"),),
        ("tests/unit/output/test_verify.py",),
    ),
    Mutation(
        "left-overs of others that gc removes",
        "engine/storage/local.py",
        (
            (
                '                    and (name := os.path.join(folder, match["name"])) in wanted\n',
                '                    and (name := os.path.join(folder, match["name"]))\n',
            ),
        ),
        ("tests/contract/test_local.py",),
    ),
)


def main() -> int:
    words = sys.argv[1:]
    chosen = [each for each in MUTATIONS if not words or any(word in each.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="anabranch-mutations-") as folder:
        copy = Path(folder)
        for name in COPIED:
            place = ROOT / name
            if place.is_dir() and not place.is_symlink():
                shutil.copytree(place, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(place, copy / name, follow_symlinks=False)
        survived = [mutation.name for mutation in chosen if not killed(copy, mutation)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations were noticed")
    return 1 if survived else 0


def killed(copy: Path, mutation: Mutation) -> bool:
    """Whether the tests pass as the code is, and fail with the mutation; says so in a line."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    mutated = text
    for old, new in mutation.edits:
        if mutated.count(old) != 1:
            raise SystemExit(f"{mutation.name}: {mutation.file} has {mutated.count(old)} of\n{old}")
        mutated = mutated.replace(old, new)
    begin = time.perf_counter()
    if (said := passes(copy, mutation.tests)).returncode != 0:
        raise SystemExit(f"{mutation.name}: its tests fail without it\n{said.stdout[-3000:]}")
    path.write_text(mutated, encoding="utf-8")
    try:
        noticed = run(copy, mutation.tests).returncode == 1  # 1: tests failed; others: none ran, or pytest itself
    finally:
        path.write_text(text, encoding="utf-8")
    print(f"{'noticed ' if noticed else 'SURVIVED'}  {mutation.name} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return noticed


@cache
def passes(copy: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """`run` of the code as it is, once for mutations that the same tests guard."""
    return run(copy, tests)


def run(copy: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Pytest on the copy; stops at the first failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not parity",
        *tests,
    ]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
