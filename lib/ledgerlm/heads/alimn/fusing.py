"""Trains ALIMN networks and their late fusions, and scores every client with them: the verbs behind the fuse job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.config import Conf, FileName
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import DataError
from ledgerlm.heads.alimn.head import FusedHead, join_texts, score_together
from ledgerlm.heads.alimn.settings import FusionRankConf, FusionTrainingConf, LateFusion, NetworkConf
from ledgerlm.heads.alimn.staging import stage_clients
from ledgerlm.heads.publish import scored
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.heads.vectors import KEY, Source, learn_blocks
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress
from ledgerlm.training.launch import train
from ledgerlm.training.settings import WorkersConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


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

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that networks are trained for."""
        return sorted({network.task or self.task for network in self.networks.values()})


def fuse(
    labels: DataFrame,
    clients: DataFrame,
    tables: Mapping[str, DataFrame],
    states: DataFrame,
    tasks: Sequence[Task],
    *,
    conf: FuseConf,
    facts: Callable[[str], Mapping[str, Any]],
    deepspeed: Mapping[str, Any],
    folder: Path,
    seed: int,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> list[FusedHead]:
    """Stages the training clients, trains all networks, and calibrates them; Ray must have been started.

    Args:
        labels: the `labels` table.
        clients: the `clients` table; networks learn from those of split `train`.
        tables: `features` and `embeddings`, as far as the sources name them.
        states: the `text_states` table.
        tasks: those of `conf.tasks`.
        conf: settings.
        facts: gives the facts of a finished stage by its name, or by its job's, for embeddings whose backbone the
            sources leave open.
        deepspeed: the settings that `conf.deepspeed` names.
        folder: working folder that all workers reach; what is complete in it is not made again.
        seed: of weights, order and held-out clients.
        progress: what the user sees.
        failpoint: called after the staging and after the training.

    Returns:
        The heads, not yet saved, the members of a late fusion before it.

    Raises:
        DataError: no client has both structured vectors and sentence states.
    """
    from ledgerlm.heads.alimn.calibrating import fused_heads  # torch takes seconds to import

    shown, named = progress or Progress(), {task.name: task for task in tasks}
    sources = tuple(source.pinned(facts) for source in conf.sources)
    everyone = join_texts(sources, tables, states, state_set=conf.state_set, domains=conf.domains)
    if everyone.isEmpty():
        raise DataError(f"no client has both the structured vectors and states of set '{conf.state_set}'; run read")
    training = everyone.join(clients.where("split = 'train'"), on="client_id", how="left_semi")
    worker = FusionRankConf(
        rows=folder.absolute() / "rows",
        folder=folder.absolute() / "train",
        networks=conf.complete,
        blocks=tuple(learn_blocks(training.drop("sentences"))),
        domains=_domains(everyone),
        training=conf.training,
        deepspeed=dict(deepspeed),
        seed=seed,
        **placed(conf.workers),
    )
    staged = reduce(lambda rows, task: _with_label(rows, labels, task), tasks, training)
    stage_clients(staged, worker.rows, held_out=conf.training.held_out, seed=seed, ranks=conf.workers.ranks)
    failpoint("after_staging")
    with shown.task(f"Training {len(conf.networks)} networks"):
        train("ledgerlm.heads.alimn.training:train_rank", worker, conf.workers)
    failpoint("after_training")
    fused = fused_heads(worker, tasks=named, sources=sources, state_set=conf.state_set, late=conf.late)
    return [*fused.values()]


def score_everyone(
    heads: Sequence[FusedHead],
    rows: DataFrame,
    *,
    reasons: int = 3,
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Scores clients with all heads of a training, in one pass.

    Args:
        heads: saved, the members of a late fusion before it.
        rows: from `FusedHead.inputs`, which is alike for all of them.
        reasons: features and sentences named as reasons for each score.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        See `heads.publish.scored`; the fact `heads` has what `FusedHead.described` tells of each, and its rows.
    """
    said = score_together(heads, rows, reasons=reasons)
    made = scored(said, [head.described() for head in heads], keep=keep, progress=progress)
    return replace(made, artefacts=[head.folder for head in heads])


def _domains(everyone: DataFrame) -> tuple[str, ...]:
    tags = everyone.select(F.explode("sentences.domain").alias("domain")).distinct().orderBy("domain")
    return tuple(row["domain"] for row in tags.limit(100).collect())


def _with_label(rows: DataFrame, labels: DataFrame, task: Task) -> DataFrame:
    """Adds `label_TASK`: class index, NaN for a client without a label."""
    own = labels.where(F.col("task") == task.name).select(*KEY, class_index(task).alias("_label"))
    known = rows.join(own, on=list(KEY), how="left")
    return known.withColumn(f"label_{task.name}", F.coalesce("_label", F.lit(float("nan")))).drop("_label")
