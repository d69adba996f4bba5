"""What one would write without ledgerlm: events from CSV, features by client, a calibrated LightGBM head, scores.

A script of Spark, pandas and LightGBM alone, which `bench_run` holds against `ledgerlm run` on the same files: the same
tables (events, labels, features, scores with tenths and reasons), features of the same kinds, the same trees and folds.
It checks nothing, sets nothing aside, names no versions, and a second call does all of it again.

    python tests/benchmarks/bare.py FOLDER    # FOLDER/events.csv, FOLDER/labels.csv -> FOLDER/bare/TABLE
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, GroupedData, SparkSession
from pyspark.sql import functions as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

AS_OF = "2025-01-01"
CODES = ("category", "store", "hour", "weekday")
TREES = 500
PARAMS = {
    "objective": "binary",
    "learning_rate": 0.02,
    "num_leaves": 31,
    "max_depth": 6,
    "min_data_in_leaf": 50,
    "bagging_fraction": 0.5,
    "bagging_freq": 1,
    "feature_fraction": 0.75,
    "lambda_l1": 1.0,
    "lambda_l2": 1.0,
    "seed": 42,
    "deterministic": True,
    "force_col_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}


def session() -> SparkSession:
    """As Delta's own page builds one, but that a small table isn't shuffled into 200 parts."""
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
    }
    builder = SparkSession.builder.master("local[*]").appName("bare")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def features_of(events: DataFrame) -> DataFrame:
    """client_id, feature, value: counts, sums, means, deviations over all events and by code; what the clock tells."""
    amount = F.col("amount").cast("double")
    told = events.select(
        "client_id",
        "category",
        "store",
        F.hour("event_time").cast("string").alias("hour"),
        F.weekday("event_time").cast("string").alias("weekday"),
        F.unix_timestamp("event_time").alias("at"),
        amount.alias("amount"),
        (F.signum(amount) * F.log1p(F.abs(amount))).alias("log_amount"),
    ).cache()
    now = F.unix_timestamp(F.lit(AS_OF).cast("timestamp"))
    overall = {"count": F.count("*"), "since_last": now - F.max("at"), "since_first": now - F.min("at")}
    overall |= {f"last_{days}": F.count_if(F.col("at") >= now - days * 86_400) for days in (30, 90, 365)}
    overall |= {f"{code}:distinct": F.count_distinct(code) for code in CODES}
    for name in ("amount", "log_amount"):
        overall |= {f"{name}:{of.__name__}": of(name) for of in (F.sum, F.mean, F.std)}
    each = F.explode(F.array(*(F.concat(F.lit(f"{code}="), code) for code in CODES))).alias("code")
    codes = told.select("client_id", "log_amount", each).groupBy("client_id", "code")
    by_code = {of.__name__: of("log_amount") for of in (F.count, F.mean, F.std)}
    return _long(told.groupBy("client_id"), "", overall).unionByName(_long(codes, "code", by_code))


def _long(groups: GroupedData, code: str, values: dict[str, Column]) -> DataFrame:
    """A row a value."""
    rows = groups.agg(F.map_from_arrays(F.array(*map(F.lit, values)), F.array(*values.values())).alias("values"))
    rows = rows.select("client_id", *filter(None, [code]), F.explode("values").alias("feature", "value"))
    named = F.concat_ws(":", code, "feature") if code else F.col("feature")
    return rows.select("client_id", named.alias("feature"), "value")


def fit(x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[lgb.Booster, LogisticRegression]:
    """Trees, and Platt's two numbers from folds that had not seen their clients."""
    held_out = np.zeros(len(y))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=42).split(x, y):
        part = lgb.train(PARAMS, lgb.Dataset(x[train], y[train]), TREES)
        held_out[test] = part.predict(x[test], raw_score=True)
    return lgb.train(PARAMS, lgb.Dataset(x, y), TREES), LogisticRegression().fit(held_out[:, None], y)


def main(folder: Path) -> None:
    """From files to tables."""
    spark, out = session(), folder / "bare"
    spark.sparkContext.setLogLevel("ERROR")

    def keep(rows: DataFrame, table: str) -> DataFrame:
        rows.write.format("delta").mode("overwrite").save(str(out / table))
        return spark.read.format("delta").load(str(out / table))

    schema = (
        "event_id string, client_id string, event_time timestamp, amount decimal(18,4), category string, store string"
    )
    events = keep(spark.read.csv(str(folder / "events.csv"), schema=schema, header=True), "events")
    labels = keep(
        spark.read.csv(str(folder / "labels.csv"), schema="client_id string, churn int", header=True), "labels"
    )
    told = keep(features_of(events.where(F.col("event_time") < AS_OF)), "features").toPandas()
    features = told.pivot(index="client_id", columns="feature", values="value").fillna(0)
    x = features.to_numpy("float32")
    known = labels.toPandas().set_index("client_id")["churn"]
    trees, platt = fit(x[features.index.get_indexer(known.index)], known.to_numpy())
    raw = np.asarray(trees.predict(x, raw_score=True))
    added = np.asarray(trees.predict(x, pred_contrib=True))[:, :-1]
    largest = np.argsort(-np.abs(added), axis=1)[:, :3]
    scores = pd.DataFrame(
        {
            "client_id": features.index,
            "probability": platt.predict_proba(raw[:, None])[:, 1],
            "decile": 10 - pd.qcut(raw, 10, labels=False, duplicates="drop"),
            "reasons": [list(features.columns[places]) for places in largest],
        }
    )
    keep(spark.createDataFrame(scores), "scores")
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
