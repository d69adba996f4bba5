"""Scores every client that has the vectors of a head: probabilities, prediction, decile and the top reasons."""

from __future__ import annotations

import sys
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, StageName
from ledgerlm.errors import DataError
from ledgerlm.heads.head import MLLIB, load_card
from ledgerlm.heads.mllib import score_mllib
from ledgerlm.heads.scoring import score_rows, with_deciles
from ledgerlm.heads.vectors import join_sources
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ScoreConf(Conf):
    """Settings of the score job."""

    stages: tuple[StageName, ...] = Field((StageName("fit"),), description="fit stages whose heads score")
    heads: tuple[str, ...] | None = Field(None, description="head ids to score with; default all heads of the stages")
    reasons: int = Field(3, ge=0, description="features named as reasons for each score; 0 is fastest")


def run(ctx: Context, conf: ScoreConf) -> StageResult:
    """Scores with one head after the other and writes all scores in one commit."""
    chosen = conf.heads or tuple(head["head_id"] for stage in conf.stages for head in ctx.facts(stage)["heads"])
    heads = tuple(dict.fromkeys(chosen))
    scored = []
    with ctx.progress.task("Scoring", total=len(heads)) as bar:
        for head_id in heads:
            scored.append(_scored(ctx, conf, head_id))
            bar.advance()
    # The deciles need the scores twice; on disk they are kept without running the model twice.
    rows = sum(frame.count() for frame in scored)
    written = ctx.write("scores", reduce(lambda one, other: one.unionByName(other), scored), {"head_id": tuple(heads)})
    if written.rows != rows:
        raise DataError(f"{rows} scores were made, but {written.rows} written; run the stage again")
    return StageResult(rows_in=rows, rows_out=written.rows, facts={"heads": list(heads)})


def _scored(ctx: Context, conf: ScoreConf, head_id: str) -> DataFrame:
    folder = ctx.artefacts / "heads"
    card = load_card(folder, head_id)
    joined = join_sources(card.sources, {source.table: ctx.read(source.table) for source in card.sources})
    if card.kind == "lightgbm":
        threads = int(ctx.spark.conf.get("spark.task.cpus", "1") or 1)
        scored = score_rows(joined, folder, head_id, reasons=conf.reasons, threads=threads)
    else:
        scored = score_mllib(joined, card.blocks, card.task, folder / head_id / MLLIB)
    kept = with_deciles(ctx.keep(scored)).drop("margin")
    return kept.withColumns({"task": F.lit(card.task.name), "head_id": F.lit(head_id)})


JOB = Job(
    name="score",
    engine="spark",
    conf=ScoreConf,
    run=run,
    reads=("features?", "embeddings?"),
    writes=lambda stage: {"scores": {"heads": stage.conf.stages}},
    uses=("lightgbm",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
