"""Embeds what a batch changed: a state for each text that has none, and a vector where the standing ones do not serve.

A vector serves every time after its own until an event comes. So on a night the clients without a new event keep the
vectors that they have, whatever the date, and the model reads new texts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.backbone.embedding import (
    ROWS_A_TASK,
    VECTOR,
    EmbedConf,
    figures_of,
    save_components,
    widths_of,
    without_vector,
)
from ledgerlm.backbone.embedding_windows import STATE, definition_of, embed_windows
from ledgerlm.backbone.states import fold, state_rows
from ledgerlm.engines.frames import tasks_for
from ledgerlm.events.asked import due
from ledgerlm.lake.differences import CHANGE, DELETE, INSERT, UPDATE
from ledgerlm.lake.made import Made, Rows
from ledgerlm.text.windows import before_asked

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable
    from pathlib import Path

    from pyspark.sql import DataFrame

    from ledgerlm.engines.frames import Keep
    from ledgerlm.lake.slices import Slice
    from ledgerlm.progress import Progress
    from ledgerlm.text.windows import ToldWindows

_PAIR = ("client_id", "as_of")
_TEXT = ["client_id", "text_hash"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Since:
    """What stands, and what has changed since it was made.

    Attributes:
        before: gives a slice of `states` or `embeddings` as it stands.
        dirty: client_id, earliest: whose events changed, from when on.
        night: everybody is asked as of it; None in a study.
    """

    before: Callable[[str, Slice], DataFrame]
    dirty: DataFrame
    night: dt.datetime | None


def due_vectors(
    asked: DataFrame, standing: DataFrame, windows: DataFrame, *, dirty: DataFrame, night: dt.datetime | None
) -> DataFrame:
    """Which vectors are to be made, made again, or taken away.

    Args:
        asked: client_id, as_of.
        standing: client_id, as_of of the vectors that are there.
        windows: of the format and windowing.
        dirty: client_id, earliest: whose events changed, from when on.
        night: everybody is asked as of it; a vector that stands and was followed by no event serves for it.

    Returns:
        As `asked.due`.
    """
    pairs = due(asked, standing, dirty)
    if night is None:
        return pairs
    tonight = F.lit(night.isoformat(sep=" ")).cast("timestamp")
    newest = standing.where(F.col("as_of") <= tonight).groupBy("client_id").agg(F.max("as_of").alias("_newest"))
    last = windows.where("cut_at IS NULL").groupBy("client_id").agg(F.max("last_event_time").alias("_last"))
    served = newest.join(last, "client_id").where(F.col("_last") < F.col("_newest")).select("client_id")
    # Whoever is touched gets a new vector, wherever in the past that was.
    served = served.join(dirty.select("client_id"), "client_id", how="left_anti").withColumn("_served", F.lit(True))
    skipped = (F.col(CHANGE) == INSERT) & (F.col("as_of") == tonight) & F.coalesce("_served", F.lit(False))
    return pairs.join(served, "client_id", how="left").where(~skipped).drop("_served")


def embed_told(
    windows: DataFrame,
    asked: DataFrame,
    told: ToldWindows,
    conf: EmbedConf,
    *,
    backbone: Path,
    folder: Path,
    standing: Callable[[Slice], DataFrame | None],
    since: Since | None,
    keep: Keep,
    progress: Progress,
) -> Made:
    """Embeds windows: what changed since, or all that is asked; arguments as of `embed_changed` and `embed_windows`."""
    if since is not None:
        return embed_changed(
            windows, asked, told, conf, backbone=backbone, folder=folder, since=since, keep=keep, progress=progress
        )
    return embed_windows(
        windows, asked, told, conf, backbone=backbone, folder=folder, standing=standing, keep=keep, progress=progress
    ).made()


def embed_changed(
    windows: DataFrame,
    asked: DataFrame,
    told: ToldWindows,
    conf: EmbedConf,
    *,
    backbone: Path,
    folder: Path,
    since: Since,
    keep: Keep,
    progress: Progress,
) -> Made:
    """Reads the texts that have no state yet and folds what is due.

    Args:
        windows: the `windows` table.
        asked: client_id, as_of.
        told: which windows.
        conf: definition, and how workers run.
        backbone: its folder.
        folder: for the file that names the vectors' numbers.
        since: what stands, and what changed.
        keep: for frames that are read again: the model must run once.
        progress: what the user sees.

    Returns:
        Differences of `states` and `embeddings`. Facts as `embed_windows`, `reused` not counted.
    """
    from ledgerlm.backbone import model  # torch and transformers take seconds to import

    own = told.of_table(windows)
    backbone_id, definition = model.backbone_id(backbone), definition_of(own, told, conf, backbone)
    part: Slice = {"backbone_id": (backbone_id,), "definition_id": (definition.definition_id,)}
    states, vectors = since.before("states", part), since.before("embeddings", part)
    pairs = keep(due_vectors(asked, vectors.select(*_PAIR), own, dirty=since.dirty, night=since.night))
    wanted = pairs.where(F.col(CHANGE) != DELETE).select(*_PAIR)
    mine = own.join(wanted.select("client_id").distinct(), "client_id", how="left_semi")
    texts = before_asked(mine, wanted).select("client_id", "bucket", "text_hash", "text").dropDuplicates(_TEXT)
    rest = keep(texts.join(states.select(*_TEXT), _TEXT, how="left_anti"))
    spread = rest.repartition(conf.partitions or tasks_for(rest.count(), ROWS_A_TASK), *_TEXT)
    made = keep(
        state_rows(spread, folder=str(backbone), backbone_id=backbone_id, definition=definition, settings=conf.settings)
    )
    with progress.task("Embedding windows"):
        figures = figures_of(made)
    held = states.select(*STATE).join(texts.select(*_TEXT), _TEXT, how="left_semi")
    known = made.unionByName(held, allowMissingColumns=True)
    folded = keep(fold(mine, known, wanted, definition=definition, backbone_id=backbone_id))
    changes = keep(_changes(folded, pairs))
    counted = {row[CHANGE]: row["count"] for row in changes.groupBy(CHANGE).count().collect()}
    new = counted.get(INSERT, 0) + counted.get(UPDATE, 0)
    without = folded.where("reason IS NOT NULL").count()
    widths = widths_of(vectors if not new else folded.where("reason IS NULL").select(*VECTOR), definition)
    components = save_components(folder, definition, widths)
    states_made = keep(made.where("reason IS NULL").select(*STATE).withColumn(CHANGE, F.lit(INSERT)))
    return Made(
        rows_in=new + without,
        rows_out=new,
        quarantined=without,
        main="embeddings",
        aside=without_vector(folded),
        tables={
            "states": Rows(frame=states_made, slice=part, differences=True),
            "embeddings": Rows(frame=changes, slice=part, differences=True),
        },
        artefacts=[components],
        facts={
            "definition": definition.model_dump(mode="json"),
            "definition_id": definition.definition_id,
            "backbone": str(backbone),
            "backbone_id": backbone_id,
            **figures,
            "folded": new,
            "taken_away": counted.get(DELETE, 0),
            "widths": widths,
            "components": str(components),
        },
    )


def _changes(folded: DataFrame, pairs: DataFrame) -> DataFrame:
    """The differences of `embeddings`: what was folded, and what is gone since nothing is left to fold."""
    good = folded.where("reason IS NULL").select(*VECTOR)
    both = pairs.join(good, list(_PAIR), how="left")
    there = F.col("parts").isNotNull()
    change = F.when(there, F.col(CHANGE)).when(F.col(CHANGE) != INSERT, F.lit(DELETE))
    return both.select(*VECTOR, change.alias(CHANGE)).where(F.col(CHANGE).isNotNull())
