"""What past nights leave behind: rows for which nobody asks any more, told from those that a later night starts from.

A night adds a vector of each client to whom an event came, features and scores of everybody, and a state of each text
that it read. Taking rows away is never more than work for whoever asks for them after all: vectors are folded again
from states, states are read again from windows, features are made again from events.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as F

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

KINDS: Mapping[str, tuple[str, ...]] = {
    "embeddings": ("backbone_id", "definition_id"),
    "features": ("feature_set",),
}
"""Table of vectors -> columns that tell the kinds of a client's vectors apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """The times that are asked for.

    Attributes:
        nights: as of which the publications were made that stay readable.
        seen: as of which readers see; what is later stays, since a night that has not ended goes on from it.
        asked: client_id, as_of: of labels, from which heads learn.
    """

    nights: Sequence[dt.datetime]
    seen: dt.datetime
    asked: DataFrame


def past_vectors(vectors: DataFrame, kinds: Sequence[str], needed: Needed) -> DataFrame:
    """The vectors that serve no time that is asked for.

    A vector serves each time from its own on until the client's next one. So the newest of a client stays whatever
    its age, and so does that which was the newest on a night whose publication is kept.

    Args:
        vectors: rows of a table of KINDS.
        kinds: its columns of KINDS.
        needed: the times.

    Returns:
        client_id, as_of and the kinds.
    """
    of_client = Window.partitionBy("client_id", *kinds).orderBy("as_of")
    placed = vectors.select("client_id", "as_of", *kinds).withColumn("_next", F.lead("as_of").over(of_client))
    serves = F.col("_next").isNull()
    for night in needed.nights:
        serves = serves | ((F.col("as_of") <= _instant(night)) & (_instant(night) < F.col("_next")))
    past = placed.where(~serves & (F.col("as_of") <= _instant(needed.seen)))
    return past.drop("_next").join(needed.asked, ["client_id", "as_of"], how="left_anti")


def past_scores(scores: DataFrame, needed: Needed) -> DataFrame:
    """The scores as of times of which no kept publication and no label is.

    Args:
        scores: rows of the `scores` table.
        needed: the times.

    Returns:
        client_id, task, as_of, head_id.
    """
    kept = F.col("as_of").isin([_instant(night) for night in needed.nights]) | (F.col("as_of") > _instant(needed.seen))
    past = scores.where(~kept).select("client_id", "task", "as_of", "head_id")
    return past.join(needed.asked, ["client_id", "as_of"], how="left_anti")


def gone_states(states: DataFrame, windows: DataFrame) -> DataFrame:
    """The states of texts that no window holds any more: the model reads one again only where it comes back.

    Args:
        states: rows of the `states` table.
        windows: the `windows` table, of all formats.

    Returns:
        client_id, text_hash, backbone_id, definition_id.
    """
    key = ["client_id", "text_hash"]
    return states.select(*key, "backbone_id", "definition_id").join(windows.select(*key), key, how="left_anti")


def _instant(time: dt.datetime) -> Column:
    return F.lit(time.isoformat(sep=" ")).cast("timestamp")
