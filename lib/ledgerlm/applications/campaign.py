"""Whom a campaign contacts: profit or uplift of each scored client, the contact policy, and the reasons."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.applications.policy import PolicyConf, apply_policy
from ledgerlm.applications.scored import instants
from ledgerlm.config import Conf, HeadRef
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import DataError
from ledgerlm.heads.alimn.campaign import transformed_uplift
from ledgerlm.heads.vectors import KEY, Source
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_FIRST = 8  # clients of the list that are shown


class Economy(Conf):
    """What a contact costs and what an answer is worth, in one unit of money."""

    cost: float = Field(1.0, ge=0, description="cost of one contact")
    value: float = Field(8.0, gt=0, description="worth of one answer")

    @property
    def threshold(self) -> float:
        """Probability above which a contact pays."""
        return self.cost / self.value


class ControlConf(Conf):
    """The group that was left alone at random, and the models of what clients do unasked."""

    task: str = Field(description="task of labels that the control group has")
    head: HeadRef = Field(description="STAGE:NAME of the head for that task")
    transformed: tuple[Source, ...] = Field(
        (), description="vectors for a transformed-outcome regression beside the two models; none: left out"
    )


class CampaignConf(Conf):
    """Settings of a campaign."""

    campaign: str = Field(description="name of the campaign in the table contacts")
    task: str = Field(description="task of labels: who answered when contacted")
    head: HeadRef = Field(description="STAGE:NAME of the head that decides")
    beside: dict[str, HeadRef] = Field(
        default_factory=dict, description="further scores drawn beside: name -> STAGE:NAME"
    )
    as_of: dt.datetime | None = Field(None, description="scores of this instant alone; left out, all of the head's")
    economy: Economy = Field(Economy(), description="cost of a contact and worth of an answer")
    control: ControlConf | None = Field(None, description="control group, where there is one")
    by: str = Field("probability", pattern="^(probability|uplift)$", description="what a contact is expected to bring")
    policy: PolicyConf = Field(PolicyConf(), description="opt-outs, caps, quotas, budget")

    @model_validator(mode="after")
    def _uplift_possible(self) -> CampaignConf:
        if self.by == "uplift" and self.control is None:
            raise ValueError("by: uplift needs a control group")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignHeads:
    """Ids of the heads that the configuration names.

    Attributes:
        own: decides.
        control: tells what clients do unasked; None without a control group.
        beside: name -> head drawn beside it.
    """

    own: str
    control: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignTables:
    """What a campaign is made from and judged by.

    Attributes:
        scores: the `scores` table.
        clients: the `clients` table.
        labels: the `labels` table.
        bayes: the simulator's own probabilities, where there are any.
        vectors: tables that hold the vectors of `control.transformed`.
        sources: those vectors, backbone and definition filled in.
    """

    scores: DataFrame
    clients: DataFrame
    labels: DataFrame
    bayes: DataFrame | None = None
    vectors: Mapping[str, DataFrame] = field(default_factory=dict)
    sources: Sequence[Source] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactList:
    """A campaign's clients.

    Attributes:
        rows: rows of the `contacts` table, one a scored client and instant, kept.
        campaign: its name.
        scored: rows of the head's scores.
        instants: the different `as_of`, as a slice has them.
        outcomes: `contact`, or what forbade it -> clients.
        first: the first of the list: client_id, probability, expected_profit, reasons.
    """

    rows: DataFrame
    campaign: str
    scored: int
    instants: tuple[str, ...]
    outcomes: Mapping[str, int]
    first: Sequence[Mapping[str, Any]]

    def made(self, facts: Mapping[str, Any], report: Sequence[Mapping[str, Any]] = ()) -> Made:
        """For the lake: the campaign's rows of these instants, so that lists of other dates and campaigns stay.

        Args:
            facts: what held-out clients say of it.
            report: sections of the report.
        """
        part = {"campaign": (self.campaign,), "as_of": self.instants}
        return Made(
            rows_in=self.scored,
            rows_out=sum(self.outcomes.values()),
            tables={"contacts": Rows(frame=self.rows, slice=part)},
            facts=facts,
            report=report,
        )


def contact_list(
    tables: CampaignTables, heads: CampaignHeads, conf: CampaignConf, *, seed: int, keep: Keep
) -> ContactList:
    """Says of each scored client whether to contact it, and why.

    Args:
        tables: what is known.
        heads: whose scores are taken.
        conf: the campaign.
        seed: of the regression on the transformed outcome.
        keep: for frames that are read again.

    Raises:
        DataError: when the head has no scores.
    """
    chosen = of_head(tables.scores, heads.own, "probability", "reasons")
    if conf.as_of is not None:
        chosen = chosen.where(F.col("as_of") == F.lit(conf.as_of.isoformat(sep=" ")).cast("timestamp"))
    scored = settled(_with_uplift(tables, heads, conf, chosen, seed), keep)
    count = scored.count()
    if not count:
        raise DataError(f"{conf.head} has no scores" + ("" if conf.as_of is None else f" as of {conf.as_of}"))
    rows = settled(_judged(scored, tables.clients, conf, keep).withColumn("head_id", F.lit(heads.own)), keep)
    outcomes = rows.groupBy(F.coalesce("blocked", F.lit("contact")).alias("outcome")).count().orderBy("outcome")
    first = rows.where("contact").orderBy(F.desc("expected_profit"), "client_id").limit(_FIRST)
    return ContactList(
        rows=rows,
        campaign=conf.campaign,
        scored=count,
        instants=instants(rows),
        outcomes={row["outcome"]: row["count"] for row in outcomes.collect()},
        first=[row.asDict(recursive=True) for row in first.collect()],
    )


def of_head(scores: DataFrame, head: str, name: str, *more: str) -> DataFrame:
    """client_id, as_of, the head's probability of a yes as `name` double, and further columns of `scores`."""
    own = scores.where(F.col("head_id") == head)
    return own.select(*KEY, F.col("probabilities")[1].cast("double").alias(name), *more)


def experiment(labels: DataFrame, conf: CampaignConf) -> DataFrame:
    """client_id, as_of, y, treated: one row a labelled client of either group."""
    names = [conf.task, *([conf.control.task] if conf.control else [])]
    rows = labels.where(F.col("task").isin(names))
    return rows.select(*KEY, F.col("label").alias("y"), (F.col("task") == conf.task).alias("treated"))


def _with_uplift(
    tables: CampaignTables, heads: CampaignHeads, conf: CampaignConf, scored: DataFrame, seed: int
) -> DataFrame:
    """Adds `uplift`, the difference of the two models, and `uplift_transformed`; null without a control group."""
    nothing = F.lit(None).cast("double")
    if heads.control is None:
        return scored.withColumns({"uplift": nothing, "uplift_transformed": nothing})
    both = scored.join(of_head(tables.scores, heads.control, "unasked"), on=list(KEY), how="inner")
    both = both.withColumn("uplift", F.col("probability") - F.col("unasked")).drop("unasked")
    if not tables.sources:
        return both.withColumn("uplift_transformed", nothing)
    train = tables.clients.where("split = 'train'").select("client_id")
    known = experiment(tables.labels, conf).join(train, on="client_id", how="left_semi")
    found = transformed_uplift(tables.sources, dict(tables.vectors), known, seed=seed)
    return both.join(found, on=list(KEY), how="left")


def _judged(scored: DataFrame, clients: DataFrame, conf: CampaignConf, keep: Keep) -> DataFrame:
    """Adds expected_profit, campaign, contact, and blocked: null where a contact pays and the policy allows it."""
    worth = F.col("uplift") if conf.by == "uplift" else F.col("probability")
    valued = scored.withColumn("expected_profit", worth * conf.economy.value - conf.economy.cost)
    candidates = valued.withColumns(
        {"offer": F.lit(conf.campaign), "value": F.col("expected_profit"), "cost": F.lit(conf.economy.cost)}
    )
    judged = apply_policy(candidates.where("value > 0"), clients, conf.policy, keep=keep)
    pays = judged.select(*KEY, "blocked", F.lit(True).alias("_pays"))
    listed = valued.join(pays, on=list(KEY), how="left")
    blocked = F.when(F.col("_pays"), F.col("blocked")).otherwise("does_not_pay")
    listed = listed.withColumn("blocked", blocked).drop("_pays")
    return listed.withColumns({"campaign": F.lit(conf.campaign), "contact": F.col("blocked").isNull()})
