"""Heads as models: saved under the hash of their files, loaded by it, and asked about vectors of any date."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ledgerlm.config import Conf, StageName
from ledgerlm.engines.frames import Keep
from ledgerlm.engines.session import setting
from ledgerlm.heads.boosting import Boosted
from ledgerlm.heads.head import MLLIB, HeadCard, load_card, load_trees, save_head
from ledgerlm.heads.mllib import score_mllib
from ledgerlm.heads.publish import scored
from ledgerlm.heads.scoring import score_rows
from ledgerlm.heads.vectors import KEY, Source, is_finite, join_sources, newest_vectors
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.slices import instant
from ledgerlm.progress import Progress
from ledgerlm.training.model import HeadModel

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ScoreConf(Conf):
    """Settings of the score job."""

    stages: tuple[StageName, ...] = Field((StageName("fit"),), description="fit stages whose heads score")
    heads: tuple[str, ...] | None = Field(None, description="head ids to score with; default all heads of the stages")
    reasons: int = Field(3, ge=0, description="features named as reasons for each score; 0 is fastest")


@dataclass(frozen=True, kw_only=True)
class Head(HeadModel):
    """A trained head that reads vectors.

    Attributes:
        card: what it is.
        model: LightGBM's trees, or a folder in MLlib's own format.
        facts: what its training found out (`calibration`).
        home: folder of its files once it is saved; its name is the head's id.
    """

    card: HeadCard
    model: Boosted | Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    home: Path | None = None

    @classmethod
    def load(cls, folder: Path, head_id: str, /) -> Head:
        """Reads a head after checking that its files are those that its id was made from."""
        home = folder / head_id
        card = load_card(folder, head_id)
        model = load_trees(folder, head_id)[1] if card.kind == "lightgbm" else home / MLLIB
        return cls(card=card, model=model, home=home)

    def save(self, folder: Path) -> Head:
        """Writes it below `folder`, under its id; the same head again leaves what is there."""
        return replace(self, home=folder / save_head(folder, self.card, self.model))

    def inputs(self, tables: Mapping[str, DataFrame]) -> DataFrame:
        """The vectors that it reads, side by side.

        Args:
            tables: `features` and `embeddings`, as far as its sources name them.
        """
        return join_sources(self.card.sources, tables)

    def transform(self, vectors: DataFrame, /, *, reasons: int = 3) -> DataFrame:
        """Scores clients; each Python worker reads the head's files once and keeps them.

        Args:
            vectors: from `inputs`; a vector must be finite (`vectors.is_finite`).
            reasons: features named for each client, 0 for none; MLlib's heads give none.

        Returns:
            As `scoring.SCORED`: client_id, as_of, margin, probabilities, prediction, reasons.
        """
        home = self.folder
        if self.card.kind != "lightgbm":
            return score_mllib(vectors, self.card.blocks, self.card.task, home / MLLIB)
        threads = int(setting(vectors.sparkSession, "spark.task.cpus", "1"))
        return score_rows(vectors, home.parent, home.name, reasons=reasons, threads=threads)

    def described(self) -> dict[str, Any]:
        """What later stages and the report know of it, as JSON values."""
        return {
            "head_id": self.head_id,
            "kind": self.card.kind,
            "task": self.card.task.name,
            "classes": list(self.card.task.class_names),
            "representation": self.card.representation,
            "training_rows": self.card.training_rows,
            "features": len(self.card.names),
            "as_of": self.card.as_of,
            **self.facts,
        }


def score(
    heads: Sequence[Head],
    tables: Mapping[str, DataFrame],
    *,
    reasons: int = 3,
    night: dt.datetime | None = None,
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Scores every client that has the vectors of a head, with one head after the other.

    A vector with a number that is no number, or beyond float32, is set aside: no tree knows what to do with it, and
    one such client is no reason to leave the others without a score.

    Args:
        heads: saved heads.
        tables: `features` and `embeddings`, as far as the heads read them.
        reasons: features named as reasons for each score.
        night: score each client once, as of this time, by its newest vectors; None: by all, as of their own times.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        See `publish.scored`; rows_in also counts the vectors set aside. Of a night, the scores as of other times stay.
    """
    if night is not None:
        tables = {name: newest_vectors(rows, name, night) for name, rows in tables.items()}
    joined = {head.head_id: head.inputs(tables) for head in heads}
    said = {
        head.head_id: head.transform(joined[head.head_id].where(is_finite(head.card.blocks)), reasons=reasons)
        for head in heads
    }
    made = scored(
        said,
        [{"head_id": head.head_id, "task": head.card.task.name} for head in heads],
        keep=keep,
        progress=progress,
    )
    apart = [_aside(head, joined[head.head_id]) for head in heads]
    aside = keep(reduce(lambda one, other: one.unionByName(other), apart))
    strange = aside.count()
    made = replace(made, rows_in=(made.rows_in or 0) + strange, aside=aside, quarantined=strange)
    return made if night is None else _of_night(made, night)


def _of_night(made: Made, night: dt.datetime) -> Made:
    """The scores of one time alone are replaced."""
    rows = made.tables["scores"]
    part = {**rows.slice, "as_of": (instant(night),)}
    return replace(made, tables={"scores": Rows(frame=rows.frame, slice=part)})


def _aside(head: Head, joined: DataFrame) -> DataFrame:
    """For `quarantine`: whom the head cannot score."""
    from pyspark.sql import functions as F

    rows = joined.where(~is_finite(head.card.blocks))
    return rows.select(
        F.lit("not_finite").alias("reason"),
        F.concat(
            F.lit("client "),
            "client_id",
            F.lit(" as of "),
            F.col("as_of").cast("string"),
            F.lit(f": {_named(head.card.sources)} have a number that is not finite or beyond float32"),
        ).alias("detail"),
        F.lit(None).cast("string").alias("source_file"),
        F.to_json(F.struct(*KEY, F.lit(head.head_id).alias("head_id"))).alias("payload"),
    )


def _named(sources: Sequence[Source]) -> str:
    return ", ".join(source.feature_set or "/".join(source.parts) for source in sources)
