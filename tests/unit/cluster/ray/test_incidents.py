"""What users are told of a run on a cluster: every line belongs to what the scheduler was told and decided."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError

from anabranch.cluster.ray.driver import loss_reason
from anabranch.cluster.ray.events import (
    Event,
    Finish,
    LookedUp,
    LookUp,
    ShardTask,
    SlotsChanged,
    StartTask,
    StartWorker,
    Stop,
    StopWorker,
    TaskDone,
    TaskFailed,
    Tick,
    WorkerJoined,
    WorkerLeaving,
    WorkerLost,
)
from anabranch.cluster.ray.incidents import Incidents
from anabranch.cluster.ray.scheduler import Scheduler
from anabranch.engine.errors import InputError, ResourceError, TemporaryError

SIZE_BYTES = 1_000_000_000


class Story:
    """A scheduler, its incidents, and the open runs by worker."""

    def __init__(self, names: list[str], workers: int) -> None:
        tasks = [ShardTask(i, SIZE_BYTES, name) for i, name in enumerate(names)]
        self.lines: list[str] = []
        self.retries = 0
        self.runs: dict[int, StartTask] = {}
        self.looks: list[LookUp] = []
        self.ended: Stop | Finish | None = None
        self._scheduler = Scheduler(tasks)
        self._incidents = Incidents(tasks, self.lines.append, self._count)
        self.tell(SlotsChanged(0.0, workers))

    def _count(self) -> None:
        self.retries += 1

    def tell(self, event: Event) -> None:
        self._incidents.event(event)
        for action in self._scheduler.handle(event):
            self._incidents.action(action)
            match action:
                case StartWorker(worker=worker):
                    self.tell(WorkerJoined(event.now, worker))
                case StartTask(worker=worker):
                    self.runs[worker] = action
                case StopWorker(worker=worker):
                    self.runs.pop(worker, None)
                case LookUp():
                    self.looks.append(action)
                case Stop() | Finish():
                    self.ended = action

    def look(self, now: float, found: bool) -> None:
        asked = self.looks.pop()
        self.tell(LookedUp(now, asked.task, asked.look, found))

    def news(self) -> list[str]:
        lines = self.lines[:]
        self.lines.clear()
        return lines


def test_a_drained_node_is_told_once_and_costs_no_retry() -> None:
    story = Story(["a", "b", "c"], 2)
    story.tell(WorkerLeaving(1.0, 1))
    assert story.lines == ["room for 2 workers", "worker 1 gets no more shards: its node is being drained"]
    story.tell(TaskDone(2.0, story.runs[1].task, story.runs[1].run))
    assert len(story.lines) == 2
    assert story.retries == 0


def test_a_shard_of_a_worker_that_will_be_gone_is_told_of() -> None:
    story = Story(["a", "b"], 2)
    story.news()
    story.tell(TaskDone(50.0, story.runs[2].task, story.runs[2].run))
    story.tell(WorkerLeaving(60.0, 1, deadline=90.0))
    story.look(60.0, found=False)
    assert story.news() == [
        "worker 1 gets no more shards: its node is being drained and goes in 30 s",
        "a is given to worker 2; worker 1 will be gone before it is done",
    ]


def test_a_run_without_trouble_says_only_how_many_workers_it_has() -> None:
    story = Story(["a", "b"], workers=2)
    for run in list(story.runs.values()):
        story.tell(TaskDone(5.0, run.task, run.run))
    assert story.news() == ["room for 2 workers"]
    assert story.retries == 0


def test_room_is_told_when_it_changes() -> None:
    story = Story(["a", "b"], workers=2)
    for now, slots in ((1.0, 2), (2.0, 1), (3.0, 1), (4.0, 2)):
        story.tell(SlotsChanged(now, slots))
    assert story.news() == ["room for 2 workers", "room for 1 worker", "room for 2 workers"]


def test_a_lost_worker_and_where_its_shard_goes() -> None:
    story = Story(["a", "b"], workers=2)
    story.news()
    lost = story.runs[1]
    story.tell(WorkerLost(1.0, 1, "its node died"))
    assert story.news() == ["worker 1 was lost with a: its node died"]
    story.look(1.5, found=False)
    story.tell(Tick(30.0))
    again = next(run for run in story.runs.values() if run.task == lost.task and run.run != lost.run)
    assert story.news() == [f"a is given to worker {again.worker}"]
    assert story.retries == 1


def test_a_lost_worker_whose_shard_was_finished_is_no_retry() -> None:
    story = Story(["a", "b"], workers=2)
    story.tell(WorkerLost(1.0, 1, "its node died"))
    story.look(1.5, found=True)
    story.tell(Tick(30.0))
    assert story.news()[1:] == ["worker 1 was lost with a: its node died"]
    assert story.retries == 0


@pytest.mark.parametrize("error", [TemporaryError("the store did not answer"), ResourceError("the disk is full")])
def test_a_failure_that_is_tried_again_is_told(error: TemporaryError | ResourceError) -> None:
    story = Story(["a"], workers=2)
    story.news()
    run = story.runs[1]
    story.tell(TaskFailed(1.0, run.task, run.run, error))
    assert story.news() == [f"a failed: {error.message}"]
    story.tell(Tick(60.0))
    (line,) = story.news()
    assert line.startswith("a is given to worker ")
    assert story.retries == 1


def test_an_error_that_ends_the_run_is_left_to_the_command() -> None:
    story = Story(["a"], workers=1)
    run = story.runs[1]
    story.tell(TaskFailed(1.0, run.task, run.run, InputError("a NaN")))
    assert isinstance(story.ended, Stop)
    assert story.news() == ["room for 1 worker"]


def test_a_hung_worker_is_stopped_and_its_twin_is_named() -> None:
    story = Story(["a"], workers=2)
    story.news()
    story.tell(Tick(200.0))  # late: 1 GB should take 100 s at first
    story.look(200.0, found=False)
    assert story.news() == ["a is given to worker 2; worker 1 is slow with it"]
    twin = story.runs[2]
    story.tell(TaskDone(250.0, twin.task, twin.run))
    assert story.news() == ["worker 1 is stopped with a: another worker has finished it"]


def test_a_worker_that_never_answers_is_given_up() -> None:
    story = Story(["a"], workers=1)
    story.news()
    story.tell(Tick(2000.0))
    assert story.news() == ["worker 1 is stopped with a: it takes too long"]


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: MergeWorker
\tactor_id: b478b88f2e0174760e4e378a01000000
\tname: anabranch-02915daa-01d6ec-2
\tip: 192.0.2.2
The actor died because its node has died. Node Id: cb9820eb231b2192b0f5a9fd77d2c99ed77b0277fe10de6cc6fb0e94
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DIED, "The actor died because its node has died (anabranch-02915daa-01d6ec-2 on 192.0.2.2)"),
        (
            "The actor died unexpectedly before finishing this task.",
            "The actor died unexpectedly before finishing this task",
        ),
        (
            "The actor b478 is unavailable: no answer. The task may have run.",
            "The actor b478 is unavailable: no answer",
        ),
        ("", "RayActorError"),
    ],
)
def test_a_loss_is_told_in_one_line(text: str, reason: str) -> None:
    assert loss_reason(RayActorError(error_msg=text)) == reason
