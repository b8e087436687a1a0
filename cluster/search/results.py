"""What a search found: a table of trials, the best recipe, and lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.output import write_table
from ...engine.recipe import Choice, Domain, Option
from ...engine.storage import open_store
from .objectives import Objective, pareto, ranked
from .study import Tried

if TYPE_CHECKING:
    import pyarrow

SHOWN = 10
"""Trials in the terminal."""
NO_PICTURES = "none, as what draws them is not installed: pip install 'anabranch[report]'"


@dataclass(frozen=True)
class Results:
    """Trials that are over, with the models that are kept."""

    out: Path
    objectives: Sequence[Objective]
    parameters: Mapping[str, Domain]
    trials: Sequence[Tried]
    kept: Sequence[str]
    page: Path | None = None
    """Where its pictures are; None where what draws them is not installed."""

    @property
    def values(self) -> dict[int, tuple[float, ...]]:
        """Of the objectives, by number, where there are any."""
        return {trial.number: trial.values for trial in self.trials if trial.values}

    @property
    def best(self) -> list[int]:
        """Numbers, best first."""
        return ranked(self.values)

    @property
    def failed(self) -> list[Tried]:
        return [trial for trial in self.trials if trial.told and not trial.values]

    def value_of(self, name: str, option: Option) -> Any:
        """What a choice was, as a recipe writes it."""
        domain = self.parameters[name]
        return domain.labels[int(option)] if isinstance(domain, Choice) else option

    def table(self) -> pyarrow.Table:
        """trial, state, seconds, failure, then a column per parameter, score and objective; null where it has none."""
        import pyarrow

        tasks = sorted({task for trial in self.trials for task in (trial.outcome and trial.outcome.scores) or ()})
        text, number = pyarrow.string(), pyarrow.float64()
        kinds = {
            name: text
            if isinstance(domain, Choice) and any(isinstance(x, str | bool) for x in domain.labels)
            else number
            for name, domain in self.parameters.items()
        }
        fields = [("trial", pyarrow.int64()), ("state", text), ("seconds", number), ("failure", text), *kinds.items()]
        fields += [(f"score.{task}", number) for task in tasks]
        fields += [(f"objective.{objective.text}", number) for objective in self.objectives]
        rows = [self._row(trial, kinds, text) for trial in self.trials if trial.told]
        return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(fields))

    def _row(self, trial: Tried, kinds: Mapping[str, Any], text: Any) -> dict[str, Any]:
        point = {name: self.value_of(name, option) for name, option in trial.point.items()}
        outcome = trial.outcome
        scores = (outcome.scores if outcome else None) or {}
        return {
            "trial": trial.number,
            "state": "finished" if trial.values else "failed",
            "seconds": outcome.seconds if outcome else None,
            "failure": outcome.failure if outcome else "",
            **{name: str(value) if kinds[name] == text else float(value) for name, value in point.items()},
            **{f"score.{task}": score for task, score in scores.items()},
            **{f"objective.{o.text}": value for o, value in zip(self.objectives, trial.values, strict=False)},
        }

    def write(self, best_recipe: str | None) -> None:
        """OUT/trials.parquet and, as soon as a trial has a value, OUT/best.yml."""
        store = open_store(str(self.out))
        store.replace("trials.parquet", write_table(self.table()))
        if best_recipe is not None:
            store.replace("best.yml", best_recipe.encode())

    def as_json(self) -> dict[str, Any]:
        """Everything that a program asks for next."""
        return {
            "outcome": "done",
            "trials": len(self.trials),
            "failed": len(self.failed),
            "best": self._json(self.best[0]) if self.best else None,
            "pareto": [self._json(number) for number in pareto(self.values)],
            "kept": list(self.kept),
            "recipe": str(self.out / "best.yml"),
            "table": str(self.out / "trials.parquet"),
            "page": None if self.page is None else str(self.page),
        }

    def _json(self, number: int) -> dict[str, Any]:
        trial = next(trial for trial in self.trials if trial.number == number)
        return {
            "trial": number,
            "parameters": {name: self.value_of(name, option) for name, option in trial.point.items()},
            "scores": trial.outcome.scores if trial.outcome else None,
            "objectives": {o.text: value for o, value in zip(self.objectives, trial.values, strict=True)},
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        by_number = {trial.number: trial for trial in self.trials}
        several = len(self.objectives) > 1
        shown = pareto(self.values) if several else self.best[:SHOWN]
        if several:
            yield f"{len(shown)} trials that no other one beats in every objective:"
        yield f"{'trial':>5}  {'  '.join(f'{o.text:>12}' for o in self.objectives)}  parameters"
        for number in shown:
            trial = by_number[number]
            values = "  ".join(f"{value:>12.6g}" for value in trial.values)
            point = ", ".join(f"{name}={self.value_of(name, option)}" for name, option in trial.point.items())
            yield f"{number:>5}  {values}  {point}"
        for trial in self.failed[-3:]:
            yield f"trial {trial.number} failed: {trial.outcome.failure if trial.outcome else ''}"
        yield f"{len(self.values)} trials have scores, {len(self.failed)} failed; all in {self.out / 'trials.parquet'}"
        if self.best:
            yield f"best recipe: {self.out / 'best.yml'}; kept: {', '.join(f'models/{name}' for name in self.kept)}"
        yield f"pictures: {self.page or NO_PICTURES}"
