"""The study of representations: each judged under one protocol, by heads fitted on the folds of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ledgerlm.engines.frames import Keep
from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.choosing import (
    HeadsConf,
    MethodFits,
    MethodResults,
    Shown,
    inner_folds,
    method_fits,
    shown,
)
from ledgerlm.evaluation.leaderboard import (
    BAYES,
    BOUNDS,
    MAJORITY,
    MEAN,
    MEDIAN,
    REACHABLE,
    Entry,
    Judged,
    count_figures,
    leaderboard,
    paired_tests,
    published_board,
    way_gone,
)
from ledgerlm.evaluation.pictures import calibration_bins, confusion, importances, pooled, projection, roc_points
from ledgerlm.evaluation.protocol import (
    Material,
    ProtocolConf,
    bound_probabilities,
    central_predictions,
    constant_predictions,
    group_predictions,
    majority_predictions,
    read_bound,
    read_material,
)
from ledgerlm.heads.parallel import FitStore, run_fits
from ledgerlm.heads.samples import Fold, Sample, make_folds, make_sample
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import Matrix, Source
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame


class EvaluateConf(ProtocolConf, HeadsConf):
    """Settings of the evaluate job."""

    trainings: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="embed or encode stage -> stages that differ from it by the seed of the training alone: the folds "
        "of the first seed read the stage itself, those of the second seed the first of these, and so on; so figures, "
        "deviations and intervals hold the luck of the training, too",
    )
    folds_of: Literal["train", "all"] = Field(
        "train",
        description="clients in the folds; all: nobody is set apart as a test client, as in figures of small sets that "
        "others give",
    )
    within: str | None = Field(
        None, description="client attribute; figures are also given within each of its values, from the same folds"
    )
    rows: Literal["common", "all"] = Field(
        "common", description="common: clients that every representation knows; all: with zeros and a flag for the rest"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples of clients for the intervals")
    map_of: str | None = Field(
        None, description="method whose vectors are mapped; default the first with embeddings only"
    )

    @model_validator(mode="after")
    def _known_methods(self) -> EvaluateConf:
        if self.map_of is not None and self.map_of not in self.representations:
            raise ValueError(f"map_of: no representation '{self.map_of}'")
        for name in (MAJORITY, *BOUNDS, MEAN, MEDIAN):
            if name in self.representations:
                raise ValueError(f"the name '{name}' is taken by a row of the leaderboard")
        read = {source.stage for chosen in self.representations.values() for source in chosen}
        if unread := [stage for stage in self.trainings if stage not in read]:
            raise ValueError(f"trainings: no representation names the stage '{unread[0]}'")
        if (most := max(map(len, self.trainings.values()), default=0)) >= len(self.seeds or (0,)):
            raise ValueError(f"trainings: {most + 1} trainings need as many seeds, found {list(self.seeds or ())}")
        return self

    def at(self, name: str, turn: int) -> tuple[Source, ...]:
        """What a method reads in the folds of seed number `turn`; stages with fewer trainings begin again."""
        stages = {stage: (stage, *more)[turn % (1 + len(more))] for stage, more in self.trainings.items()}
        chosen = self.representations[name]
        return tuple(one.model_copy(update={"stage": stages.get(one.stage or "", one.stage)}) for one in chosen)

    def turn(self, name: str, seed: int) -> int:
        """Number of the seed for a method with several trainings, else 0."""
        varies = any(source.stage in self.trainings for source in self.representations[name])
        return self.seeds.index(seed) if varies and self.seeds else 0

    def seeds_or(self, seed: int) -> tuple[int, ...]:
        """The seeds of the folds."""
        return self.seeds or (seed,)

    @property
    def trained(self) -> dict[str, tuple[Source, ...]]:
        """What is read: each method's vectors, and those of its further trainings."""
        turns = {name: {self.turn(name, seed) for seed in self.seeds_or(0)} for name in self.representations}
        return {_matrix(name, turn): self.at(name, turn) for name, of_name in turns.items() for turn in sorted(of_name)}


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One task with its folds and the fits of each method."""

    sample: Sample
    folds: Sequence[Fold]
    fits: Mapping[str, MethodFits]


def evaluate(
    labels: DataFrame,
    clients: DataFrame,
    tables: Mapping[str, DataFrame],
    tasks: Sequence[Task],
    conf: EvaluateConf,
    *,
    name: str = "evaluate",
    bayes: DataFrame | None = None,
    reachable: DataFrame | None = None,
    facts: Callable[[str], Mapping[str, Any]],
    seed: int,
    keep: Keep,
    progress: Progress | None = None,
    store: FitStore | None = None,
) -> Made:
    """Fits every fold of every method and task on Ray, which must have been started, and judges what they say.

    Args:
        labels: the `labels` table.
        clients: the `clients` table, for the split.
        tables: `features` and `embeddings`, as far as the methods read them.
        tasks: what is predicted.
        conf: settings.
        name: of the stage, for the rows of the leaderboard.
        bayes: the simulator's own probabilities, if they are known.
        reachable: what the best that sees the events says, if it is known.
        facts: gives the facts of a finished stage by its name, or by its job's, for embeddings whose backbone the
            sources leave open.
        seed: of folds and trees unless `conf` has others, and of the bootstrap.
        keep: computes a frame once.
        progress: what the user sees.
        store: finished fits of an earlier attempt.

    Returns:
        `leaderboard`; the facts `baseline`, `leaderboard`, `tasks` (curves, calibration, confusion, importances, the
        way to a bound) and `map`. rows_in: labels read.

    Raises:
        ConfigError: trainings of one method have vectors of different length.
        DataError: nothing to learn from; see `make_sample`, `make_folds`.
    """
    bars = progress or Progress()
    material = read_material(
        labels,
        clients,
        tables,
        tasks,
        conf,
        facts=facts,
        keep=keep,
        progress=bars,
        representations=conf.trained,
        within=conf.within,
        union=conf.rows == "all",
    )
    _refuse_other_widths(conf, material.matrices)
    matrix = next(iter(material.matrices.values()))
    there = {BAYES: bayes, REACHABLE: reachable}
    bounds = {name: read_bound(one, material.keys) for name, one in there.items() if one is not None}
    plans = [_plan(task, material, conf, conf.seeds_or(seed)) for task in tasks]
    fitted = _fit(plans, material.matrices, store, bars)
    said = [
        {name: shown(plan.sample, plan.folds, one) for name, one in results.items()}
        for plan, results in zip(plans, fitted, strict=True)
    ]
    judged = [_judged(plan, of_task, matrix, bounds) for plan, of_task in zip(plans, said, strict=True)]
    entries = _entries(plans, judged, conf, seed, bars)
    of_tasks = {
        plan.sample.task.name: _task_facts(plan, of_task, found, material.matrices, conf.baseline)
        | {"way": way_gone(entries, plan.sample.task)}
        for plan, of_task, found in zip(plans, said, judged, strict=True)
    }
    mapped = conf.map_of or _first_embedding(conf)
    points = projection(material.matrices[mapped], [plan.sample for plan in plans], seed) if mapped else {}
    return published_board(
        labels.sparkSession,
        entries,
        name,
        rows_in=len(material.labels),
        baseline=conf.baseline,
        facts={"tasks": of_tasks, "map": {"method": mapped, **points} if mapped else {}},
    )


def _refuse_other_widths(conf: EvaluateConf, matrices: Mapping[str, Matrix]) -> None:
    """The trainings of one method are told apart by their luck alone, so they have as many features."""
    for method in conf.representations:
        widths = {one.x.shape[1] for name, one in matrices.items() if name == method or name.startswith(f"{method}#")}
        if len(widths) > 1:
            raise ConfigError(
                f"evaluate: trainings: those of '{method}' have {sorted(widths)} features, not as many each"
            )


def _matrix(method: str, turn: int) -> str:
    """Name of a method's matrix by the turn of its training."""
    return f"{method}#{turn}" if turn else method


def _plan(task: Task, material: Material, conf: EvaluateConf, seeds: Sequence[int]) -> _Plan:
    matrix = next(iter(material.matrices.values()))
    sample = make_sample(task, material.labels, matrix, conf.stratify, folds_of=conf.folds_of)
    folds = make_folds(sample, conf.folds, seeds)
    inside = inner_folds(sample, folds, conf)
    fits = {
        name: method_fits(sample, folds, inside, conf, {one: _matrix(name, conf.turn(name, one)) for one in seeds})
        for name in conf.representations
    }
    return _Plan(sample=sample, folds=folds, fits=fits)


def _fit(
    plans: Sequence[_Plan], matrices: Mapping[str, Matrix], store: FitStore | None, progress: Progress
) -> list[dict[str, MethodResults]]:
    """Fits the folds of all tasks, methods and heads side by side; for each plan the results of each method."""
    fits = [fit for plan in plans for of_method in plan.fits.values() for fit in of_method.listed()]
    numbers = {name: matrix.x for name, matrix in matrices.items()}
    in_order = iter(run_fits(fits, numbers, store=store, progress=progress, text="Evaluating folds"))
    return [{name: fits.taken(in_order) for name, fits in plan.fits.items()} for plan in plans]


def _entries(
    plans: Sequence[_Plan],
    judged: Sequence[Judged],
    conf: EvaluateConf,
    seed: int,
    progress: Progress,
) -> list[Entry]:
    """Rows of the leaderboard; the resamples take as long as the fits where methods are many."""
    total = sum(count_figures(plan.sample, said) for plan, said in zip(plans, judged, strict=True))
    entries: list[Entry] = []
    with progress.task("Resampling clients", total=total) as bar:
        for plan, said in zip(plans, judged, strict=True):
            entries += leaderboard(
                plan.sample, said, baseline=conf.baseline, count=conf.bootstrap, seed=seed, done=bar.advance
            )
    return entries


def _judged(
    plan: _Plan, said: Mapping[str, Shown], matrix: Matrix, bounds: Mapping[str, pd.DataFrame]
) -> dict[str, Mapping[str, Any]]:
    judged = {name: one.best for name, one in said.items()}
    for name, bound in bounds.items():
        if (p := bound_probabilities(plan.sample, matrix, bound)) is not None:
            judged[name] = constant_predictions(plan.sample, plan.folds, p)
    if plan.sample.task.kind != "regression":
        judged[MAJORITY] = majority_predictions(plan.sample, plan.folds)
    else:
        judged[MEAN] = central_predictions(plan.sample, plan.folds, lambda y: float(np.mean(y)))
        judged[MEDIAN] = central_predictions(plan.sample, plan.folds, lambda y: float(np.median(y)))
    return {
        name: {**of_split, **group_predictions(plan.sample, of_split["cross_validation"])}
        for name, of_split in judged.items()
    }


def _task_facts(
    plan: _Plan,
    said: Mapping[str, Shown],
    judged: Judged,
    matrices: Mapping[str, Matrix],
    baseline: str,
) -> dict[str, Any]:
    """What the report draws of one task."""
    sample, names = plan.sample, plan.sample.task.class_names
    facts: dict[str, Any] = {
        "kind": sample.task.kind,
        "classes": list(names),
        "development_rows": len(sample.development),
        "test_rows": len(sample.test),
        "paired_tests": paired_tests(sample, judged, baseline=baseline),
        "heads": {name: one.facts(sample) for name, one in said.items()},
        "columns": {name: matrices[name].x.shape[1] for name in said},
        "importance": {name: importances(one.gains, matrices[name]) for name, one in said.items() if one.gains},
    }
    if sample.task.kind == "regression":
        return facts
    held = {name: pooled(sample, of_split["cross_validation"]) for name, of_split in judged.items() if name != MAJORITY}
    return facts | {
        "roc": {name: roc_points(y, p, names) for name, (y, p) in held.items()},
        "calibration": {name: calibration_bins(y, p) for name, (y, p) in held.items()},
        "confusion": {name: confusion(y, p, names) for name, (y, p) in held.items()},
    }


def _first_embedding(conf: EvaluateConf) -> str | None:
    named = conf.representations.items()
    return next((name for name, chosen in named if all(one.table == "embeddings" for one in chosen)), None)
