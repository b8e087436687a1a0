"""The loop of a search: choose recipes, merge them together, evaluate them side by side, keep the best."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ...engine.errors import InputError, OutputConflictError, RecipeError
from ...engine.recipe import Domain, Option, SearchSpace, load_recipe, recipe_of
from ...engine.run import Execution, duration
from ..ray import RayCluster, ray_session
from .evaluate import Evaluations, Evaluator, Outcome
from .models import Cost, Models, check_space
from .objectives import Objective, Scores, check_reference
from .results import Results
from .space_report import read_space
from .study import Sampling, Study, Tried

REFERENCE = "reference"
"""What the reference recipe's model is called."""
DEFAULT_TRIALS = 100


@dataclass(frozen=True)
class Settings:
    """What a search is asked to do.

    Raises:
        RecipeError: settings that contradict each other.
    """

    recipe: str
    out: Path
    command: str
    """How models are evaluated; with `command_args` part of what a search is."""
    command_args: str
    objectives: tuple[Objective, ...]
    sampling: Sampling
    trials: int | None
    """None: the whole space with the grid, `DEFAULT_TRIALS` otherwise."""
    evaluators: int = 1
    keep: int = 1
    max_failures: int = 10
    timeout_seconds: float | None = None
    reference: str | None = None
    cluster: RayCluster | None = None
    """Where models are evaluated; None: on this machine."""
    evaluator_gpus: float = 0.0

    def __post_init__(self) -> None:
        relative = any(objective.relative for objective in self.objectives)
        if relative and self.reference is None:
            raise RecipeError("the asymmetric objective compares with a recipe", "name it with --reference RECIPE")
        if not relative and self.reference is not None:
            raise RecipeError("--reference has an effect only with --objective asymmetric")
        if self.evaluator_gpus and self.cluster is None:
            raise RecipeError("--evaluator-gpus has an effect only with --ray")
        if self.sampling.sampler == "cmaes" and len(self.objectives) > 1:
            raise RecipeError("the cmaes sampler takes one objective", "use --sampler tpe for several")


def search(settings: Settings, execution: Execution, say: Callable[[str], None]) -> Results:
    """Carry out a search; one that was stopped goes on where it was.

    Args:
        settings: the search.
        execution: how merges are carried out.
        say: is told how far it is, in lines.

    Raises:
        InputError: more trials failed than allowed, or the reference recipe did.
        OutputConflictError: OUT holds another search, or one that is running.
        AnabranchError: what stopped a merge.
    """
    space = read_space(settings.recipe)
    evaluator = Evaluator(settings.command, settings.command_args, settings.out / "logs", settings.timeout_seconds)
    trials = _number_of_trials(settings, space)
    cost = Cost(space, Path(settings.recipe).parent, execution.memory_bytes)
    check_space(settings.out, cost, settings.keep + settings.sampling.together)
    settings.out.mkdir(parents=True, exist_ok=True)
    with _locked(settings.out), _evaluations(settings, evaluator) as evaluations:
        return _Search(settings, execution, space, evaluations, say).run(trials)


@contextmanager
def _evaluations(settings: Settings, here: Evaluator) -> Iterator[Evaluations]:
    """The evaluator of this machine, or one for the time of a session with Ray."""
    if settings.cluster is None:
        yield here
        return
    with ray_session(settings.cluster.address, settings.cluster.insecure):
        from .ray_evaluator import RayEvaluator

        logs = settings.out / "logs"
        arguments = (settings.command, settings.command_args, logs, settings.timeout_seconds, Path.cwd())
        yield RayEvaluator(*arguments, settings.evaluator_gpus)


def _number_of_trials(settings: Settings, space: SearchSpace) -> int:
    if settings.sampling.sampler != "grid":
        return settings.trials or DEFAULT_TRIALS
    if space.size is None:
        raise RecipeError(
            f"{settings.recipe}: a grid needs ranges with a step, and at most 5 models with `order: search`",
            "give each range a step, or use another --sampler",
        )
    return min(settings.trials or space.size, space.size)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Only one search in a directory; the lock ends with the process, however that ends."""
    with (out / "search.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputConflictError(
                f"{out}: another search is running here", "wait for its end, or use another output directory"
            ) from None
        yield


class _Search:
    def __init__(
        self,
        settings: Settings,
        execution: Execution,
        space: SearchSpace,
        evaluator: Evaluations,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._folder = Path(settings.recipe).parent
        self._space = space
        self._evaluator = evaluator
        self._say = say
        sampling = settings.sampling
        reference = None if settings.reference is None else load_recipe(settings.reference)
        identity = {
            "recipe": space.document.data,
            "evaluation": [settings.command, settings.command_args],
            "objectives": [objective.text for objective in settings.objectives],
            "sampler": [sampling.sampler, sampling.center, sampling.sigma, sampling.population],
            "seed": sampling.seed,
            "--together": sampling.together,
            "reference recipe": None if reference is None else reference.model_dump(mode="json"),
        }
        self._study = Study(settings.out, space, sampling, len(settings.objectives), identity)
        self._models = Models(settings.out, self._folder, execution)
        self._reference_recipe = reference

    def run(self, trials: int) -> Results:
        reference = self._reference()
        together = self._settings.sampling.together
        before, began = sum(tried.told for tried in self._study.tried()), time.monotonic()
        for first in range(0, trials, together):
            numbers = range(first, min(first + together, trials))
            batch = self._study.batch(numbers)
            if not all(tried.told for tried in batch):
                self._models.keep([*self._results().kept, *(_name(tried.number) for tried in batch)])
                self._evaluate(batch)
                self._tell(numbers, reference)
                results = self._finish_batch()
                self._tell_progress(results, numbers, trials, (time.monotonic() - began) / (numbers[-1] + 1 - before))
                self._check_failures(results)
        results = self._finish_batch()
        self._check_failures(results)
        if not results.values:
            failed = results.failed[0].outcome
            raise InputError(f"no trial has scores, the first one: {failed.failure if failed is not None else ''}")
        return replace(results, page=self._draw(results))

    def _draw(self, results: Results) -> Path | None:
        """Write OUT/search.html, where what draws it is installed."""
        if find_spec("altair") is None or find_spec("vl_convert") is None:
            return None
        from ..report.options import write_report
        from .pictures import search_page

        page = self._settings.out / "search.html"
        importances = [self._study.importances(place) for place in range(len(results.objectives))]
        write_report(search_page(results, importances), str(page), "html")
        return page

    # -- the reference -----------------------------------------------------------------------------------------------

    def _reference(self) -> Scores:
        """The scores of the reference recipe; evaluated once."""
        if self._reference_recipe is None or self._settings.reference is None:
            return {}
        if self._study.reference is not None:
            return self._study.reference
        self._models.keep([REFERENCE])
        Models(self._settings.out, Path(self._settings.reference).parent, Execution()).write_recipe(
            REFERENCE, self._reference_recipe
        )
        failures = self._models.merge([REFERENCE])
        outcome = (
            Outcome(None, failures[REFERENCE])
            if failures
            else self._evaluator.run(REFERENCE, self._models.path(REFERENCE))
        )
        if outcome.scores is None:
            raise InputError(f"the reference recipe has no scores: {outcome.failure}")
        check_reference(outcome.scores)
        self._study.keep_reference(outcome.scores)
        return outcome.scores

    # -- a batch -----------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Sequence[Tried]) -> None:
        """Merge and evaluate what has no outcome yet; a recipe that was tried before is not tried again."""
        firsts = first_of_each_point(self._study.tried())
        todo = {t.number: t for t in batch if t.outcome is None and firsts[t.number] == t.number}
        for tried in todo.values():
            document = self._space.at(partial(_of_point, tried.point))
            self._models.write_recipe(_name(tried.number), recipe_of(document, self._folder))
        failures = self._models.merge([_name(number) for number in todo])
        for number in [number for number in todo if _name(number) in failures]:
            self._study.record(number, Outcome(None, failures[_name(number)]))
            del todo[number]
        pool = ThreadPoolExecutor(self._settings.evaluators)
        try:
            runs = {pool.submit(self._evaluator.run, _name(n), self._models.path(_name(n))): n for n in todo}
            for run in as_completed(runs):
                self._study.record(runs[run], run.result())
        except BaseException:
            self._evaluator.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        outcomes = {tried.number: tried.outcome for tried in self._study.tried()}
        for tried in batch:
            found = outcomes[firsts[tried.number]]
            if outcomes[tried.number] is None and found is not None:
                self._study.record(tried.number, replace(found, seconds=0.0))

    def _tell(self, numbers: Sequence[int], reference: Scores) -> None:
        """In the order of numbers, so that which scores are expected depends on no race."""
        for tried in self._study.batch(numbers):
            if not tried.told:
                self._study.tell(tried.number, self._values(tried, reference))

    def _values(self, tried: Tried, reference: Scores) -> list[float] | None:
        outcome = tried.outcome
        assert outcome is not None, "only what was evaluated is told"
        if outcome.scores is None:
            return None
        finished = next((other.outcome for other in self._study.tried() if other.values), None)
        expected = reference or (finished.scores if finished is not None else None) or outcome.scores
        if outcome.scores.keys() != expected.keys():
            text = f"gave scores for {', '.join(outcome.scores)}, expected {', '.join(expected)} as in earlier trials"
            self._study.record(tried.number, replace(outcome, scores=None, failure=text))
            return None
        return [objective.value(outcome.scores, reference) for objective in self._settings.objectives]

    def _finish_batch(self) -> Results:
        """Delete what is not among the best, and write down what was found."""
        results = self._results()
        self._models.keep(results.kept)
        best = self._models.recipe_path(_name(results.best[0])) if results.best else None
        results.write(best.read_text(encoding="utf-8") if best is not None else None)
        return results

    def _results(self) -> Results:
        tried = self._study.tried()
        found = Results(self._settings.out, self._settings.objectives, self._space.parameters(), tried, ())
        firsts = first_of_each_point(tried)
        own = [number for number in found.best if firsts[number] == number]
        return replace(found, kept=tuple(_name(number) for number in own[: self._settings.keep]))

    def _tell_progress(self, results: Results, numbers: range, trials: int, seconds_each: float) -> None:
        done = numbers[-1] + 1
        best = ""
        if results.best:
            number = results.best[0]
            values = ", ".join(f"{value:.6g}" for value in results.values[number])
            best = f", best {values} of trial {number}"
        left = f", {duration(seconds_each * (trials - done))} left" if done < trials else ""
        self._say(f"{done} of {trials} trials{best}{left}")

    def _check_failures(self, results: Results) -> None:
        failed = results.failed
        if len(failed) > self._settings.max_failures:
            last = failed[-1].outcome
            raise InputError(
                f"{len(failed)} trials failed, the last one: {last.failure if last is not None else ''}",
                f"see {self._settings.out / 'logs'}; the same command with a larger --max-failures goes on",
            )


def first_of_each_point(trials: Sequence[Tried]) -> dict[int, int]:
    """By the number of each trial, that of the first trial of the same recipe."""
    seen: dict[tuple[tuple[str, object], ...], int] = {}
    return {tried.number: seen.setdefault(tuple(sorted(tried.point.items())), tried.number) for tried in trials}


def _of_point(point: Mapping[str, Option], name: str, _: Domain) -> Option:
    return point[name]


def _name(number: int) -> str:
    return f"{number:05d}"
