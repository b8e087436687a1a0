"""What every test shares: no network, no foreign credentials, hypothesis settings for a slow machine."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Set before any test imports the libraries that read them, and inherited by every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads of torch would wait for each other
os.environ["NO_GCE_CHECK"] = "true"  # Google's client would ask for a machine of its cloud, for some 15 seconds
for name in (
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
):
    os.environ.pop(name, None)

# "fast" finds the plain mistakes in `make test`, "wide" more of them in `make test-slow`; ANABRANCH_HYPOTHESIS=thorough
# is for a night.
settings.register_profile(
    "fast", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("wide", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "thorough",
    max_examples=2000,
    deadline=timedelta(seconds=60),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("ANABRANCH_HYPOTHESIS", "fast"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray goes first: it takes longest."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


class FilesTogether(LoadScopeScheduling):
    """Tests run in two processes at once: a file stays in one of them, and so do all files that start Ray.

    `ray start` refuses a machine on which another Ray is running, whoever started it. Marks do not come so far: only
    names of tests do.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Leave out files that a lost process had finished: whoever got one would wait for its tests for ever."""
        units = self.assigned_work[node]
        for name in [name for name, tests in units.items() if all(tests.values())]:
            del units[name]
        return super().remove_node(node)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if _starts_ray(file) else file


@functools.cache
def _starts_ray(file: str) -> bool:
    return "pytest.mark.ray" in (Path(__file__).parents[1] / file).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    return FilesTogether(config, log)
