"""Between tables and shards: the documents to enrich, their split into shards, and the rewrites as rows again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.enrich.estimate import Volume
from ledgerlm.enrich.shards import Shard
from ledgerlm.files import pull
from ledgerlm.text.rendering import CHARACTERS_A_TOKEN

KEPT = ("client_id", "as_of", "variant", "format", "engine", "prompt_id", "seed", "text", "input_hash")


def to_enrich(documents: DataFrame, clients: DataFrame | None, *, format: str) -> DataFrame:
    """Documents of one format, of all clients or of the training ones.

    Args:
        documents: the `documents` table.
        clients: the `clients` table, when only those of split `train` are wanted.
        format: source format.
    """
    chosen = documents.where(F.col("format") == format)
    if clients is None:
        return chosen
    return chosen.join(clients.where("split = 'train'").select("client_id"), "client_id", how="left_semi")


def volume(documents: DataFrame, *, max_events: int) -> Volume:
    """Sums over the documents, in one pass."""
    events = F.least(F.lit(max_events), F.col("event_count_used"))
    share = events / F.greatest(F.lit(1), F.col("event_count_used"))
    characters = F.coalesce(F.sum(F.length("text") * share), F.lit(0.0)).cast("long").alias("characters")
    told = F.coalesce(F.sum(events), F.lit(0)).alias("events")
    [sums] = documents.agg(F.count("*").alias("documents"), characters, told).collect()
    return Volume(documents=sums["documents"], characters=sums["characters"], events=sums["events"])


def sharded(documents: DataFrame, shards: int) -> DataFrame:
    """Documents with their shard, ordered so that each shard is one file with its rows in a fixed order.

    Returns:
        client_id, as_of_us (microseconds since 1970), text, input_hash, shard.
    """
    rows = documents.select(
        "client_id",
        F.unix_micros("as_of").alias("as_of_us"),
        "text",
        "input_hash",
        F.pmod(F.xxhash64("client_id"), F.lit(shards)).cast("int").alias("shard"),
    )
    return rows.repartition("shard").sortWithinPartitions("shard", "client_id", "as_of_us")


def shards_of(staged: Path, target: Path) -> list[Shard]:
    """The shards that lie staged, in order of their number."""
    folders = sorted((int(folder.name.removeprefix("shard=")), folder) for folder in staged.glob("shard=*"))
    return [
        Shard(number=number, source=folder, target=target / f"shard-{number:06d}.parquet") for number, folder in folders
    ]


def kept(rewrites: DataFrame) -> DataFrame:
    """Rows for `enriched_documents`."""
    return rewrites.where("reason IS NULL").select(*KEPT)


def as_documents(rewrites: DataFrame, sources: DataFrame, *, max_events: int, serializer: str) -> DataFrame:
    """Kept texts of a recipe as rows for `documents`.

    Args:
        rewrites: rows as the workers staged them.
        sources: the documents that they were made of.
        max_events: newest events of a document that the recipe read; older ones count as cut.
        serializer: recipe with its version and engine.

    Returns:
        Columns of the documents table without `run_id`; `first_event_time` is null where the recipe did not read all.
    """
    counted = sources.select(
        "client_id", "as_of", "event_count_used", "event_count_cut", "first_event_time", "last_event_time"
    )
    rows = rewrites.where("reason IS NULL").select("client_id", "as_of", "format", "text")
    used = F.least(F.lit(max_events), F.col("event_count_used"))
    hashed = F.sha2(F.concat(F.lit(f"{serializer}\n"), F.col("text")), 256)
    return rows.join(counted, ["client_id", "as_of"], how="inner").select(
        "client_id",
        "as_of",
        "format",
        "text",
        used.alias("event_count_used"),
        (F.col("event_count_used") + F.col("event_count_cut") - used).alias("event_count_cut"),
        F.when(used == F.col("event_count_used"), F.col("first_event_time")).alias("first_event_time"),
        "last_event_time",
        F.ceil(F.length("text") / CHARACTERS_A_TOKEN).cast("int").alias("token_estimate"),
        hashed.alias("input_hash"),
        F.lit(serializer).alias("serializer"),
    )


def refused(rewrites: DataFrame) -> DataFrame:
    """Rows for `quarantine`: reason, detail, source_file (none: the source is a table), payload."""
    return rewrites.where("reason IS NOT NULL").select("reason", "detail", F.lit(None).alias("source_file"), "payload")


def example(shards: Iterable[Shard], *, rewrites: int = 2, characters: int = 1500) -> dict[str, Any]:
    """One source document and some of its kept rewrites, shortened; empty when no shard kept any."""
    for shard in shards:
        with pq.ParquetFile(pull(shard.target)) as parquet:
            rows: list[dict[str, Any]] = next((batch.to_pylist() for batch in parquet.iter_batches(batch_size=64)), [])
        good = [row for row in rows if row["reason"] is None]
        if good:
            client = good[0]["client_id"]
            mine = [row for row in good if row["client_id"] == client][:rewrites]
            return {
                "source": _source_text(shard, client)[:characters],
                "rewrites": [{"format": row["format"], "text": row["text"][:characters]} for row in mine],
            }
    return {}


def _source_text(shard: Shard, client: str) -> str:
    for file in sorted(shard.source.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    if row["client_id"] == client:
                        return str(row["text"])
    return ""
