"""Aggregate features of a night: of everybody as of tonight, and again of those whose past was touched."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import ATTRIBUTES, Agg, AggregateConf, attribute_features
from ledgerlm.events.asked import due
from ledgerlm.events.dictionaries import with_description
from ledgerlm.lake.differences import CHANGE, DELETE
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from ledgerlm.engines.frames import Keep

_KEY = ("client_id", "as_of")


def aggregate_night(
    events: DataFrame,
    clients: DataFrame,
    as_of: DataFrame,
    conf: AggregateConf,
    *,
    standing: DataFrame,
    dirty: DataFrame | None,
    folder: Path,
    keep: Keep,
    dictionaries: DataFrame | None = None,
) -> Made:
    """The features that are asked and not there, or no longer right, by the model that was fitted in the study.

    Features of the clock move with it, so everybody's are made as of tonight; features as of other times stay, but
    where an event before them was added, corrected or deleted.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        as_of: client_id, as_of of every row wanted; distinct.
        conf: settings.
        standing: the `features` table as it is.
        dirty: client_id, earliest: whose events changed since it was made; None: everything is made again.
        folder: of the fitted model.
        keep: computes a frame once.
        dictionaries: the `dictionaries` table, for `described`.

    Returns:
        Differences of `features`, of each set. Facts: `feature_sets`, and `made`: how many rows.
    """
    for field in conf.described:
        events = with_description(events, dictionaries, field, field)
    model = Agg.load(folder)

    def pairs_of(name: str, touched: DataFrame | None) -> DataFrame:
        there = standing.where(F.col("feature_set") == name).select(*_KEY)
        return keep(due(as_of, there, touched))

    own = pairs_of(conf.feature_set, dirty)
    parts = [_differences(conf.feature_set, own, lambda pairs: model.transform(events, pairs))]
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
        tables={"features": Rows(frame=rows, slice={"feature_set": conf.feature_sets}, differences=True)},
        facts={"feature_sets": list(conf.feature_sets), "made": made},
    )


def _differences(name: str, pairs: DataFrame, make: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """The differences of one feature set.

    Args:
        name: the set.
        pairs: from `asked.due`; kept.
        make: gives client_id, as_of, features of rows that are wanted.
    """
    wanted = pairs.where(F.col(CHANGE) != DELETE)
    made = make(wanted.select(*_KEY)).join(wanted, list(_KEY))
    none = F.create_map().cast("map<string, float>")
    gone = pairs.where(F.col(CHANGE) == DELETE).withColumn("features", none)
    return made.unionByName(gone).withColumn("feature_set", F.lit(name))
