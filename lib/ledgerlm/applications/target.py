"""Campaign lists: for each campaign whom to contact under its budget, with the expected response and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications.offers import Offer, reason_in_words
from ledgerlm.applications.policy import PolicyConf, with_rank
from ledgerlm.applications.pricing import ChosenOffers, Known, OffersConf, Priced, choose, price, within_policy
from ledgerlm.applications.scored import Scored
from ledgerlm.engines.frames import Keep

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Campaign(Offer):
    """One campaign: an offer with a budget of its own."""

    budget: float | None = Field(None, gt=0, description="most that its contacts cost together, currency units")


class TargetConf(OffersConf):
    """Settings of the target job."""

    campaigns: tuple[Campaign, ...] = Field(min_length=1, description="the campaigns, each with cost and budget")


TOTALS = {
    "clients": "count(1)",
    "expected_responses": "sum(expected_response)",
    "cost": "sum(cost)",
    "expected_profit": "sum(expected_value)",
}


def target(scored: Scored, known: Known, conf: TargetConf, *, seed: int, keep: Keep) -> ChosenOffers:
    """Fills each campaign's list from the most profitable client down, and looks what it would have earned.

    Args:
        scored: from `choose_scores`.
        known: the tables of the clients.
        conf: campaigns, evidence and policy.
        seed: of the backtest.
        keep: for frames that are read again.

    Returns:
        Rows for `campaign_lists`: client_id, as_of, campaign, rank (1 is best), goal, probability, expected_response,
        expected_value, cost, reason, head_id; key (client_id, as_of, campaign).
    """
    priced = price(scored, known, conf.campaigns, conf, keep=keep)
    policy = campaign_policy(conf.campaigns, conf.policy)
    judged = campaign_lists(priced, conf.campaigns, policy, days=conf.evidence.days, keep=keep)
    return choose(
        priced,
        judged,
        conf.campaigns,
        policy,
        table="campaign_lists",
        name="campaign",
        totals=TOTALS,
        first="rank <= 3",
        seed=seed,
        keep=keep,
    )


def campaign_policy(campaigns: Sequence[Campaign], policy: PolicyConf) -> PolicyConf:
    """The policy with each campaign's budget as a quota of contacts, which all cost the same within a campaign."""
    quotas = {one.name: int(one.budget / one.cost) for one in campaigns if one.budget is not None and one.cost > 0}
    both = {name: min(most, policy.quotas.get(name, most)) for name, most in quotas.items()}
    return policy.model_copy(update={"quotas": {**policy.quotas, **both}})


def campaign_lists(
    priced: Priced, campaigns: Sequence[Campaign], policy: PolicyConf, *, days: int, keep: Keep
) -> DataFrame:
    """Chooses the clients of each campaign, the most profitable first.

    Args:
        priced: from `price`, an offer being a campaign.
        campaigns: the campaigns.
        policy: from `campaign_policy`.
        days: of the evidence, for the reasons.
        keep: for the rows between two steps.

    Returns:
        client_id, as_of, campaign, rank (within the campaign, 1 is best), goal, probability, expected_response
        (probability x acceptance), expected_value (profit), cost, reason, and `blocked`: null for who is on the list.
    """
    accepted = {one.name: one.acceptance for one in campaigns}
    share = F.create_map(*(F.lit(part) for pair in accepted.items() for part in pair))
    judged = within_policy(priced, campaigns, policy, keep=keep)
    chosen = with_rank(judged.where("blocked IS NULL"), by="offer", keep=keep)
    rest = judged.where("blocked IS NOT NULL").withColumn("rank", F.lit(None).cast("int"))
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
