"""What a pipeline that ran on a sample tells: who its clients are, how large its rows, how fast its stages."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.layout import StateLayout
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.files import pull
from ledgerlm.lake.upkeep import sizes
from ledgerlm.planning.conf import KEYS, BackboneConf, Part
from ledgerlm.planning.estimate import learn_flops, read_flops
from ledgerlm.planning.inputs import Point
from ledgerlm.runs.record import NIGHT
from ledgerlm.text.windows import ToldWindows, WindowConf

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.lake.lake import Lake
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.record import Records, StageRecord

_DAYS = 30  # newest days of the data by which activity is told
_DAYS_A_MONTH = 365.2425 / 12
_NEEDED = ("serialize", "embed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What is known of a pipeline that ran.

    Attributes:
        name: of the pipeline, and how large it was.
        events: of all its clients.
        population: key of `PopulationConf` to its value.
        bytes: key of `BytesConf` to its value.
        parts: part of the work as it was measured; only of stages whose record is of rows made from nothing.
        nights: stage -> seconds that it took on the newest night; only of stages whose record is of a night.
        backbone: size of what read its texts.
        cores: that it ran on.
        windowing: how histories were cut.
        definition: of the embedding, with its fields.
        training_tokens: that its backbone learnt from.
    """

    name: str
    events: float
    population: Mapping[str, float]
    bytes: Mapping[str, float]
    parts: Mapping[Part, Point]
    nights: Mapping[Part, float]
    backbone: BackboneConf
    cores: float
    windowing: WindowConf
    definition: EmbeddingDefinition
    training_tokens: float


def sample_of(pipeline: Pipeline, records: Records, lake: Lake, cores: float | None = None) -> Sample:
    """Measures a pipeline over windows that ran.

    Args:
        pipeline: whose stages ran.
        records: of its stages.
        lake: its tables.
        cores: that it ran on; left out, what its engine profile says.

    Raises:
        ConfigError: it has no stages serialize and embed over windows, or nobody knows on how many cores it ran.
        DataError: it has not run.
    """
    done = _records(pipeline, records)
    serialize, embed = done["serialize"], done["embed"]
    told = ToldWindows.of(serialize.facts, serialize.name)
    definition = EmbeddingDefinition.model_validate(embed.facts["definition"])
    folder = pull(Path(embed.facts["backbone"]))
    backbone = backbone_of(folder)
    events, windows = lake.read("events"), told.of_table(lake.read("windows"))
    counted = _Counts.of(events, windows, _states(lake, embed))
    frame = 1 + header_tokens(folder, serialize.facts["example"]["text"])
    tokens = (counted.tokens - counted.states * (frame - 1)) / max(counted.state_events, 1)
    cores, span = cores or cores_of(pipeline), counted.events * tokens / max(counted.windows, 1) + frame
    lora = any(stage.job.name == "finetune" and getattr(stage.conf, "lora", None) for stage in pipeline.stages)
    each = _Sizes(
        read=read_flops(backbone, span, surprise="surprise" in definition.parts).value,
        learn=learn_flops(backbone, span, lora=lora).value,
        state=StateLayout(definition, definition.axes or backbone.width).size * 4 + KEYS,
    )
    scanned = Point(units=counted.events, seconds=_scan(events), cores=cores)
    learnt = done["finetune"].facts.get("tokens_trained", 0) if "finetune" in done else 0
    return Sample(
        name=f"{pipeline.name} ({counted.clients:,} clients, {counted.events:,} events)",
        events=counted.events,
        population={
            **counted.population,
            "tokens": tokens,
            "frame_tokens": frame,
            **_activity(events),
            **(_heads(done["fit"], embed) if "fit" in done else {}),
        },
        bytes=_bytes(lake, counted),
        parts={**_points(done, counted, each, cores), "scan": scanned},
        nights=_nights(done),
        backbone=backbone,
        cores=cores,
        windowing=_windowing(told),
        definition=definition,
        training_tokens=float(learnt),
    )


def _heads(fit: StageRecord, embed: StageRecord) -> dict[str, float]:
    """How many heads there are, the rows that each learnt from, and its columns beside the embedding."""
    heads, width = fit.facts["heads"], sum(embed.facts["widths"].values())
    return {
        "heads": len(heads),
        "training_rows": sum(one["training_rows"] for one in heads) / len(heads),
        "features": max(sum(one["features"] for one in heads) / len(heads) - width, 1),
    }


def cores_of(pipeline: Pipeline) -> float:
    """Cores of a local session, by its engine profile.

    Raises:
        ConfigError: the session is no local one.
    """
    spark = pipeline.engine.spark
    found = re.match(r"local(?:\[(\*|\d+)|$)", spark.master or spark.remote or "")
    if found is None:
        raise ConfigError(
            f"sample_cores: the engine {pipeline.conf.engine} of {pipeline.file} is no local one, so nobody knows on "
            "how many cores its stages ran; give sample_cores in the plan file"
        )
    named = found[1] or "1"
    return float(os.cpu_count() or 1) if named == "*" else float(named)


def backbone_of(folder: Path) -> BackboneConf:
    """The size of a backbone, from its folder in Hugging Face format; its weights are not read, but counted.

    Raises:
        DataError: the folder is not there, or holds no such model.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        shapes = {name: one["shape"] for file in folder.glob("*.safetensors") for name, one in _weights(file)}
        return BackboneConf(
            parameters=sum(math.prod(shape) for shape in shapes.values()),
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            tied="lm_head.weight" not in shapes,
            number_bytes=4,
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read as a backbone ({error}); run the finetune stage again") from error


def _weights(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and description of each tensor: a safetensors file begins with the length of a JSON header, then that."""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    yield from ((name, one) for name, one in header.items() if name != "__metadata__")


def header_tokens(folder: Path, text: str) -> int:
    """Tokens of a text's first line.

    Args:
        folder: of the backbone, with its tokenizer.
        text: a window or document.
    """
    from tokenizers import Tokenizer

    header = text.split("\n", 1)[0] + "\n"
    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(header, add_special_tokens=False).ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """FLOPs of a token that is read or learnt from, and bytes of a state, under the sample's backbone."""

    read: float
    learn: float
    state: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """What is counted in a lake."""

    clients: int
    events: int
    months: float
    windows: int
    cuts: int
    states: int
    state_events: int
    tokens: int

    @classmethod
    def of(cls, events: DataFrame, windows: DataFrame, states: DataFrame) -> _Counts:
        people = events.agg(
            F.count_distinct("client_id").alias("clients"),
            F.count("*").alias("events"),
            F.min("event_time").alias("first"),
            F.max("event_time").alias("last"),
        ).first()
        whole = F.col("cut_at").isNull()
        texts = windows.agg(F.count_if(whole).alias("windows"), F.count_if(~whole).alias("cuts")).first()
        read = states.agg(
            F.count("*").alias("states"),
            F.coalesce(F.sum("event_count"), F.lit(0)).alias("state_events"),
            F.coalesce(F.sum("token_count"), F.lit(0)).alias("tokens"),
        ).first()
        assert people is not None and texts is not None and read is not None, "an aggregate of all rows is one row"
        if not people["events"] or not read["states"]:
            raise DataError("the sample has no events, or no states of windows; run its pipeline first")
        days = (people["last"] - people["first"]) / dt.timedelta(days=1)
        return cls(
            clients=people["clients"],
            events=people["events"],
            months=max(days / _DAYS_A_MONTH, 1 / _DAYS_A_MONTH),
            **texts.asDict(),
            **read.asDict(),
        )

    @property
    def population(self) -> dict[str, float]:
        """What they tell of a client."""
        return {
            "clients": self.clients,
            "events": self.events / self.clients,
            "months": self.months,
            "windows": self.windows / self.clients,
            "cuts": self.cuts / self.clients,
        }


def _records(pipeline: Pipeline, records: Records) -> dict[str, StageRecord]:
    """The finished record of each job; of several stages of one job, the latest."""
    found = {}
    for stage in pipeline.stages:
        record = records.load(stage.name)
        if record is not None and record.done:
            found[stage.job.name] = record
    missing = [job for job in _NEEDED if job not in found]
    if missing:
        raise DataError(f"{pipeline.file}: {' and '.join(missing)} has not finished; ledgerlm run it on a sample first")
    return found


def _nights(done: Mapping[str, StageRecord]) -> dict[Part, float]:
    """Seconds of each stage that followed a night."""
    followed = {job: one for job, one in done.items() if NIGHT in one.inputs.files}
    # A night whose rows were all made anew tells of a first run.
    following: tuple[Part, ...] = ("ingest", "serialize", "embed")
    if any(job in followed and followed[job].since is None for job in following):
        return {}
    parts: tuple[Part, ...] = (*following, "aggregate", "score", "publish")
    return {job: followed[job].seconds for job in parts if job in followed}


def _windowing(told: ToldWindows) -> WindowConf:
    period, events = told.windowing.split(":")
    return WindowConf.model_validate({"period": period, "events": int(events)})


def _states(lake: Lake, embed: StageRecord) -> DataFrame:
    if not lake.exists("states"):
        raise ConfigError(
            f"stage {embed.name} embedded documents; a plan is of windows: set stages.{embed.name}.source to windows"
        )
    ids = [F.col(name) == F.lit(embed.facts[name]) for name in ("backbone_id", "definition_id")]
    return lake.read("states").where(ids[0] & ids[1])


def _activity(events: DataFrame) -> dict[str, float]:
    """Share of the clients with an event on a day, and events of such a client; means of the newest days."""
    newest = events.agg(F.max("event_time").alias("newest"))
    since = F.col("newest") - F.make_dt_interval(F.lit(_DAYS))
    recent = events.crossJoin(newest).where(F.col("event_time") > since)
    days = F.floor((F.unix_micros("newest") - F.unix_micros("event_time")) / F.lit(86_400_000_000))
    each = recent.groupBy("client_id", days.alias("day")).count()
    row = each.agg(F.count("*").alias("pairs"), F.coalesce(F.sum("count"), F.lit(0)).alias("events")).first()
    clients = events.select("client_id").distinct().count()
    assert row is not None, "an aggregate of all rows is one row"
    return {"active": row["pairs"] / (clients * _DAYS), "night_events": row["events"] / row["pairs"]}


def _bytes(lake: Lake, counted: _Counts) -> dict[str, float]:
    lying = {one.name: one.bytes for one in sizes(lake)}
    tables = {"event": "events", "window_event": "windows", "partial": "partials"}
    found = {key: lying[table] / counted.events for key, table in tables.items() if table in lying}
    for key, table in (("features", "features"), ("score", "scores")):
        rows = lake.rows(table) if table in lying else 0
        if rows:
            found[key] = lying[table] / rows
    return found


def _scan(events: DataFrame) -> float:
    """Seconds of a pass over the events; the second of two, since the first starts what reads."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        events.select("client_id", "event_id", "event_time").write.format("noop").mode("overwrite").save()
        seconds = time.perf_counter() - began
    return seconds


def _points(done: Mapping[str, StageRecord], counted: _Counts, sizes: _Sizes, cores: float) -> dict[Part, Point]:
    """The parts of the stages that made their rows from nothing."""
    whole = {job: one for job, one in done.items() if one.since is None}
    found: dict[Part, Point] = {}
    if "ingest" in whole:
        found["ingest"] = Point(units=whole["ingest"].rows_in, seconds=whole["ingest"].seconds, cores=cores)
    for job in ("serialize", "aggregate"):
        if job in whole:
            found[job] = Point(units=counted.events, seconds=whole[job].seconds, cores=cores)
    if "finetune" in whole and whole["finetune"].facts.get("tokens_trained"):
        facts, seconds = whole["finetune"].facts, whole["finetune"].seconds
        took = facts["training_seconds"]
        flops = facts["tokens_trained"] * sizes.learn
        found["finetune"] = Point(units=flops, seconds=took, cores=cores, start=seconds - took)
    if "embed" in whole and whole["embed"].facts["tokens"] and not whole["embed"].facts.get("reused"):
        seconds, took = whole["embed"].seconds, whole["embed"].facts["seconds"]
        tokens = whole["embed"].facts["tokens"] + counted.states  # and the one that each window starts with
        found["embed"] = Point(units=tokens * sizes.read, seconds=took, cores=cores)
        found["fold"] = Point(units=counted.states * sizes.state, seconds=seconds - took, cores=cores)
    if "fit" in whole:
        numbers = sum(one["training_rows"] * one["features"] for one in whole["fit"].facts["heads"])
        found["fit"] = Point(units=numbers, seconds=whole["fit"].seconds, cores=cores)
    if "score" in whole:
        rows = sum(one["rows"] for one in whole["score"].facts["heads"])
        found["score"] = Point(units=rows, seconds=whole["score"].seconds, cores=cores)
    if "publish" in done:
        found["publish"] = Point(units=0, seconds=done["publish"].seconds, cores=cores)
    return found
