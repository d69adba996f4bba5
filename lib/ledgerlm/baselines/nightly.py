"""Aggregate features of a night: of everybody as of tonight, and again of those whose past was touched."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import (
    ATTRIBUTES,
    Agg,
    AggregateConf,
    attribute_features,
    described,
    named_partials,
)
from ledgerlm.baselines.folding import KEY, Partials
from ledgerlm.baselines.partials import Summed, after, changed_partials
from ledgerlm.engines.frames import settled
from ledgerlm.events.asked import due
from ledgerlm.lake.differences import CHANGE, DELETE
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from ledgerlm.engines.frames import Keep


def aggregate_night(
    events: DataFrame,
    clients: DataFrame,
    as_of: DataFrame,
    conf: AggregateConf,
    *,
    standing: DataFrame,
    partials: DataFrame | None,
    dirty: DataFrame | None,
    folder: Path,
    keep: Keep,
    dictionaries: DataFrame | None = None,
) -> Made:
    """The features that are asked and not there, or no longer right, by the model that was fitted in the study.

    Months of clients whose events changed are added up again, from that of the earliest change on. Features of the
    clock move with it, so everybody's are folded as of tonight; features as of other times stay, but where an event
    before them was added, corrected or deleted.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        as_of: client_id, as_of of every row wanted; distinct.
        conf: settings.
        standing: the `features` table as it is.
        partials: the `partials` table as it is; None: there is none.
        dirty: client_id, earliest: whose events changed since it was made; None: everything is made again.
        folder: of the fitted model.
        keep: computes a frame once.
        dictionaries: the `dictionaries` table, for `described`.

    Returns:
        Differences of `partials`, or all of them where they are made again, and of `features`, of each set. Facts:
        `feature_sets`, and `made`: how many rows of features.
    """
    events = described(events, conf, dictionaries)
    model = Agg.load(folder)
    written, months = _months(events, partials, dirty, conf, model.summed, keep=keep)

    def pairs_of(name: str, touched: DataFrame | None) -> DataFrame:
        there = standing.where(F.col("feature_set") == name).select(*KEY)
        return settled(due(as_of, there, touched), keep)

    own = pairs_of(conf.feature_set, dirty)
    parts = [_differences(conf.feature_set, own, lambda pairs: model.transform(months.histories(pairs), pairs))]
    if conf.attributes:
        # What is known of a client may change without an event.
        every = pairs_of(ATTRIBUTES, None)
        told = conf.attributes
        parts.append(_differences(ATTRIBUTES, every, lambda pairs: attribute_features(clients, pairs, told)))
    rows = keep(reduce(DataFrame.unionByName, parts))
    made = rows.count()
    return Made(
        rows_in=made,
        rows_out=made,
        tables={
            "partials": written,
            "features": Rows(frame=rows, slice={"feature_set": conf.feature_sets}, differences=True),
        },
        main="features",
        facts={"feature_sets": list(conf.feature_sets), "made": made},
    )


def _months(
    events: DataFrame,
    partials: DataFrame | None,
    dirty: DataFrame | None,
    conf: AggregateConf,
    summed: Summed,
    *,
    keep: Keep,
) -> tuple[Rows, Partials]:
    """What is written of partials, and the partials as they are then."""
    if dirty is None or partials is None:
        made = Partials.of(events, summed, keep=keep)
        return named_partials(made.rows, conf), made
    standing = partials.where(F.col("feature_set") == conf.feature_set).drop("feature_set", "run_id")
    changes = changed_partials(events, standing, dirty, summed, keep=keep)
    now = Partials(rows=after(standing, changes), events=events, summed=summed, keep=keep)
    return named_partials(changes, conf, differences=True), now


def _differences(name: str, pairs: DataFrame, make: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """The differences of one feature set.

    Args:
        name: the set.
        pairs: from `asked.due`; kept.
        make: gives client_id, as_of, features of rows that are wanted.
    """
    wanted = pairs.where(F.col(CHANGE) != DELETE)
    made = make(wanted.select(*KEY)).join(wanted, list(KEY))
    none = F.create_map().cast("map<string, float>")
    gone = pairs.where(F.col(CHANGE) == DELETE).withColumn("features", none)
    return made.unionByName(gone).withColumn("feature_set", F.lit(name))
