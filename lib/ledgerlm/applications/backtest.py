"""What an application would have earned on clients whose outcome is known, against chance and a frequency rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.applications.policy import PolicyConf, apply_policy, best_rows
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.events.condition import Condition

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

METHODS = ("scores", "frequency", "random")
_KEY = ("client_id", "as_of")
_Z = 1.959964  # standard normal quantile of a 95 % interval


def backtest(
    candidates: DataFrame,
    outcomes: DataFrame,
    clients: DataFrame,
    policy: PolicyConf,
    *,
    eligibility: Mapping[str, Condition] | None = None,
    seed: int,
    keep: Keep,
) -> dict[str, Any]:
    """Plays the policy three times on the same clients and looks what came.

    Once the candidates are ranked by the scores, once by the frequency rule, once at random; the two rivals may make
    as many contacts as the scores made. A contact earns `payoff` when the goal came and costs `cost`.

    Args:
        candidates: from `offers.candidates`, those of clients in `outcomes`; kept, since they are read often.
        outcomes: client_id, as_of, label_text (the goal that came).
        clients: the `clients` table.
        policy: caps, quotas and budget, which hold for each of the three.
        eligibility: offer -> SQL condition over client columns.
        seed: of the random order.
        keep: for the rows of each method.

    Returns:
        `clients`, and for each method `contacts`, `hits`, `hit_rate`, `value` (earned, less costs) and
        `value_per_client`; for the rivals also `gain`, `gain_low`, `gain_high`: what the scores earn more for each
        client, with its 95 % interval over clients.
    """
    chance = F.pmod(F.xxhash64(*_KEY, "offer", F.lit(seed)), F.lit(1_000_000)) / 1_000_000
    ranked = {
        # Nobody would make an offer that is expected to lose money.
        "scores": candidates.where("value > 0"),
        "frequency": candidates.withColumn("value", F.col("frequency_value")).where("value > 0"),
        "random": candidates.withColumn("value", chance),
    }
    people = outcomes.select(*_KEY, "label_text")
    contacts: int | None = None
    joined = people.select(*_KEY)
    for method in METHODS:
        judged = apply_policy(ranked[method], clients, policy, keep=keep, eligibility=eligibility)
        allowed = settled(judged.where("blocked IS NULL"), keep)
        if contacts is None:
            contacts = allowed.count()
        else:
            allowed = best_rows(allowed, contacts, keep=keep)
        joined = joined.join(_earned(allowed, people, method), on=list(_KEY), how="left")
    names = [f"{method}_{part}" for method in METHODS for part in ("value", "contacts", "hits")]
    return _figures(joined.fillna(0, subset=names))


def _earned(allowed: DataFrame, people: DataFrame, method: str) -> DataFrame:
    """What each contacted client brought."""
    came = allowed.join(people, on=list(_KEY), how="inner").withColumn("hit", F.col("goal") == F.col("label_text"))
    earned = F.when(F.col("hit"), F.col("payoff")).otherwise(F.lit(0.0)) - F.col("cost")
    return came.groupBy(*_KEY).agg(
        F.sum(earned).alias(f"{method}_value"),
        F.count(F.lit(1)).alias(f"{method}_contacts"),
        F.count_if("hit").alias(f"{method}_hits"),
    )


def _figures(joined: DataFrame) -> dict[str, Any]:
    sums = [
        F.sum(f"{method}_{part}").alias(f"{method}_{part}")
        for method in METHODS
        for part in ("value", "contacts", "hits")
    ]
    gains = []
    for rival in METHODS[1:]:
        gain = F.col("scores_value") - F.col(f"{rival}_value")
        gains += [F.avg(gain).alias(f"{rival}_gain"), F.stddev_samp(gain).alias(f"{rival}_deviation")]
    row = joined.agg(F.count(F.lit(1)).alias("clients"), *sums, *gains).first()
    if row is None or not row["clients"]:
        return {"clients": 0}
    found: dict[str, Any] = {"clients": row["clients"]}
    for method in METHODS:
        value, contacts, hits = (row[f"{method}_{part}"] or 0 for part in ("value", "contacts", "hits"))
        found[method] = {
            "contacts": contacts,
            "hits": hits,
            "hit_rate": hits / contacts if contacts else None,
            "value": float(value),
            "value_per_client": float(value) / row["clients"],
        }
    for rival in METHODS[1:]:
        mean, reach = row[f"{rival}_gain"], _Z * (row[f"{rival}_deviation"] or 0.0) / row["clients"] ** 0.5
        found[rival] |= {"gain": mean, "gain_low": mean - reach, "gain_high": mean + reach}
    return found
