"""Recommends offers to clients: goals to a catalogue, ranked by probability and value, within the contact policy."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from ledgerlm.applications.backtest import backtest, backtest_block
from ledgerlm.applications.offers import EvidenceConf, Offer, candidates, eligibility, goal_counts
from ledgerlm.applications.policy import PolicyConf
from ledgerlm.applications.recommend import recommend
from ledgerlm.config import Conf, HeadRef
from ledgerlm.errors import DataError
from ledgerlm.heads.scoring import heads_of
from ledgerlm.heads.tasks import Task
from ledgerlm.lake.lake import Written
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ApplicationConf(Conf):
    """What the applications share."""

    scores: HeadRef = Field(
        HeadRef("forecast"), description="STAGE whose head scored the task, or STAGE:NAME for one of several"
    )
    task: str = Field(description="task whose classes are the goals")
    as_of: dt.datetime | None = Field(None, description="scores of this instant; default the newest of the head")
    evidence: EvidenceConf = Field(description="recent events that speak for a goal")
    policy: PolicyConf = Field(PolicyConf(), description="whom may be contacted, and how often")
    contacts: str | None = Field(
        None, description="SQL condition over event columns: earlier contacts of the bank, which caps and rest count"
    )
    backtest: str = Field(
        "split = 'test'", description="SQL condition over columns of clients and labels: who the backtest is about"
    )


class RecommendConf(ApplicationConf):
    """Settings of the recommend job."""

    offers: tuple[Offer, ...] = Field(min_length=1, description="the catalogue")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What an application starts from.

    Attributes:
        task: the goals.
        head_id: head that scored.
        clients: the `clients` table.
        contacts: client_id, contact_time, or None.
        outcomes: client_id, as_of, label_text of the clients of the backtest.
        candidates: from `offers.candidates`, checkpointed on disk.
    """

    task: Task
    head_id: str
    clients: DataFrame
    contacts: DataFrame | None
    outcomes: DataFrame
    candidates: DataFrame


def run(ctx: Context, conf: RecommendConf) -> StageResult:
    """Ranks the offers of each client, writes those that the policy allows, and looks what they would have earned."""
    ready = prepare(ctx, conf, conf.offers)
    days = conf.evidence.days
    judged = recommend(ready.candidates, conf.offers, ready.clients, conf.policy, days=days, contacts=ready.contacts)
    kept = ctx.keep(judged)
    blocked = blocked_counts(kept)
    rows = kept.where("blocked IS NULL").drop("blocked").withColumn("head_id", F.lit(ready.head_id))
    written = ctx.write("recommendations", rows, {"head_id": (ready.head_id,)})
    tried = played(ctx, ready, conf.policy, conf.offers)
    by_offer = (
        kept.where("blocked IS NULL")
        .groupBy("offer")
        .agg(
            F.count(F.lit(1)).alias("clients"), F.avg("probability").alias("p"), F.sum("expected_value").alias("value")
        )
    )
    table = [[row["offer"], row["clients"], row["p"], row["value"]] for row in by_offer.orderBy("offer").collect()]
    blocks = [
        {"kind": "table", "heading": "Offers", "columns": ["offer", "clients", "mean probability", "expected worth"],
         "rows": table},
        examples_block(kept.where("rank = 1 AND blocked IS NULL"), "expected_value"),
        blocked_block(blocked),
        backtest_block(tried, "Backtest"),
    ]  # fmt: skip
    return result(
        ctx, "Recommendations", table="recommendations", written=written, blocked=blocked, tried=tried, blocks=blocks
    )


def prepare(ctx: Context, conf: ApplicationConf, offers: Sequence[Offer]) -> Prepared:
    """Reads the scores of one head at one instant, and prices every offer for every client."""
    task = ctx.task(conf.task)
    stage, _, name = conf.scores.partition(":")
    heads = heads_of(ctx.facts(stage), stage, name)
    scores = ctx.read("scores").where(F.col("head_id").isin(heads) & (F.col("task") == task.name))
    row = scores.agg(
        F.max("as_of").alias("as_of"), F.min("head_id").alias("head"), F.max("head_id").alias("other")
    ).first()
    if row is None or row["head"] is None:
        raise DataError(f"stage {stage} has no scores of task {task.name}; run it, or name another stage")
    if row["head"] != row["other"]:
        raise DataError(f"stage {stage} has several heads for task {task.name}; name one with STAGE:NAME")
    as_of = F.lit(row["as_of"] if conf.as_of is None else conf.as_of.isoformat(sep=" ")).cast("timestamp")
    now = scores.where(F.col("as_of") == as_of).select("client_id", "as_of", "probabilities")
    clients, events = ctx.read("clients").drop("run_id"), ctx.read("events")
    dictionaries = ctx.maybe("dictionaries")
    counts = goal_counts(events, now, conf.evidence, dictionaries)
    labels = ctx.read("labels").where((F.col("task") == task.name) & (F.col("as_of") == as_of)).drop("run_id")
    judged = labels.join(clients, on="client_id", how="inner").where(conf.backtest)
    contacts = None
    if conf.contacts is not None:
        contacts = events.where(conf.contacts).select("client_id", F.col("event_time").alias("contact_time"))
    # Cut off from what led to it: the policy and three backtests read it again and again.
    priced = candidates(now, task, offers, counts, conf.evidence).localCheckpoint(storageLevel=StorageLevel.DISK_ONLY)
    return Prepared(
        task=task,
        head_id=row["head"],
        clients=clients,
        contacts=contacts,
        outcomes=judged.select("client_id", "as_of", "label_text"),
        candidates=priced,
    )


def played(ctx: Context, ready: Prepared, policy: PolicyConf, offers: Sequence[Offer]) -> dict[str, Any]:
    """The backtest on clients whose outcome is known."""
    key = ["client_id", "as_of"]
    own = ready.candidates.join(ready.outcomes.select(*key), on=key, how="leftsemi")
    own = own.localCheckpoint(storageLevel=StorageLevel.DISK_ONLY)
    with ctx.progress.task("Backtest"):
        return backtest(own, ready.outcomes, ready.clients, policy, eligibility=eligibility(offers), seed=ctx.seed)


def blocked_counts(judged: DataFrame) -> dict[str, int]:
    """Why candidates were not chosen: reason to their number."""
    counted = judged.where("blocked IS NOT NULL").groupBy("blocked").count().orderBy("blocked")
    return {row["blocked"]: row["count"] for row in counted.collect()}


def blocked_block(blocked: Mapping[str, int]) -> dict[str, Any]:
    """A table of the report on what the policy forbade."""
    rows = [[reason, count] for reason, count in blocked.items()]
    return {"kind": "table", "heading": "Not chosen", "columns": ["why", "candidates"], "rows": rows}


def examples_block(rows: DataFrame, value: str) -> dict[str, Any]:
    """Some rows with their reasons, of clients chosen by a hash."""
    some = rows.orderBy(F.xxhash64("client_id")).limit(5).select("client_id", value, "reason").collect()
    cells = [[row["client_id"], row[value], row["reason"]] for row in some]
    return {"kind": "table", "heading": "Examples", "columns": ["client", value, "reason"], "rows": cells}


def result(
    ctx: Context,
    title: str,
    *,
    table: str,
    written: Written,
    blocked: Mapping[str, int],
    tried: Mapping[str, Any],
    blocks: Sequence[Mapping[str, Any]],
) -> StageResult:
    """The stage's result: every candidate is either chosen or blocked for a reason."""
    note = f"Table {table}: {written.rows:,} rows, each with its reason."
    return StageResult(
        rows_in=written.rows + sum(blocked.values()),
        rows_out=written.rows,
        facts={
            "blocked": dict(blocked),
            "backtest": dict(tried),
            "report": [{"title": f"{title} ({ctx.stage})", "note": note, "blocks": list(blocks)}],
        },
    )


JOB = Job(
    name="recommend",
    engine="spark",
    conf=RecommendConf,
    run=run,
    finds=True,
    reads=("events", "clients", "labels", "dictionaries?", "scores"),
    writes=lambda stage: {"recommendations": {"head": (stage.conf.scores,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
