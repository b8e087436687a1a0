"""Short measurements in one go, smallest sizes (`make bench`); the README has the long ones."""

from __future__ import annotations

import subprocess
import sys

from .merge import MERGEKIT_BIN

MEASUREMENTS = (
    ("benchmarks.kernels",),
    ("benchmarks.planning", "--repeats", "1"),
    ("benchmarks.scale", "--quick"),
    ("benchmarks.merge", "--size", "0.1b", "--repeats", "1"),
    ("benchmarks.search", "--methods", "task_arithmetic"),
)
WITHOUT_MERGEKIT = {
    "benchmarks.merge": ["--contenders", "floor,anabranch,torch"],
    "benchmarks.search": ["--mergekit", "0"],
}


def main() -> int:
    for module, *options in MEASUREMENTS:
        if module in WITHOUT_MERGEKIT and not MERGEKIT_BIN.exists():
            print("mergekit is left out: benchmarks/peers/setup.sh installs it", file=sys.stderr)
            options += WITHOUT_MERGEKIT[module]
        print(f"## {module.rpartition('.')[2]}\n", flush=True)
        subprocess.run([sys.executable, "-m", module, *options], check=True)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
