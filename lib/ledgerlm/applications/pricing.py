"""What offers, campaigns and products share: each is priced for every client, some are chosen, the choice is tried.

A verb prices its catalogue (`price`), lets its own rule and the contact policy judge each candidate, and sums up what
came of it (`choose`): what was chosen, what forbade the rest, and what the choice would have earned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications.backtest import backtest
from ledgerlm.applications.offers import EvidenceConf, Offer, candidates, eligibility, goal_counts
from ledgerlm.applications.policy import PolicyConf, apply_policy
from ledgerlm.applications.scored import Scored, ScoredConf
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import DataError
from ledgerlm.events.condition import Condition
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_KEY = ["client_id", "as_of"]
_EXAMPLES = 5


class OffersConf(ScoredConf):
    """What the applications that offer something share."""

    evidence: EvidenceConf = Field(description="recent events that speak for a goal")
    policy: PolicyConf = Field(PolicyConf(), description="whom may be contacted, and how often")
    contacts: Condition | None = Field(
        None, description="SQL condition over event columns: earlier contacts of the bank, which caps and rest count"
    )
    backtest: Condition = Field(
        Condition("split = 'test'"),
        description="SQL condition over columns of clients and labels: who the backtest is about",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is known of the clients: the tables `events`, `clients`, `labels`, and `dictionaries` where there is one."""

    events: DataFrame
    clients: DataFrame
    labels: DataFrame
    dictionaries: DataFrame | None = None

    @classmethod
    def of(cls, read: Callable[[str], DataFrame], maybe: Callable[[str], DataFrame | None]) -> Known:
        """From what reads a table by its name, and what gives None where it is not there."""
        return cls(
            events=read("events"), clients=read("clients"), labels=read("labels"), dictionaries=maybe("dictionaries")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Priced:
    """A catalogue, priced for every client.

    Attributes:
        scored: the scores that it was priced by.
        clients: the `clients` table.
        contacts: client_id, contact_time of earlier contacts, or None.
        outcomes: client_id, as_of, label_text of the clients of the backtest.
        candidates: from `offers.candidates`, kept.
    """

    scored: Scored
    clients: DataFrame
    contacts: DataFrame | None
    outcomes: DataFrame
    candidates: DataFrame


def price(scored: Scored, known: Known, offers: Sequence[Offer], conf: OffersConf, *, keep: Keep) -> Priced:
    """Prices every offer for every client that has a score.

    Args:
        scored: from `choose_scores`.
        known: tables; nothing at or after `scored.as_of` is looked at but the outcomes of the backtest.
        offers: the catalogue.
        conf: evidence, contacts and backtest.
        keep: for the candidates, which the policy and three backtests read again and again.
    """
    clients, events = known.clients.drop("run_id"), known.events
    counts = goal_counts(events, scored.now, conf.evidence, known.dictionaries)
    asked = (F.col("task") == scored.task.name) & (F.col("as_of") == scored.instant)
    judged = conf.backtest.rows(known.labels.where(asked).drop("run_id").join(clients, on="client_id", how="inner"))
    contacts = None
    if conf.contacts is not None:
        contacts = conf.contacts.rows(events).select("client_id", F.col("event_time").alias("contact_time"))
    return Priced(
        scored=scored,
        clients=clients,
        contacts=contacts,
        outcomes=judged.select(*_KEY, "label_text"),
        candidates=settled(candidates(scored.now, scored.task, offers, counts, conf.evidence), keep),
    )


def within_policy(priced: Priced, offers: Sequence[Offer], policy: PolicyConf, *, keep: Keep) -> DataFrame:
    """The candidates with `blocked`: null for what may be offered, else what forbids it.

    That is `no_value` for what is expected to lose money, or a rule of the policy; see `policy.apply_policy`.

    Args:
        priced: from `price`.
        offers: the catalogue.
        policy: the rules.
        keep: for the rows between two steps.
    """
    worth, poor = (priced.candidates.where(condition) for condition in ("value > 0", "value <= 0"))
    judged = apply_policy(
        worth, priced.clients, policy, keep=keep, eligibility=eligibility(offers), contacts=priced.contacts
    )
    return judged.unionByName(poor.withColumn("blocked", F.lit("no_value")))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenOffers:
    """What was chosen of a catalogue.

    Attributes:
        table: where it belongs.
        rows: the chosen, with the columns of that table but `stage`.
        scored: the scores that it was chosen by.
        count: how many they are.
        blocked: what forbade the other candidates -> how many.
        totals: sums over the chosen, one row each of the catalogue, by column.
        examples: client, expected value and reason of some, chosen by a hash.
        tried: the backtest, see `backtest.backtest`.
    """

    table: str
    rows: DataFrame
    scored: Scored
    count: int
    blocked: Mapping[str, int]
    totals: Sequence[Mapping[str, Any]]
    examples: Sequence[tuple[str, float, str]]
    tried: Mapping[str, Any] = field(default_factory=dict)

    def made(self, stage: str, report: Sequence[Mapping[str, Any]] = ()) -> Made:
        """For the lake: a stage's own rows of this instant, so that those of other dates and stages stay.

        Args:
            stage: who writes.
            report: sections of the report.
        """
        return Made(
            rows_in=self.count + sum(self.blocked.values()),
            rows_out=self.count,
            tables={self.table: Rows(frame=self.rows.withColumn("stage", F.lit(stage)), slice=self.scored.part(stage))},
            facts={"blocked": dict(self.blocked), "backtest": dict(self.tried)},
            report=report,
        )


def choose(
    priced: Priced,
    judged: DataFrame,
    offers: Sequence[Offer],
    policy: PolicyConf,
    *,
    table: str,
    name: str,
    totals: Mapping[str, str],
    by: Sequence[str] = (),
    first: str = "rank = 1",
    seed: int,
    keep: Keep,
) -> ChosenOffers:
    """Sums up what was chosen, and plays the policy on the clients whose outcome is known.

    Args:
        priced: from `price`.
        judged: each candidate with `blocked` (null for the chosen), `expected_value`, `reason`, and the table's
            columns.
        offers: the catalogue.
        policy: the rules by which it was judged.
        table: where the chosen belong.
        name: the table's column for what is offered.
        totals: name -> SQL aggregate over the chosen of each `name`.
        by: further columns of the totals, before `name`.
        first: SQL condition of the rows that examples are taken from.
        seed: of the backtest's random order.
        keep: for frames that are read again.

    Raises:
        DataError: when candidates vanished.
    """
    kept = settled(judged, keep)
    counted = kept.where("blocked IS NOT NULL").groupBy("blocked").count().orderBy("blocked")
    blocked = {row["blocked"]: row["count"] for row in counted.collect()}
    chosen = kept.where("blocked IS NULL")
    count, asked = chosen.count(), priced.candidates.count()
    if count + sum(blocked.values()) != asked:
        raise DataError(
            f"{asked:,} candidates, but {count:,} chosen and {sum(blocked.values()):,} blocked; run it again"
        )
    sums = chosen.groupBy(*by, name).agg(*(F.expr(text).alias(column) for column, text in totals.items()))
    some = chosen.where(first).orderBy(F.xxhash64("client_id")).limit(_EXAMPLES)
    return ChosenOffers(
        table=table,
        rows=chosen.drop("blocked").withColumn("head_id", F.lit(priced.scored.head_id)),
        scored=priced.scored,
        count=count,
        blocked=blocked,
        totals=[row.asDict() for row in sums.orderBy(*by, name).collect()],
        examples=[tuple(row) for row in some.select("client_id", "expected_value", "reason").collect()],
        tried=played(priced, offers, policy, seed=seed, keep=keep),
    )


def played(priced: Priced, offers: Sequence[Offer], policy: PolicyConf, *, seed: int, keep: Keep) -> dict[str, Any]:
    """The backtest on the clients of `priced.outcomes`; see `backtest.backtest`."""
    own = settled(priced.candidates.join(priced.outcomes.select(*_KEY), on=_KEY, how="leftsemi"), keep)
    return backtest(own, priced.outcomes, priced.clients, policy, eligibility=eligibility(offers), seed=seed, keep=keep)
