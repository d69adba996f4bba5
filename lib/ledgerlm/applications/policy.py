"""The contact policy that every application obeys: opt-outs, eligibility, rest, caps, quotas and a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep, settled, small_frame
from ledgerlm.events.condition import Condition

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# Groups that a running total is summed in before rows are put in order within each.
_GROUPS = 200
_TOTAL = "_total"


class PolicyConf(Conf):
    """Whom a campaign may contact, and how often. The newest contacts count, of whatever campaign."""

    opt_out: Condition | None = Field(None, description="SQL condition over client columns: who must not be contacted")
    opt_out_unknown: Literal["blocks", "allows"] = Field(
        "blocks", description="of a client for whom the condition is neither true nor false, since a value is unknown"
    )
    per_client: int = Field(1, ge=1, description="most contacts of a client within period_days, earlier ones counted")
    period_days: int = Field(30, ge=1, description="days before as_of in which earlier contacts count")
    rest_days: int = Field(0, ge=0, description="days that must have passed since a client's last contact")
    quotas: dict[str, int] = Field(default_factory=dict, description="offer -> most clients that get it")
    budget: float | None = Field(None, gt=0, description="most that all contacts together cost, in the unit of cost")


def apply_policy(
    candidates: DataFrame,
    clients: DataFrame,
    policy: PolicyConf,
    *,
    keep: Keep,
    eligibility: Mapping[str, Condition] | None = None,
    contacts: DataFrame | None = None,
) -> DataFrame:
    """Says of each candidate contact whether the policy allows it, and else why not.

    The steps come one after the other, each by rank of value among the rows that are left: opt-out, eligibility, rest,
    cap of the client, quota of the offer, budget. A client whose best offer falls to a quota does not get the second
    best one instead.

    Args:
        candidates: client_id, as_of, offer, value double (the order: highest first), cost double where there is a
            budget, and any other columns; key (client_id, as_of, offer).
        clients: the `clients` table.
        policy: the rules.
        keep: for the rows between two steps.
        eligibility: offer -> SQL condition over client columns; an offer without one is for everybody.
        contacts: client_id, contact_time of earlier contacts.

    Returns:
        The candidates with `blocked` string: null where allowed, else opt_out, not_eligible, rest, client_cap, quota
        or budget.

    Raises:
        ConfigError: for a condition that Spark does not understand.
    """
    judged = _barred(candidates, clients, policy, eligibility or {})
    judged = _rested(judged, contacts, policy)
    judged = _client_cap(judged, policy)
    judged = _quotas(judged.drop("_used"), policy.quotas, keep) if policy.quotas else judged.drop("_used")
    return judged if policy.budget is None else _budget(judged, policy.budget, keep)


def best_first() -> list[Column]:
    """The order in which contacts are granted: by value, equal ones by a hash that favours nobody."""
    return [F.desc("value"), F.xxhash64("client_id", "offer"), F.asc("client_id"), F.asc("offer")]


def best_rows(rows: DataFrame, count: int, *, keep: Keep) -> DataFrame:
    """The `count` rows with the highest value, in no stated order."""
    return _running(rows, F.lit(True), F.lit(1.0), keep=keep).where(F.col(_TOTAL) <= count).drop(_TOTAL)


def with_rank(rows: DataFrame, by: str, *, keep: Keep) -> DataFrame:
    """Adds `rank` int: the place of each row by value, from 1, among those with the same `by`."""
    ranked = _running(rows, F.lit(True), F.lit(1.0), by=F.col(by), keep=keep)
    return ranked.withColumn("rank", F.col(_TOTAL).cast("int")).drop(_TOTAL)


def _barred(
    candidates: DataFrame, clients: DataFrame, policy: PolicyConf, eligibility: Mapping[str, Condition]
) -> DataFrame:
    """Adds `blocked` by what is known of the client."""
    out = F.lit(False)
    if policy.opt_out is not None:
        clients = policy.opt_out.marked(clients, "_opt_out", "opt_out")
        out = F.coalesce("_opt_out", F.lit(policy.opt_out_unknown == "blocks"))
    fits = []
    for place, (offer, condition) in enumerate(eligibility.items()):
        clients = condition.marked(clients, f"_fits{place}", offer)
        fits.append((F.lit(offer), F.coalesce(f"_fits{place}", F.lit(False))))
    allowed = (
        F.create_map(*(part for pair in fits for part in pair)) if fits else F.create_map().cast("map<string, boolean>")
    )
    known = clients.select("client_id", out.alias("_out"), allowed.alias("_fits"))
    joined = candidates.join(known, on="client_id", how="left")
    eligible = F.coalesce(F.try_element_at("_fits", F.col("offer")), F.lit(True))
    # Who is no client any more may not be contacted either.
    reason = F.when(F.coalesce("_out", F.lit(True)), "opt_out").when(~eligible, "not_eligible")
    return joined.withColumn("blocked", reason).drop("_out", "_fits")


def _rested(judged: DataFrame, contacts: DataFrame | None, policy: PolicyConf) -> DataFrame:
    """Adds `_used`, the contacts of the period, and blocks who was contacted too short a time ago."""
    if contacts is None:
        return judged.withColumn("_used", F.lit(0))
    asked = judged.select("client_id", "as_of").distinct()
    earlier = contacts.select("client_id", "contact_time")
    before = asked.join(earlier, on="client_id", how="inner").where(F.col("contact_time") < F.col("as_of"))
    recent = F.col("contact_time") >= F.col("as_of") - F.make_dt_interval(F.lit(policy.period_days))
    tired = F.col("contact_time") > F.col("as_of") - F.make_dt_interval(F.lit(policy.rest_days))
    counted = before.groupBy("client_id", "as_of").agg(
        F.count_if(recent).alias("_used"), (F.count_if(tired) > 0).alias("_tired")
    )
    joined = judged.join(counted, on=["client_id", "as_of"], how="left")
    blocked = F.coalesce("blocked", F.when(F.col("_tired"), "rest"))
    return joined.withColumns({"blocked": blocked, "_used": F.coalesce("_used", F.lit(0))}).drop("_tired")


def _client_cap(judged: DataFrame, policy: PolicyConf) -> DataFrame:
    own = Window.partitionBy("client_id", "as_of", F.col("blocked").isNull()).orderBy(*best_first())
    above = F.col("_used") + F.row_number().over(own) > policy.per_client
    return judged.withColumn("blocked", F.coalesce("blocked", F.when(above, "client_cap")))


def _quotas(judged: DataFrame, quotas: Mapping[str, int], keep: Keep) -> DataFrame:
    most = F.create_map(*(F.lit(part) for pair in quotas.items() for part in pair))
    quota = F.try_element_at(most, F.col("offer"))
    concerned = F.col("blocked").isNull() & quota.isNotNull()
    placed = _running(judged, concerned, F.lit(1.0), by=F.col("offer"), keep=keep)
    above = concerned & (F.col(_TOTAL) > quota)
    return placed.withColumn("blocked", F.when(above, "quota").otherwise(F.col("blocked"))).drop(_TOTAL)


def _budget(judged: DataFrame, budget: float, keep: Keep) -> DataFrame:
    concerned = F.col("blocked").isNull()
    placed = _running(judged, concerned, F.col("cost").cast("double"), keep=keep)
    above = concerned & (F.col(_TOTAL) > budget)
    return placed.withColumn("blocked", F.when(above, "budget").otherwise(F.col("blocked"))).drop(_TOTAL)


def _running(rows: DataFrame, concerned: Column, amount: Column, *, keep: Keep, by: Column | None = None) -> DataFrame:
    """Adds `_total`: the sum of `amount` over the concerned rows from the best one to this one, for each `by`.

    One order of all rows would bring them to one task. So the rows are parted by quantiles of the value, the groups'
    sums are added up (a few hundred rows, which come here), and only within a group are rows put in order.
    """
    marked = rows.withColumns({"_by": F.when(concerned, F.lit("") if by is None else by), "_amount": amount})
    # Read three times: for the borders, for the sums, and for the answer.
    kept = settled(marked, keep)
    group = F.size(F.filter("_borders", lambda border: border > F.col("value")))
    parted = kept.join(F.broadcast(_borders(kept)), on="_by", how="left").withColumn("_group", group)
    parted = parted.drop("_borders")
    within = Window.partitionBy("_by", "_group").orderBy(*best_first()).rowsBetween(Window.unboundedPreceding, 0)
    joined = parted.join(F.broadcast(_sums_before(parted)), on=["_by", "_group"], how="left")
    total = F.when(F.col("_by").isNotNull(), F.col("_before") + F.sum("_amount").over(within))
    return joined.withColumn(_TOTAL, total).drop("_by", "_group", "_before", "_amount")


# Borders and sums are few and come here. Joined as frames they would take the plan of all rows along, and each step
# of a policy, which reads the one before, would have three times its plan.


def _borders(kept: DataFrame) -> DataFrame:
    """_by, _borders array<double>: the quantiles of the value that part its rows into groups."""
    shares = [place / _GROUPS for place in range(1, _GROUPS)]
    found = kept.where("_by IS NOT NULL").groupBy("_by")
    quantiles = found.agg(F.percentile_approx("value", shares, 10_000).alias("_borders"))
    return small_frame(kept.sparkSession, quantiles.collect(), "_by string, _borders array<double>")


def _sums_before(parted: DataFrame) -> DataFrame:
    """_by, _group, _before double: what the groups before a group sum up to."""
    sums = parted.where("_by IS NOT NULL").groupBy("_by", "_group").agg(F.sum("_amount").alias("_sum"))
    running: dict[str, float] = {}
    rows = []
    for row in sums.orderBy("_by", "_group").collect():
        before = running.get(row["_by"], 0.0)
        rows.append((row["_by"], row["_group"], before))
        running[row["_by"]] = before + row["_sum"]
    return small_frame(parted.sparkSession, rows, "_by string, _group int, _before double")
