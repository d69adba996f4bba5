"""Compares representations under one protocol: a leaderboard with intervals, and what the report draws."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ledgerlm.config import Conf
from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.leaderboard import (
    BAYES,
    MAJORITY,
    Entry,
    Judged,
    leaderboard,
    leaderboard_rows,
    paired_tests,
)
from ledgerlm.evaluation.pictures import calibration_bins, confusion, importances, pooled, projection, roc_points
from ledgerlm.evaluation.protocol import (
    Fold,
    Sample,
    bayes_probabilities,
    constant_predictions,
    fold_fits,
    group_predictions,
    labelled_rows,
    majority_predictions,
    make_folds,
    make_sample,
    read_bayes,
    read_rows,
    split_predictions,
)
from ledgerlm.heads.boosting import LightGBMConf
from ledgerlm.heads.parallel import Fit, Fitted, run_on_ray
from ledgerlm.heads.tasks import declared_tasks, find_tasks
from ledgerlm.heads.vectors import KEY, Matrix, Source, method_matrices
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame


class EvaluateConf(Conf):
    """Settings of the evaluate job."""

    representations: dict[str, tuple[Source, ...]] = Field(
        min_length=1, description="method name -> vectors that it reads, side by side"
    )
    baseline: str = Field("agg", description="method that the others are set against")
    tasks: tuple[str, ...] | None = Field(None, description="tasks to evaluate; default all in labels")
    folds: int = Field(5, ge=2, description="stratified folds of the clients that are not in the test split")
    seeds: tuple[int, ...] | None = Field(None, description="seeds of folds and trees; default the pipeline's seed")
    trainings: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="embed or encode stage -> stages that differ from it by the seed of the training alone: the folds "
        "of the first seed read the stage itself, those of the second seed the first of these, and so on; so figures, "
        "deviations and intervals hold the luck of the training, too",
    )
    stratify: tuple[str, ...] = Field(
        (), description="tasks whose labels together stratify the folds; default each own"
    )
    folds_of: Literal["train", "all"] = Field(
        "train",
        description="clients in the folds; all: nobody is set apart as a test client, as in figures of small sets that "
        "others give",
    )
    within: str | None = Field(
        None, description="client attribute; figures are also given within each of its values, from the same folds"
    )
    lightgbm: LightGBMConf = Field(LightGBMConf(), description="settings of LightGBM")
    rows: Literal["common", "all"] = Field(
        "common", description="common: clients that every representation knows; all: with zeros and a flag for the rest"
    )
    max_rows: int = Field(100_000, ge=100, description="labels read to the driver; whole clients are left out above it")
    bootstrap: int = Field(1000, ge=100, description="resamples of clients for the intervals")
    map_of: str | None = Field(
        None, description="method whose vectors are mapped; default the first with embeddings only"
    )

    @model_validator(mode="after")
    def _known_methods(self) -> EvaluateConf:
        if self.map_of is not None and self.map_of not in self.representations:
            raise ValueError(f"map_of: no representation '{self.map_of}'")
        for name in (MAJORITY, BAYES):
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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One task with its folds and the fits of each method."""

    sample: Sample
    folds: Sequence[Fold]
    fits: Mapping[str, Sequence[Fit]]


def run(ctx: Context, conf: EvaluateConf) -> StageResult:
    """Reads the labelled sample, fits every fold, and judges."""
    labels = ctx.read("labels")
    tasks = find_tasks(labels, conf.tasks, declared_tasks(ctx.spec))
    named = [*(task.name for task in tasks), *conf.stratify]
    rows = labelled_rows(labels, ctx.read("clients"), named, conf.max_rows, conf.within)
    keys = rows.select(*KEY).distinct()
    matrices = _matrices(ctx, conf, keys)
    matrix = next(iter(matrices.values()))
    frame = read_rows(rows)
    truth = ctx.maybe("bayes")
    bayes = None if truth is None else read_bayes(truth, keys)
    plans = []
    for task in tasks:
        sample = make_sample(task, frame, matrix, conf.stratify, folds_of=conf.folds_of)
        folds = make_folds(sample, conf.folds, conf.seeds or (ctx.seed,))
        plans.append(
            _Plan(
                sample=sample,
                folds=folds,
                fits={
                    name: [
                        replace(fit, matrix=_matrix(name, conf.turn(name, fit.seed)))
                        for fit in fold_fits(sample, folds, name, conf.lightgbm)
                    ]
                    for name in conf.representations
                },
            )
        )
    fitted = _fit(ctx, plans, matrices)
    entries: list[Entry] = []
    facts: dict[str, Any] = {}
    for plan, results in zip(plans, fitted, strict=True):
        judged = _judged(plan, results, matrix, bayes)
        entries += leaderboard(plan.sample, judged, baseline=conf.baseline, count=conf.bootstrap, seed=ctx.seed)
        facts[plan.sample.task.name] = _task_facts(plan, results, judged, matrices, conf.baseline)
    written = ctx.write("leaderboard", leaderboard_rows(ctx.spark, entries, ctx.stage), {"stage": (ctx.stage,)})
    samples = [plan.sample for plan in plans]
    mapped = conf.map_of or _first_embedding(conf)
    return StageResult(
        rows_in=len(frame),
        rows_out=written.rows,
        facts={
            "baseline": conf.baseline,
            "leaderboard": [entry.row() for entry in entries],
            "tasks": facts,
            "map": {"method": mapped, **projection(matrices[mapped], samples, ctx.seed)} if mapped else {},
        },
    )


def _matrices(ctx: Context, conf: EvaluateConf, keys: DataFrame) -> dict[str, Matrix]:
    """The vectors of each method, and of its further trainings, over the same rows."""
    names: set[str] = {source.table for chosen in conf.representations.values() for source in chosen}
    tables = {name: ctx.read(name) for name in names}
    turns = {name: {conf.turn(name, seed) for seed in conf.seeds or (0,)} for name in conf.representations}
    wanted = {_matrix(name, turn): conf.at(name, turn) for name, of_name in turns.items() for turn in of_name}
    found = method_matrices(wanted, tables, ctx.facts, keys, union=conf.rows == "all")
    for name, of_name in turns.items():
        widths = {found[_matrix(name, turn)].x.shape[1] for turn in of_name}
        if len(widths) > 1:
            raise ConfigError(
                f"evaluate: trainings: those of '{name}' have {sorted(widths)} features, not as many each"
            )
    return found


def _matrix(method: str, turn: int) -> str:
    """Name of a method's matrix by the turn of its training."""
    return f"{method}#{turn}" if turn else method


def _fit(ctx: Context, plans: Sequence[_Plan], matrices: Mapping[str, Matrix]) -> list[dict[str, list[Fitted]]]:
    """Fits the folds of all tasks and methods side by side; for each plan the results of each method, in fold order."""
    fits = [fit for plan in plans for of_method in plan.fits.values() for fit in of_method]
    results: dict[int, Fitted] = {}
    ctx.ray.start()
    with ctx.progress.task("Evaluating folds", total=len(fits)) as bar:
        for place, fitted in run_on_ray(fits, {name: matrix.x for name, matrix in matrices.items()}):
            results[place] = fitted
            bar.advance()
    in_order = iter([results[place] for place in range(len(fits))])
    return [{name: [next(in_order) for _ in fits] for name, fits in plan.fits.items()} for plan in plans]


def _judged(
    plan: _Plan, results: Mapping[str, Sequence[Fitted]], matrix: Matrix, bayes: pd.DataFrame | None
) -> dict[str, Mapping[str, Any]]:
    judged = {name: split_predictions(plan.sample, plan.folds, fitted) for name, fitted in results.items()}
    if bayes is not None and (p := bayes_probabilities(plan.sample, matrix, bayes)) is not None:
        judged[BAYES] = constant_predictions(plan.sample, plan.folds, p)
    if plan.sample.task.kind != "regression":
        judged[MAJORITY] = majority_predictions(plan.sample, plan.folds)
    return {
        name: {**of_split, **group_predictions(plan.sample, of_split["cross_validation"])}
        for name, of_split in judged.items()
    }


def _task_facts(
    plan: _Plan,
    results: Mapping[str, Sequence[Fitted]],
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
        "importance": {
            name: importances([one.gains for one in fitted], matrices[name]) for name, fitted in results.items()
        },
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


JOB = Job(
    name="evaluate",
    engine="ray + lightgbm",
    conf=EvaluateConf,
    run=run,
    reads=("labels", "clients", "features?", "embeddings?", "bayes?"),
    writes=lambda stage: {"leaderboard": {"stage": (stage.name,)}},
    uses=("lightgbm", "scikit-learn"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
