"""Embeds windows: a state for each text that has none yet, and the fold of a client's states for each time that is due.

A vector serves every time after its own until an event comes. So on a night the clients without a new event keep the
vectors that they have, whatever the date, and the model reads new texts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.backbone.embedding import (
    ROWS_A_TASK,
    VECTOR,
    EmbedConf,
    fields_of,
    figures_of,
    save_components,
    widths_of,
    without_vector,
)
from ledgerlm.backbone.states import fold, state_rows
from ledgerlm.engines.frames import settled, tasks_for
from ledgerlm.errors import DataError
from ledgerlm.events.asked import due
from ledgerlm.lake.differences import CHANGE, DELETE, INSERT
from ledgerlm.lake.made import Made, Rows
from ledgerlm.text.windows import before_asked

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pyspark.sql import DataFrame

    from ledgerlm.backbone.definition import EmbeddingDefinition
    from ledgerlm.backbone.projection import Projected
    from ledgerlm.engines.frames import Keep
    from ledgerlm.lake.slices import Slice
    from ledgerlm.progress import Progress
    from ledgerlm.text.windows import ToldWindows

_PAIR = ("client_id", "as_of")
_TEXT = ["client_id", "text_hash"]
_STATE = ("client_id", "bucket", "text_hash", "backbone_id", "definition_id", "event_count", "token_count", "sums")


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


def embed_windows(
    windows: DataFrame,
    asked: DataFrame,
    told: ToldWindows,
    conf: EmbedConf,
    *,
    backbone: Path,
    folder: Path,
    standing: Callable[[Slice], DataFrame | None],
    keep: Keep,
    progress: Progress,
    since: Since | None = None,
    projected: Projected | None = None,
) -> Made:
    """Reads the windows that have no state yet, and folds the states of each client for each time that is due.

    Args:
        windows: the `windows` table.
        asked: client_id, as_of.
        told: which windows.
        conf: definition, and how workers run.
        backbone: its folder.
        folder: for the file that names the vectors' numbers.
        standing: gives what the lake holds of a slice of `states`, or None.
        keep: for frames that are read again: the model must run once.
        progress: what the user sees.
        since: vectors that are there, of which those are made again that are no longer right; None: all are made.
        projected: axes that states are laid on.

    Returns:
        `states` and `embeddings` of the backbone and definition, or with `since` what changes in them; the states
        first, so that whoever finds a vector finds what it was made of. Rows in are the times that were folded; a time
        whose history holds a text without a state is set aside.

    Raises:
        DataError: there are no such windows.
        ConfigError: axes of other states than the definition's.
    """
    own = told.of_table(windows)
    by = _reader(own, told, conf, backbone, projected)
    pairs = None if since is None else settled(_due(asked, own, since, by.part), keep)
    wanted = asked if pairs is None else pairs.where(F.col(CHANGE) != DELETE).select(*_PAIR)
    own = own if pairs is None else own.join(wanted.select("client_id").distinct(), "client_id", how="left_semi")
    there = standing(by.part) if since is None else since.before("states", by.part)
    read, old = _states(before_asked(own, wanted), there, by, conf, keep)
    with progress.task("Embedding windows"):
        figures = figures_of(read)
    # Texts without a state go into the fold as well: what is told of a client then says why it has no vector.
    known = read if old is None else read.unionByName(old, allowMissingColumns=True)
    folded = keep(fold(own, known, wanted, definition=by.definition, backbone_id=by.backbone_id))
    with progress.task("Folding states"):
        answered = folded.agg(F.count("*").alias("asked"), F.count("reason").alias("without")).first()
    assert answered is not None, "an aggregate of all rows is one row"
    new = answered["asked"] - answered["without"]
    vectors = folded.where("reason IS NULL")
    widths = widths_of(vectors if new or since is None else since.before("embeddings", by.part), by.definition)
    components = save_components(folder, by.definition, widths)
    return Made(
        rows_in=answered["asked"],
        rows_out=new,
        tables=_all(read, old, folded, by.part) if pairs is None else _changes(read, folded, pairs, by.part, keep),
        main="embeddings",
        aside=without_vector(folded),
        quarantined=answered["without"],
        artefacts=[components],
        facts={
            **by.told(),
            **({"reused": 0 if old is None else old.count()} if since is None else {}),
            **figures,
            "folded": new,
            "widths": widths,
            "components": str(components),
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """What texts are read with, and what is kept of it.

    Attributes:
        backbone: its folder.
        backbone_id: its hash.
        definition: of the embedding; with axes, of what is laid on them.
        projection: folder of the axes.
    """

    backbone: Path
    backbone_id: str
    definition: EmbeddingDefinition
    projection: Path | None

    @property
    def part(self) -> Slice:
        """Its slice of `states` and `embeddings`."""
        return {"backbone_id": (self.backbone_id,), "definition_id": (self.definition.definition_id,)}

    def told(self) -> dict[str, Any]:
        """What later stages and the report know of it, as JSON values."""
        return {
            "definition": self.definition.model_dump(mode="json"),
            "definition_id": self.definition.definition_id,
            "backbone": str(self.backbone),
            "backbone_id": self.backbone_id,
        }


def _reader(own: DataFrame, told: ToldWindows, conf: EmbedConf, backbone: Path, projected: Projected | None) -> _Reader:
    from ledgerlm.backbone import model  # torch and transformers take seconds to import

    backbone_id, definition = model.backbone_id(backbone), definition_of(own, told, conf, backbone)
    return _Reader(
        backbone=backbone,
        backbone_id=backbone_id,
        definition=definition if projected is None else projected.named(definition, backbone_id),
        projection=None if projected is None else projected.folder,
    )


def _states(
    windows: DataFrame, there: DataFrame | None, by: _Reader, conf: EmbedConf, keep: Keep
) -> tuple[DataFrame, DataFrame | None]:
    """States of the windows' texts: those that are to be read (kept, not computed yet), and those that are there."""
    texts = windows.select("client_id", "bucket", "text_hash", "text").dropDuplicates(_TEXT)
    old = None if there is None else there.join(texts, _TEXT, how="left_semi").select(*_STATE)
    rest = keep(texts if old is None else texts.join(old, _TEXT, how="left_anti"))
    spread = rest.repartition(conf.partitions or tasks_for(rest.count(), ROWS_A_TASK), *_TEXT)
    made = state_rows(
        spread,
        folder=str(by.backbone),
        backbone_id=by.backbone_id,
        definition=by.definition,
        projection=by.projection,
        settings=conf.settings,
    )
    return keep(made), old


def _all(read: DataFrame, old: DataFrame | None, folded: DataFrame, part: Slice) -> Mapping[str, Rows]:
    """States and vectors of the slice."""
    new = read.where("reason IS NULL").select(*_STATE)
    vectors = folded.where("reason IS NULL").select(*VECTOR)
    states = new if old is None else old.unionByName(new)
    return {"states": Rows(frame=states, slice=part), "embeddings": Rows(frame=vectors, slice=part)}


def _changes(read: DataFrame, folded: DataFrame, pairs: DataFrame, part: Slice, keep: Keep) -> Mapping[str, Rows]:
    """What changes in the slice."""
    new = read.where("reason IS NULL").select(*_STATE).withColumn(CHANGE, F.lit(INSERT))
    both = pairs.join(folded.where("reason IS NULL").select(*VECTOR), list(_PAIR), how="left")
    # What was there and folds to nothing any more goes: all its events were taken away.
    change = F.when(F.col("parts").isNotNull(), F.col(CHANGE)).when(F.col(CHANGE) != INSERT, F.lit(DELETE))
    changes = both.select(*VECTOR, change.alias(CHANGE)).where(F.col(CHANGE).isNotNull())
    return {
        "states": Rows(frame=settled(new, keep), slice=part, differences=True),
        "embeddings": Rows(frame=settled(changes, keep), slice=part, differences=True),
    }


def _due(asked: DataFrame, own: DataFrame, since: Since, part: Slice) -> DataFrame:
    vectors = since.before("embeddings", part).select(*_PAIR)
    return due_vectors(asked, vectors, own, dirty=since.dirty, night=since.night)


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


def definition_of(own: DataFrame, told: ToldWindows, conf: EmbedConf, backbone: Path) -> EmbeddingDefinition:
    """The definition, with what it leaves to the backbone and the texts."""
    from ledgerlm.backbone.embedder import resolve_definition

    if own.isEmpty():
        raise DataError(
            f"no windows {told.name} in the table windows; run the serialize stage that writes them before this one"
        )
    fields = fields_of(own, told.format)
    return resolve_definition(str(backbone), conf.definition, text_format=told.name, fields=fields, device=conf.device)
