"""What held-out clients say of a contact list: profit, the best cut-off, uplift, fairness by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.applications.campaign import CampaignConf, CampaignHeads, CampaignTables, experiment, of_head
from ledgerlm.config import Conf
from ledgerlm.errors import DataError
from ledgerlm.evaluation.campaign import Curves, CutOff, best_cutoff, curves, decile_rows, fairness_rows
from ledgerlm.evaluation.protocol import bounded
from ledgerlm.evaluation.uplift import Experiment, qini_curve, qini_table
from ledgerlm.events.condition import Condition
from ledgerlm.heads.tasks import Floats
from ledgerlm.heads.vectors import KEY

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_UPLIFTS = {
    "two models": "uplift",
    "transformed outcome": "uplift_transformed",
    "probability": "probability",
    "true uplift": "true_uplift",
}


class JudgingConf(Conf):
    """Who judges a contact list, and how surely."""

    fairness: tuple[str, ...] = Field((), description="client attributes whose groups are compared")
    test: Condition = Field(Condition("split = 'test'"), description="SQL condition of the clients that judge")
    max_rows: int = Field(200_000, ge=100, description="held-out clients read to the driver, about")
    bootstrap: int = Field(500, ge=100, description="resamples of clients for the intervals")


@dataclass(frozen=True, kw_only=True, slots=True)
class Uplifts:
    """How uplift scores order the clients.

    Attributes:
        curves: name of a score -> its Qini curve.
        rows: from `qini_table`.
        contacted: held-out clients that were contacted.
        control: held-out clients that were left alone.
    """

    curves: Mapping[str, tuple[Floats, Floats]]
    rows: Sequence[tuple[str, float, float, float, float]]
    contacted: int
    control: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What held-out clients say.

    Attributes:
        clients: those of them that were contacted.
        curves: name of a score -> its curves; the first is the campaign's own.
        deciles: from `decile_rows`.
        cutoff: from `best_cutoff`.
        uplifts: with a control group.
        fairness: attribute -> rows of `fairness_rows`.
    """

    clients: int
    curves: Mapping[str, Curves]
    deciles: Sequence[Sequence[Any]]
    cutoff: CutOff
    uplifts: Uplifts | None
    fairness: Mapping[str, Sequence[Sequence[Any]]]

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for later stages."""
        found: dict[str, Any] = {"clients": self.clients, "cutoff": asdict(self.cutoff)}
        if self.uplifts is not None:
            rows = self.uplifts.rows
            found["qini"] = {row[0]: {"coefficient": row[1], "low": row[2], "high": row[3]} for row in rows}
        return found


def judge_contacts(
    contacts: DataFrame,
    tables: CampaignTables,
    heads: CampaignHeads,
    campaign: CampaignConf,
    conf: JudgingConf,
    *,
    seed: int,
) -> Judged:
    """Judges a contact list by the answers of clients that no head has seen.

    Args:
        contacts: rows of the `contacts` table.
        tables: scores drawn beside, labels and attributes of the clients.
        heads: whose scores are drawn beside.
        campaign: tasks and economy.
        conf: who judges.
        seed: of the resamples.

    Raises:
        DataError: when no labelled client judges.
    """
    frame: pd.DataFrame = bounded(_wide(contacts, tables, heads, campaign, conf), conf.max_rows).toArrow().to_pandas()
    if frame.empty:
        raise DataError(f"no labelled client of task {campaign.task} meets test '{conf.test}'")
    asked, economy = frame[frame["treated"]], campaign.economy
    p, y = asked["probability"].to_numpy(), asked["y"].to_numpy()
    shown = {"chosen head": curves(p, y, economy)}
    shown |= {name: curves(asked[f"beside_{name}"].to_numpy(), y, economy) for name in campaign.beside}
    pays = asked["expected_profit"].to_numpy() > 0
    return Judged(
        clients=len(asked),
        curves=shown,
        deciles=decile_rows(p, y, economy),
        cutoff=best_cutoff(p, y, economy, count=conf.bootstrap, seed=seed),
        uplifts=None if campaign.control is None else _uplifts(frame, conf.bootstrap, seed),
        fairness={
            name: fairness_rows(asked[name].fillna("-").astype(str).to_numpy(object), p, y, pays)
            for name in conf.fairness
        },
    )


def _wide(
    contacts: DataFrame, tables: CampaignTables, heads: CampaignHeads, campaign: CampaignConf, conf: JudgingConf
) -> DataFrame:
    """One row a held-out client: y, treated, its attributes, all scores, and the true uplift where it is known."""
    clients = tables.clients.drop("run_id")
    test = experiment(tables.labels, campaign).join(conf.test.rows(clients), on="client_id", how="inner")
    chosen = contacts.select(*KEY, "probability", "uplift", "uplift_transformed", "expected_profit")
    columns = [chosen.join(test, on=list(KEY), how="inner")]
    columns += [of_head(tables.scores, head, f"beside_{name}") for name, head in heads.beside.items()]
    wide = reduce(lambda one, other: one.join(other, on=list(KEY), how="inner"), columns)
    if campaign.control is None or tables.bayes is None:
        return wide
    return wide.join(_true_uplift(tables.bayes, campaign.task, campaign.control.task), on=list(KEY), how="left")


def _true_uplift(bayes: DataFrame, asked: str, unasked: str) -> DataFrame:
    """The simulator's own uplift, the best that an order can be made of."""
    of_task = {
        name: bayes.where(F.col("task") == task).select(*KEY, F.col("probabilities")[1].alias(name))
        for name, task in (("_asked", asked), ("_unasked", unasked))
    }
    both = of_task["_asked"].join(of_task["_unasked"], on=list(KEY), how="inner")
    return both.select(*KEY, (F.col("_asked") - F.col("_unasked")).alias("true_uplift"))


def _uplifts(frame: pd.DataFrame, count: int, seed: int) -> Uplifts:
    drawn = Experiment(y=frame["y"].to_numpy(), treated=frame["treated"].to_numpy(bool))
    scores = {
        name: frame[column].to_numpy(np.float64)
        for name, column in _UPLIFTS.items()
        if column in frame and frame[column].notna().all()
    }
    contacted = int(drawn.treated.sum())
    return Uplifts(
        curves={name: qini_curve(score, drawn) for name, score in scores.items()},
        rows=qini_table(scores, drawn, count=count, seed=seed),
        contacted=contacted,
        control=len(frame) - contacted,
    )
