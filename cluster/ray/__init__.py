"""Ray: the same work items on actors of a cluster, and a scheduler that decides.

Held by tests/cluster, tests/unit/cluster/ray and tests/property/cluster.
"""

from .session import RayCluster, ray_session

__all__ = ["RayCluster", "ray_session"]
