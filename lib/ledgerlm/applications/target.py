"""Campaign lists: for each campaign whom to contact under its budget, with the expected response and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications.offers import Offer, eligibility, reason_in_words
from ledgerlm.applications.policy import PolicyConf, apply_policy, with_rank

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Campaign(Offer):
    """One campaign: an offer with a budget of its own."""

    budget: float | None = Field(None, gt=0, description="most that its contacts cost together, currency units")


def campaign_policy(campaigns: Sequence[Campaign], policy: PolicyConf) -> PolicyConf:
    """The policy with each campaign's budget as a quota of contacts, which all cost the same within a campaign."""
    quotas = {one.name: int(one.budget / one.cost) for one in campaigns if one.budget is not None and one.cost > 0}
    both = {name: min(most, policy.quotas.get(name, most)) for name, most in quotas.items()}
    return policy.model_copy(update={"quotas": {**policy.quotas, **both}})


def campaign_lists(
    candidates: DataFrame,
    campaigns: Sequence[Campaign],
    clients: DataFrame,
    policy: PolicyConf,
    *,
    days: int,
    contacts: DataFrame | None = None,
) -> DataFrame:
    """Chooses the clients of each campaign, the most profitable first.

    Args:
        candidates: from `offers.candidates`, an offer being a campaign.
        campaigns: the campaigns.
        clients: the `clients` table.
        policy: from `campaign_policy`.
        days: of the evidence, for the reasons.
        contacts: client_id, contact_time of earlier contacts.

    Returns:
        client_id, as_of, campaign, rank (within the campaign, 1 is best), goal, probability, expected_response
        (probability x acceptance), expected_value (profit), cost, reason, and `blocked`: null for who is on the list.
    """
    accepted = {one.name: one.acceptance for one in campaigns}
    share = F.create_map(*(F.lit(part) for pair in accepted.items() for part in pair))
    judged = apply_policy(
        candidates.where("value > 0"), clients, policy, eligibility=eligibility(campaigns), contacts=contacts
    )
    poor = candidates.where("value <= 0").withColumn("blocked", F.lit("no_value"))
    chosen = with_rank(judged.where("blocked IS NULL"), by="offer")
    rest = judged.where("blocked IS NOT NULL").unionByName(poor).withColumn("rank", F.lit(None).cast("int"))
    return chosen.unionByName(rest).select(
        "client_id",
        "as_of",
        F.col("offer").alias("campaign"),
        "rank",
        "goal",
        "probability",
        (F.col("probability") * share[F.col("offer")]).alias("expected_response"),
        F.col("value").alias("expected_value"),
        "cost",
        reason_in_words(campaigns, days).alias("reason"),
        "blocked",
    )


def campaign_totals(lists: DataFrame) -> DataFrame:
    """One row a campaign: clients, expected_responses, cost, expected_profit; from rows that are on the list."""
    return lists.groupBy("campaign").agg(
        F.count(F.lit(1)).alias("clients"),
        F.sum("expected_response").alias("expected_responses"),
        F.sum("cost").alias("cost"),
        F.sum("expected_value").alias("expected_profit"),
    )
