"""Embeds documents with a backbone: one vector of named parts for each client and `as_of`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.spark_embed import EmbedSettings, embed
from ledgerlm.config import ModelRef
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import DataError
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.runs.record import digest
from ledgerlm.text.formats import FORMATS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class EmbedConf(EmbedSettings):
    """Settings of the embed job."""

    source: Literal["documents", "enriched"] = Field(
        "documents", description="what is embedded: documents, or their rewrites by the enrich stage before this one"
    )
    format: str = Field("compact", description="format of the documents that are embedded; not used for rewrites")
    variant: int = Field(0, ge=0, description="which rewrite of each document, for source: enriched")
    backbone: ModelRef | None = Field(
        None, description="finetune stage or backbone folder; left out, the latest finetune stage before this one"
    )
    definition: EmbeddingDefinition = Field(EmbeddingDefinition(), description="what the vector is")
    partitions: int | None = Field(None, ge=1, description="Spark tasks; left out, four for each core")


def run(ctx: Context, conf: EmbedConf) -> StageResult:
    """Embeds the documents of one format, writes the vectors, and sets aside documents without one."""
    from ledgerlm.backbone import model  # torch and transformers take seconds to import
    from ledgerlm.backbone.embedder import resolve_definition

    documents = _documents(ctx, conf)
    folder = str(ctx.backbone(conf.backbone))
    backbone_id = model.backbone_id(Path(folder))
    wanted, text_format = _definition(ctx, conf)
    definition = resolve_definition(
        folder, wanted, text_format=text_format, fields=_fields(documents, conf), device=conf.device
    )
    partitions = conf.partitions or tasks_for(documents.count(), 5_000)
    spread = documents.repartition(partitions, "client_id", "as_of")
    settings = EmbedSettings.model_validate(conf.model_dump(include=set(EmbedSettings.model_fields)))
    rows = embed(spread, folder=folder, backbone_id=backbone_id, definition=definition, settings=settings)
    # Read twice, for vectors and for the rows without one, and too dear to compute twice.
    rows = ctx.keep(rows)
    part = {"backbone_id": (backbone_id,), "definition_id": (definition.definition_id,)}
    started = time.monotonic()
    with ctx.progress.task("Embedding documents"):
        written = ctx.write("embeddings", rows.where("reason IS NULL").drop("reason"), part)
    seconds = time.monotonic() - started
    aside = ctx.quarantine(_without_vector(rows))
    rows_in = documents.count()
    if rows_in != written.rows + aside.rows:
        raise DataError(f"{rows_in} documents gave {written.rows} vectors and {aside.rows} quarantined rows; run again")
    facts = _facts(rows, definition, seconds) | {"backbone": folder, "backbone_id": backbone_id}
    facts["components"] = _save_components(ctx, definition, facts["widths"])
    return StageResult(
        rows_in=rows_in,
        rows_out=written.rows,
        quarantined=aside.rows,
        facts=facts,
    )


def _documents(ctx: Context, conf: EmbedConf) -> DataFrame:
    if conf.source == "enriched":
        return _rewrites(ctx, conf)
    documents = ctx.read("documents").where(F.col("format") == conf.format)
    if documents.isEmpty():
        raise DataError(
            f"no document of format '{conf.format}' ; "
            f"add a serialize stage with format: {conf.format}, or set stages.{ctx.stage}.format"
        )
    return documents


def _rewrites(ctx: Context, conf: EmbedConf) -> DataFrame:
    """One rewrite of each document; older events than it tells count as cut."""
    rewrites = ctx.read("enriched_documents")
    chosen = rewrites.where(F.col("variant") == conf.variant).select("client_id", "as_of", "input_hash", "text")
    if chosen.isEmpty():
        raise DataError(
            f"no rewrite of variant {conf.variant} ; "
            f"set stages.{ctx.stage}.variant, or more variants in the enrich stage"
        )
    told = F.least(F.lit(ctx.facts("enrich")["max_events"]), F.col("event_count_used"))
    counts = ctx.read("documents").select(
        "client_id",
        "as_of",
        "input_hash",
        told.alias("event_count_used"),
        (F.col("event_count_used") + F.col("event_count_cut") - told).alias("event_count_cut"),
    )
    return chosen.join(counts, ["client_id", "as_of", "input_hash"], how="inner")


def _definition(ctx: Context, conf: EmbedConf) -> tuple[EmbeddingDefinition, str]:
    """The definition, and the name of the texts in it.

    Texts whose first line is no header (rewrites, summaries, YAML) are pooled from their first line on.
    """
    form = FORMATS.get(conf.format)
    headed = conf.source == "documents" and form is not None and form.head(()) != ""
    definition = conf.definition if headed else conf.definition.model_copy(update={"header": True})
    if conf.source == "documents":
        return definition, conf.format
    made = ctx.facts("enrich")
    return definition, f"enriched/{made['engine']}/{made['prompt']}/{conf.variant}"


def _fields(documents: DataFrame, conf: EmbedConf) -> tuple[str, ...]:
    """Names of an event's fields: the header of compact documents; other formats have no fields of one token each."""
    if (conf.source, conf.format) != ("documents", "compact"):
        return ()
    header = documents.select(F.substring_index("text", "\n", 1).alias("header")).first()
    return tuple(header["header"].split("|")) if header is not None else ()


def _without_vector(rows: DataFrame) -> DataFrame:
    return rows.where("reason IS NOT NULL").select(
        "reason",
        F.concat(F.lit("client "), F.col("client_id"), F.lit(" as of "), F.col("as_of").cast("string")).alias("detail"),
        F.to_json(F.struct("client_id", "as_of", "token_count", "input_hash")).alias("payload"),
    )


def _facts(rows: DataFrame, definition: EmbeddingDefinition, seconds: float) -> dict[str, Any]:
    good = rows.where("reason IS NULL")
    widths = [F.max(F.size(F.try_element_at("parts", F.lit(part)))).alias(part) for part in definition.parts]
    total = good.agg(F.sum("token_count").alias("tokens"), F.max("token_count").alias("longest"), *widths).first()
    found = total.asDict() if total is not None else {}
    tokens = int(found.get("tokens") or 0)
    return {
        "definition": definition.model_dump(mode="json"),
        "definition_id": definition.definition_id,
        "tokens": tokens,
        "longest_document": int(found.get("longest") or 0),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "widths": {part: int(found.get(part) or 0) for part in definition.parts},
    }


def _told(conf: EmbedConf) -> str:
    """What tells the vectors of two stages apart before either has run: all settings that say what a vector is."""
    chosen = conf.model_dump_json(include={"source", "format", "variant", "definition"})
    return digest(chosen)[:16]


def _save_components(ctx: Context, definition: EmbeddingDefinition, widths: dict[str, int]) -> str:
    """Writes the name of each number of each part, for reports and other readers; returns the file."""
    folder = ctx.artefacts / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{definition.definition_id}.json"
    content = {"definition": definition.model_dump(mode="json"), "components": definition.component_names(widths)}
    file.write_text(json.dumps(content, indent=2))
    return str(file)


JOB = Job(
    name="embed",
    engine="spark",
    conf=EmbedConf,
    run=run,
    reads=lambda stage: ("documents", "enriched_documents") if stage.conf.source == "enriched" else ("documents",),
    needs=("finetune",),
    writes=lambda stage: {
        "embeddings": {"backbone": (stage.conf.backbone or "finetune",), "definition": (_told(stage.conf),)}
    },
    uses=("torch", "transformers"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
