"""What a Ray cluster holds: workers that fit on its nodes, and nodes that will be taken away."""

from __future__ import annotations

import time
from collections.abc import Container
from math import inf

import ray

from .actor import WorkerOptions


def draining_nodes() -> dict[str, float]:
    """Nodes that will be taken away, on which Ray starts nothing more; only its inner state tells.

    Returns:
        By id, seconds until then; inf where nobody has said.
    """
    deadlines = ray._private.state.state.get_draining_nodes()  # ms since 1970, 0 for none
    return {node: ms / 1000 - time.time() if ms else inf for node, ms in deadlines.items()}


def cluster_slots(options: WorkerOptions, draining: Container[str] = ()) -> int:
    """Workers that fit the resources of all living nodes that stay."""
    slots = 0
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in draining:
            resources = node["Resources"]
            slots += int(min(resources.get(name, 0.0) / amount for name, amount in options.resources.items()))
    return slots
