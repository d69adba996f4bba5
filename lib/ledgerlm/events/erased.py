"""Rows of clients who were erased: sources may go on to deliver them, and what was set aside may name them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.events.columns import LEFT_OUT
from ledgerlm.events.identity import INVISIBLE
from ledgerlm.events.quality import pseudonymised
from ledgerlm.lake.erasures import digest

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.lake.history import Author
    from ledgerlm.lake.lake import Lake

ERASED = "_erased"
"""Whether the client of a judged row was erased."""
QUARANTINE = "quarantine"
"""The table without a column of clients in whose texts their ids may stand."""
_TEXTS = ("detail", "payload")
# Damaged bytes are kept in base64; each byte is read as a sign, as `patterns_of` has it.
_BYTES = "decode(try_to_binary(regexp_replace(substr(payload, 8), '[ \\r\\n]', ''), 'base64'), 'ISO-8859-1')"
_SEARCHED = (
    f"translate(concat_ws(' ', detail, payload, if(payload LIKE 'base64:%', {_BYTES}, NULL)), '{INVISIBLE}', '')"
)
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


def named_aside(lake: Lake, patterns: Sequence[str]) -> int:
    """How many rows that were set aside have a text in which a pattern matches."""
    if not lake.exists(QUARANTINE):
        return 0
    sought = lake.spark.createDataFrame([(list(patterns),)], "_patterns array<string>")
    rows = lake.read(QUARANTINE).crossJoin(F.broadcast(sought))
    return rows.where(f"exists(_patterns, one -> {_SEARCHED} RLIKE one)").count()


def empty_payloads(lake: Lake, patterns: Sequence[str], *, by: Author) -> None:
    """Empties what was set aside as it came, where an id stands in it; the row stays, with its reason.

    Args:
        lake: its tables.
        patterns: from `patterns_of`.
        by: who does so.
    """
    if lake.exists(QUARANTINE):
        lake.blank(QUARANTINE, _TEXTS, _SEARCHED, patterns, by=by)


def patterns_of(client: str) -> list[str]:
    """Regular expressions for an id that stands as a word of its own, as files may write it.

    Letters composed or not, escaped as in JSON, quotes doubled as in CSV, UTF-8 whose bytes were each taken for a sign,
    blanks of any kind and number.
    """
    composed = [unicodedata.normalize(form, client) for form in ("NFC", "NFD")]
    escaped = [json.dumps(one, ensure_ascii=plain)[1:-1] for one in composed for plain in (True, False)]
    bytewise = [one.encode().decode("latin-1") for one in composed]
    written = [client, *composed, *escaped, client.replace('"', '""'), *bytewise]
    words = [r"[\s\p{Z}]+".join(map(re.escape, one.split())) for one in dict.fromkeys(written)]
    return [rf"(?<![\p{{L}}\p{{N}}]){one}(?![\p{{L}}\p{{N}}])" for one in dict.fromkeys(words)]
