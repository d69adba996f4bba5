"""Product recommendations: for each client the offers that are worth most, within the contact policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.applications.offers import Offer, eligibility, reason_in_words
from ledgerlm.applications.policy import PolicyConf, apply_policy, best_first

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def recommend(
    candidates: DataFrame,
    offers: Sequence[Offer],
    clients: DataFrame,
    policy: PolicyConf,
    *,
    days: int,
    contacts: DataFrame | None = None,
) -> DataFrame:
    """Chooses each client's offers.

    Args:
        candidates: from `offers.candidates`.
        offers: the catalogue.
        clients: the `clients` table.
        policy: `per_client` is the number of recommendations.
        days: of the evidence, for the reasons.
        contacts: client_id, contact_time of earlier contacts.

    Returns:
        client_id, as_of, rank (1 is best), offer, goal, probability, expected_value, reason, and `blocked`: null for
        what is recommended, else what forbade it (`no_value`: expected to lose money).
    """
    worth = candidates.where("value > 0")
    judged = apply_policy(worth, clients, policy, eligibility=eligibility(offers), contacts=contacts)
    poor = candidates.where("value <= 0").withColumn("blocked", F.lit("no_value"))
    own = Window.partitionBy("client_id", "as_of", F.col("blocked").isNull()).orderBy(*best_first())
    ranked = judged.unionByName(poor).withColumn("rank", F.row_number().over(own))
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
