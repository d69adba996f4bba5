"""The low-data study: how good each representation is when only a few clients have a label."""

from __future__ import annotations

import sys

from pydantic import Field
from pyspark.sql.types import StructType

from ledgerlm.config import Conf
from ledgerlm.evaluation.low_data import LowDataEntry, draw, entries, predictions, report_section
from ledgerlm.evaluation.protocol import labelled_rows, make_folds, make_sample, read_rows
from ledgerlm.heads.tasks import declared_tasks, find_tasks
from ledgerlm.heads.vectors import KEY, Source, method_matrices
from ledgerlm.lake.schemas import LOW_DATA
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class LowDataConf(Conf):
    """Settings of the low_data job."""

    representations: dict[str, tuple[Source, ...]] = Field(
        min_length=1, description="method name -> vectors that it reads, side by side"
    )
    baseline: str = Field("agg", description="method that the others are set against")
    tasks: tuple[str, ...] | None = Field(None, description="tasks; default all in labels")
    counts: tuple[int, ...] = Field((1, 3, 10, 30, 100, 300), min_length=1, description="labelled clients of a draw")
    repeats: int = Field(4, ge=1, description="draws of a size in each fold")
    folds: int = Field(5, ge=2, description="stratified folds of the training clients")
    seeds: tuple[int, ...] | None = Field(None, description="seeds of folds and draws; default the pipeline's seed")
    stratify: tuple[str, ...] = Field((), description="tasks whose labels together stratify the folds")
    strength: float = Field(0.1, gt=0, description="L2 penalty of the linear head, a feature")
    max_rows: int = Field(20_000, ge=100, description="labels read to the driver; whole clients are left out above it")


def run(ctx: Context, conf: LowDataConf) -> StageResult:
    """Draws, fits and judges for each task and method."""
    labels = ctx.read("labels")
    tasks = find_tasks(labels, conf.tasks, declared_tasks(ctx.spec))
    named = [*(task.name for task in tasks), *conf.stratify]
    rows = labelled_rows(labels, ctx.read("clients"), named, conf.max_rows)
    names: set[str] = {one.table for chosen in conf.representations.values() for one in chosen}
    tables = {name: ctx.read(name) for name in names}
    matrices = method_matrices(conf.representations, tables, ctx.facts, rows.select(*KEY).distinct())
    frame = read_rows(rows)
    found: list[LowDataEntry] = []
    with ctx.progress.task("Fitting on few labels", total=len(tasks) * len(matrices)) as bar:
        for task in tasks:
            sample = make_sample(task, frame, next(iter(matrices.values())), conf.stratify)
            draws = draw(sample, make_folds(sample, conf.folds, conf.seeds or (ctx.seed,)), conf.counts, conf.repeats)
            said = {}
            for name, matrix in matrices.items():
                said[name] = list(predictions(sample, matrix.x, draws, conf.strength))
                bar.advance()
            found += entries(sample, draws, said, conf.baseline)
    schema = StructType(list(LOW_DATA.columns))
    content = [(ctx.stage, *(one.row()[name] for name in schema.fieldNames() if name != "stage")) for one in found]
    written = ctx.write("low_data", ctx.spark.createDataFrame(content, schema), {"stage": (ctx.stage,)})
    return StageResult(
        rows_in=len(frame),
        rows_out=written.rows,
        facts={"low_data": [one.row() for one in found], "report": [report_section(found)]},
    )


JOB = Job(
    name="low_data",
    engine="local",
    conf=LowDataConf,
    run=run,
    finds=True,
    reads=("labels", "clients", "features?", "embeddings?"),
    writes=lambda stage: {"low_data": {"stage": (stage.name,)}},
    uses=("scikit-learn",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
