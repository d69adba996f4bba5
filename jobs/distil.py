"""Distils a large teacher into a small student that reads the same sentences: Ray Train, DeepSpeed, KL divergence."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.backbone.settings import BackboneCard, LlamaShape
from ledgerlm.config import Conf, FileName, StageName, load_yaml
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import DataError
from ledgerlm.heads.alimn.settings import DistilRankConf, DistilTrainingConf
from ledgerlm.heads.alimn.states import different_sentences, read_sentences, state_definition
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.training.launch import train
from ledgerlm.training.settings import WorkersConf, placed


class DistilConf(Conf):
    """Settings of the distil job."""

    teacher: str | None = Field(None, description="teacher's folder; left out, the backbone of the stage `of`")
    of: StageName = Field(StageName("finetune"), description="stage that left the teacher")
    tokenizer: str | None = Field(None, description="folder of the student's tokenizer; left out, the teacher's")
    shape: LlamaShape = Field(
        LlamaShape(width=32, layers=1, heads=2, ffn=64), description="shape of the student, a Llama from scratch"
    )
    context: int = Field(256, ge=8, description="most tokens of a sentence with its BOS")
    last_k: int = Field(2, ge=1, description="teacher's hidden layers averaged, counted from the last")
    most: int = Field(100_000, ge=100, description="different sentences of training clients at the most")
    training: DistilTrainingConf = Field(DistilTrainingConf(), description="the loss and the loop")
    workers: WorkersConf = Field(WorkersConf(), description="processes that train")
    deepspeed: FileName = Field(FileName("deepspeed/zero1.json"), description="DeepSpeed settings, ZeRO stage 0 to 2")


def run(ctx: Context, conf: DistilConf) -> StageResult:
    """Reads the training clients' sentences with the teacher, trains the student, and leaves it as a backbone."""
    from ledgerlm.backbone import model

    teacher = Path(conf.teacher or ctx.facts(conf.of)["backbone"]).resolve()
    worker = _worker(ctx, conf, teacher)
    rows = _teacher_states(ctx, conf, teacher, worker.rows)
    if not rows:
        raise DataError("no sentence of a training client to distil from; run the describe stage")
    ctx.ray.start()
    with ctx.progress.task("Distilling"):
        found = train("ledgerlm.heads.alimn.distil:distil_rank", worker, conf.workers)
    result = worker.result
    student = model.load_backbone(result)
    card = BackboneCard(
        model_type=student.config.model_type,
        parameters=model.parameter_count(student),
        vocabulary=student.config.vocab_size,
        context=conf.context,
        dtype="float32",
        base=f"distilled from {teacher.name}",
        training={"conf": conf.model_dump(mode="json"), **found},
    )
    folder, card = model.keep_backbone(result, ctx.artefacts.absolute() / "backbones", card)
    facts = {"backbone": str(folder), "teacher": str(teacher), **card.model_dump(mode="json", exclude={"training"})}
    facts["teacher_parameters"] = model.parameter_count(model.load_backbone(teacher))
    curve = found["curve"]
    facts |= {"first_loss": curve[0]["loss"], "last_loss": curve[-1]["loss"]}
    return StageResult(rows_in=rows, rows_out=rows, artefacts=[str(folder)], facts=facts)


def _worker(ctx: Context, conf: DistilConf, teacher: Path) -> DistilRankConf:
    staging = ctx.staging.absolute()
    return DistilRankConf(
        rows=staging / "rows",
        folder=staging / "train",
        teacher=teacher if conf.training.token else None,
        tokenizer=Path(conf.tokenizer or teacher).resolve(),
        shape=conf.shape,
        context=conf.context,
        training=conf.training,
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        seed=ctx.seed,
        **placed(conf.workers),
    )


def _teacher_states(ctx: Context, conf: DistilConf, teacher: Path, folder: Path) -> int:
    """Stages the teacher's state of each different sentence of training clients; returns how many."""
    from ledgerlm.backbone import model
    from ledgerlm.backbone.embedder import resolve_definition

    if not (folder / "_SUCCESS").exists():
        train = ctx.read("clients").where("split = 'train'").select("client_id")
        own = ctx.read("sentences").join(train, on="client_id", how="left_semi")
        chosen = own.select("text").distinct().orderBy(F.xxhash64("text"), "text").limit(conf.most)
        definition = resolve_definition(
            str(teacher), state_definition(None, conf.last_k), text_format="notes", fields=()
        )
        asked = different_sentences(chosen, None).repartition(tasks_for(chosen.count(), 2_000))
        identity = model.backbone_id(teacher)
        read = read_sentences(asked, chosen, folder=str(teacher), backbone_id=identity, definition=definition)
        kept = read.where("reason IS NULL").select("text", "state")
        kept.coalesce(1).write.mode("overwrite").parquet(folder.absolute().as_uri())
    return ctx.spark.read.parquet(folder.absolute().as_uri()).count()


JOB = Job(
    name="distil",
    engine="ray train + deepspeed",
    conf=DistilConf,
    run=run,
    reads=("sentences", "clients"),
    uses=("torch", "transformers", "deepspeed"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
