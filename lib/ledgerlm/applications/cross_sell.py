"""Cross-sell and up-sell: products that a client does not hold, or the next better one, and who is likely to want them.

Who holds a product is told by a condition over client columns, by recent events, or by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications.offers import Offer
from ledgerlm.applications.pricing import ChosenOffers, Known, OffersConf, choose, price
from ledgerlm.applications.recommend import TOTALS, ranked_offers
from ledgerlm.applications.scored import Scored
from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.events.goals import GoalRule, with_goal

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Holding(Conf):
    """How it shows that a client holds a product."""

    clients: str | None = Field(None, description="SQL condition over client columns")
    events: GoalRule | None = Field(None, description="events that only holders have")
    days: int = Field(180, ge=1, description="days before as_of in which such events count")


class Product(Offer):
    """A product that may be sold to clients who do not hold it."""

    kind: Literal["cross_sell", "up_sell"] = Field("cross_sell", description="up_sell: a better one of what they hold")
    held: Holding = Field(description="who has it already and is no candidate")


class CrossSellConf(OffersConf):
    """Settings of the cross_sell job."""

    products: tuple[Product, ...] = Field(min_length=1, description="the products, each with how it shows who has it")


def cross_sell(scored: Scored, known: Known, conf: CrossSellConf, *, seed: int, keep: Keep) -> ChosenOffers:
    """Leaves out who holds a product, ranks the others, and looks what the candidates would have brought.

    Args:
        scored: from `choose_scores`.
        known: the tables of the clients.
        conf: products, evidence and policy.
        seed: of the backtest.
        keep: for frames that are read again.

    Returns:
        Rows for `cross_sell`: client_id, as_of, product, kind, rank (1 is best), goal, probability, expected_value,
        reason, head_id; key (client_id, as_of, product). `blocked` counts holders as `held`.
    """
    priced = price(scored, known, conf.products, conf, keep=keep)
    held = settled(holders(known.events, priced.clients, priced.candidates, conf.products, known.dictionaries), keep)
    free = replace(priced, candidates=settled(without_holders(priced.candidates, held), keep))
    ranked = ranked_offers(free, conf.products, conf.policy, days=conf.evidence.days, keep=keep)
    judged = with_kind(ranked, conf.products).withColumnRenamed("offer", "product")
    found = choose(
        free,
        judged,
        conf.products,
        conf.policy,
        table="cross_sell",
        name="product",
        totals=TOTALS,
        by=("kind",),
        seed=seed,
        keep=keep,
    )
    return replace(found, blocked={"held": held.count(), **found.blocked})


def holders(
    events: DataFrame,
    clients: DataFrame,
    rows: DataFrame,
    products: Sequence[Product],
    dictionaries: DataFrame | None,
) -> DataFrame:
    """Who holds which product at as_of.

    Args:
        events: the `events` table; only events before as_of are looked at.
        clients: the `clients` table.
        rows: client_id, as_of.
        products: the catalogue.
        dictionaries: the `dictionaries` table, if there is one.

    Returns:
        client_id, as_of, offer (the product's name); distinct.
    """
    asked = rows.select("client_id", "as_of").distinct()
    found = asked.withColumn("offer", F.lit("")).limit(0)
    for product in products:
        if product.held.clients is not None:
            own = clients.where(product.held.clients).select("client_id")
            named = asked.join(own, on="client_id", how="leftsemi").withColumn("offer", F.lit(product.name))
            found = found.unionByName(named)
        if product.held.events is not None:
            fitting = with_goal(events, [product.held.events], dictionaries).where("goal IS NOT NULL")
            start = F.col("as_of") - F.make_dt_interval(F.lit(product.held.days))
            seen = asked.join(fitting.select("client_id", "event_time"), on="client_id", how="inner")
            seen = seen.where((F.col("event_time") < F.col("as_of")) & (F.col("event_time") >= start))
            found = found.unionByName(seen.select("client_id", "as_of", F.lit(product.name).alias("offer")))
    return found.distinct()


def without_holders(candidates: DataFrame, held: DataFrame) -> DataFrame:
    """Candidates for products that the client does not hold.

    Args:
        candidates: from `offers.candidates`.
        held: from `holders`.
    """
    return candidates.join(held, on=["client_id", "as_of", "offer"], how="leftanti")


def with_kind(rows: DataFrame, products: Sequence[Product]) -> DataFrame:
    """Adds `kind`: cross_sell or up_sell."""
    kinds = F.create_map(*(F.lit(part) for product in products for part in (product.name, product.kind)))
    return rows.withColumn("kind", kinds[F.col("offer")])
