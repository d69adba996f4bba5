"""Rows of a Delta table that are read as a source, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

_JOINT = "\x01"  # stands in no id: such a sign makes a row a bad one


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRows:
    """What is read of a Delta table in place of its newest version.

    Attributes:
        rows: with the table's columns.
        keys: KEY of the rows that count, each once; None: all do.
    """

    rows: DataFrame
    keys: DataFrame | None = None


def key_of(client_id: Column, event_id: Column, payload: Column) -> Column:
    """What a judged row is a row of: an event, or where it names none, itself."""
    named = F.concat(client_id, F.lit(_JOINT), event_id)
    return F.coalesce(named, F.concat(F.lit(_JOINT), F.sha2(payload, 256)))
