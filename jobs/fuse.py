"""Trains ALIMN networks and their ablations on texts and structured features, and scores every client with them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.config import Conf, FileName, load_yaml
from ledgerlm.errors import DataError
from ledgerlm.evaluation.report.fusion import training_section
from ledgerlm.heads.alimn.settings import FusionRankConf, FusionTrainingConf, LateFusion, NetworkConf
from ledgerlm.heads.alimn.staging import stage_clients
from ledgerlm.heads.publish import with_deciles
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.heads.vectors import KEY, Block, Source, join_sources, learn_blocks
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.training.launch import train
from ledgerlm.training.settings import WorkersConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.heads.alimn.publish import FusedHead


class FuseConf(Conf):
    """Settings of the fuse job."""

    task: str = Field(description="binary task of `labels` that networks are trained for unless they name another")
    sources: tuple[Source, ...] = Field(min_length=1, description="structured vectors, side by side")
    state_set: str = Field("text", description="sentence states, from the read job")
    domains: tuple[str, ...] | None = Field(None, description="domain tags of the sentences that are read; default all")
    networks: dict[str, NetworkConf] = Field(
        {"alimn": NetworkConf()}, min_length=1, description="name -> network; all are trained in one Ray Train run"
    )
    late: dict[str, LateFusion] = Field(
        default_factory=dict, description="name -> networks put together after the fact"
    )
    training: FusionTrainingConf = Field(FusionTrainingConf(), description="the training loop")
    workers: WorkersConf = Field(WorkersConf(), description="processes that train")
    deepspeed: FileName = Field(FileName("deepspeed/zero1.json"), description="DeepSpeed settings, ZeRO stage 0 to 2")
    reasons: int = Field(3, ge=0, description="features and sentences named as reasons for each score")

    @model_validator(mode="after")
    def _members_known(self) -> FuseConf:
        for name, late in self.late.items():
            if name in self.networks:
                raise ValueError(f"late.{name}: a network has this name")
            if unknown := [member for member in late.members if member not in self.networks]:
                raise ValueError(f"late.{name}: no network '{unknown[0]}'")
            if len({self.networks[member].task for member in late.members}) > 1:
                raise ValueError(f"late.{name}: its members are of different tasks")
        return self

    @property
    def complete(self) -> dict[str, NetworkConf]:
        """The networks with their tasks filled in."""
        return {
            name: network.model_copy(update={"task": network.task or self.task})
            for name, network in self.networks.items()
        }


def run(ctx: Context, conf: FuseConf) -> StageResult:
    """Stages the training clients, trains, publishes the heads, and scores everyone."""
    from ledgerlm.heads.alimn.publish import facts_of, publish  # torch takes seconds to import

    names = sorted({network.task for network in conf.complete.values() if network.task})
    tasks = {task.name: task for task in ctx.tasks(names, kinds=["binary"])}
    sources = tuple(source.pinned(ctx.facts) for source in conf.sources)
    everyone = _clients(ctx, conf, sources)
    training = everyone.join(ctx.read("clients").where("split = 'train'"), on="client_id", how="left_semi")
    blocks = learn_blocks(training.drop("sentences"))
    worker = _worker(ctx, conf, blocks, _domains(everyone))
    staged = reduce(_with_label, [(ctx.read("labels"), task) for task in tasks.values()], training)
    stage_clients(staged, worker.rows, held_out=conf.training.held_out, seed=ctx.seed, ranks=conf.workers.ranks)
    ctx.failpoint("after_staging")
    ctx.ray.start()
    with ctx.progress.task(f"Training {len(conf.networks)} networks"):
        train("ledgerlm.heads.alimn.training:train_rank", worker, conf.workers)
    ctx.failpoint("after_training")
    heads = publish(
        worker, ctx.artefacts / "heads", tasks=tasks, sources=sources, state_set=conf.state_set, late=conf.late
    )
    rows = _scored(ctx, conf, everyone, heads)
    found = [facts_of(head) for head in heads.values()]
    return StageResult(
        rows_in=rows,
        rows_out=rows,
        artefacts=[str(ctx.artefacts / "heads" / head.head_id) for head in heads.values()],
        facts={"heads": found, "report": [training_section(ctx.stage, found)]},
    )


def _clients(ctx: Context, conf: FuseConf, sources: Sequence[Source]) -> DataFrame:
    """client_id, as_of, the sources' columns and `sentences`, of clients that have all of them."""
    vectors = join_sources(sources, {source.table: ctx.read(source.table) for source in sources})
    states = ctx.read("text_states").where(F.col("state_set") == conf.state_set)
    if conf.domains is not None:
        wanted = F.array(*(F.lit(domain) for domain in conf.domains))
        states = states.withColumn("sentences", F.filter("sentences", lambda one: F.array_contains(wanted, one.domain)))
    joined = vectors.join(states.select(*KEY, "sentences"), on=list(KEY), how="inner")
    if joined.isEmpty():
        raise DataError(f"no client has both the structured vectors and states of set '{conf.state_set}'; run read")
    return joined


def _domains(everyone: DataFrame) -> tuple[str, ...]:
    tags = everyone.select(F.explode("sentences.domain").alias("domain")).distinct().orderBy("domain")
    return tuple(row["domain"] for row in tags.limit(100).collect())


def _with_label(rows: DataFrame, labelled: tuple[DataFrame, Task]) -> DataFrame:
    """Adds `label_TASK`: class index, NaN for a client without a label."""
    labels, task = labelled
    own = labels.where(F.col("task") == task.name).select(*KEY, class_index(task).alias("_label"))
    known = rows.join(own, on=list(KEY), how="left")
    return known.withColumn(f"label_{task.name}", F.coalesce("_label", F.lit(float("nan")))).drop("_label")


def _worker(ctx: Context, conf: FuseConf, blocks: Sequence[Block], domains: tuple[str, ...]) -> FusionRankConf:
    staging = ctx.staging.absolute()
    return FusionRankConf(
        rows=staging / "rows",
        folder=staging / "train",
        networks=conf.complete,
        blocks=tuple(blocks),
        domains=domains,
        training=conf.training,
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        seed=ctx.seed,
        **placed(conf.workers),
    )


def _scored(ctx: Context, conf: FuseConf, everyone: DataFrame, heads: Mapping[str, FusedHead]) -> int:
    """Scores all clients with all heads in one pass; returns their rows."""
    from ledgerlm.heads.alimn.scoring import score_fusion

    ids = [head.head_id for head in heads.values()]
    with ctx.progress.task("Scoring"):
        scored = score_fusion(everyone, ctx.artefacts / "heads", ids, reasons=conf.reasons)
        kept = ctx.keep(scored)
        rows = kept.count()
        parts = []
        for head in heads.values():
            own = with_deciles(kept.where(F.col("head_id") == head.head_id)).drop("margin")
            parts.append(own.withColumn("task", F.lit(head.card.task.name)))
        written = ctx.write("scores", reduce(lambda one, other: one.unionByName(other), parts), {"head_id": tuple(ids)})
    if written.rows != rows:
        raise DataError(f"{rows} scores were made, but {written.rows} written; run the stage again")
    return rows


JOB = Job(
    name="fuse",
    engine="ray train + deepspeed",
    conf=FuseConf,
    run=run,
    reads=("labels", "clients", "features", "embeddings", "text_states"),
    writes=lambda stage: {"scores": {"heads": (stage.name,)}},
    uses=("torch", "transformers", "deepspeed"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
