"""Distils a teacher into a student: the teacher's states by Spark, the student by Ray Train, kept as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.backbone.settings import BackboneCard, LlamaShape
from ledgerlm.config import Conf, FileName, StageName
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import DataError
from ledgerlm.files import bring, url_of
from ledgerlm.heads.alimn.settings import DistilRankConf, DistilTrainingConf
from ledgerlm.heads.alimn.states import different_sentences, read_sentences, state_definition
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress
from ledgerlm.training.launch import train
from ledgerlm.training.settings import WorkersConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.engines.ray import RayEngine

_SENTENCES_A_TASK = 2_000


class DistilConf(Conf):
    """Settings of the distil job."""

    teacher: str | None = Field(None, description="teacher's folder; left out, the backbone of the stage `of`")
    of: StageName | None = Field(
        None, description="stage that left the teacher; left out, the latest finetune stage before this one"
    )
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


def distil(
    sentences: DataFrame,
    clients: DataFrame,
    conf: DistilConf,
    *,
    ray: RayEngine,
    teacher: Path,
    deepspeed: Mapping[str, Any],
    staging: Path,
    folder: Path,
    seed: int,
    progress: Progress | None = None,
) -> Made:
    """Reads the training clients' sentences with the teacher, trains the student, and leaves it as a backbone.

    A distillation that was killed goes on from what it left in `staging`.

    Args:
        sentences: the `sentences` table.
        clients: the `clients` table, for the split.
        conf: settings.
        ray: started once the teacher has read.
        teacher: its folder.
        deepspeed: DeepSpeed's settings, ZeRO stage 0 to 2.
        staging: working folder that all ranks reach.
        folder: the artefacts' `backbones` folder.
        seed: of the first weights and the order.
        progress: what the user sees.

    Returns:
        The student's folder, and facts: `backbone` (that folder), `teacher`, the card, the first and the last loss,
        and the teacher's weights.

    Raises:
        DataError: no sentence of a training client.
        EngineError: training ended without a result.
    """
    teacher = teacher.resolve()
    worker = _worker(conf, teacher, deepspeed, staging.absolute(), seed)
    rows = _stage_states(sentences, clients, conf, teacher, worker.rows)
    if not rows:
        raise DataError("no sentence of a training client to distil from; run the describe stage")
    ray.start()
    with (progress or Progress()).task("Distilling"):
        found = train("ledgerlm.heads.alimn.distil:distil_rank", worker, conf.workers)
    return _kept(worker, conf, found, teacher=teacher, rows=rows, home=folder.absolute())


def _worker(conf: DistilConf, teacher: Path, deepspeed: Mapping[str, Any], staging: Path, seed: int) -> DistilRankConf:
    return DistilRankConf(
        rows=staging / "rows",
        folder=staging / "train",
        teacher=teacher if conf.training.token else None,
        tokenizer=Path(conf.tokenizer or teacher).resolve(),
        shape=conf.shape,
        context=conf.context,
        training=conf.training,
        deepspeed=dict(deepspeed),
        seed=seed,
        **placed(conf.workers),
    )


def _stage_states(sentences: DataFrame, clients: DataFrame, conf: DistilConf, teacher: Path, folder: Path) -> int:
    """Stages the teacher's state of each different sentence of training clients; returns how many."""
    from ledgerlm.backbone import model
    from ledgerlm.backbone.embedder import resolve_definition

    if not (folder / "_SUCCESS").exists():
        training = clients.where("split = 'train'").select("client_id")
        own = sentences.join(training, on="client_id", how="left_semi")
        chosen = own.select("text").distinct().orderBy(F.xxhash64("text"), "text").limit(conf.most)
        definition = resolve_definition(
            str(teacher), state_definition(None, conf.last_k), text_format="notes", fields=()
        )
        asked = different_sentences(chosen, None).repartition(tasks_for(chosen.count(), _SENTENCES_A_TASK))
        identity = model.backbone_id(teacher)
        read = read_sentences(asked, chosen, folder=str(teacher), backbone_id=identity, definition=definition)
        kept = read.where("reason IS NULL").select("text", "state")
        kept.coalesce(1).write.mode("overwrite").parquet(url_of(folder))
        bring(folder)
    return sentences.sparkSession.read.parquet(url_of(folder)).count()


def _kept(
    worker: DistilRankConf, conf: DistilConf, found: Mapping[str, Any], *, teacher: Path, rows: int, home: Path
) -> Made:
    """Writes the student's card and copies it to its place."""
    from ledgerlm.backbone import model

    student = model.load_backbone(worker.result)
    card = BackboneCard(
        model_type=student.config.model_type,
        parameters=model.parameter_count(student),
        vocabulary=student.config.vocab_size,
        context=conf.context,
        dtype="float32",
        base=f"distilled from {teacher.name}",
        training={"conf": conf.model_dump(mode="json"), **found},
    )
    folder, card = model.keep_backbone(worker.result, home, card)
    curve = found["curve"]
    return Made(
        rows_in=rows,
        rows_out=rows,
        artefacts=[folder],
        facts={
            "backbone": str(folder),
            "teacher": str(teacher),
            **card.model_dump(mode="json", exclude={"training"}),
            "teacher_parameters": model.parameter_count(model.load_backbone(teacher)),
            "first_loss": curve[0]["loss"],
            "last_loss": curve[-1]["loss"],
        },
    )
