"""Promotion: the heads that have scored a publication, held against the champion, and the one that becomes it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.applications.gates import stability, value_of
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.champions import Champion

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.engines.frames import Keep
    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.publications import Publication


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A head that has scored everybody of a publication.

    Attributes:
        task: its task.
        head_id: the head.
        champion: whether readers get its scores alone.
        clients: how many it has scored.
        mean: of its scores: the second class's probability of two, else the prediction.
        against: the head of the task that it is held against: the champion, else the first by id; None for that one.
        correlation: Pearson's, of the two heads' scores of a client; None where one of them gives everybody the same.
        shift: population stability index of its scores against that head's.
        tenth: share of that head's highest tenth that is in its own.
    """

    task: str
    head_id: str
    champion: bool
    clients: int
    mean: float
    against: str | None = None
    correlation: float | None = None
    shift: float | None = None
    tenth: float | None = None

    def line(self) -> str:
        """For people."""
        text = f"{self.task}  {self.head_id}  {self.clients:,} clients, mean {self.mean:.4f}"
        if self.champion:
            text += "  champion"
        if self.against is None:
            return text
        alike = "correlation " + ("none" if self.correlation is None else f"{self.correlation:.3f}")
        shift = "" if self.shift is None else f", shift {self.shift:.3f}"
        tenth = "" if self.tenth is None else f", {self.tenth:.0%} of the highest tenth in common"
        return f"{text}  against {self.against}: {alike}{shift}{tenth}"


def candidates(lake: Lake, seen: Publication, champions: Mapping[str, Champion], keep: Keep) -> list[Candidate]:
    """The heads of a publication, by task and id.

    Args:
        lake: its tables.
        seen: the publication, refused or not.
        champions: by task.
        keep: computes a frame once.

    Raises:
        DataError: no night has scored anybody in it.
    """
    if not seen.heads or "scores" not in seen.tables:
        raise DataError(
            f"publication {seen.number} of {seen.pipeline} names no heads, since a study has made it; "
            "run `ledgerlm rescore` first"
        )
    night = F.lit(seen.as_of.isoformat(sep=" ")).cast("timestamp")
    scores = seen.read(lake, "scores").where(F.col("head_id").isin(list(seen.heads)) & (F.col("as_of") == night))
    rows = keep(scores.select("client_id", "task", "head_id", "probabilities", "prediction", "decile"))
    named = rows.groupBy("task", "head_id").agg(F.count(F.lit(1)).alias("clients"), F.avg(value_of()).alias("mean"))
    found = sorted(named.collect(), key=lambda row: (row["task"], row["head_id"]))
    first: dict[str, str] = {}
    for row in found:
        first.setdefault(row["task"], row["head_id"])
    holds = {task: one.head_id for task, one in champions.items()}
    heads = {(row["task"], row["head_id"]) for row in found}
    base = {task: holds[task] if (task, holds.get(task)) in heads else head for task, head in first.items()}
    compared = _compared(rows, base)
    return [
        Candidate(
            task=row["task"],
            head_id=row["head_id"],
            champion=holds.get(row["task"]) == row["head_id"],
            clients=row["clients"],
            mean=row["mean"],
            **compared.get(row["head_id"], {}),
        )
        for row in found
    ]


def _compared(rows: DataFrame, base: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Head -> how it differs from the one that it is held against."""
    theirs = rows.where(F.col("head_id").isin(list(base.values())))
    own = rows.where(~F.col("head_id").isin(list(base.values())))
    both = own.select("client_id", "task", "head_id", value_of().alias("own"), "decile").join(
        theirs.select("client_id", "task", value_of().alias("other"), (F.col("decile") == 1).alias("highest")),
        ["client_id", "task"],
    )
    constant = (F.stddev_pop("own") == 0) | (F.stddev_pop("other") == 0)
    figures = both.groupBy("task", "head_id").agg(
        F.when(~constant, F.corr("own", "other")).alias("correlation"),
        F.avg(F.when(F.col("highest"), (F.col("decile") == 1).cast("double"))).alias("tenth"),
    )
    # The same rows of the other head, under each head's own id.
    named = own.select("task", "head_id").distinct()
    shifts = stability(theirs.drop("head_id").join(F.broadcast(named), "task"), own)
    return {
        row["head_id"]: {
            "against": base[row["task"]],
            "correlation": row["correlation"],
            "shift": shifts.get(row["head_id"]),
            "tenth": row["tenth"],
        }
        for row in figures.collect()
    }


def promoted(
    found: Sequence[Candidate],
    known: Sequence[Champion],
    head_id: str,
    *,
    reason: str,
    by: str,
    publication: int,
) -> Champion:
    """The promotion of a head.

    Args:
        found: heads of the newest publication.
        known: the promotions before this one, newest first.
        head_id: the head.
        reason: why.
        by: who does it.
        publication: number of the newest publication.

    Raises:
        ConfigError: it has not scored that publication, is the champion already, or nobody says why.
    """
    one = next((one for one in found if one.head_id == head_id), None)
    if one is None:
        listed = ", ".join(f"{one.head_id} ({one.task})" for one in found)
        raise ConfigError(
            f"--head {head_id} has scored nobody in publication {publication}, so nobody has seen what it does; "
            f"there are {listed}"
        )
    if one.champion:
        raise ConfigError(f"--head {head_id} is the champion of {one.task} already")
    for option, text in (("reason", reason), ("by", by)):
        if not text.strip():
            raise ConfigError(f"--{option} is empty; a promotion says why, and who decided it")
    before = next((other.head_id for other in known if other.task == one.task), None)
    return Champion(
        promotion=known[0].promotion + 1 if known else 1,
        task=one.task,
        head_id=head_id,
        replaced=before,
        reason=" ".join(reason.split()),
        promoted_by=" ".join(by.split()),
        promoted_at=dt.datetime.now(dt.UTC),
        publication=publication,
    )
