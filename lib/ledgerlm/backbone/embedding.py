"""Embeds the documents, or the rewrites, of one kind with one backbone under one definition.

What has been embedded stays embedded: a document whose vector is there, of the same backbone, definition and text, is
not read again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.spark_embed import CARRIED, EmbedSettings, embed
from ledgerlm.config import ModelRef, StageName
from ledgerlm.engines.frames import Keep, tasks_for
from ledgerlm.errors import DataError
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.slices import Slice
from ledgerlm.progress import Progress
from ledgerlm.text.formats import FORMATS
from ledgerlm.text.rewrites import rewrites_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.backbone.projection import Projected

ROWS_A_TASK = 5_000
VECTOR = (
    "client_id",
    "as_of",
    "backbone_id",
    "definition_id",
    "parts",
    "token_count",
    "event_count_used",
    "event_count_cut",
    "input_hash",
    "definition",
)


class EmbedConf(EmbedSettings):
    """Settings of the embed job."""

    source: Literal["documents", "enriched", "windows"] = Field(
        "documents",
        description="what is embedded: documents, their rewrites by an enrich stage before this one, or the windows of "
        "a serialize stage, whose states are kept and folded",
    )
    serialize: StageName | None = Field(
        None, description="for source: windows: the serialize stage that wrote them; left out, the latest before this"
    )
    format: str = Field("compact", description="format of the documents that are embedded; for documents alone")
    enrich: StageName | None = Field(
        None, description="for source: enriched: the enrich stage; left out, the only one before this stage"
    )
    variant: int = Field(0, ge=0, description="which rewrite of each document, for source: enriched")
    backbone: ModelRef | None = Field(
        None, description="finetune stage or backbone folder; left out, the latest finetune stage before this one"
    )
    definition: EmbeddingDefinition = Field(EmbeddingDefinition(), description="what the vector is")
    projection: StageName | None = Field(
        None,
        description="project stage on whose axes tokens' states are laid; left out, they keep the backbone's width",
    )
    labelled: bool = Field(
        False,
        description="true: histories that end at a client's label, and no others: for studies whose backbone is dear "
        "to read with; the others have no vector then, and no score",
    )
    partitions: int | None = Field(None, ge=1, description="Spark tasks; left out, one for each 5,000 documents")

    @model_validator(mode="after")
    def _fits(self) -> EmbedConf:
        if self.serialize and self.source != "windows":
            raise ValueError(f"serialize names whose windows are read, but source is {self.source}")
        if self.source == "windows" and self.definition.max_tokens is not None:
            raise ValueError("definition.max_tokens reads the newest tokens of a document; windows are read whole")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The tables that are read."""
        labels = ("labels",) if self.labelled else ()
        tables = {"documents": ("documents", *labels), "enriched": ("documents", "enriched_documents", *labels)}
        return tables.get(self.source, ("windows", "clients", "labels?", "changes?"))

    @property
    def written(self) -> tuple[str, ...]:
        """The tables that are written."""
        return ("states", "embeddings") if self.source == "windows" else ("embeddings",)

    @property
    def part(self) -> Slice:
        """What stands for the slice of each table, whose ids are only known when the backbone is there."""
        return {
            "backbone": (self.backbone or "finetune",),
            "texts": (self.texts,),
            "definition": (self.definition.json_text,),
            "projection": (self.projection or "",),
        }

    @property
    def texts(self) -> str:
        """What is embedded, in a word that tells it from anything else."""
        own = {"documents": self.format, "enriched": f"{self.enrich or ''}/{self.variant}"}
        return f"{self.source}/{own.get(self.source, self.serialize or '')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What is embedded.

    Attributes:
        rows: client_id, as_of, text, event_count_used, event_count_cut, input_hash; key (client_id, as_of).
        name: what these texts are, part of the definition.
        fields: names of an event's fields in them; none: they have no fields of one token each.
        headed: their first line names the fields, and is not pooled unless the definition asks for it.
    """

    rows: DataFrame
    name: str
    fields: tuple[str, ...] = ()
    headed: bool = False


def document_texts(documents: DataFrame, format: str) -> Texts:
    """The documents of one format.

    Args:
        documents: the `documents` table.
        format: their format.

    Raises:
        DataError: when there are none.
    """
    rows = documents.where(F.col("format") == format)
    if rows.isEmpty():
        raise DataError(
            f"no document of format '{format}'; add a serialize stage with format: {format}, or set `format` of the "
            "embed stage"
        )
    form = FORMATS.get(format)
    headed = form is not None and form.head(()) != ""
    return Texts(rows=rows, name=format, fields=fields_of(rows, format), headed=headed)


def fields_of(texts: DataFrame, format: str) -> tuple[str, ...]:
    """Names of an event's fields: the first line of compact texts; other formats have no fields of one token each."""
    header = texts.select(F.substring_index("text", "\n", 1)).first() if format == "compact" else None
    return () if header is None else tuple(header[0].split("|"))


def rewrite_texts(rewrites: DataFrame, documents: DataFrame, conf: EmbedConf, enriched: Mapping[str, Any]) -> Texts:
    """One rewrite of each document; older events than it tells count as cut.

    Args:
        rewrites: the `enriched_documents` table.
        documents: the `documents` table.
        conf: which stage and variant.
        enriched: facts of that stage: engine, prompt, max_events.

    Returns:
        Texts whose `input_hash` stands for the document, the events that are told, and the rewrite.

    Raises:
        ConfigError: several stages wrote rewrites and none is named.
        DataError: when there is none of the variant.
    """
    own = rewrites_of(rewrites, conf.enrich, key="enrich")
    chosen = own.where(F.col("variant") == conf.variant).select("client_id", "as_of", "input_hash", "text")
    if chosen.isEmpty():
        raise DataError(
            f"no rewrite of variant {conf.variant}; set `variant` of the embed stage, or more variants in the enrich "
            "stage"
        )
    told = F.least(F.lit(enriched["max_events"]), F.col("event_count_used"))
    counts = documents.select(
        "client_id",
        "as_of",
        "input_hash",
        told.alias("event_count_used"),
        (F.col("event_count_used") + F.col("event_count_cut") - told).alias("event_count_cut"),
    )
    joined = chosen.join(counts, ["client_id", "as_of", "input_hash"], how="inner")
    read = F.sha2(F.concat_ws("\n", "input_hash", F.col("event_count_used").cast("string"), "text"), 256)
    # Two stages may write with one engine and prompt: what tells them apart is their name.
    named = f"{conf.enrich}:" if conf.enrich else ""
    name = f"enriched/{named}{enriched['engine']}/{enriched['prompt']}/{conf.variant}"
    return Texts(rows=joined.withColumn("input_hash", read), name=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """Vectors of texts.

    Attributes:
        vectors: rows of the `embeddings` table, reused and new ones.
        aside: rows for `quarantine`: texts without a vector.
        part: their slice of the table.
        texts: texts that were to be embedded.
        reused: vectors that were there.
        new: vectors that were made.
        without: texts without a vector.
        components: file that names each number of each part.
        facts: definition, tokens, speed, widths.
    """

    vectors: DataFrame
    aside: DataFrame
    part: Slice
    texts: int
    reused: int
    new: int
    without: int
    components: Path
    facts: Mapping[str, Any]

    def made(self) -> Made:
        """For the lake: one slice, old and new vectors in one commit."""
        return Made(
            rows_in=self.texts,
            rows_out=self.reused + self.new,
            tables={"embeddings": Rows(frame=self.vectors, slice=self.part)},
            aside=self.aside,
            quarantined=self.without,
            artefacts=[self.components],
            facts=self.facts,
        )


def embed_texts(
    texts: Texts,
    conf: EmbedConf,
    *,
    backbone: Path,
    folder: Path,
    standing: Callable[[Slice], DataFrame | None],
    keep: Keep,
    progress: Progress,
    projected: Projected | None = None,
) -> Embedded:
    """Embeds the texts that have no vector yet.

    Args:
        texts: from `document_texts` or `rewrite_texts`.
        conf: definition, and how workers run.
        backbone: its folder.
        folder: for the file that names the vectors' numbers.
        standing: gives what the lake holds of a slice of `embeddings`, or None.
        keep: for frames that are read again: the model must run once.
        progress: what the user sees.
        projected: axes that states are laid on.

    Raises:
        ConfigError: axes of other states than the definition's.
    """
    from ledgerlm.backbone import model  # torch and transformers take seconds to import
    from ledgerlm.backbone.embedder import resolve_definition

    backbone_id = model.backbone_id(backbone)
    wanted = conf.definition if texts.headed else conf.definition.model_copy(update={"header": True})
    definition = resolve_definition(
        str(backbone), wanted, text_format=texts.name, fields=texts.fields, device=conf.device
    )
    definition = definition if projected is None else projected.named(definition, backbone_id)
    part: Slice = {"backbone_id": (backbone_id,), "definition_id": (definition.definition_id,)}
    there = standing(part)
    asked = texts.rows.select(*CARRIED, "text")
    old = None if there is None else _still_right(there, asked)
    reused = 0 if old is None else old.count()
    rest = asked if old is None else asked.join(old.select("client_id", "as_of"), ["client_id", "as_of"], "left_anti")
    count = asked.count()
    spread = rest.repartition(conf.partitions or tasks_for(count - reused, ROWS_A_TASK), "client_id", "as_of")
    made = embed(
        spread,
        folder=str(backbone),
        backbone_id=backbone_id,
        definition=definition,
        projection=None if projected is None else projected.folder,
        settings=conf.settings,
    )
    rows = keep(made)
    with progress.task("Embedding documents"):
        figures = figures_of(rows)
    new = rows.where("reason IS NULL").select(*VECTOR)
    vectors = new if old is None else old.unionByName(new)
    widths = widths_of(vectors, definition)
    components = save_components(folder, definition, widths)
    return Embedded(
        vectors=vectors,
        aside=without_vector(rows),
        part=part,
        texts=count,
        reused=reused,
        new=figures["embedded"],
        without=figures.pop("without"),
        components=components,
        facts={
            "definition": definition.model_dump(mode="json"),
            "definition_id": definition.definition_id,
            "backbone": str(backbone),
            "backbone_id": backbone_id,
            "reused": reused,
            **figures,
            "widths": widths,
            "components": str(components),
        },
    )


def _still_right(there: DataFrame, asked: DataFrame) -> DataFrame:
    """Vectors whose text is asked for and is the one that they were made of.

    The same text with another number of events before it has the same vector, and other counts beside it.
    """
    total = F.col("event_count_used") + F.col("event_count_cut")
    known = asked.select("client_id", "as_of", "input_hash", total.alias("_events"))
    counted = there.select(*VECTOR, total.alias("_events"))
    right = counted.join(known, ["client_id", "as_of", "input_hash", "_events"], how="left_semi")
    return right.select(*VECTOR)


def figures_of(rows: DataFrame) -> dict[str, Any]:
    """Runs the model over kept rows, and tells what it read and how fast."""
    began, good = time.monotonic(), F.col("reason").isNull()
    row = rows.agg(
        F.count_if(good).alias("embedded"),
        F.count_if(~good).alias("without"),
        F.coalesce(F.sum(F.when(good, F.col("token_count"))), F.lit(0)).alias("tokens"),
        F.coalesce(F.max(F.when(good, F.col("token_count"))), F.lit(0)).alias("longest_document"),
    ).first()
    assert row is not None, "an aggregate of all rows is one row"
    seconds = time.monotonic() - began
    speed = round(row["tokens"] / seconds)
    return {**row.asDict(), "seconds": round(seconds, 2), "tokens_per_second": speed}


def widths_of(vectors: DataFrame, definition: EmbeddingDefinition) -> dict[str, int]:
    """Numbers in each part, the same in every vector; 0 where there is none."""
    sizes = [F.size(F.try_element_at("parts", F.lit(part))).alias(part) for part in definition.parts]
    row = vectors.select(*sizes).first()
    return {part: int(row[part]) if row is not None else 0 for part in definition.parts}


def without_vector(rows: DataFrame) -> DataFrame:
    """Rows for `quarantine` of what has a reason and so no vector."""
    return rows.where("reason IS NOT NULL").select(
        "reason",
        F.concat(F.lit("client "), F.col("client_id"), F.lit(" as of "), F.col("as_of").cast("string")).alias("detail"),
        F.to_json(F.struct("client_id", "as_of", "token_count", "input_hash")).alias("payload"),
    )


def save_components(folder: Path, definition: EmbeddingDefinition, widths: dict[str, int]) -> Path:
    """Writes the name of each number of each part, for reports and other readers; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{definition.definition_id}.json"
    content = {"definition": definition.model_dump(mode="json"), "components": definition.component_names(widths)}
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file
