"""Whose history is told, as of when: one rule for documents, features, vectors and scores."""

from __future__ import annotations

import datetime as dt

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf

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
