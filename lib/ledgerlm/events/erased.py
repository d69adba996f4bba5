"""Rows of clients who were erased: sources may go on to deliver them, and nothing of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.events.columns import LEFT_OUT
from ledgerlm.events.quality import pseudonymised
from ledgerlm.lake.erasures import digest

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.events.spec import DataSetSpec

ERASED = "_erased"
"""Whether the client of a judged row was erased."""
_WHO, _DIGEST = "_who", "_digest"


def passed_over(rows: DataFrame, digests: DataFrame, spec: DataSetSpec) -> DataFrame:
    """Judged rows with ERASED; those of clients who were erased are none, whatever was wrong with them.

    Args:
        rows: from `judged_rows`.
        digests: from `lake.erasures.erased`.
        spec: the data set.
    """
    known = F.broadcast(digests.select(F.col("digest").alias(_DIGEST), F.lit(True).alias(ERASED)))
    found = _known_by(rows, F.col("client_id"), spec).join(known, _DIGEST, how="left").drop(_DIGEST)
    found = found.withColumn(ERASED, F.coalesce(ERASED, F.lit(False)))
    nothing = {name: F.when(~F.col(ERASED), F.col(name)) for name in ("reason", "detail", "payload")}
    return found.withColumns({**nothing, LEFT_OUT: F.col(LEFT_OUT) | F.col(ERASED)})


def without_erased(rows: DataFrame, digests: DataFrame | None, client: Column, spec: DataSetSpec) -> DataFrame:
    """The rows but those of clients who were erased; rows that name no client stay.

    Args:
        rows: any.
        digests: from `lake.erasures.erased`; None: nobody was.
        client: the id as the files have it.
        spec: the data set.
    """
    if digests is None:
        return rows
    known = F.broadcast(digests.select(F.col("digest").alias(_DIGEST)))
    return _known_by(rows, client, spec).join(known, _DIGEST, how="left_anti").drop(_DIGEST)


def _known_by(rows: DataFrame, client: Column, spec: DataSetSpec) -> DataFrame:
    """The rows with the digest of the client's id as the lake has it."""
    key = spec.pseudonymise.key_env if spec.pseudonymise else None
    named = pseudonymised(rows.withColumn(_WHO, client), [_WHO], key)
    return named.withColumn(_DIGEST, digest(F.col(_WHO))).drop(_WHO)
