"""The contact policy: each rule bites for its own reason, and caps, quotas and budgets hold exactly."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.applications.policy import PolicyConf, apply_policy
from ledgerlm.engines.frames import Keeper
from ledgerlm.errors import ConfigError
from ledgerlm.events.condition import Condition

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
MANY = 3000
KEEP = Keeper().keep


def clients(spark: SparkSession) -> DataFrame:
    rows = [("a", "yes", "basic"), ("b", "no", "basic"), ("c", "no", "premium"), ("d", None, "premium")]
    return spark.createDataFrame(rows, "client_id string, stop string, package string")


def candidates(spark: SparkSession, rows: list[tuple[str, str, float]]) -> DataFrame:
    return spark.createDataFrame(
        [(client, AS_OF, offer, value) for client, offer, value in rows],
        "client_id string, as_of timestamp, offer string, value double",
    )


def reasons(frame: DataFrame) -> dict[tuple[str, str], str | None]:
    return {(row["client_id"], row["offer"]): row["blocked"] for row in frame.collect()}


def test_opt_out_eligibility_rest_and_cap(spark: SparkSession) -> None:
    asked = candidates(
        spark,
        [("a", "card", 9.0), ("b", "card", 5.0), ("b", "loan", 7.0), ("c", "card", 3.0), ("d", "card", 2.0),
         ("d", "loan", 1.0), ("gone", "card", 9.0)],
    )  # fmt: skip
    earlier = [("c", AS_OF - timedelta(days=3)), ("d", AS_OF - timedelta(days=20)), ("b", AS_OF + timedelta(days=1))]
    contacts = spark.createDataFrame(earlier, "client_id string, contact_time timestamp")
    policy = PolicyConf(opt_out="stop = 'yes'", opt_out_unknown="allows", per_client=2, period_days=30, rest_days=7)
    found = apply_policy(
        asked,
        clients(spark),
        policy,
        keep=KEEP,
        eligibility={"loan": Condition("package = 'premium'")},
        contacts=contacts,
    )
    assert set(found.columns) == {*asked.columns, "blocked"}
    assert reasons(found) == {
        ("a", "card"): "opt_out", ("gone", "card"): "opt_out", ("b", "loan"): "not_eligible", ("b", "card"): None,
        ("c", "card"): "rest", ("d", "card"): None, ("d", "loan"): "client_cap",
    }  # fmt: skip
    # Nobody knows whether `d` wants to be contacted.
    careful = apply_policy(asked, clients(spark), PolicyConf(opt_out="stop = 'yes'"), keep=KEEP)
    assert {client for (client, _), why in reasons(careful).items() if why == "opt_out"} == {"a", "d", "gone"}
    with pytest.raises(ConfigError, match="no condition over client_id, stop, package"):
        apply_policy(asked, clients(spark), PolicyConf(opt_out="nothing = 1"), keep=KEEP)


def test_quotas_and_budget_take_the_best_and_hold(spark: SparkSession) -> None:
    everyone = spark.range(MANY).select(F.concat(F.lit("c"), "id").alias("client_id"))
    # Many equal values, which no border between groups may tear.
    asked = everyone.select(
        "client_id",
        F.lit(AS_OF).alias("as_of"),
        F.when(F.pmod(F.xxhash64("client_id"), F.lit(3)) == 0, "card").otherwise("loan").alias("offer"),
        (F.pmod(F.hash("client_id"), F.lit(40)) / 4).alias("value"),
        (1 + F.pmod(F.hash("client_id", F.lit(1)), F.lit(3))).cast("double").alias("cost"),
    )
    policy = PolicyConf(quotas={"card": 200}, budget=1500.0)
    found = apply_policy(asked, everyone, policy, keep=KEEP).toPandas()
    counts = Counter(found["blocked"].fillna("allowed"))
    assert sum(counts.values()) == MANY
    cards = found[found["offer"] == "card"]
    kept = cards[cards["blocked"] != "quota"]
    assert len(kept) == 200
    assert kept["value"].min() >= cards[cards["blocked"] == "quota"]["value"].max()
    allowed = found[found["blocked"].isna()]
    assert 1500 - found["cost"].max() < allowed["cost"].sum() <= 1500
    assert allowed["value"].min() >= found[found["blocked"] == "budget"]["value"].max()
