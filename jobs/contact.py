"""Turns scores into a contact list: profit, uplift, policy, reasons, and what held-out clients say of its worth."""

from __future__ import annotations

import sys
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.applications.policy import PolicyConf, apply_policy
from ledgerlm.config import Conf, HeadRef
from ledgerlm.errors import DataError
from ledgerlm.evaluation.campaign import Economy, best_cutoff, curves, decile_rows, fairness_rows
from ledgerlm.evaluation.protocol import bounded
from ledgerlm.evaluation.report.campaign import contacts_section, fairness_section, profit_section, uplift_section
from ledgerlm.evaluation.uplift import Experiment, qini_curve, qini_table
from ledgerlm.heads.alimn.campaign import transformed_uplift
from ledgerlm.heads.vectors import KEY, Source
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame


class ControlConf(Conf):
    """The group that was left alone at random, and the models of what clients do unasked."""

    task: str = Field(description="task of labels that the control group has")
    head: HeadRef = Field(description="STAGE:NAME of the head for that task")
    transformed: tuple[Source, ...] = Field(
        (), description="vectors for a transformed-outcome regression beside the two models; none: left out"
    )


class ContactConf(Conf):
    """Settings of the contact job."""

    campaign: str = Field(description="name of the campaign in the table contacts")
    task: str = Field(description="task of labels: who answered when contacted")
    head: HeadRef = Field(description="STAGE:NAME of the head that decides")
    beside: dict[str, HeadRef] = Field(
        default_factory=dict, description="further scores drawn beside: name -> STAGE:NAME"
    )
    economy: Economy = Field(Economy(), description="cost of a contact and worth of an answer")
    control: ControlConf | None = Field(None, description="control group, where there is one")
    by: str = Field("probability", pattern="^(probability|uplift)$", description="what a contact is expected to bring")
    policy: PolicyConf = Field(PolicyConf(), description="opt-outs, caps, quotas, budget")
    fairness: tuple[str, ...] = Field((), description="client attributes whose groups are compared")
    test: str = Field("split = 'test'", description="SQL condition of the clients that judge")
    max_rows: int = Field(200_000, ge=100, description="held-out clients read to the driver, about")
    bootstrap: int = Field(500, ge=100, description="resamples of clients for the intervals")

    @model_validator(mode="after")
    def _uplift_possible(self) -> ContactConf:
        if self.by == "uplift" and self.control is None:
            raise ValueError("by: uplift needs a control group")
        return self


def run(ctx: Context, conf: ContactConf) -> StageResult:
    """Writes the contact list, and judges it on held-out clients."""
    head = ctx.head(conf.head)
    scored = _with_uplift(ctx, conf, _probabilities(ctx, head, "probability", "reasons"))
    worth = F.col("uplift") if conf.by == "uplift" else F.col("probability")
    valued = scored.withColumn("expected_profit", worth * conf.economy.value - conf.economy.cost)
    candidates = valued.withColumns(
        {"offer": F.lit(conf.campaign), "value": F.col("expected_profit"), "cost": F.lit(conf.economy.cost)}
    )
    judged = apply_policy(candidates.where("value > 0"), ctx.read("clients"), conf.policy)
    allowed = judged.select(*KEY, "blocked", F.lit(True).alias("_pays"))
    listed = valued.join(allowed, on=list(KEY), how="left").withColumn(
        "blocked", F.when(F.col("_pays"), F.col("blocked")).otherwise("does_not_pay")
    )
    rows = listed.withColumns(
        {"campaign": F.lit(conf.campaign), "head_id": F.lit(head), "contact": F.col("blocked").isNull()}
    ).drop("_pays")
    written = ctx.write("contacts", rows, {"campaign": (conf.campaign,)})
    rows_in = scored.count()
    if written.rows != rows_in:
        raise DataError(f"{rows_in} scored clients gave {written.rows} contacts; run the stage again")
    contacts = ctx.own("contacts")
    facts = _judged(ctx, conf, contacts)
    facts["report"].append(_listed(contacts))
    return StageResult(rows_in=rows_in, rows_out=written.rows, facts=facts)


def _probabilities(ctx: Context, head: str, name: str, *more: str) -> DataFrame:
    """client_id, as_of, and the head's probability of a yes as `name`."""
    scores = ctx.read("scores").where(F.col("head_id") == head)
    return scores.select(*KEY, F.col("probabilities")[1].cast("double").alias(name), *more)


def _with_uplift(ctx: Context, conf: ContactConf, scored: DataFrame) -> DataFrame:
    """Adds `uplift`, the difference of the two models, and `uplift_transformed`; null without a control group."""
    nothing = F.lit(None).cast("double")
    if conf.control is None:
        return scored.withColumns({"uplift": nothing, "uplift_transformed": nothing})
    unasked = _probabilities(ctx, ctx.head(conf.control.head), "unasked")
    both = scored.join(unasked, on=list(KEY), how="inner")
    both = both.withColumn("uplift", F.col("probability") - F.col("unasked")).drop("unasked")
    if not conf.control.transformed:
        return both.withColumn("uplift_transformed", nothing)
    sources = tuple(source.pinned(ctx.facts) for source in conf.control.transformed)
    tables: dict[str, DataFrame] = {source.table: ctx.read(source.table) for source in sources}
    train = ctx.read("clients").where("split = 'train'").select("client_id")
    experiment = _experiment(ctx, conf).join(train, on="client_id", how="left_semi")
    found = transformed_uplift(sources, tables, experiment, seed=ctx.seed)
    return both.join(found, on=list(KEY), how="left")


def _experiment(ctx: Context, conf: ContactConf) -> DataFrame:
    """client_id, as_of, y, treated: one row a labelled client of either group."""
    labels = ctx.read("labels")
    names = [conf.task, *([conf.control.task] if conf.control else [])]
    rows = labels.where(F.col("task").isin(names))
    return rows.select(*KEY, F.col("label").alias("y"), (F.col("task") == conf.task).alias("treated"))


def _judged(ctx: Context, conf: ContactConf, contacts: DataFrame) -> dict[str, Any]:
    """Figures and report of the held-out clients."""
    clients = ctx.read("clients").drop("run_id")
    test = _experiment(ctx, conf).join(clients.where(conf.test), on="client_id", how="inner")
    chosen = contacts.select(*KEY, "probability", "uplift", "uplift_transformed", "expected_profit")
    columns = [chosen.join(test, on=list(KEY), how="inner")]
    columns += [_probabilities(ctx, ctx.head(source), f"beside_{name}") for name, source in conf.beside.items()]
    wide = reduce(lambda one, other: one.join(other, on=list(KEY), how="inner"), columns)
    if conf.control is not None and ctx.maybe("bayes") is not None:
        wide = wide.join(_true_uplift(ctx, conf, conf.control), on=list(KEY), how="left")
    frame: pd.DataFrame = bounded(wide, conf.max_rows).toArrow().to_pandas()
    if frame.empty:
        raise DataError(f"no labelled client of task {conf.task} meets test '{conf.test}'")
    asked = frame[frame["treated"]]
    p, y = asked["probability"].to_numpy(), asked["y"].to_numpy()
    shown = {"chosen head": curves(p, y, conf.economy)}
    shown |= {name: curves(asked[f"beside_{name}"].to_numpy(), y, conf.economy) for name in conf.beside}
    cut = best_cutoff(p, y, conf.economy, count=conf.bootstrap, seed=ctx.seed)
    report = [profit_section("Campaign", shown, decile_rows(p, y, conf.economy), cut, conf.economy)]
    pays = asked["expected_profit"].to_numpy() > 0
    fairness = {
        name: fairness_rows(asked[name].fillna("-").astype(str).to_numpy(object), p, y, pays) for name in conf.fairness
    }
    facts: dict[str, Any] = {"clients": len(asked), "cutoff": {name: getattr(cut, name) for name in cut.__slots__}}
    if conf.control is not None:
        section, qini = _uplift(ctx, conf, frame)
        report.append(section)
        facts["qini"] = qini
    if fairness:
        report.append(fairness_section(fairness))
    return facts | {"report": report}


def _true_uplift(ctx: Context, conf: ContactConf, control: ControlConf) -> DataFrame:
    """The simulator's own uplift, the best that an order can be made of."""
    bayes = ctx.read("bayes")
    of_task = {
        name: bayes.where(F.col("task") == task).select(*KEY, F.col("probabilities")[1].alias(name))
        for name, task in (("_asked", conf.task), ("_unasked", control.task))
    }
    both = of_task["_asked"].join(of_task["_unasked"], on=list(KEY), how="inner")
    return both.select(*KEY, (F.col("_asked") - F.col("_unasked")).alias("true_uplift"))


def _uplift(ctx: Context, conf: ContactConf, frame: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
    experiment = Experiment(y=frame["y"].to_numpy(), treated=frame["treated"].to_numpy(bool))
    named = {"two models": "uplift", "transformed outcome": "uplift_transformed", "probability": "probability"}
    named["true uplift"] = "true_uplift"
    scores = {
        name: frame[column].to_numpy(np.float64)
        for name, column in named.items()
        if column in frame and frame[column].notna().all()
    }
    rows = qini_table(scores, experiment, count=conf.bootstrap, seed=ctx.seed)
    drawn = {name: qini_curve(score, experiment) for name, score in scores.items()}
    contacted = int(experiment.treated.sum())
    section = uplift_section(drawn, rows, contacted, len(frame) - contacted)
    return section, {row[0]: {"coefficient": row[1], "low": row[2], "high": row[3]} for row in rows}


def _listed(contacts: DataFrame) -> dict[str, Any]:
    """Outcomes of the policy, and the first clients of the list."""
    outcomes = contacts.groupBy(F.coalesce("blocked", F.lit("contact")).alias("outcome")).count().orderBy("outcome")
    counts = [[row["outcome"], row["count"]] for row in outcomes.collect()]
    first = contacts.where("contact").orderBy(F.desc("expected_profit"), "client_id").limit(8).collect()
    examples = [
        [
            row["client_id"],
            row["probability"],
            row["expected_profit"],
            "; ".join(f"{one['feature']} {one['contribution']:+.2f}" for one in row["reasons"]),
        ]
        for row in first
    ]
    return contacts_section(counts, examples)


JOB = Job(
    name="contact",
    engine="spark",
    conf=ContactConf,
    run=run,
    finds=True,
    reads=("scores", "labels", "clients", "features?", "embeddings?", "bayes?"),
    writes=lambda stage: {"contacts": {"campaign": (stage.conf.campaign,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
