"""Making a publication: the scores as of tonight are judged, and one row names what readers see."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.applications.gates import PublishConf, judge, judge_champions, refused
from ledgerlm.engines.frames import settled
from ledgerlm.lake.differences import CHANGE, INSERT
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.publications import PUBLICATIONS, Publication

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.engines.frames import Keep
    from ledgerlm.lake.lake import Lake


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A publication that is to be written.

    Attributes:
        made: its row.
        refusal: why readers stay with the one before; None when all gates passed.
    """

    made: Made
    refusal: str | None


def publication(
    lake: Lake,
    tables: Mapping[str, int],
    conf: PublishConf,
    *,
    pipeline: str,
    as_of: dt.datetime,
    heads: Sequence[str],
    scored: Sequence[str] = (),
    known: Sequence[Publication],
    champions: Mapping[str, str] = MappingProxyType({}),
    keep: Keep,
) -> Judged:
    """Judges the scores and makes the row.

    Args:
        lake: where the tables are.
        tables: table -> the version that readers are to see.
        conf: gates.
        pipeline: its name.
        as_of: tonight.
        heads: ids of the heads whose scores as of tonight are published; none: there is nothing to judge.
        scored: ids of the heads of a study, whose scores are as of their labels.
        known: the publications before this one, newest first.
        champions: task -> the head whose scores readers get; of a task that is scored, it must be among the heads.
        keep: computes a frame once.

    Returns:
        The row, `refused` where a gate did not pass, so that it can be looked up why.
    """
    last = next((one for one in known if one.readable), None)
    gates = {}
    if heads and "scores" in tables:
        scores = _of(lake.read("scores", tables["scores"]), heads, as_of)
        before = None
        if last is not None and "scores" in last.tables:
            before = _of(last.read(lake, "scores"), heads, last.as_of)
        gates = judge(scores, lake.rows("clients", tables["clients"]), before, heads, conf)
        gates |= judge_champions(scores, champions)
    elif scored and "scores" in tables:
        studied = lake.read("scores", tables["scores"]).where(F.col("head_id").isin(list(scored)))
        gates = judge_champions(studied, champions)
    failed = refused(gates)
    found = Publication(
        number=known[0].number + 1 if known else 1,
        published_at=dt.datetime.now(dt.UTC),
        pipeline=pipeline,
        as_of=as_of,
        tables=tables,
        heads=heads,
        gates=gates,
        status="refused" if failed else "published",
    )
    rows = settled(found.row(lake.spark).withColumn(CHANGE, F.lit(INSERT)), keep)
    made = Made(
        rows_out=1,
        tables={PUBLICATIONS: Rows(frame=rows, differences=True)},
        facts={"publication": found.number, "status": found.status, "as_of": as_of.isoformat(), "gates": gates},
    )
    stays = f"readers stay with publication {last.number}" if last else "readers see none"
    refusal = f"publication {found.number} is refused: {'; '.join(failed)}; {stays}" if failed else None
    return Judged(made=made, refusal=refusal)


def _of(scores: DataFrame, heads: Sequence[str], as_of: dt.datetime) -> DataFrame:
    instant = F.lit(as_of.isoformat(sep=" ")).cast("timestamp")
    return scores.where(F.col("head_id").isin(list(heads)) & (F.col("as_of") == instant))
