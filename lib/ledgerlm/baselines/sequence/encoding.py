"""Trains a sequence encoder without labels and encodes every history with it: the verb behind the encode job."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import histories
from ledgerlm.baselines.sequence.histories import assemble, choose, learn_fields, newest, observe, without_events
from ledgerlm.baselines.sequence.settings import (
    EncoderCard,
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
from ledgerlm.training.artefacts import keep_copy
from ledgerlm.training.launch import train
from ledgerlm.training.settings import ONE_WORKER, OneWorkerConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A trained encoder and the vectors of histories.

    Attributes:
        folder: the encoder's, which bears its id; `store.load_encoder` opens it.
        card: its card.
        curve: a line for each epoch: `loss`, `events`, `seconds` ...
        vectors: rows of the `embeddings` table.
        aside: rows for `quarantine`: histories without an event.
        histories: that were to be encoded.
        encoded: vectors made.
        events_per_second: how fast the encoder read.
    """

    folder: Path
    card: EncoderCard
    curve: Sequence[Mapping[str, float]]
    vectors: DataFrame
    aside: DataFrame
    histories: int
    encoded: int
    events_per_second: int

    def made(self) -> Made:
        """For the lake: the slice of this encoder in `embeddings`."""
        trained, method = sum(line["events"] for line in self.curve), self.card.objective.method
        identity, definition = self.folder.name, self.card.definition_id
        part = {"backbone_id": (identity,), "definition_id": (definition,)}
        return Made(
            rows_in=self.histories,
            rows_out=self.encoded,
            tables={"embeddings": Rows(frame=self.vectors, slice=part)},
            aside=self.aside,
            artefacts=[self.folder],
            facts={
                "method": method,
                "encoder": str(self.folder),
                "backbone_id": identity,
                "definition_id": definition,
                "parameters": self.card.parameters,
                "widths": {method: self.card.encoder.width},
                "curve": list(self.curve),
                "events_trained": round(trained),
                "training_events_per_second": round(trained / self.curve[-1]["seconds"]),
                "encoding_events_per_second": self.events_per_second,
            },
        )


def learn_and_encode(
    events: DataFrame,
    clients: DataFrame,
    as_of: DataFrame,
    spec: DataSetSpec,
    conf: EncodeConf,
    *,
    folder: Path,
    encoders: Path,
    seed: int,
    keep: Keep,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> Encoded:
    """Learns vocabularies and an encoder on training clients, then encodes each history; Ray must have been started.

    Args:
        events: the `events` table.
        clients: the `clients` table; the encoder learns from those of split `train`.
        as_of: client_id, as_of of the histories wanted, from `events.asked`.
        spec: the data set.
        conf: settings.
        folder: working folder that all workers reach; what is complete in it is not made again.
        encoders: the artefacts' `encoders` folder.
        seed: of the first weights and the order, unless `conf` has one.
        keep: computes a frame once: the encoder must run once.
        progress: what the user sees.
        failpoint: called after the training.

    Raises:
        DataError: no training client has an event before its as_of.
    """
    from ledgerlm.baselines.sequence.inference import encode
    from ledgerlm.baselines.sequence.store import read_encoder_card  # it imports torch, which takes seconds

    shown = progress or Progress()
    fields = _staged(events, clients, as_of, spec, conf, home=folder, progress=shown)
    own = seed if conf.seed is None else conf.seed
    home, curve = _trained(fields, conf, folder=folder, encoders=encoders, seed=own, progress=shown)
    failpoint("after_training")
    card = read_encoder_card(home)
    staged = events.sparkSession.read.parquet(url_of(folder / "histories"))
    vectors = keep(encode(staged, home, card))
    started = time.monotonic()
    with shown.task("Encoding histories"):
        row = vectors.agg(F.count(F.lit(1)).alias("rows"), F.sum("event_count_used").alias("events")).first()
    assert row is not None, "an aggregate of all rows is one row"
    seconds = time.monotonic() - started
    return Encoded(
        folder=home,
        card=card,
        curve=curve,
        vectors=vectors,
        aside=without_events(as_of, staged),
        histories=as_of.count(),
        encoded=row["rows"],
        events_per_second=round((row["events"] or 0) / seconds),
    )


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


def _trained(
    fields: Fields, conf: EncodeConf, *, folder: Path, encoders: Path, seed: int, progress: Progress
) -> tuple[Path, list[dict[str, float]]]:
    """Trains the encoder; returns its folder, which bears its id, and the curve."""
    rank = EncoderRankConf(
        histories=(folder / "histories" / "training=true").absolute(),
        folder=(folder / "training").absolute(),
        fields=fields,
        encoder=conf.encoder,
        objective=conf.objective,
        training=conf.training,
        seed=seed,
        **placed(conf.workers),
    )
    with progress.task(f"Training {conf.method}"):
        found = train("ledgerlm.baselines.sequence.training:train_rank", rank, conf.workers)
    return encoders / keep_copy(rank.result, encoders), found["curve"]
