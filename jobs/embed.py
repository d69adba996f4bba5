"""Embeds documents with a backbone: one vector of named parts for each client and `as_of`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark import StorageLevel
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.spark_embed import EmbedSettings, embed
from ledgerlm.errors import DataError
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class EmbedConf(JobConf, EmbedSettings):
    """Settings of the embed job."""

    format: str = Field("compact", description="format of the documents that are embedded")
    backbone: str | None = Field(None, description="backbone folder; left out, the one of the finetune stage")
    definition: EmbeddingDefinition = Field(EmbeddingDefinition(), description="what the vector is")
    partitions: int | None = Field(None, ge=1, description="Spark tasks; left out, four for each core")


def run(ctx: Context, conf: EmbedConf) -> StageResult:
    """Embeds the documents of one format, writes the vectors, and sets aside documents without one."""
    from ledgerlm.backbone import model  # torch and transformers take seconds to import
    from ledgerlm.backbone.embedder import resolve_definition

    documents = _documents(ctx, conf)
    folder = str(Path(conf.backbone or ctx.facts("finetune")["backbone"]).resolve())
    backbone_id = model.backbone_id(Path(folder))
    definition = resolve_definition(
        folder, conf.definition, text_format=conf.format, fields=_fields(documents, conf), device=conf.device
    )
    partitions = conf.partitions or 4 * ctx.spark.sparkContext.defaultParallelism
    spread = documents.repartition(partitions, "client_id", "as_of")
    settings = EmbedSettings.model_validate(conf.model_dump(include=set(EmbedSettings.model_fields)))
    rows = embed(spread, folder=folder, backbone_id=backbone_id, definition=definition, settings=settings)
    # Read twice, for vectors and for the rows without one, and too dear to compute twice.
    rows = rows.persist(StorageLevel.DISK_ONLY)
    slice_ = f"backbone_id = '{backbone_id}' AND definition_id = '{definition.definition_id}'"
    started = time.monotonic()
    with ctx.progress.task("Embedding documents"):
        written = ctx.write("embeddings", rows.where("reason IS NULL").drop("reason"), where=slice_)
    seconds = time.monotonic() - started
    aside = ctx.quarantine(_without_vector(rows))
    rows_in = documents.count()
    if rows_in != written.rows + aside.rows:
        raise DataError(f"{rows_in} documents gave {written.rows} vectors and {aside.rows} quarantined rows; run again")
    facts = _facts(rows, definition, seconds) | {"backbone": folder, "backbone_id": backbone_id}
    facts["components"] = _save_components(ctx, definition, facts["widths"])
    rows.unpersist()
    return StageResult(
        rows_in=rows_in,
        rows_out=written.rows,
        quarantined=aside.rows,
        tables={"embeddings": written.version, "quarantine": aside.version},
        facts=facts,
    )


def _documents(ctx: Context, conf: EmbedConf) -> DataFrame:
    documents = ctx.read("documents", ctx.table_version("documents")).where(F.col("format") == conf.format)
    if documents.isEmpty():
        raise DataError(
            f"no document of format '{conf.format}' in {ctx.table_path('documents')}; "
            f"add a serialize stage with format: {conf.format}, or set stages.{ctx.stage}.format"
        )
    return documents


def _fields(documents: DataFrame, conf: EmbedConf) -> tuple[str, ...]:
    """Names of an event's fields: the header of compact documents; other formats have no fields of one token each."""
    if conf.format != "compact":
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
    reads=("documents",),
    needs=("finetune",),
    writes=("embeddings", "quarantine"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
