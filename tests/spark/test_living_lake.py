"""After any sequence of what nights bring, the tables hold what a run from nothing over the final events holds.

The model is a stand-in that costs nothing: the state of a text is numbers drawn from its hash, so that a text that
should have been read anew, or a window that should not be in a fold, shows.
"""

from __future__ import annotations

import datetime as dt
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone import embedding_windows
from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedding import EmbedConf
from ledgerlm.backbone.layout import StateLayout
from ledgerlm.backbone.states import fold
from ledgerlm.baselines.agg import Agg
from ledgerlm.baselines.folding import Partials
from ledgerlm.config import load_yaml
from ledgerlm.engines.frames import Keeper
from ledgerlm.events.asked import AsOfConf, asked
from ledgerlm.events.clock import aware, with_clock
from ledgerlm.events.ingesting import IngestConf, ingest_files
from ledgerlm.events.spec import DataSetSpec, load_spec
from ledgerlm.heads.vectors import newest_vectors
from ledgerlm.jobs.maintain import maintain
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.publications import published
from ledgerlm.lake.schemas import TABLES
from ledgerlm.progress import Progress
from ledgerlm.runs import maintenance
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records
from ledgerlm.runs.runner import Runner
from ledgerlm.text.documents import SerializeConf
from ledgerlm.text.windows import windows
from tests.living import FIRST_NIGHT, LivingBank

BACKBONE = "standin"


def stand_in(rows: DataFrame, *, definition: EmbeddingDefinition, **_: Any) -> DataFrame:
    """`states.state_rows` without a model."""
    size = StateLayout(definition, 2).size
    drawn = F.transform(
        F.sequence(F.lit(1), F.lit(size)), lambda i: F.pmod(F.xxhash64("text", i), F.lit(1000)) / 500.0 + 1
    )
    return rows.select(
        "client_id",
        "bucket",
        "text_hash",
        F.lit(BACKBONE).alias("backbone_id"),
        F.lit(definition.definition_id).alias("definition_id"),
        (F.size(F.split("text", "\n")) - 1).cast("int").alias("event_count"),
        F.length("text").cast("int").alias("token_count"),
        drawn.cast("array<float>").alias("sums"),
        F.lit(None).cast("string").alias("reason"),
    )


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ledgerlm.backbone import model

    def definition(_own: DataFrame, told: Any, conf: EmbedConf, _backbone: Path) -> EmbeddingDefinition:
        return conf.definition.resolve(
            layer_count=1, context=64, dtype="fp32", text_format=told.name, fields=("days", "mcc")
        )

    monkeypatch.setattr(embedding_windows, "state_rows", stand_in)
    monkeypatch.setattr(embedding_windows, "definition_of", definition)
    monkeypatch.setattr(model, "backbone_id", lambda _: BACKBONE)
    yield


class Truth:
    """The tables as a run from nothing makes them, by the verbs of the library alone."""

    def __init__(self, spark: SparkSession, bank: LivingBank, runner: Runner, night: dt.datetime) -> None:
        self.spec: DataSetSpec = load_spec(bank.root / "bank.yaml")
        # What is kept here is given back: Spark would hand it to the next night, whose files are others.
        self.keeper = Keeper((bank.root / "kept").as_uri())
        keep = self.keeper.keep
        made = ingest_files(spark, self.spec, IngestConf(max_quarantined_share=1.0), keep=keep).made
        self.tables = {name: rows.frame for name, rows in made.tables.items()}
        self.night = night
        conf = SerializeConf.model_validate(load_yaml(runner.pipeline.file)["stages"]["serialize"])
        self.spec = with_clock(self.spec, self.tables["events"])
        self.asked = keep(asked(self.tables["clients"], self.tables["labels"], night, AsOfConf(everyone=True)))
        assert conf.windows is not None
        told = windows(
            self.tables["events"],
            self.spec,
            conf,
            conf.windows,
            cuts=self.asked,
            dictionaries=self.tables["dictionaries"],
        )
        self.windows = keep(told)

    def embeddings(self, definition: EmbeddingDefinition) -> DataFrame:
        states = stand_in(self.windows.dropDuplicates(["client_id", "text_hash"]), definition=definition)
        return fold(self.windows, states, self.asked, definition=definition, backbone_id=BACKBONE)

    def partials(self, folder: Path) -> Partials:
        return Partials.of(self.tables["events"], Agg.load(folder).summed, keep=self.keeper.keep)

    def features(self, folder: Path) -> DataFrame:
        return Agg.load(folder).transform(self.partials(folder).histories(self.asked), self.asked)


def unlike(found: DataFrame, wanted: DataFrame, columns: list[str]) -> list[str]:
    """Rows that one side alone has, with every bit; a few of each."""
    there, told = (
        Counter(repr(row) for row in frame.select(*[F.to_json(F.struct(F.col(one))) for one in columns]).collect())
        for frame in (found, wanted)
    )
    return [f"{side}: {row}" for side, rows in (("more", there - told), ("less", told - there)) for row in [*rows][:3]]


def differing(spark: SparkSession, bank: LivingBank, runner: Runner, night: dt.datetime) -> dict[str, list[str]]:
    """The published tables against the truth: what is not the same, and in which rows."""
    lake = Lake(str(bank.root / "out" / "lake"), spark)
    seen, truth = published(lake), Truth(spark, bank, runner, night)
    read = partial(seen.read, lake)
    events = [name for name in truth.tables["events"].columns if name != "source_file"]
    compared = {
        "events": (read("events"), truth.tables["events"], events),
        "clients": (read("clients"), truth.tables["clients"], truth.tables["clients"].columns),
        "labels": (read("labels"), truth.tables["labels"], truth.tables["labels"].columns),
        "windows": (read("windows"), truth.windows, truth.windows.columns),
    }
    vectors = read("embeddings")
    row = vectors.select("definition").first()
    assert row is not None
    wanted = truth.embeddings(EmbeddingDefinition.model_validate_json(row["definition"]))
    tonight = F.col("as_of") == F.lit(night.isoformat(sep=" ")).cast("timestamp")
    columns = ["client_id", "as_of", "parts"]
    newest = newest_vectors(vectors, "embeddings", night)
    compared["embeddings of tonight"] = (newest, wanted.where(tonight), columns)
    told = truth.tables["labels"].select("client_id", "as_of").distinct()
    of_labels = [frame.join(told, ["client_id", "as_of"], "left_semi") for frame in (vectors, wanted)]
    counted = [*columns, "input_hash", "token_count", "event_count_used"]
    compared["embeddings of labels"] = (of_labels[0], of_labels[1], counted)
    features = read("features").join(truth.asked, ["client_id", "as_of"], "left_semi")
    folder = runner.pipeline.out / "artefacts" / "features" / "agg"
    months = truth.partials(folder).rows.withColumn("feature_set", F.lit("agg"))
    compared["partials"] = (read("partials"), months, months.columns)
    listed = F.sort_array(F.map_entries("features")).alias("features")
    pairs = [frame.select("client_id", "as_of", listed) for frame in (features, truth.features(folder))]
    compared["features"] = (pairs[0], pairs[1], ["client_id", "as_of", "features"])
    found = {what: rows for what, sides in compared.items() if (rows := unlike(*sides))}
    truth.keeper.release()
    return found


def run(file: Path, night: int | None) -> Runner:
    time = None if night is None else aware(FIRST_NIGHT + dt.timedelta(days=night), "Europe/Berlin")
    runner = Runner(load_pipeline(str(file)), Progress(), time)
    runner.run()
    return runner


KILLS = (
    "ingest:after_changes",
    "ingest:after_events",
    "serialize:after_windows",
    "embed:after_states",
    "aggregate:after_partials",
    "publish:start",
)


class Killed(BaseException):
    """In place of `kill -9`, which would take the test along."""


def killed(*_: object) -> None:
    raise Killed


def nights(
    spark: SparkSession,
    bank: LivingBank,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int,
    count: int,
    every: int = 1,
    kill_from: int = 1,
) -> Iterator[dict[str, list[str]]]:
    """Lets a bank live for some nights, and holds it against the truth after each, or every few: what differs.

    Each night from one on is killed, and goes on in a lake from which the rows of past nights have been taken away
    meanwhile.
    """
    root = bank.root
    lake = Lake(str(root / "out" / "lake"), spark)
    # Nothing of a test is a week old, so that removal would look at all tables for nothing.
    monkeypatch.setattr(maintenance, "remove_old", lambda *_: None)
    (root / BACKBONE).mkdir()
    file = bank.pipeline(root / BACKBONE)
    run(file, None)

    for number in range(1, count + 1):
        bank.night(number)
        if number == 2:
            bank.describe("groceries")
            changed = dict(sorted(bank.labels.items())[1:])
            bank.label({**changed, "c0": (1, "2024-12-20")})
        if number == count:
            copy = (bank.files / "1-night.csv").read_bytes()
            (bank.files / "1-night-again.csv").write_bytes(copy)
        before, states = published(lake).number, lake.version("states")
        if number < kill_from:
            run(file, number)
            continue
        monkeypatch.setenv("LEDGERLM_FAILPOINT", KILLS[(seed + number) % len(KILLS)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", killed)
            with pytest.raises(Killed):
                run(file, number)
        assert published(lake).number == before, "a night that was killed is not seen"
        monkeypatch.delenv("LEDGERLM_FAILPOINT")
        assert maintain(str(file), most=1, days=0) == 0
        assert left_behind(lake) == []
        pruned = lake.version("states")
        runner = run(file, number)
        assert read_anew(runner, lake, states, pruned) <= 0
        if number % every == 0:
            yield differing(spark, bank, runner, aware(FIRST_NIGHT + dt.timedelta(days=number), "Europe/Berlin"))


_TEXT = ["client_id", "text_hash"]


def left_behind(lake: Lake) -> list[str]:
    """What pruning should have taken away, or should not have: where only what readers see is kept."""
    seen = published(lake)
    windows, states = lake.read("windows"), lake.read("states")
    wrong = [f"a state of no window: {row}" for row in states.join(windows, _TEXT, "left_anti").take(3)]
    labels = lake.read("labels").select("client_id", "as_of").distinct()
    times = lake.read("features").select("client_id", "as_of").join(labels, ["client_id", "as_of"], "left_anti")
    past = times.where(F.col("as_of") < F.lit(seen.as_of.isoformat(sep=" ")).cast("timestamp"))
    # Of clients that are there no more nothing newer has been made.
    there = past.join(lake.read("features").groupBy("client_id").agg(F.max("as_of").alias("newest")), "client_id")
    wrong += [f"features of a past night: {row}" for row in there.where("as_of < newest").take(3)]
    then, now = (
        newest_vectors(rows, "embeddings", seen.as_of)
        for rows in (seen.read(lake, "embeddings"), lake.read("embeddings"))
    )
    wrong += [f"newest vectors, of which there are {one}" for one in unlike(now, then, ["client_id"])]
    return wrong


def read_anew(runner: Runner, lake: Lake, before: int, pruned: int) -> int:
    """How many more texts the model read than had no state: before the night, or after pruning (versions of `states`).

    They may be fewer: what was read before the kill is not read again.
    """
    record = runner.records.load("embed")
    assert record is not None
    known = lake.read("states", before).join(lake.read("states", pruned), _TEXT, "left_semi")
    texts = lake.read("windows").select(*_TEXT).distinct()
    return int(record.facts["embedded"]) - texts.join(known, _TEXT, "left_anti").count()


@pytest.mark.parametrize(
    ("session", "clients", "seed"), [("spark", 20, 1), pytest.param("serverless", 12, 11, marks=pytest.mark.slow)]
)
def test_a_lake_that_lives_equals_a_run_from_nothing(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_model: None,
    session: str,
    clients: int,
    seed: int,
) -> None:
    bank = LivingBank(tmp_path, clients=clients, seed=seed)
    for found in nights(request.getfixturevalue(session), bank, monkeypatch, seed=seed, count=2, every=2, kill_from=2):
        assert found == {}, bank.sequences()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_three_hundred_sequences(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_model: None, seed: int
) -> None:
    bank = LivingBank(tmp_path, clients=50, seed=seed)
    for found in nights(spark, bank, monkeypatch, seed=seed, count=6):
        assert found == {}, bank.sequences()


@pytest.mark.slow
def test_where_nothing_is_new_no_stage_works_but_ingest(
    spark: SparkSession, tmp_path: Path, without_model: None
) -> None:
    bank = LivingBank(tmp_path, clients=8, seed=9)
    lake = Lake(str(tmp_path / "out" / "lake"), spark)
    (tmp_path / BACKBONE).mkdir()
    file = bank.pipeline(tmp_path / BACKBONE)

    def night(number: int | None) -> tuple[list[str], set[str]]:
        """The stages that work, and the tables to which they commit."""
        before = {name: lake.version(name) for name in TABLES if lake.exists(name)}
        time = None if number is None else aware(FIRST_NIGHT + dt.timedelta(days=number), "Europe/Berlin")
        done = Runner(load_pipeline(str(file)), Progress(), time).run().stages
        written = {name for name in TABLES if lake.exists(name) and lake.version(name) != before.get(name)}
        return [one.record.name for one in done if not one.skipped], written

    night(None)
    bank.night(1)
    worked, _ = night(1)
    assert worked == ["ingest", "serialize", "embed", "aggregate", "publish"]
    assert night(1) == ([], set()), "the same night again"
    (bank.files / "1-night-again.csv").write_bytes((bank.files / "1-night.csv").read_bytes())
    # A copy is no batch, but is known from then on; a publication names the versions of all tables.
    assert night(1) == (["ingest", "publish"], {"batches", "publications"})
    # Only the clock goes on: no window and no vector is another one, and no text is read.
    _, written = night(2)
    assert written == {"features", "publications"}
    embedded = Records(tmp_path / "out").load("embed")
    assert embedded is not None and embedded.facts["embedded"] == 0
