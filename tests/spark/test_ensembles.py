"""Representations side by side: aligned by client and as_of, with clients that only some of them know."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.heads.vectors import Matrix, Source, method_matrices

JUNE, JULY = datetime(2020, 6, 1, tzinfo=UTC), datetime(2020, 7, 1, tzinfo=UTC)
KEYS = [("a", JUNE), ("a", JULY), ("b", JUNE), ("c", JUNE), ("d", JULY)]
# Number of each vector; a client and time that is not there has none.
AGG = {("a", JUNE): 1.0, ("a", JULY): 2.0, ("b", JUNE): 3.0, ("d", JULY): 4.0, ("x", JUNE): 9.0}
COLES = {("a", JUNE): 10.0, ("b", JUNE): 30.0, ("c", JUNE): 50.0, ("d", JUNE): 99.0}
LLM = {("a", JUNE): 100.0, ("a", JULY): 200.0, ("b", JUNE): 300.0}
FACTS = {"coles": {"backbone_id": "e", "definition_id": "1"}, "llm": {"backbone_id": "l", "definition_id": "1"}}
METHODS: dict[str, tuple[Source, ...]] = {
    "agg": (Source(table="features"),),
    "all": (
        Source(table="embeddings", stage="llm", parts=("mean", "std")),
        Source(table="features"),
        Source(table="embeddings", stage="coles", parts=("coles",)),
    ),
}


@pytest.fixture(scope="module")
def tables(spark: SparkSession) -> dict[str, DataFrame]:
    features = [(*key, "agg", {"count": value}) for key, value in reversed(AGG.items())]
    embeddings = [(*key, "e", "1", {"coles": [value]}) for key, value in COLES.items()]
    embeddings += [(*key, "l", "1", {"mean": [value, -value], "std": [value + 1]}) for key, value in LLM.items()]
    embeddings += [("a", JUNE, "other", "1", {"mean": [7.0, 7.0], "std": [7.0]})]
    key = "client_id string, as_of timestamp, "
    return {
        "features": spark.createDataFrame(features, key + "feature_set string, features map<string, float>"),
        "embeddings": spark.createDataFrame(
            embeddings, key + "backbone_id string, definition_id string, parts map<string, array<float>>"
        ),
    }


def matrices(spark: SparkSession, tables: Mapping[str, DataFrame], *, union: bool) -> dict[str, Matrix]:
    keys = spark.createDataFrame(KEYS, "client_id string, as_of timestamp")
    return method_matrices(METHODS, tables, FACTS.__getitem__, keys, union=union)


def rows(matrix: Matrix) -> dict[tuple[str, datetime], dict[str, float]]:
    times = [one.astype(datetime).replace(tzinfo=UTC) for one in matrix.as_of]
    values: Any = matrix.x.toarray().tolist()
    return {
        key: dict(zip(matrix.names, row, strict=True))
        for key, row in zip(zip(matrix.client_ids, times, strict=True), values, strict=True)
    }


def test_common_clients_alone_are_compared(spark: SparkSession, tables: dict[str, DataFrame]) -> None:
    found = matrices(spark, tables, union=False)
    assert rows(found["agg"]) == {("a", JUNE): {"count": 1}, ("b", JUNE): {"count": 3}}
    assert rows(found["all"]) == {
        ("a", JUNE): {"mean:0": 100, "mean:1": -100, "std:0": 101, "count": 1, "coles:0": 10},
        ("b", JUNE): {"mean:0": 300, "mean:1": -300, "std:0": 301, "count": 3, "coles:0": 30},
    }


def test_missing_vectors_are_zeros_with_a_flag(spark: SparkSession, tables: dict[str, DataFrame]) -> None:
    found = matrices(spark, tables, union=True)
    both = rows(found["all"])
    assert set(both) == set(KEYS) == set(rows(found["agg"])), "every labelled row, and no other client"
    for key in KEYS:
        llm, agg, coles = LLM.get(key), AGG.get(key), COLES.get(key)
        expected = {
            "mean:0": llm or 0.0,
            "mean:1": -(llm or 0.0),
            "mean:missing": float(llm is None),
            "std:0": llm + 1 if llm else 0.0,
            "std:missing": float(llm is None),
            "count": agg or 0.0,
            "agg:missing": float(agg is None),
            "coles:0": coles or 0.0,
            "coles:missing": float(coles is None),
        }
        assert both[key] == expected, key
    assert np.array_equal(found["agg"].client_ids, found["all"].client_ids)
