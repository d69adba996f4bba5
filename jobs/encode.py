"""Trains a sequence encoder (CoLES, CPC, RTD, NSP, NPPR, IFTPP, DeTPP) without labels and encodes every history."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import histories
from ledgerlm.baselines.sequence.histories import assemble, choose, learn_fields, newest, observe
from ledgerlm.baselines.sequence.settings import (
    EncoderConf,
    EncoderRankConf,
    Fields,
    FieldsConf,
    Method,
    ObjectiveConf,
    TrainingConf,
)
from ledgerlm.config import Conf, load_yaml, shipped
from ledgerlm.errors import DataError
from ledgerlm.events.asked import asked
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.training.artefacts import keep_copy
from ledgerlm.training.launch import train
from ledgerlm.training.settings import ONE_WORKER, OneWorkerConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class EncodeConf(Conf):
    """Settings of the encode job."""

    method: Method = Field("coles", description="coles, cpc, rtd, nsp, nppr, iftpp, iftpp_t or detpp")
    preset: str = Field(
        "laptop", description="file of conf/baselines/ with settings of each method; keys given here win"
    )
    as_of: dt.datetime | None = Field(
        None, description="end of histories without labels; default the spec's, or else a day after the last event"
    )
    fields: FieldsConf = Field(FieldsConf(), description="what of an event the encoder sees")
    encoder: EncoderConf = Field(EncoderConf(), description="shape of the encoder")
    objective: ObjectiveConf = Field(description="settings of the method's loss")
    training: TrainingConf = Field(TrainingConf(), description="how it is trained")
    seed: int | None = Field(None, description="of the first weights and the order; left out, the pipeline's")
    workers: OneWorkerConf = Field(ONE_WORKER, description="processes of Ray Train")

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        name, method = content.get("preset", "laptop"), content.get("method", "coles")
        file = shipped(f"baselines/{name}.yaml")
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in shipped("baselines").glob("*.yaml")))
            raise ValueError(f"no settings '{name}' in conf/baselines; known: {known}")
        settings = load_yaml(file)
        if method not in settings:
            raise ValueError(f"conf/baselines/{name}.yaml has no settings for {method}; it has: {', '.join(settings)}")
        preset = settings[method]
        parts = ("fields", "encoder", "objective", "training", "workers")
        merged = {part: {**preset.get(part, {}), **(content.get(part) or {})} for part in parts}
        merged["objective"] |= {"method": method}
        return {**content, **merged}


def run(ctx: Context, conf: EncodeConf) -> StageResult:
    """Learns vocabularies and an encoder on training clients, then writes a vector for each history."""
    clients = ctx.read("clients")
    as_of = asked(clients, ctx.maybe("labels"), ctx.end(conf.as_of))
    fields = _staged(ctx, conf, clients, as_of)
    folder, curve = _train(ctx, conf, fields)
    ctx.failpoint("after_training")
    # They import torch, which takes seconds.
    from ledgerlm.baselines.sequence.inference import encode
    from ledgerlm.baselines.sequence.store import read_encoder_card

    card, identity = read_encoder_card(folder), folder.name
    staged = ctx.spark.read.parquet(_uri(ctx.staging / "histories"))
    part = {"backbone_id": (identity,), "definition_id": (card.definition_id,)}
    started = time.monotonic()
    with ctx.progress.task("Encoding histories"):
        written = ctx.write("embeddings", encode(staged, folder.resolve(), card), part)
    seconds = time.monotonic() - started
    aside = ctx.quarantine(_without_events(as_of, staged))
    rows_in = as_of.count()
    if rows_in != written.rows + aside.rows:
        raise DataError(f"{rows_in} histories gave {written.rows} vectors and {aside.rows} quarantined; run again")
    events = staged.agg(F.sum("event_count_used")).first()
    trained = sum(line["events"] for line in curve)
    return StageResult(
        rows_in=rows_in,
        rows_out=written.rows,
        quarantined=aside.rows,
        facts={
            "method": conf.method,
            "encoder": str(folder),
            "backbone_id": identity,
            "definition_id": card.definition_id,
            "parameters": card.parameters,
            "widths": {conf.method: conf.encoder.width},
            "curve": curve,
            "events_trained": round(trained),
            "training_events_per_second": round(trained / curve[-1]["seconds"]),
            "encoding_events_per_second": round((events[0] or 0) / seconds if events is not None else 0),
        },
    )


def _staged(ctx: Context, conf: EncodeConf, clients: DataFrame, as_of: DataFrame) -> Fields:
    """Fits the fields and writes the arrays of all histories as Parquet, unless an earlier attempt did."""
    folder, file = ctx.staging / "histories", ctx.staging / "fields.json"
    if (folder / "_SUCCESS").exists():
        return Fields.model_validate_json(file.read_text(encoding="utf-8"))
    chosen = choose(ctx.spec, conf.fields)
    observed = observe(ctx.read("events"), chosen)
    training = newest(as_of, clients)
    fields = learn_fields(histories(observed, training), chosen, conf.fields)
    file.write_text(fields.model_dump_json(), encoding="utf-8")
    learnt_from = training.withColumn("training", F.lit(True))
    rows = assemble(histories(observed, as_of), fields).join(learnt_from, on=["client_id", "as_of"], how="left")
    marked = rows.withColumn("training", F.coalesce("training", F.lit(False)))
    with ctx.progress.task("Laying out histories"):
        files = marked.repartition(4 * conf.workers.ranks, "client_id")
        spread = files.sortWithinPartitions("training", "client_id", "as_of")
        spread.write.mode("overwrite").partitionBy("training").parquet(_uri(folder))
    return fields


def _train(ctx: Context, conf: EncodeConf, fields: Fields) -> tuple[Path, list[dict[str, float]]]:
    """Trains the encoder; returns its folder, which bears its id, and the curve."""
    ctx.ray.start()
    rank = EncoderRankConf(
        histories=(ctx.staging / "histories" / "training=true").absolute(),
        folder=(ctx.staging / "training").absolute(),
        fields=fields,
        encoder=conf.encoder,
        objective=conf.objective,
        training=conf.training,
        seed=ctx.seed if conf.seed is None else conf.seed,
        **placed(conf.workers),
    )
    with ctx.progress.task(f"Training {conf.method}"):
        found = train("ledgerlm.baselines.sequence.training:train_rank", rank, conf.workers)
    home = ctx.artefacts / "encoders"
    return home / keep_copy(rank.result, home), found["curve"]


def _without_events(as_of: DataFrame, staged: DataFrame) -> DataFrame:
    rest = as_of.join(staged.select("client_id", "as_of"), on=["client_id", "as_of"], how="leftanti")
    return rest.select(
        F.lit("no_events").alias("reason"),
        F.concat(F.lit("client "), "client_id", F.lit(" as of "), F.col("as_of").cast("string")).alias("detail"),
        F.to_json(F.struct("client_id", "as_of")).alias("payload"),
    )


def _uri(folder: Path) -> str:
    return folder.absolute().as_uri()


JOB = Job(
    name="encode",
    engine="spark + ray train",
    conf=EncodeConf,
    run=run,
    reads=("events", "clients", "labels?"),
    writes=lambda stage: {"embeddings": {"backbone": (stage.name,)}},
    uses=("torch",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
