"""Clients that ALIMN's networks are trained on, staged by Spark for the ranks."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.files import bring, url_of


def stage_clients(rows: DataFrame, folder: Path, *, held_out: float, seed: int, ranks: int) -> None:
    """Writes the training clients as Parquet, as many files as ranks; what is there complete stays.

    Args:
        rows: client_id, as_of, `label_TASK`, the blocks' columns and `sentences`.
        folder: shared by all machines.
        held_out: share of the clients, by a hash of their id, that is not trained on.
        seed: of the hash.
        ranks: processes that train.
    """
    if (folder / "_SUCCESS").exists():
        return
    bucket = F.pmod(F.xxhash64("client_id", F.lit(seed)), F.lit(10_000))
    marked = rows.withColumn("held_out", bucket < round(held_out * 10_000))
    # The order decides what a rank reads together: it must not depend on the shuffle.
    spread = marked.repartition(ranks, "client_id").sortWithinPartitions("client_id", "as_of")
    spread.write.mode("overwrite").parquet(url_of(folder))
    bring(folder)
