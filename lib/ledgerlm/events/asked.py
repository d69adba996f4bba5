"""Whose history is told, as of when: one rule for documents, features, vectors and scores."""

from __future__ import annotations

import datetime as dt

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import DataError
from ledgerlm.lake.differences import CHANGE, DELETE, INSERT, UPDATE

_KEY = ("client_id", "as_of")


class AsOfConf(Conf):
    """When histories end."""

    as_of: dt.datetime | None = Field(
        None,
        description="end of the histories of clients without a label; left out, the data set's, or else the end of its "
        "data (time.end)",
    )
    labels: bool = Field(
        True,
        description="one history for each as_of of a client's labels; false: one for each client, which labels of "
        "later stages do not change",
    )
    everyone: bool = Field(
        False,
        description="one history more for each client, labelled or not, at as_of: so that all can be scored as of "
        "tonight with heads that learn from the labels; a backbone then learns from these histories as well",
    )


def asked(clients: DataFrame, labels: DataFrame | None, end: dt.datetime, conf: AsOfConf | None = None) -> DataFrame:
    """When each client's history ends: at each `as_of` of its labels, for a client without labels at `end`.

    Args:
        clients: the `clients` table.
        labels: the `labels` table, if there is one.
        end: for clients without labels; without a zone it is in the session's.
        conf: with `labels: false`, all histories end at `end`; with `everyone: true`, one of each client does.

    Returns:
        client_id, as_of; distinct.
    """
    ids = clients.select("client_id").distinct()
    instant = F.lit(end.isoformat(sep=" ")).cast("timestamp")
    if labels is None or (conf is not None and not conf.labels):
        return ids.withColumn("as_of", instant)
    own = labels.select(*_KEY).distinct()
    if conf is not None and conf.everyone:
        return own.join(ids, on="client_id", how="leftsemi").unionByName(ids.withColumn("as_of", instant)).distinct()
    return ids.join(own, on="client_id", how="left").withColumn("as_of", F.coalesce("as_of", instant))


def labelled(rows: DataFrame, labels: DataFrame | None) -> DataFrame:
    """Of histories those that end at a label of their client.

    Args:
        rows: with client_id and as_of.
        labels: the `labels` table, if there is one.

    Raises:
        DataError: there are no labels.
    """
    if labels is None:
        raise DataError("labelled: true, and there is no label; leave it out, or add labels to the data set spec")
    return rows.join(labels.select(*_KEY).distinct(), [*_KEY], how="left_semi")


def due(wanted: DataFrame, standing: DataFrame, dirty: DataFrame | None) -> DataFrame:
    """What is to be made of what is asked, seen against what is there.

    Args:
        wanted: client_id, as_of; distinct.
        standing: client_id, as_of of what is there; distinct.
        dirty: client_id, earliest: whose events changed, and from which time on; None: everything is made again.

    Returns:
        client_id, as_of, CHANGE: `insert` what is asked and not there, `update` what is there and no longer right,
        `delete` what is there, no longer right and not asked.
    """
    both = wanted.withColumn("_wanted", F.lit(True)).join(standing.withColumn("_there", F.lit(True)), [*_KEY], "full")
    if dirty is None:
        wrong = F.lit(True)
    else:
        both = both.join(dirty.select("client_id", "earliest"), on="client_id", how="left")
        wrong = F.coalesce(F.col("as_of") > F.col("earliest"), F.lit(False))
    change = (
        F.when(F.col("_there").isNull(), INSERT)
        .when(~wrong, F.lit(None))
        .when(F.col("_wanted").isNull(), DELETE)
        .otherwise(UPDATE)
    )
    return both.select(*_KEY, change.alias(CHANGE)).where(F.col(CHANGE).isNotNull())
