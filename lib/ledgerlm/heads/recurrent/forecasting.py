"""Scores histories with heads that read events: the verb behind the forecast job."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.baselines.sequence.histories import without_events
from ledgerlm.config import Conf, StageName
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import DataError
from ledgerlm.heads.publish import scored
from ledgerlm.heads.recurrent.head import RecurrentHead
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec

_KEY = ("client_id", "task", "as_of", "head_id")


class ForecastConf(Conf):
    """Settings of the forecast job."""

    stages: tuple[StageName, ...] = Field(
        (StageName("learn"),), min_length=1, description="learn stages whose heads score"
    )
    as_of: dt.datetime | None = Field(
        None, description="score every client here too; else only where the head's task has labels"
    )


def forecast(
    heads: Sequence[tuple[str, RecurrentHead]],
    *,
    events: DataFrame,
    clients: DataFrame,
    labels: DataFrame,
    dictionaries: DataFrame | None,
    spec: DataSetSpec,
    conf: ForecastConf,
    files: Mapping[str, Path],
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Scores with one head after the other where its task has labels; who has no event is set aside.

    Args:
        heads: name under which it is told of, and the head.
        events: the `events` table.
        clients: the `clients` table.
        labels: the `labels` table.
        dictionaries: the `dictionaries` table, if there is one.
        spec: the data set.
        conf: settings.
        files: name in a head's configuration -> path; has the series, where a head sees one.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        See `heads.publish.scored`; rows_in are the rows that were asked for.

    Raises:
        DataError: there is no head, or no event.
    """
    if not heads:
        raise DataError("there is no head to score with: the stages that are named have left none")
    ids = clients.select("client_id")
    said, told, asked = {}, [], []
    for name, head in heads:
        task = head.card.task.name
        as_of = _asked(labels.where(F.col("task") == task), ids, conf.as_of)
        rows = head.inputs(as_of, events, clients, spec=spec, dictionaries=dictionaries, files=files)
        said[head.head_id] = head.transform(rows)
        told.append({"head_id": head.head_id, "name": name, "task": task})
        asked.append(as_of.withColumns({"task": F.lit(task), "head_id": F.lit(head.head_id)}))
    made = scored(said, told, keep=keep, progress=progress, text="Forecasting")
    wanted = keep(reduce(lambda one, other: one.unionByName(other), asked))
    aside = without_events(wanted, made.tables["scores"].frame, _KEY)
    return replace(made, rows_in=wanted.count(), aside=aside)


def _asked(labels: DataFrame, clients: DataFrame, now: dt.datetime | None) -> DataFrame:
    """client_id, as_of of known clients: where they have a label, and all of them at `now`."""
    own = labels.select("client_id", "as_of").join(clients, on="client_id", how="leftsemi")
    if now is None:
        return own
    instant = F.lit(now.isoformat(sep=" ")).cast("timestamp")
    return own.unionByName(clients.withColumn("as_of", instant)).distinct()
