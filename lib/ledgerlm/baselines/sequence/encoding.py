"""Trains a sequence encoder without labels, and encodes histories with it: the verbs behind the encode job."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.baselines.codes import histories
from ledgerlm.baselines.sequence.histories import assemble, choose, learn_fields, newest, observe, without_events
from ledgerlm.baselines.sequence.model import SequenceEncoder
from ledgerlm.baselines.sequence.settings import (
    ENCODER_FILES,
    EncoderConf,
    EncoderRankConf,
    Fields,
    FieldsConf,
    Method,
    ObjectiveConf,
    TrainingConf,
)
from ledgerlm.config import Conf, load_yaml, shipped
from ledgerlm.engines.frames import Keep
from ledgerlm.files import bring, push, url_of
from ledgerlm.lake.made import Made, Rows
from ledgerlm.progress import Progress
from ledgerlm.training.launch import train
from ledgerlm.training.settings import ONE_WORKER, OneWorkerConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.events.spec import DataSetSpec


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


def learn_encoder(
    events: DataFrame,
    clients: DataFrame,
    as_of: DataFrame,
    spec: DataSetSpec,
    conf: EncodeConf,
    *,
    folder: Path,
    seed: int,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> SequenceEncoder:
    """Learns vocabularies and an encoder on training clients; Ray must have been started.

    Args:
        events: the `events` table.
        clients: the `clients` table; the encoder learns from those of split `train`.
        as_of: client_id, as_of of the histories wanted, from `events.asked`; all of them are laid out in `folder`.
        spec: the data set.
        conf: settings.
        folder: working folder that all workers reach; what is complete in it is not made again.
        seed: of the first weights and the order, unless `conf` has one.
        progress: what the user sees.
        failpoint: called after the training.

    Returns:
        The encoder, not yet saved.

    Raises:
        DataError: no training client has an event before its as_of.
    """
    shown = progress or Progress()
    fields = _staged(events, clients, as_of, spec, conf, home=folder, progress=shown)
    rank = EncoderRankConf(
        histories=(folder / "histories" / "training=true").absolute(),
        folder=(folder / "training").absolute(),
        fields=fields,
        encoder=conf.encoder,
        objective=conf.objective,
        training=conf.training,
        seed=seed if conf.seed is None else conf.seed,
        **placed(conf.workers),
    )
    with shown.task(f"Training {conf.method}"):
        curve = train("ledgerlm.baselines.sequence.training:train_rank", rank, conf.workers)["curve"]
    failpoint("after_training")
    return SequenceEncoder(card=ENCODER_FILES.read_card(rank.result), draft=rank.result, curve=curve)


def laid_out(spark: SparkSession, folder: Path) -> DataFrame:
    """The histories that `learn_encoder` has laid out in its working folder, as `SequenceEncoder.inputs` gives them."""
    return spark.read.parquet(url_of(folder / "histories"))


def encode_clients(
    encoder: SequenceEncoder, rows: DataFrame, as_of: DataFrame, *, keep: Keep, progress: Progress | None = None
) -> Made:
    """Encodes histories with a saved encoder; who has no event is set aside.

    Args:
        encoder: the encoder.
        rows: from its `inputs`, or `laid_out`.
        as_of: client_id, as_of of the histories wanted.
        keep: computes a frame once: the encoder must run once.
        progress: what the user sees.

    Returns:
        `embeddings` of this encoder; rows in are the histories wanted. Facts: `method`, `encoder`, `backbone_id`,
        `definition_id`, `parameters`, `widths`, speeds, and of one that was just trained its `curve`.
    """
    vectors = keep(encoder.transform(rows))
    started = time.monotonic()
    with (progress or Progress()).task("Encoding histories"):
        row = vectors.agg(F.count(F.lit(1)).alias("rows"), F.sum("event_count_used").alias("events")).first()
    assert row is not None, "an aggregate of all rows is one row"
    seconds, card = time.monotonic() - started, encoder.card
    part = {"backbone_id": (encoder.backbone_id,), "definition_id": (card.definition_id,)}
    return Made(
        rows_in=as_of.count(),
        rows_out=row["rows"],
        tables={"embeddings": Rows(frame=vectors, slice=part)},
        aside=without_events(as_of, rows),
        artefacts=[encoder.folder],
        facts={
            "method": card.objective.method,
            "encoder": str(encoder.folder),
            "backbone_id": encoder.backbone_id,
            "definition_id": card.definition_id,
            "parameters": card.parameters,
            "widths": {card.objective.method: card.encoder.width},
            **_training_facts(encoder.curve),
            "encoding_events_per_second": round((row["events"] or 0) / seconds),
        },
    )


def _training_facts(curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    if not curve:
        return {}
    trained = sum(line["events"] for line in curve)
    return {
        "curve": list(curve),
        "events_trained": round(trained),
        "training_events_per_second": round(trained / curve[-1]["seconds"]),
    }


def _staged(
    events: DataFrame,
    clients: DataFrame,
    as_of: DataFrame,
    spec: DataSetSpec,
    conf: EncodeConf,
    *,
    home: Path,
    progress: Progress,
) -> Fields:
    """Fits the fields and writes the arrays of all histories as Parquet, unless an earlier attempt did."""
    folder, file = home / "histories", home / "fields.json"
    if (folder / "_SUCCESS").exists():
        return Fields.model_validate_json(file.read_text(encoding="utf-8"))
    chosen = choose(spec, conf.fields)
    observed = observe(events, chosen)
    training = newest(as_of, clients)
    fields = learn_fields(histories(observed, training), chosen, conf.fields)
    file.write_text(fields.model_dump_json(), encoding="utf-8")
    push(file)
    learnt_from = training.withColumn("training", F.lit(True))
    rows = assemble(histories(observed, as_of), fields).join(learnt_from, on=["client_id", "as_of"], how="left")
    marked = rows.withColumn("training", F.coalesce("training", F.lit(False)))
    with progress.task("Laying out histories"):
        files = marked.repartition(4 * conf.workers.ranks, "client_id")
        spread = files.sortWithinPartitions("training", "client_id", "as_of")
        spread.write.mode("overwrite").partitionBy("training").parquet(url_of(folder))
    bring(folder)
    return fields
