"""Whose rewrites a reader of `enriched_documents` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.config import nearest
from ledgerlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def rewrites_of(rewrites: DataFrame, stage: str | None, *, key: str) -> DataFrame:
    """The rewrites of one enrich stage: those of two are never mixed.

    Args:
        rewrites: the `enriched_documents` table.
        stage: who wrote them; None where one stage wrote all.
        key: the setting that names the stage, for messages.

    Raises:
        ConfigError: several stages wrote rewrites and none is named, or the one that is named wrote none.
        DataError: when there are no rewrites.
    """
    found = sorted(row["stage"] for row in rewrites.select("stage").distinct().collect())
    if not found:
        raise DataError("there are no rewrites; run an enrich stage that keeps some first")
    if stage is None and len(found) > 1:
        raise ConfigError(f"stages {', '.join(found)} wrote rewrites; choose one of them with {key}")
    if stage is not None and stage not in found:
        raise ConfigError(f"{key}: stage '{stage}' wrote no rewrites: {nearest(stage, found)}")
    return rewrites if stage is None else rewrites.where(F.col("stage") == stage)
