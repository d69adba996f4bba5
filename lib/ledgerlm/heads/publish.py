"""From what heads say to rows of the `scores` table: kept once, counted, with deciles and the marks of their head."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from ledgerlm.engines.frames import Keep
from ledgerlm.errors import DataError
from ledgerlm.lake.made import Made, Rows
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Said = Mapping[str, "DataFrame"]
"""head_id -> what it says of each row, as `scoring.SCORED`; lazily, nothing is computed before `scored`."""

_DECILES = 10


def scored(
    said: Said | DataFrame,
    heads: Sequence[Mapping[str, Any]],
    *,
    keep: Keep,
    progress: Progress | None = None,
    text: str = "Scoring",
) -> Made:
    """Scores of several heads as one slice of the `scores` table.

    A model runs once for each row: what it says is kept on disk, counted there, and read again for the deciles and for
    the write.

    Args:
        said: head_id -> rows as a scorer returns them (`scoring.SCORED`); or the rows of all heads in one frame, with a
            column head_id.
        heads: of each head `head_id`, `task` and whatever later stages and the report know of it.
        keep: computes a frame once.
        progress: what the user sees.
        text: of the progress bar.

    Returns:
        `scores` (client_id, as_of, task, head_id, probabilities, prediction, decile, reasons), of these heads alone.
        rows_in and rows_out are the rows said; a verb that reads more rows than it scores replaces rows_in. The fact
        `heads` has the mappings given with the `rows` of each, and `rows_per_second` where each has a frame.

    Raises:
        DataError: there is no head, or one of `said` is none of `heads`.
    """
    from pyspark.sql import functions as F

    tasks = {str(head["head_id"]): str(head["task"]) for head in heads}
    if not tasks:
        raise DataError("there is no head to score with: the stages that are named have left none")
    if isinstance(said, Mapping) and (strange := set(said) ^ set(tasks)):
        raise DataError(f"heads and what they say do not fit: {', '.join(sorted(strange))} is only on one side")
    with (progress or Progress()).task(text, total=len(tasks)) as bar:
        if isinstance(said, Mapping):
            frames, counted = [], {}
            for head_id, frame in said.items():
                began = time.monotonic()
                kept = keep(frame)
                rows = kept.count()
                speed = round(rows / max(time.monotonic() - began, 1e-9), 1)
                frames.append(kept.withColumn("head_id", F.lit(head_id)))
                counted[head_id] = {"rows": rows, "rows_per_second": speed}
                bar.advance()
            together = reduce(lambda one, other: one.unionByName(other), frames)
        else:
            together = keep(said)
            found = together.groupBy("head_id").count().toLocalIterator()
            counted = {key: {"rows": 0} for key in tasks} | {row["head_id"]: {"rows": row["count"]} for row in found}
            bar.advance(len(tasks))
    if strange := counted.keys() - tasks.keys():
        raise DataError(f"scores of unknown heads: {', '.join(sorted(strange))}; known: {', '.join(tasks)}")
    task = reduce(
        lambda rest, one: F.when(F.col("head_id") == one, F.lit(tasks[one])).otherwise(rest), tasks, F.lit("")
    )
    rows = sum(int(one["rows"]) for one in counted.values())
    return Made(
        rows_in=rows,
        rows_out=rows,
        tables={
            "scores": Rows(
                frame=with_deciles(together).drop("margin").withColumn("task", task), slice={"head_id": tuple(tasks)}
            )
        },
        facts={"heads": [{**head, **counted[str(head["head_id"])]} for head in heads]},
    )


def with_deciles(said: DataFrame, accuracy: int = 10_000) -> DataFrame:
    """Adds the tenth in which each client stands among those that a head scored as of the same time, 1 the highest.

    A campaign contacts the best of one date, so dates are not mixed: a client's decile does not depend on how everybody
    else scored a year before. Among n clients the one at place r from the top is in tenth ceil(10 r / n), so one
    alone is in the tenth: nobody is above whom it could stand.

    The nine borders come from Spark's approximate quantiles (rank error at most 1/accuracy), so nothing is sorted or
    collected; the model runs once if the caller has kept `said`. The order is that of the margin: for two classes the
    log-odds before calibration, which an isotonic step does not tie; for more the probability of the predicted class;
    for a regression the value. Equal margins are told apart by a hash of the client, the same every time, so that the
    deciles are of one size.

    Args:
        said: head_id, client_id, as_of, margin and more.
        accuracy: of the borders.

    Returns:
        `said` with decile int.
    """
    from pyspark.sql import functions as F

    tie = F.pmod(F.xxhash64("client_id", "as_of"), F.lit(1_000_000)) * 1e-15
    placed = said.withColumn("_place", F.col("margin") + (F.abs("margin") + 1) * tie)
    shares = [share / _DECILES for share in range(1, _DECILES)]
    borders = placed.groupBy("head_id", "as_of").agg(F.percentile_approx("_place", shares, accuracy).alias("_borders"))
    # As many groups as dates and heads, and as rows where each has a time of its own: Spark chooses how to join.
    joined = placed.join(borders, on=["head_id", "as_of"], how="inner")
    above = F.size(F.filter("_borders", lambda border: F.col("_place") > border))
    return joined.withColumn("decile", (F.lit(_DECILES) - above).cast("int")).drop("_place", "_borders")
