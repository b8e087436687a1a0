"""Which recipes are tried: Optuna asks and is told, and its journal is all that a search remembers."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from ...engine.errors import OutputConflictError
from ...engine.recipe import Domain, Interval, Option, SearchSpace
from .evaluate import Outcome
from .objectives import Scores

JOURNAL = "search.journal"
STUDY = "anabranch"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How recipes are chosen."""

    sampler: str
    seed: int
    together: int
    """Recipes that are chosen before any of them is evaluated."""
    center: float | None = None
    """Of CMA-ES: where numbers begin, as far as their range has it; None: in the middle."""
    sigma: float | None = None
    """Of CMA-ES: how far the first numbers lie around it; None: a sixth of the range."""
    population: int | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial: what was chosen and, when it is over, what came of it."""

    number: int
    point: Mapping[str, Option]
    outcome: Outcome | None = None
    values: tuple[float, ...] = ()
    """Of the objectives, where it was told."""
    told: bool = False


class Study:
    """The trials of a search.

    Each choice follows from the seed, the trial's number and the trials of earlier batches. A batch is chosen whole
    before any of it is evaluated, so that a run that goes on chooses what an undisturbed one would.

    Args:
        folder: where the journal lies; nobody else may write to it.
        space: the recipes.
        sampling: how they are chosen.
        objectives: how many.
        identity: what must be the same for a search to go on.

    Raises:
        OutputConflictError: the folder holds another search.
    """

    def __init__(
        self, folder: Path, space: SearchSpace, sampling: Sampling, objectives: int, identity: Mapping[str, Any]
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._sampling = sampling
        self._points: list[dict[str, Option]] = []
        _mend(folder / JOURNAL)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self._study = optuna.create_study(
            storage=storage, study_name=STUDY, directions=["maximize"] * objectives, load_if_exists=True
        )
        self._check(folder, json.loads(json.dumps(dict(identity))))

    def _check(self, folder: Path, identity: dict[str, Any]) -> None:
        known = self._study.user_attrs.get("identity")
        if known is None:
            self._study.set_user_attr("identity", identity)
        elif known != identity:
            other = next(key for key in (*identity, *known) if identity.get(key) != known.get(key))
            raise OutputConflictError(
                f"{folder} holds another search: its {other} was {str(known.get(other))[:200]}, "
                f"now it is {str(identity.get(other))[:200]}",
                "use the same command to go on, or another output directory",
            )

    @property
    def reference(self) -> Scores | None:
        """The scores of the reference recipe, once they are known."""
        found: Scores | None = self._study.user_attrs.get("reference")
        return found

    def keep_reference(self, scores: Scores) -> None:
        self._study.set_user_attr("reference", dict(scores))

    def tried(self) -> list[Tried]:
        """All trials whose choices are complete, in order."""
        return [_tried(trial) for trial in self._study.get_trials(deepcopy=False) if "point" in trial.user_attrs]

    def batch(self, numbers: Sequence[int]) -> list[Tried]:
        """The trials of these numbers, which follow those that there are; chosen unless they were before."""
        return [self._chosen(number) for number in numbers]

    def _chosen(self, number: int) -> Tried:
        trials = self._study.get_trials(deepcopy=False)
        known = trials[number] if number < len(trials) else None
        if known is not None and "point" in known.user_attrs:
            return _tried(known)
        self._study.sampler = self._sampler(number)
        trial = self._study.ask() if known is None else Trial(self._study, known._trial_id)
        point: dict[str, Option] = {}

        def choose(name: str, domain: Domain) -> Option:
            point[name] = _suggested(trial, name, domain)
            return point[name]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._space.at(choose)
        trial.set_user_attr("point", point)
        return Tried(number, point)

    def record(self, number: int, outcome: Outcome) -> None:
        """Remember what an evaluation gave; from here on it is not done again."""
        trial = self._study.get_trials(deepcopy=False)[number]
        result = {"scores": outcome.scores, "failure": outcome.failure, "seconds": outcome.seconds}
        Trial(self._study, trial._trial_id).set_user_attr("outcome", result)

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """Say what a trial is worth, or None: that it failed."""
        state = TrialState.COMPLETE if values is not None else TrialState.FAIL
        self._study.tell(number, values, state)

    def importances(self, objective: int) -> dict[str, float]:
        """How much of what sets the better tenth of the trials apart each parameter accounts for, adding up to 1.

        Args:
            objective: its place.

        Returns:
            By PED-ANOVA (Optuna's, arXiv 2304.10255), the largest first; of parameters that count in every trial.
            Nothing where trials are too few or too much alike to tell.
        """
        done = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        if len({tuple(trial.values) for trial in done}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter(
                "ignore", UserWarning
            )  # that small values are the good ones, which is why of the minus
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(
                self._study, evaluator=evaluator, target=lambda trial: -trial.values[objective]
            )
        return {name: share for name, share in found.items() if share == share}

    def _sampler(self, number: int) -> BaseSampler:
        """A sampler that has seen nothing but the journal, so that it matters not which process it lives in."""
        sampling = self._sampling
        digest = hashlib.sha256(f"{sampling.seed}:{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        match sampling.sampler:
            case "random":
                return RandomSampler(seed)
            case "grid":
                if not self._points:
                    self._points = list(islice(self._space.points(), GRID_LIMIT))
                return _Listed(self._points)
            case "cmaes":
                return _cmaes(self._space, sampling, seed)
            case _:
                return TPESampler(seed=seed)


GRID_LIMIT = 1_000_000


def _suggested(trial: Trial, name: str, domain: Domain) -> Option:
    if not isinstance(domain, Interval):
        return domain.labels.index(trial.suggest_categorical(name, domain.labels))
    distribution = _distribution(domain)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    return domain.snap(trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step))


def _distribution(domain: Interval) -> FloatDistribution | IntDistribution:
    high = domain.high if domain.size is None else domain.number(domain.size - 1)  # a step ends on the last number
    if domain.whole:
        return IntDistribution(int(domain.low), int(high), step=int(domain.step or 1))
    return FloatDistribution(float(domain.low), float(high), step=domain.step)


def _tried(trial: FrozenTrial) -> Tried:
    known = trial.user_attrs.get("outcome")
    outcome = None if known is None else Outcome(known["scores"], known["failure"], known["seconds"])
    values = tuple(trial.values) if trial.state == TrialState.COMPLETE else ()
    return Tried(trial.number, trial.user_attrs["point"], outcome, values, trial.state.is_finished())


def _mend(journal: Path) -> None:
    """Take away what a killed process left: half a line at the end of a journal, and the lock on it."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


class _Listed(BaseSampler):
    """The points of a space, each once, by the number of the trial."""

    def __init__(self, points: Sequence[Mapping[str, Option]]) -> None:
        self._points = points

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        option = self._points[trial.number][param_name]
        return param_distribution.to_external_repr(option)


class _WholeSpace(CmaEsSampler):
    """CMA-ES over all numbers of a space from the first trial on; Optuna's own waits for one that is finished."""

    def __init__(self, space: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._numbers = dict(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return dict(sorted(self._numbers.items()))


def _cmaes(space: SearchSpace, sampling: Sampling, seed: int) -> CmaEsSampler:
    always = {name: domain for name, domain in space.parameters().items() if " if " not in name}
    ranges = {name: domain for name, domain in always.items() if isinstance(domain, Interval)}
    center = sampling.center
    x0 = {
        name: center if center is not None and domain.low <= center <= domain.high else (domain.low + domain.high) / 2
        for name, domain in ranges.items()
    }
    widths = [domain.high - domain.low for domain in ranges.values()]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # x0 and sigma0 go with Optuna 6; without them nothing begins at 1
        return _WholeSpace(
            {name: _distribution(domain) for name, domain in ranges.items()},
            x0=x0,
            sigma0=sampling.sigma / max(widths) if sampling.sigma is not None else None,  # of ranges made 0 to 1
            n_startup_trials=0,
            independent_sampler=RandomSampler(seed),
            warn_independent_sampling=False,
            seed=seed,
            popsize=sampling.population,
        )
