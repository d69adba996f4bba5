"""Scores every labelled row with tuned language models: probabilities over the closed set of answers."""

from __future__ import annotations

import sys
import time
from functools import reduce
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, StageName
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import DataError
from ledgerlm.heads.scoring import with_deciles
from ledgerlm.instruct.head import ADAPTER, load_instructed, model_folder, tokens_of
from ledgerlm.instruct.predict import Reading, score_prompts
from ledgerlm.instruct.prompts import body, tell
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class PredictConf(Conf):
    """Settings of the predict job."""

    stages: tuple[StageName, ...] = Field(
        (StageName("instruct"),), min_length=1, description="instruct stages whose heads score"
    )
    length: int | None = Field(None, ge=1, description="events told; left out, what the instruct stage found best")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu or cuda")
    batch_tokens: int = Field(8192, ge=64, description="most tokens of a forward pass; a GPU wants 131072 or more")
    partitions: int | None = Field(None, ge=1, description="Spark tasks; left out, four for each core")


def run(ctx: Context, conf: PredictConf) -> StageResult:
    """Scores with one head after the other and writes all scores in one commit."""
    heads = [head for stage in conf.stages for head in ctx.facts(stage)["heads"]]
    scored, facts = [], []
    with ctx.progress.task("Predicting", total=len(heads)) as bar:
        for head in heads:
            started = time.monotonic()
            frame, length = _scored(ctx, conf, head["head_id"])
            rows = frame.count()
            seconds = time.monotonic() - started
            scored.append(frame)
            facts.append({**head, "length": length, "rows": rows, "rows_per_second": round(rows / seconds, 1)})
            bar.advance()
    total = sum(one["rows"] for one in facts)
    written = ctx.write(
        "scores",
        reduce(lambda one, other: one.unionByName(other), scored),
        {"head_id": tuple(head["head_id"] for head in heads)},
    )
    if written.rows != total:
        raise DataError(f"{total} scores were made, but {written.rows} written; run the stage again")
    return StageResult(rows_in=total, rows_out=written.rows, facts={"heads": facts})


def _scored(ctx: Context, conf: PredictConf, head_id: str) -> tuple[DataFrame, int]:
    """Scores of one head, computed once and kept on disk, and how many events were told."""
    folder = ctx.artefacts.absolute() / "instruct"
    card, home = load_instructed(folder, head_id), folder / head_id
    length = conf.length or card.length
    examples = ctx.read("labels").where(F.col("task") == card.task.name).select("client_id", "as_of")
    told = tell(
        ctx.read("events"),
        ctx.read("clients"),
        examples,
        ctx.spec,
        card.prompt,
        most=length,
        dictionaries=ctx.maybe("dictionaries"),
    )
    reading = Reading(
        model=str(model_folder(home, card)),
        adapter=str(home / ADAPTER) if card.adapter else None,
        tokens=tokens_of(home, card),
        device=conf.device,
        threads=int(ctx.spark.conf.get("spark.task.cpus", "1") or 1),
        batch_tokens=conf.batch_tokens,
    )
    partitions = conf.partitions or tasks_for(examples.count(), 1_000)
    prompts = told.select("client_id", "as_of", body(length).alias("body")).repartition(partitions)
    scored = ctx.keep(score_prompts(prompts, reading, card))  # the deciles need them twice
    named: dict[str, Any] = {"task": F.lit(card.task.name), "head_id": F.lit(head_id)}
    return with_deciles(scored).drop("margin").withColumns(named), length


JOB = Job(
    name="predict",
    engine="spark",
    conf=PredictConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?"),
    writes=lambda stage: {"scores": {"heads": stage.conf.stages}},
    uses=("torch", "transformers", "peft"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
