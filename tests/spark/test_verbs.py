"""The package's own verbs: frames of Spark, pandas, Polars and Arrow in, and the same rows out in the same kind."""

from __future__ import annotations

import doctest
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

import ledgerlm
from ledgerlm import verbs
from ledgerlm.backbone.model import new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.engines.kinds import from_spark, kind_of, to_arrow, to_spark
from ledgerlm.errors import ConfigError, DataError, SpecError
from ledgerlm.text.tokenizer import train_tokenizer

VERBS = ("ingest", "serialize", "aggregate", "embed", "fit", "score")


@pytest.fixture(scope="module")
def bank(spark: SparkSession) -> ledgerlm.Bank[pd.DataFrame]:
    bought, back, spec = ledgerlm.example()
    return ledgerlm.ingest(bought, spec, {"back": back})


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer(["days|item|amount\n3|food|4.5\n4|fuel|8.5"] * 9, vocabulary_size=300)
    new_llama(LlamaShape(width=16, layers=1, ffn=16), tokenizer, context=64, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_examples_say_what_is_so(
    bank: ledgerlm.Bank[pd.DataFrame],
    backbone: Path,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # where heads are saved
    if verb != "ingest":  # the same bank each time
        monkeypatch.setattr(verbs, "ingest", lambda *_: bank)
    [found] = doctest.DocTestFinder(recurse=False).find(getattr(verbs, verb), verb, globs={"backbone": str(backbone)})
    assert found.examples
    told = io.StringIO()
    failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=told.write)
    assert failed.failed == 0, told.getvalue()


def in_kind(frame: pd.DataFrame, kind: str, spark: SparkSession) -> Any:
    made: dict[str, Callable[[], Any]] = {
        "pandas": lambda: frame,
        "arrow": lambda: to_arrow(frame),
        "polars": lambda: pl.from_arrow(to_arrow(frame)),
        "spark": lambda: spark.createDataFrame(to_arrow(frame)),
    }
    return made[kind]()


def as_rows(frame: Any) -> list[dict[str, Any]]:
    """Rows in order, maps as dicts, whatever library they are of."""
    table = frame.toArrow() if isinstance(frame, DataFrame) else to_arrow(frame)
    rows = table.to_pylist()
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list) and value and isinstance(value[0], tuple):
                row[name] = dict(value)
            if isinstance(row[name], dict):
                row[name] = {key: one for key, one in sorted(row[name].items()) if one is not None}
    return sorted(rows, key=lambda row: str(row["client_id"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrow", "polars", "spark"])
def test_every_library_sees_the_same_rows(
    bank: ledgerlm.Bank[pd.DataFrame], spark: SparkSession, kind: str, tmp_path: Path
) -> None:
    bought, back, spec = ledgerlm.example()
    own = ledgerlm.ingest(in_kind(bought, kind, spark), spec, {"back": in_kind(back, kind, spark)})
    frames = (own.events, own.clients, own.labels)
    assert [kind_of(one) for one in frames] == [kind] * 3
    shown = [as_rows(one) for one in (own.events, bank.events)]
    assert len(shown[0]) == 200
    # Where a row names no id, its id is made of its values as they stand there, and a time may stand as an instant.
    here, there = (
        sorted(
            ({name: one for name, one in row.items() if name not in {"source_file", "event_id"}} for row in rows),
            key=lambda row: (row["client_id"], row["event_time"]),
        )
        for rows in shown
    )
    assert here == there
    features = ledgerlm.aggregate(own)
    assert kind_of(features) == kind
    assert as_rows(features) == as_rows(ledgerlm.aggregate(bank))
    heads = ledgerlm.fit(own, features, kind="logistic_regression", calibration="none", folder=tmp_path)
    scores = ledgerlm.score(heads["back"], features)
    assert kind_of(scores) == kind
    labels = {row["client_id"]: row["label"] for row in as_rows(own.labels)}
    assert sum(row["prediction"] == labels[row["client_id"]] for row in as_rows(scores)) == 40


def test_a_session_that_is_there_keeps_its_settings(spark: SparkSession, bank: ledgerlm.Bank[pd.DataFrame]) -> None:
    spark.conf.set("spark.sql.session.timeZone", "America/New_York")
    try:
        text = ledgerlm.serialize(bank, fields=["days", "item"])["text"]
        assert spark.conf.get("spark.sql.session.timeZone") == "America/New_York"
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    assert list(text) == list(ledgerlm.serialize(bank, fields=["days", "item"])["text"])


@pytest.fixture
def small() -> Iterator[tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]]:
    yield ledgerlm.example(4)


def test_what_is_wrong_is_said(
    spark: SparkSession,
    bank: ledgerlm.Bank[pd.DataFrame],
    small: tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]],
    backbone: Path,
) -> None:
    bought, back, spec = small
    with pytest.raises(DataError, match="a value of type list is no frame"):
        ledgerlm.ingest([1], spec)
    with pytest.raises(SpecError, match=r"spec: labels of bac are given, but the spec has no such task"):
        ledgerlm.ingest(bought, spec, {"bac": back})
    with pytest.raises(SpecError, match="column 'spend'"):
        ledgerlm.ingest(bought, spec | {"amount": {"column": "spend"}}, {"back": back})
    mixed = bought.assign(item=[1, "a"] * (len(bought) // 2))
    with pytest.raises(DataError, match="a column holds values of several types"):
        ledgerlm.ingest(mixed, spec, {"back": back})
    finer = bought.assign(day=bought["day"] + pd.Timedelta(1, "ns"))
    with pytest.raises(DataError, match="times are finer than a microsecond"):
        ledgerlm.ingest(finer, spec, {"back": back})
    bad = bought.assign(spent=["", *["x"] * (len(bought) - 1)])
    with pytest.raises(DataError, match=r"19 of 20 rows are bad .*; such as bad_amount \(spent: x\);.* mend the spec"):
        ledgerlm.ingest(bad, spec, {"back": back})
    twice = pd.concat([bought, bought[["item"]]], axis=1)
    with pytest.raises(DataError, match="columns item stand twice"):
        ledgerlm.ingest(twice, spec, {"back": back})
    with pytest.raises(DataError, match="labels are given by task"):
        ledgerlm.ingest(bought, spec, back)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"serialize: unknown key 'formt': did you mean 'format'"):
        ledgerlm.serialize(bank, formt="compact")
    with pytest.raises(DataError, match="columns client_id, split hold no vectors"):
        ledgerlm.fit(bank, bank.clients[["client_id", "split"]])
    with pytest.raises(DataError, match="no vectors are given"):
        ledgerlm.score([])
    events = bank.events.assign(event_time="yesterday")
    wrong = ledgerlm.Bank(spec=bank.spec, events=events, clients=bank.clients)
    with pytest.raises(DataError, match=r"column event_time is of type (large_)?string and not of timestamp"):
        ledgerlm.aggregate(wrong)
    with pytest.raises(ConfigError, match="only documents are embedded here"):
        ledgerlm.embed(ledgerlm.serialize(bank), backbone, source="windows")


def test_what_is_lost_on_the_way_is_warned_of(
    spark: SparkSession, bank: ledgerlm.Bank[pd.DataFrame], tmp_path: Path
) -> None:
    bought, back, spec = ledgerlm.example()
    strange = back.assign(who=["nobody", *back["who"][1:]])
    with pytest.warns(UserWarning, match="1 rows of labels were set aside: see quarantine"):
        labels = ledgerlm.ingest(bought, spec, {"back": strange}).labels
    assert labels is not None and len(labels) == 39
    features = ledgerlm.aggregate(bank)
    with pytest.warns(UserWarning, match="2 of 40 labelled histories have no vector"):
        heads = ledgerlm.fit(bank, features.iloc[2:], folder=tmp_path, kind="logistic_regression", calibration="none")
    others = features.assign(features=features["features"].map(lambda one: {f"other {name}": 1.0 for name in one}))
    with pytest.raises(DataError, match=r"head back: no row holds any of the \d+ features that it reads, such as"):
        ledgerlm.score(heads, others)
    with pytest.raises(DataError, match="no vector is given: the frames have no row"):
        ledgerlm.score(heads, features.iloc[:0])


def test_categories_and_lazy_frames_of_polars_are_read(spark: SparkSession) -> None:
    bought, back, spec = ledgerlm.example(4)
    rows = pl.from_pandas(bought).with_columns(
        pl.col("item").cast(pl.Categorical), pl.col("who").cast(pl.Enum(back.who))
    )
    found = ledgerlm.ingest(rows.lazy(), spec, {"back": pl.from_pandas(back)})
    assert isinstance(found.events, pl.DataFrame)
    assert found.events["item"].value_counts().sort("item").rows() == [("food", 10), ("fuel", 10)]


def test_a_map_that_spark_gives_comes_back(spark: SparkSession) -> None:
    rows = spark.sql("SELECT map('a', 1.5F, 'b', 2F) AS m UNION ALL SELECT map() UNION ALL SELECT NULL")
    schema = T.StructType([T.StructField("m", T.MapType(T.StringType(), T.FloatType()))])
    frames = {kind: from_spark(rows, kind) for kind in ("pandas", "polars", "arrow")}  # type: ignore[arg-type]
    pairs = [[{"key": "a", "value": 1.5}, {"key": "b", "value": 2.0}], [], None]
    frames["lists of keys and values"] = pa.table({"m": pairs})
    for kind, frame in frames.items():
        there = to_spark(spark, frame, schema)
        assert there.schema["m"].dataType == schema["m"].dataType
        assert {str(row["m"]) for row in there.collect()} == {"{'a': 1.5, 'b': 2.0}", "{}", "None"}, kind


def test_a_frame_of_a_cluster_is_not_written_to_the_disks_of_its_machines(
    small: tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]],
) -> None:
    frame = MagicMock()
    type(frame).columns = ["who"]
    frame.sparkSession.conf.get.return_value = "spark://bank:7077"
    type(frame).__module__ = "pyspark.sql"
    with pytest.raises(DataError, match="a Spark frame of spark://bank:7077 would be"):
        ledgerlm.ingest(frame, small[2])
    assert not frame.write.parquet.called
