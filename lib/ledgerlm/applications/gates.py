"""Gates: what a night's scores must hold before readers see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_SHARES = [share / 10 for share in range(1, 10)]
_LEAST = 1e-4  # of a tenth that is empty, whose logarithm is asked


class PublishConf(Conf):
    """Settings of the publish job."""

    HOW = frozenset({"views"})

    views: bool = Field(
        True,
        description="where the lake is a catalog's schema, make its views scores_latest, embeddings_latest and "
        "features_latest show what is published; false: for a catalog that makes no views",
    )
    least_clients: float | None = Field(
        0.9, ge=0, description="clients scored by each head, as a share of those of the publication before; null: any"
    )
    most_shift: float | None = Field(
        0.25,
        ge=0,
        description="population stability index of each head's predictions against the publication before, over its "
        "tenths; null: any. 0.1 is small, 0.25 is large",
    )
    most_unscored: float | None = Field(
        0.05, ge=0, le=1, description="share of the clients with events that a head has no score of; null: any"
    )


def judge(
    scores: DataFrame, clients: int, before: DataFrame | None, heads: Sequence[str], conf: PublishConf
) -> dict[str, dict[str, Any]]:
    """Holds a night's scores against the gates.

    Args:
        scores: rows of `scores` as of tonight: client_id, head_id, probabilities, prediction.
        clients: how many clients there are.
        before: those of the publication before; None for the first.
        heads: the heads that must have scored.
        conf: limits.

    Returns:
        `GATE/HEAD` -> `found`, `limit`, `passed`.
    """
    counted = {row["head_id"]: row["count"] for row in scores.groupBy("head_id").count().collect()}
    earlier: Mapping[str, int] = {}
    shifts: Mapping[str, float] = {}
    if before is not None:
        earlier = {row["head_id"]: row["count"] for row in before.groupBy("head_id").count().collect()}
        shifts = stability(before, scores)
    found: dict[str, dict[str, Any]] = {}
    for head in heads:
        scored = counted.get(head, 0)
        unscored = 1 - scored / clients if clients else 0.0
        found[f"most_unscored/{head}"] = _gate(unscored, conf.most_unscored, least=False)
        if earlier.get(head):
            found[f"least_clients/{head}"] = _gate(scored / earlier[head], conf.least_clients, least=True)
        if head in shifts:
            found[f"most_shift/{head}"] = _gate(shifts[head], conf.most_shift, least=False)
    return found


def judge_champions(scores: DataFrame, champions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Whether a task that is scored is scored by its champion: what has learnt anew is to be promoted first.

    Args:
        scores: rows of `scores` as of tonight, of tonight's heads.
        champions: task -> head.

    Returns:
        As `judge`: `champion/TASK` -> `found`, the heads that have scored, `limit`, the champion, and `passed`.
    """
    if not champions:
        return {}
    heads = scores.groupBy("task").agg(F.sort_array(F.collect_set("head_id")).alias("heads")).collect()
    return {
        f"champion/{row['task']}": {
            "found": row["heads"],
            "limit": champions[row["task"]],
            "passed": champions[row["task"]] in row["heads"],
        }
        for row in heads
        if row["task"] in champions
    }


def refused(gates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The gates that did not pass, in words."""
    return [
        f"{name}: {one['limit']} has not scored, but {', '.join(one['found'])}; promote one of these, or let that score"
        if isinstance(one["found"], list)
        else f"{name} is {one['found']}, and the limit is {one['limit']}"
        for name, one in gates.items()
        if not one["passed"]
    ]


def stability(before: DataFrame, now: DataFrame) -> dict[str, float]:
    """Population stability index of each head that has scores on both sides.

    `sum((q - p) ln(q / p))` over the tenths of the earlier predictions, p the earlier and q the present shares
    (Siddiqi, Credit Risk Scorecards, 2006).

    Args:
        before: head_id, probabilities, prediction.
        now: the same.
    """
    borders = before.groupBy("head_id").agg(F.percentile_approx(value_of(), _SHARES, 10_000).alias("borders"))
    tenth = F.size(F.filter("borders", lambda border: F.col("value") > border))
    sides = [
        rows.select("head_id", value_of().alias("value"))
        .join(borders, "head_id")
        .groupBy("head_id", tenth.alias("tenth"))
        .agg(F.count(F.lit(1)).alias(name))
        for name, rows in (("p", before), ("q", now))
    ]
    both = sides[0].join(sides[1], ["head_id", "tenth"], how="full")
    totals = both.groupBy("head_id").agg(F.sum("p").alias("_p"), F.sum("q").alias("_q")).where("_p > 0 AND _q > 0")
    shares = both.join(totals, "head_id").select("head_id", _share("p").alias("p"), _share("q").alias("q"))
    found = shares.groupBy("head_id").agg(
        F.sum((F.col("q") - F.col("p")) * F.log(F.col("q") / F.col("p"))).alias("psi")
    )
    return {row["head_id"]: round(row["psi"], 6) for row in found.collect()}


def _share(side: str) -> Column:
    return F.greatest(F.coalesce(side, F.lit(0)) / F.col(f"_{side}"), F.lit(_LEAST))


def value_of() -> Column:
    """One number of a score that grows with it: of two classes the second one's probability, else the prediction."""
    two = F.size("probabilities") == 2
    return F.when(two, F.element_at("probabilities", 2).cast("double")).otherwise(F.col("prediction"))


def _gate(found: float, limit: float | None, *, least: bool) -> dict[str, Any]:
    passed = limit is None or (found >= limit if least else found <= limit)
    return {"found": round(found, 6), "limit": limit, "passed": passed}
