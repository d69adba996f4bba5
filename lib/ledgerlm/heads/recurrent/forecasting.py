"""Scores histories with heads that read events: the verb behind the forecast job."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
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
from ledgerlm.heads.recurrent.inputs import chosen_columns, head_rows, observed_events, sources_of
from ledgerlm.heads.recurrent.scoring import score_recurrent
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
    heads: Mapping[str, str],
    folder: Path,
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
        heads: head_id -> the name under which it is told of.
        folder: the artefacts' `heads` folder.
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
        ArtefactError: a head is missing or was changed.
        DataError: there is no head, or no event.
    """
    from ledgerlm.heads.recurrent.store import read_recurrent_card  # it imports torch, which takes seconds

    if not heads:
        raise DataError("there is no head to score with: the stages that are named have left none")
    ids = clients.select("client_id")
    said, told, asked = {}, [], []
    for head_id, name in heads.items():
        card = read_recurrent_card(folder / head_id)
        task = card.task.name
        as_of = _asked(labels.where(F.col("task") == task), ids, conf.as_of)
        sources = sources_of(events, clients, dictionaries, card.inputs, files)
        observed = observed_events(sources, chosen_columns(spec, card.inputs), card.inputs)
        rows = head_rows(as_of, observed, sources, card.shape, card.inputs)
        said[head_id] = score_recurrent(rows, folder.resolve(), head_id)
        told.append({"head_id": head_id, "name": name, "task": task})
        asked.append(as_of.withColumns({"task": F.lit(task), "head_id": F.lit(head_id)}))
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
