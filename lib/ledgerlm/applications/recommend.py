"""Product recommendations: for each client the offers that are worth most, within the contact policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.applications.offers import Offer, reason_in_words
from ledgerlm.applications.policy import PolicyConf, best_first
from ledgerlm.applications.pricing import ChosenOffers, Known, OffersConf, Priced, choose, price, within_policy
from ledgerlm.applications.scored import Scored
from ledgerlm.engines.frames import Keep

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

TOTALS = {"clients": "count(1)", "mean probability": "avg(probability)", "expected worth": "sum(expected_value)"}


class RecommendConf(OffersConf):
    """Settings of the recommend job."""

    offers: tuple[Offer, ...] = Field(min_length=1, description="the catalogue")


def recommend(scored: Scored, known: Known, conf: RecommendConf, *, seed: int, keep: Keep) -> ChosenOffers:
    """Ranks the offers of each client, and looks what those that the policy allows would have earned.

    Args:
        scored: from `choose_scores`.
        known: the tables of the clients.
        conf: catalogue, evidence and policy.
        seed: of the backtest.
        keep: for frames that are read again.

    Returns:
        Rows for `recommendations`: client_id, as_of, rank (1 is best), offer, goal, probability, expected_value,
        reason, head_id; key (client_id, as_of, offer).
    """
    priced = price(scored, known, conf.offers, conf, keep=keep)
    judged = ranked_offers(priced, conf.offers, conf.policy, days=conf.evidence.days, keep=keep)
    return choose(
        priced,
        judged,
        conf.offers,
        conf.policy,
        table="recommendations",
        name="offer",
        totals=TOTALS,
        seed=seed,
        keep=keep,
    )


def ranked_offers(priced: Priced, offers: Sequence[Offer], policy: PolicyConf, *, days: int, keep: Keep) -> DataFrame:
    """Each client's offers in order.

    Args:
        priced: from `price`.
        offers: the catalogue.
        policy: `per_client` is the number of recommendations.
        days: of the evidence, for the reasons.
        keep: for the rows between two steps of the policy.

    Returns:
        client_id, as_of, rank (1 is best), offer, goal, probability, expected_value, reason, and `blocked`: null for
        what is recommended, else what forbade it (`no_value`: expected to lose money).
    """
    own = Window.partitionBy("client_id", "as_of", F.col("blocked").isNull()).orderBy(*best_first())
    judged = within_policy(priced, offers, policy, keep=keep)
    ranked = judged.withColumn("rank", F.row_number().over(own))
    return ranked.select(
        "client_id",
        "as_of",
        "rank",
        "offer",
        "goal",
        "probability",
        F.col("value").alias("expected_value"),
        reason_in_words(offers, days).alias("reason"),
        "blocked",
    )
