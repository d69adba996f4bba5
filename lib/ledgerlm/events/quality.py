"""What makes a row bad, and how values become other words and pseudonyms.

Native Spark expressions only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.engines.frames import filtered_last, with_columns
from ledgerlm.errors import SpecError
from ledgerlm.events.columns import FILE

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec

DETAIL_LENGTH = 200  # characters of an offending value that the detail quotes
_HMAC_BLOCK = 64  # bytes of a SHA-256 block
_LEAST_CLIENT_LENGTH = 4  # signs of a client id that is looked for in texts


class Reason(StrEnum):
    """Why a row went to quarantine. The first that applies is given."""

    NUL_BYTE = "nul_byte"
    BAD_UTF8 = "bad_utf8"
    BAD_ENCODING = "bad_encoding"
    CONTROL_SIGN = "control_sign"
    UNCLOSED_QUOTE = "unclosed_quote"
    WRONG_COLUMN_COUNT = "wrong_column_count"
    OTHER_HEADER = "other_header"
    BAD_JSON = "bad_json"
    NO_CLIENT = "no_client"
    NO_EVENT_ID = "no_event_id"
    DAMAGED_ID = "damaged_id"
    BAD_OPERATION = "bad_operation"
    BAD_TIME = "bad_time"
    TIME_BEFORE_RANGE = "time_before_range"
    TIME_IN_FAR_FUTURE = "time_in_far_future"
    TIME_IN_FUTURE = "time_in_future"
    BAD_AMOUNT = "bad_amount"
    SIGNED_AMOUNT = "signed_amount"
    BAD_NUMBER = "bad_number"
    BAD_FLAG = "bad_flag"
    NEW_CURRENCY = "new_currency"
    CONFLICTING_EVENT = "conflicting_event"
    NO_LABEL = "no_label"
    LABEL_OUTSIDE = "label_outside"
    BAD_LABEL = "bad_label"
    CONFLICTING_LABEL = "conflicting_label"
    LABEL_WITHOUT_HISTORY = "label_without_history"


def aside(rows: DataFrame, spec: DataSetSpec) -> DataFrame:
    """The judged rows that have a reason, as quarantine takes them.

    Of a data set with pseudonyms a row's keyed hash stands for the raw row, which holds real ids, and nothing for the
    detail, unless the spec wants both: so a row that comes again is known, and whoever has file and key finds it.
    """
    bad = filtered_last(rows).where(F.col("reason").isNotNull()).select("reason", "detail", FILE, "payload")
    if spec.pseudonymise is None or spec.pseudonymise.keep_payload:
        return bad
    hidden = pseudonymised(bad, ("payload",), spec.pseudonymise.key_env)
    return hidden.select("reason", F.lit(None).cast("string").alias("detail"), FILE, "payload")


def first_fault(*faults: tuple[Column, Reason, Column]) -> Column:
    """Struct of reason and detail of the first fault that applies; null of none.

    Args:
        faults: condition, reason, and the offending value.
    """
    found = F.lit(None).cast("struct<reason:string,detail:string>")
    for condition, name, value in reversed(faults):
        detail = F.left(value, F.lit(DETAIL_LENGTH))
        found = F.when(condition, F.struct(F.lit(name.value).alias("reason"), detail.alias("detail"))).otherwise(found)
    return found


def said(name: str, value: Column) -> Column:
    """A column and its value, as details have them."""
    return F.concat(F.lit(f"{name}: "), F.coalesce(value.cast("string"), F.lit("absent")))


def recoded(value: Column, values: Mapping[str, str]) -> Column:
    """The text with `values` put in place; others stay as they are."""
    if not values:
        return value
    pairs = [F.lit(part) for pair in values.items() for part in pair]
    return F.coalesce(F.try_element_at(F.create_map(*pairs), value), value)


def without_client(text: Column, client: Column) -> Column:
    """A text in which `[client]` stands for the client's own id, where that stands as a word of its own.

    Ids of fewer than four signs stay: they mean other things more often than the client.
    """
    sought = F.concat(
        F.lit(r"(?<![\p{L}\p{N}])"), F.regexp_replace(client, r"([^\p{L}\p{N}])", r"\\$1"), F.lit(r"(?![\p{L}\p{N}])")
    )
    there = (F.length(client) >= _LEAST_CLIENT_LENGTH) & text.contains(client)
    return F.when(there, F.regexp_replace(text, sought, F.lit("[client]"))).otherwise(text)


def pseudonymised(frame: DataFrame, columns: Sequence[str], key_env: str | None) -> DataFrame:
    """Replaces columns by their HMAC-SHA256 (RFC 2104), in lower-case hex; null stays null.

    The key comes from the environment. It reaches the executors as a one-row table, not as literals, so that it
    stands in no plan, no Spark UI and no event log.

    Args:
        frame: any rows.
        columns: string columns to replace.
        key_env: environment variable that holds the key; None leaves the frame as it is.

    Raises:
        SpecError: when the variable is not set.
    """
    if key_env is None:
        return frame
    secret = os.environ.get(key_env, "")
    if not secret:
        raise SpecError(
            f"pseudonymise.key_env: the environment variable {key_env} is not set; put the secret key there"
        )
    key = secret.encode()
    block = (hashlib.sha256(key).digest() if len(key) > _HMAC_BLOCK else key).ljust(_HMAC_BLOCK, b"\0")
    pads = [(bytes(byte ^ 0x36 for byte in block), bytes(byte ^ 0x5C for byte in block))]
    keys = frame.sparkSession.createDataFrame(pads, "_inner binary, _outer binary")
    inner = {name: F.unhex(F.sha2(F.concat("_inner", F.col(name).cast("binary")), 256)) for name in columns}
    replaced = {name: F.sha2(F.concat(F.col("_outer"), inner[name]), 256) for name in columns}
    return with_columns(frame.crossJoin(F.broadcast(keys)), replaced).drop("_inner", "_outer")
