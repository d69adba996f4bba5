"""Embeds windows: a state for each text that has none yet, and the fold of a client's states for each time asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
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
from ledgerlm.engines.frames import Keep, tasks_for
from ledgerlm.errors import DataError
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.slices import Slice
from ledgerlm.progress import Progress
from ledgerlm.text.windows import ToldWindows, before_asked

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.backbone.definition import EmbeddingDefinition

_KEY = ["client_id", "text_hash"]
STATE = ("client_id", "bucket", "text_hash", "backbone_id", "definition_id", "event_count", "token_count", "sums")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedWindows:
    """States of windows, and the vectors that they fold to.

    Attributes:
        states: rows of the `states` table, reused and new ones.
        vectors: rows of the `embeddings` table.
        aside: rows for `quarantine`: times whose history holds a text without a state.
        part: their slice of both tables.
        asked: times that have an event before them.
        without: those that have no vector.
        components: file that names each number of each part.
        facts: definition, tokens, speed, widths.
    """

    states: DataFrame
    vectors: DataFrame
    aside: DataFrame
    part: Slice
    asked: int
    without: int
    components: Path
    facts: Mapping[str, Any]

    def made(self) -> Made:
        """For the lake: the states first, so that whoever finds a vector finds what it was made of."""
        return Made(
            rows_in=self.asked,
            rows_out=self.asked - self.without,
            tables={
                "states": Rows(frame=self.states, slice=self.part),
                "embeddings": Rows(frame=self.vectors, slice=self.part),
            },
            main="embeddings",
            aside=self.aside,
            quarantined=self.without,
            artefacts=[self.components],
            facts=self.facts,
        )


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
) -> EmbeddedWindows:
    """Reads the windows that have no state yet, and folds the states of each client for each time that is asked.

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

    Raises:
        DataError: there are no such windows.
    """
    from ledgerlm.backbone import model  # torch and transformers take seconds to import

    own = told.of_table(windows)
    backbone_id, definition = model.backbone_id(backbone), definition_of(own, told, conf, backbone)
    part: Slice = {"backbone_id": (backbone_id,), "definition_id": (definition.definition_id,)}
    texts = before_asked(own, asked).select("client_id", "bucket", "text_hash", "text").dropDuplicates(_KEY)
    there = standing(part)
    old = None if there is None else there.join(texts, _KEY, how="left_semi").select(*STATE)
    rest = texts if old is None else texts.join(old, _KEY, how="left_anti")
    spread = rest.repartition(conf.partitions or tasks_for(rest.count(), ROWS_A_TASK), *_KEY)
    made = state_rows(
        spread, folder=str(backbone), backbone_id=backbone_id, definition=definition, settings=conf.settings
    )
    rows = keep(made)
    with progress.task("Embedding windows"):
        figures = figures_of(rows)
    new = rows.where("reason IS NULL").select(*STATE)
    reused = 0 if old is None else old.count()
    # Texts without a state go into the fold as well: what is told of a client then says why it has no vector.
    known = rows if old is None else rows.unionByName(old, allowMissingColumns=True)
    folded = keep(fold(own, known, asked, definition=definition, backbone_id=backbone_id))
    with progress.task("Folding states"):
        answered = folded.agg(F.count("*").alias("asked"), F.count("reason").alias("without")).first()
    assert answered is not None, "an aggregate of all rows is one row"
    vectors = folded.where("reason IS NULL").select(*VECTOR)
    widths = widths_of(vectors, definition)
    components = save_components(folder, definition, widths)
    return EmbeddedWindows(
        states=new if old is None else old.unionByName(new),
        vectors=vectors,
        aside=without_vector(folded),
        part=part,
        asked=answered["asked"],
        without=answered["without"],
        components=components,
        facts={
            "definition": definition.model_dump(mode="json"),
            "definition_id": definition.definition_id,
            "backbone": str(backbone),
            "backbone_id": backbone_id,
            "reused": reused,
            **figures,
            "folded": answered["asked"] - answered["without"],
            "widths": widths,
            "components": str(components),
        },
    )


def definition_of(own: DataFrame, told: ToldWindows, conf: EmbedConf, backbone: Path) -> EmbeddingDefinition:
    """The definition, with what it leaves to the backbone and the texts."""
    from ledgerlm.backbone.embedder import resolve_definition

    if own.isEmpty():
        raise DataError(
            f"no windows {told.name} in the table windows; run the serialize stage that writes them before this one"
        )
    fields = fields_of(own, told.format)
    return resolve_definition(str(backbone), conf.definition, text_format=told.name, fields=fields, device=conf.device)
