"""What readers see: a publication names versions that belong together, gates refuse, and one can go back."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import pytest
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.applications.gates import PublishConf
from ledgerlm.applications.publishing import Judged, publication
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.evaluation.explanation import as_page, as_text, explained
from ledgerlm.heads.vectors import newest_vectors
from ledgerlm.jobs.promote import promote
from ledgerlm.jobs.rescore import rescore
from ledgerlm.jobs.rollback import roll_back
from ledgerlm.lake.champions import Champion, champions, promotions
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.latest import latest, show_latest
from ledgerlm.lake.publications import (
    PUBLICATIONS,
    Publication,
    publications,
    published,
    refuse_past,
    shown_before,
    versions,
)
from ledgerlm.lake.schemas import CHAMPIONS
from ledgerlm.lake.upkeep import hours_kept, keep_log, kept, log_days_needed, sizes
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

NIGHT = dt.datetime(2025, 1, 2, tzinfo=dt.UTC)
HEAD = "h1"


def by(attempt: str) -> Author:
    return Author(attempt=attempt, stage="bank/publish", run_id=f"run-{attempt}")


def scores(spark: SparkSession, clients: int, night: dt.datetime, shift: float = 0.0) -> DataFrame:
    p = F.least(F.col("id") / clients + shift, F.lit(1.0))
    return spark.range(clients).select(
        F.concat(F.lit("c"), F.col("id")).alias("client_id"),
        F.lit("churn").alias("task"),
        F.lit(night.isoformat(sep=" ")).cast("timestamp").alias("as_of"),
        F.lit(HEAD).alias("head_id"),
        F.array(1 - p, p).alias("probabilities"),
        F.lit(1.0).alias("prediction"),
        (10 - F.floor(F.col("id") * 10 / clients)).cast("int").alias("decile"),
        F.array(F.struct(F.lit("since_last_days").alias("feature"), F.lit(0.5).alias("contribution"))).alias("reasons"),
    )


class Bank:
    """A lake with clients and scores, and its nights."""

    def __init__(self, spark: SparkSession, root: Path | str) -> None:
        self.spark, self.lake = spark, Lake(str(root), spark)
        ids = spark.range(100).select(
            F.concat(F.lit("c"), F.col("id")).alias("client_id"), F.lit("train").alias("split")
        )
        self.lake.write("clients", ids, by=by("clients"))

    def night(
        self,
        day: int,
        clients: int = 100,
        shift: float = 0.0,
        *,
        heads: Sequence[str] = (HEAD,),
        **limits: float | None,
    ) -> Judged:
        """A night of heads, each of which says a twentieth more than the one before it."""
        time = NIGHT + dt.timedelta(days=day)
        rows = [
            scores(self.spark, clients, time, shift + place / 20).withColumn("head_id", F.lit(head))
            for place, head in enumerate(heads)
        ]
        self.lake.write("scores", reduce(DataFrame.unionByName, rows), by=by(f"scores-{day}"))
        conf = PublishConf.model_validate(limits)
        judged = publication(
            self.lake,
            versions(self.lake),
            conf,
            pipeline="bank",
            as_of=time,
            heads=heads,
            known=publications(self.lake),
            champions={task: one.head_id for task, one in champions(self.lake).items()},
            keep=DataFrame.cache,
        )
        self.lake.apply(PUBLICATIONS, judged.made.tables[PUBLICATIONS].frame, by=by(f"night-{day}"))
        return judged


@pytest.fixture(scope="module")
def nights(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Nights -> a lake that has had as many, to be copied; never written to."""
    written = Bank(spark, tmp_path_factory.mktemp("nights"))
    found = {}
    for day in range(2):
        assert written.night(day).refusal is None
        found[day + 1] = tmp_path_factory.mktemp("had") / "bank"
        shutil.copytree(str(written.lake.home.root), found[day + 1])
    return found


@pytest.fixture
def bank(spark: SparkSession, nights: dict[int, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Bank:
    """A bank that has had a night, or as many as the test is parametrised with."""
    had = getattr(request, "param", 1)
    shutil.copytree(nights[had], tmp_path / "bank")
    return Bank(spark, tmp_path / "bank")


def test_readers_see_a_night_whole_and_not_the_one_that_is_being_written(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no publication at .*rescore"):
        published(Lake(str(tmp_path / "none"), bank.spark))
    bank.lake.write("scores", scores(bank.spark, 7, NIGHT + dt.timedelta(days=1)), by=by("half a night"))
    seen = published(bank.lake)
    assert (seen.number, seen.as_of, seen.heads) == (1, NIGHT, (HEAD,))
    assert seen.read(bank.lake, "scores").count() == 100
    with pytest.raises(DataError, match="has no table windows; it has"):
        seen.read(bank.lake, "windows")


def test_gates_refuse_and_readers_stay(bank: Bank) -> None:
    nights = [(80, 0.0, "most_unscored/h1 is 0.2"), (100, 0.6, "most_shift/h1"), (89, 0.0, "least_clients/h1 is 0.89")]
    for day, (clients, shift, gate) in enumerate(nights, start=1):
        judged = bank.night(day, clients, shift)
        assert judged.refusal is not None and gate in judged.refusal
        assert "readers stay with publication 1" in judged.refusal
        assert published(bank.lake).number == 1
    assert [one.status for one in publications(bank.lake)] == ["refused"] * 3 + ["published"]
    assert bank.night(4, 80, 0.6, most_unscored=None, most_shift=None, least_clients=None).refusal is None
    assert published(bank.lake).number == 5


@pytest.mark.parametrize("bank", [2], indirect=True)
def test_going_back_publishes_the_night_before_again(bank: Bank) -> None:
    bank.night(2)
    assert shown_before(bank.lake, 3) == 2
    again = published(bank.lake, 2).again(4, dt.datetime.now(dt.UTC))
    bank.lake.apply(PUBLICATIONS, again.row(bank.spark).withColumn("_change", F.lit("insert")), by=by("back"))
    seen = published(bank.lake)
    assert (seen.number, seen.status, seen.as_of) == (4, "rolled_back", NIGHT + dt.timedelta(days=1))
    assert dict(seen.tables) == dict(published(bank.lake, 2).tables)
    assert shown_before(bank.lake, 4) == 1, "one further back, and not forward to what was withdrawn"
    with pytest.raises(DataError, match="publication 1 is the first"):
        shown_before(bank.lake, 1)
    refuse_past(bank.lake, seen.as_of)
    with pytest.raises(ConfigError, match=r"--as-of 2025-01-02 .* lies before 2025-01-03 .* publication 4"):
        refuse_past(bank.lake, NIGHT)
    with pytest.raises(DataError, match=r"no publication 9 .*there is 4, 3, 2, 1"):
        published(bank.lake, 9)


@pytest.mark.parametrize("bank", [2], indirect=True)
def test_what_is_kept_decides_how_much_history_stays(bank: Bank) -> None:
    assert [one.number for one in kept(bank.lake, 1, 0)] == [2]
    assert [one.number for one in kept(bank.lake, 1, 30)] == [2, 1]
    assert hours_kept(kept(bank.lake, 2, 0)) == 168, "never less than Delta's own week"
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=40)
    assert hours_kept(kept(bank.lake, 2, 0), later) in range(40 * 24, 40 * 24 + 3)


def test_the_log_stays_as_long_as_a_kept_publication(bank: Bank) -> None:
    """Delta cuts logs after 30 days; a publication that is older and kept could not be read without them."""
    assert [log_days_needed(days * 24) for days in (7, 22, 24, 40, 60)] == [30, 30, 60, 60, 90]
    assert {one.log_days for one in sizes(bank.lake)} == {30}
    keep_log(bank.lake, "scores", 60)
    assert {one.name: one.log_days for one in sizes(bank.lake)} == {"clients": 30, "publications": 30, "scores": 60}
    newest = bank.lake.history.newest("scores")
    assert newest is not None and newest.neutral, "no row has changed"


def test_an_explanation_tells_the_score_and_what_it_was_made_of(bank: Bank) -> None:
    found = explained(bank.lake, published(bank.lake), "c7")
    assert found["scores"][0]["probabilities"] == [0.93, 0.07]
    assert found["scores"][0]["reasons"] == [{"feature": "since_last_days", "contribution": 0.5}]
    assert found["tables"] == {"clients": 0, "scores": 0}
    text, html = "\n".join(as_text(found)), as_page(found)
    for part in ("c7", "since_last_days", HEAD):
        assert part in text and part in html
    with pytest.raises(DataError, match="has no client 'nobody'"):
        explained(bank.lake, published(bank.lake), "nobody")


def test_a_vector_serves_every_night_until_a_newer_one(spark: SparkSession) -> None:
    made = [("a", "2025-01-01", 1.0), ("a", "2025-01-05", 2.0), ("a", "2025-01-09", 3.0), ("b", "2025-01-02", 4.0)]
    table = vectors(spark, *made)
    night = dt.datetime(2025, 1, 6, tzinfo=dt.UTC)
    found = {
        row["client_id"]: (row["features"]["x"], row["as_of"])
        for row in newest_vectors(table, "features", night).collect()
    }
    assert found == {"a": (2.0, dt.datetime(2025, 1, 6)), "b": (4.0, dt.datetime(2025, 1, 6))}


@pytest.fixture
def schema(spark: SparkSession) -> Iterator[str]:
    """A schema of Spark's own catalog."""
    name = "spark_catalog.latest_bank"
    yield name
    spark.sql(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def days(rows: DataFrame) -> dict[tuple[int, str], int]:
    """Publication and day -> rows."""
    counted = rows.groupBy("publication", F.date_format("as_of", "MM-dd").alias("day")).count().collect()
    return {(row["publication"], row["day"]): row["count"] for row in counted}


def vectors(spark: SparkSession, *found: tuple[str, str, float]) -> DataFrame:
    return spark.createDataFrame(list(found), "client_id string, day string, x double").select(
        "client_id",
        F.col("day").cast("timestamp").alias("as_of"),
        F.lit("agg").alias("feature_set"),
        F.create_map(F.lit("x"), F.col("x").cast("float")).alias("features"),
    )


def test_views_show_what_is_published_and_nothing_else(spark: SparkSession, schema: str) -> None:
    bank = Bank(spark, schema)
    made = [("c1", "2025-01-01", 1.0), ("c1", "2025-01-02", 2.0), ("c1", "2025-01-03", 3.0), ("c2", "2024-12-01", 4.0)]
    bank.lake.write("features", vectors(spark, *made), by=by("features"))
    bank.night(0)
    assert show_latest(bank.lake, published(bank.lake)) == ["features_latest", "scores_latest"]

    def seen(name: str) -> DataFrame:
        return spark.sql(f"SELECT * FROM {schema}.{name}")

    assert days(seen("scores_latest")) == {(1, "01-02"): 100}
    try:
        for zone in ("UTC", "America/New_York"):
            spark.conf.set("spark.sql.session.timeZone", zone)
            found = {row["client_id"]: row["features"]["x"] for row in seen("features_latest").collect()}
            assert found == {"c1": 2.0, "c2": 4.0}, "the newest up to the night, in whatever zone the reader is"
            assert seen("scores_latest").count() == 100
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    # A night that is being written, one that was refused, one that is published, and one that was gone back from.
    bank.lake.write("scores", scores(spark, 7, NIGHT + dt.timedelta(days=1)), by=by("half a night"))
    assert days(seen("scores_latest")) == {(1, "01-02"): 100}
    assert bank.night(1, 50).refusal is not None
    show_latest(bank.lake, published(bank.lake))
    assert days(seen("scores_latest")) == {(1, "01-02"): 100}
    bank.night(2)
    assert days(seen("scores_latest")) == {(1, "01-02"): 100}, "between the row and the views: the night before, whole"
    show_latest(bank.lake, published(bank.lake))
    assert days(seen("scores_latest")) == days(latest(bank.lake, "scores")) == {(3, "01-04"): 100}
    show_latest(bank.lake, published(bank.lake, 1).again(4, dt.datetime.now(dt.UTC)))
    assert days(seen("scores_latest")) == {(4, "01-02"): 100}
    assert seen("scores_latest").columns == [*bank.lake.read("scores").columns, "publication"]


def test_a_table_that_a_publication_lacks_has_no_view(spark: SparkSession, schema: str) -> None:
    bank = Bank(spark, schema)
    bank.night(0)
    bank.lake.write("features", vectors(spark, ("c1", "2025-01-01", 1.0)), by=by("features"))
    bank.night(1)
    assert show_latest(bank.lake, published(bank.lake)) == ["features_latest", "scores_latest"]
    assert show_latest(bank.lake, published(bank.lake, 1)) == ["scores_latest"]
    assert not spark.catalog.tableExists(f"{schema}.features_latest")
    spark.sql(f"CREATE TABLE {schema}.features_latest (x INT) USING delta")
    with pytest.raises(DataError, match=r"publication 2 is written, but view .*features_latest.* views: false"):
        show_latest(bank.lake, published(bank.lake))


def test_newest_rows_of_a_folder_are_asked_of_python(bank: Bank) -> None:
    assert show_latest(bank.lake, published(bank.lake)) == []
    bank.lake.write("scores", scores(bank.spark, 7, NIGHT + dt.timedelta(days=1)), by=by("half a night"))
    assert days(latest(bank.lake, "scores")) == {(1, "01-02"): 100}
    bank.night(2)
    assert days(latest(bank.lake, "scores")) == {(2, "01-04"): 100}
    assert days(latest(bank.lake, "scores", published(bank.lake, 1))) == {(1, "01-02"): 100}
    with pytest.raises(DataError, match="publication 2 of bank has no table features"):
        latest(bank.lake, "features")
    with pytest.raises(DataError, match="there are those of embeddings, features, scores"):
        latest(bank.lake, "windows")


def test_a_study_shows_the_newest_scores_of_each_head(spark: SparkSession, tmp_path: Path) -> None:
    bank = Bank(spark, tmp_path)
    both = scores(bank.spark, 3, NIGHT).unionByName(scores(bank.spark, 2, NIGHT - dt.timedelta(days=9)))
    bank.lake.write("scores", both, by=by("study"))
    study = Publication(
        number=1,
        published_at=NIGHT,
        pipeline="bank",
        as_of=NIGHT + dt.timedelta(days=1),
        tables=versions(bank.lake),
    )
    assert days(latest(bank.lake, "scores", study)) == {(1, "01-02"): 3}
    # Of two heads the champion alone is shown; a study without it shows what it has, and is refused when it ends.
    beside = both.unionByName(both.withColumn("head_id", F.lit("h2")))
    bank.lake.write("scores", beside, by=by("two heads"))
    two = dataclasses.replace(study, tables=versions(bank.lake))
    assert days(latest(bank.lake, "scores", two)) == {(1, "01-02"): 6}
    chosen = Champion(
        promotion=1,
        task="churn",
        head_id="h2",
        replaced=None,
        reason="better",
        promoted_by="Anna",
        promoted_at=NIGHT,
        publication=1,
    )
    bank.lake.apply(CHAMPIONS.name, chosen.row(spark).withColumn("_change", F.lit("insert")), by=by("promotion"))
    assert days(latest(bank.lake, "scores", two)) == days(latest(bank.lake, "scores", study)) == {(1, "01-02"): 3}
    for heads, refusal in ((("h1", "h2"), None), (("h1",), "champion/churn: h2 has not scored, but h1")):
        ended = publication(
            bank.lake,
            versions(bank.lake),
            PublishConf(),
            pipeline="bank",
            as_of=NIGHT,
            heads=(),
            scored=heads,
            known=(),
            champions={"churn": "h2"},
            keep=DataFrame.cache,
        )
        assert ended.refusal is None if refusal is None else refusal in str(ended.refusal)


def heads_shown(bank: Bank, number: int | None = None) -> set[str]:
    rows = latest(bank.lake, "scores", published(bank.lake, number))
    return {row["head_id"] for row in rows.select("head_id").distinct().collect()}


def test_readers_get_a_new_head_once_it_is_promoted(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.csv").write_text("id,who,at\n1,a,2024-01-01\n")
    spec = {
        "name": "bank",
        "client": "who",
        "source": {"path": str(tmp_path), "files": [{"glob": "*.csv"}]},
        "time": {"column": "at", "format": "yyyy-MM-dd"},
        "event_id": {"columns": ["id"]},
        "fields": [{"name": "id"}],
        "as_of": "2024-02-01",
    }
    place = {"pipeline": "nightly", "out": str(tmp_path / "out"), "lake": str(tmp_path / "bank")}
    file = tmp_path / "nightly.yaml"
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    content = {**place, "data": "spec.yaml", "stages": {"ingest": {}, "publish": {}}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))

    def call(**how: str) -> str:
        assert promote(str(file), **how) == 0
        return " ".join(capsys.readouterr().out.split())

    bank.night(1, heads=("h1", "h2"))
    assert heads_shown(bank) == {"h1", "h2"}, "nobody has said which"
    listed = call()
    assert (
        "churn h1 100 clients, mean 0.4950 churn h2 100 clients, mean 0.5440 against h1: correlation 1.000, shift 0.055"
        in listed
    )
    assert "100% of the highest tenth in common" in listed and "champion" not in listed
    for head, reason, who, why in (
        ("h3", "a", "b", "--head h3 has scored nobody in publication 2.* there are h1 .churn., h2 .churn."),
        ("h2", " ", "b", "--reason is empty"),
        (None, "a", "b", "no --head: nobody would be promoted"),
        ("h2", "a", "", "--by is empty"),
    ):
        with pytest.raises(ConfigError, match=why):
            promote(str(file), head=head, reason=reason, by=who)
    assert promotions(bank.lake) == []
    assert call(head="h1", reason="the first", by="Anna") == "Champion of churn: h1"
    assert heads_shown(bank) == {"h1"}, "at once, without a night"
    lines = as_text(explained(bank.lake, published(bank.lake), "c7"))
    assert [line.split("head ")[1] for line in lines if "head h" in line] == [
        "h1, the champion",
        "h2, beside the champion",
    ]
    with pytest.raises(ConfigError, match="h1 is the champion of churn already"):
        promote(str(file), head="h1", reason="again", by="Anna")
    # What has learnt anew does not reach readers unseen: its night is refused until it is promoted.
    refused = bank.night(2, heads=("h2",))
    assert refused.refusal is not None and "champion/churn: h1 has not scored, but h2; promote one" in refused.refusal
    told = call(head="h2", reason="it knows the summer", by="Anna")
    assert told == "Champion of churn: h2, in place of h1"
    assert heads_shown(bank) == {"h2"} and published(bank.lake).number == 2, "which it had scored beside h1"
    assert bank.night(3, heads=("h1", "h2")).refusal is None
    assert heads_shown(bank) == {"h2"}
    assert heads_shown(bank, 1) == {"h1"}, "a publication from before it shows what it has"
    newest = promotions(bank.lake)[0]
    assert (newest.promotion, newest.replaced, newest.publication) == (2, "h1", 3)
    assert (newest.reason, newest.promoted_by) == ("it knows the summer", "Anna")


@pytest.mark.slow
def test_a_publication_that_was_cut_off_goes_on_with_its_views(
    spark: SparkSession, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row comes first: a run that dies between it and the views leaves those of the night before, and goes on.

    The night was scored by a call of its own, as where the gates are a task.
    """
    (tmp_path / "1.csv").write_text("id,who,at,mcc\n1,a,2024-01-01,x\n2,b,2024-01-02,y\n")
    spec = {
        "name": "bank",
        "client": "who",
        "source": {"path": str(tmp_path), "files": [{"glob": "*.csv"}]},
        "time": {"column": "at", "format": "yyyy-MM-dd"},
        "event_id": {"columns": ["id"], "conflicts": "last"},
        "fields": [{"name": "mcc"}],
        "as_of": "2024-02-01",
    }
    (tmp_path / "bank.yaml").write_text(yaml.safe_dump(spec))
    content = {
        "pipeline": "nightly",
        "out": str(tmp_path / "out"),
        "lake": schema,
        "data": str(tmp_path / "bank.yaml"),
        "stages": {"ingest": {"append": True}, "aggregate": {}, "publish": {}},
    }
    file = tmp_path / "nightly.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    lake = Lake(schema, spark)

    def run(night: int | None) -> list[str]:
        """The stages that worked."""
        time = None if night is None else dt.datetime(2024, 2, night, tzinfo=dt.UTC)
        done = Runner(load_pipeline(str(file)), Progress(), time).run().stages
        return [one.record.name for one in done if not one.skipped]

    def seen() -> dict[tuple[int, str], int]:
        return days(spark.sql(f"SELECT * FROM {schema}.features_latest"))

    run(None)
    assert seen() == {(1, "02-01"): 2}

    assert rescore(str(file), as_of=dt.datetime(2024, 2, 2), publish=False) == 0
    assert (published(lake).number, seen()) == (1, {(1, "02-01"): 2}), "scored, and nobody sees it"

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("LEDGERLM_FAILPOINT", "publish:after_publications")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "kill", kill)
        run(2)
    monkeypatch.delenv("LEDGERLM_FAILPOINT")
    assert (published(lake).number, seen()) == (2, {(1, "02-01"): 2})
    assert run(2) == ["publish"]
    assert (published(lake).number, seen()) == (2, {(2, "02-02"): 2})
    record = json.loads((tmp_path / "out" / "runs" / "stages" / "publish.json").read_text())
    assert record["facts"]["publication"] == 2, "the number of its row, though it was there when the run went on"
    assert roll_back(str(file)) == 0
    assert (published(lake).number, seen()) == (3, {(3, "02-01"): 2})
    assert roll_back(str(file), ["stages.publish.views=false"], to=2) == 0
    assert (published(lake).number, seen()) == (4, {(3, "02-01"): 2}), "as they were"
