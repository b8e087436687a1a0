"""Where property tests merge: in memory, as most of a small merge is to wait for a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM_BYTES = 1 << 30
"""What the largest of them writes is a tenth of this; containers often have 64 MB."""
SCRATCH = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES else None
"""None: where temporary files lie otherwise."""
