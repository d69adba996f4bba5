"""From the files of a data set to the tables of a bank, with every row accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic import Field
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import DataError
from ledgerlm.events.bank import Bank, count_labels
from ledgerlm.events.ingest import (
    IngestCounts,
    Ingested,
    damaged_attributes,
    dictionaries,
    facts_of,
    ingest_events,
    unknown_codes,
)
from ledgerlm.events.labels import Labelled, client_attributes, first_events, labels_of
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.splits import with_split
from ledgerlm.lake.made import Made


class IngestConf(Conf):
    """Reads the files that the data set spec names."""

    append: bool = Field(
        False,
        description="take in files that were not taken before, and keep the events that are there, whose files may be "
        "gone: rows of a known event id are repetitions or corrections, and event_id.deleted takes events away; false: "
        "the tables are what the files say",
    )
    max_quarantined_share: float = Field(
        0.05, ge=0.0, le=1.0, description="stop when a larger share of the rows is bad: then the spec is probably wrong"
    )
    partitions: int | None = Field(None, ge=1, description="partitions of the shuffle by client; Spark chooses if null")
    unknown_codes: int = Field(20, ge=0, description="how many codes without a description the report lists")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingestion:
    """What the files of a data set gave.

    Attributes:
        made: the tables of the bank, what was set aside, and the counts. Rows in are those of the event files.
        refusal: why these tables should not replace those that are there; None when nothing speaks against it.
    """

    made: Made
    refusal: str | None


def ingest_files(spark: SparkSession, spec: DataSetSpec, conf: IngestConf, *, keep: Keep) -> Ingestion:
    """Reads the files of a data set.

    The events are computed once and kept, so that all counts are known before anything is written: a spec that does
    not fit its files leaves the tables as they were.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        conf: bounds.
        keep: holds events, first events, dictionaries and labels, each read several times.

    Returns:
        Tables as `Bank.tables` has them. Facts: `quarantined_by_reason`, `first_event`, `last_event`, `unmatched`,
        `absent`, `clients`, `label_rows`, `labels` (task -> class -> rows) and `unknown_codes` (field -> code ->
        events).

    Raises:
        SpecError: no source, nothing at its path, or a column that the files lack.
        DataError: rows vanished, or a file has another header than the first.
    """
    ingested = ingest_events(spark, spec, conf.partitions)
    events = keep(ingested.events)
    firsts = keep(first_events(events))
    clients = firsts.count()  # computes the events, and so fills in their counts
    counts = ingested.counts()
    counts.check(f"data set {spec.name}")
    told = bank_of(spark, spec, events, firsts, keep)
    made = Made(
        rows_in=counts.rows_in,
        rows_out=counts.rows_out,
        quarantined=counts.quarantined,
        duplicates=counts.duplicates,
        withdrawn=counts.withdrawn,
        tables=told.bank.tables(spec),
        main="events",
        aside=set_aside(ingested, counts, told.labelled, damaged_attributes(spark, spec), keep),
        facts={
            **count_facts(counts, told.labelled),
            "clients": clients,
            **told.facts,
            "unknown_codes": most_unknown(events, told.bank.dictionaries, spec, conf.unknown_codes),
        },
    )
    return Ingestion(made=made, refusal=refusal_of(spec, counts, conf.max_quarantined_share))


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A bank, and what became of its label rows."""

    bank: Bank
    labelled: Labelled | None
    facts: Mapping[str, Any]


def bank_of(spark: SparkSession, spec: DataSetSpec, events: DataFrame, firsts: DataFrame, keep: Keep) -> Told:
    """Everything that a bank has beside its events."""
    known = keep(dictionaries(spark, spec))
    labelled = labels_of(spark, spec, firsts, events) if spec.labels else None
    labels = keep(labelled.labels) if labelled else None
    by_class = {} if labels is None else count_labels(labels, spec)
    label_rows = labelled.rows() if labelled else (0, 0, 0, 0)
    ids = firsts.select("client_id").limit(0) if labels is None else labels.select("client_id").distinct()
    bank = Bank(
        events=events,
        dictionaries=known,
        clients=with_split(client_attributes(spark, spec, firsts), ids, spec.split),
        labels=labels,
    )
    named = dict(zip(("in", "out", "quarantined", "duplicates"), label_rows, strict=True))
    return Told(bank=bank, labelled=labelled, facts={"label_rows": named, "labels": by_class})


def count_facts(counts: IngestCounts, labelled: Labelled | None) -> dict[str, Any]:
    """The counts of events as facts, and what `only` of labels left out among the choices."""
    facts = facts_of(counts)
    left_out = labelled.left_out if labelled else 0
    return facts | {"choices": facts["choices"] | ({"label rows outside only": left_out} if left_out else {})}


def set_aside(
    ingested: Ingested, counts: IngestCounts, labelled: Labelled | None, attributes: DataFrame | None, keep: Keep
) -> DataFrame | None:
    """What is set aside; event and label files are read again only if something in them is bad."""
    bad_labels = labelled.rows()[2] if labelled else 0
    frames = [ingested.quarantine] if counts.quarantined else []
    frames += [labelled.quarantine] if labelled and bad_labels else []
    frames += [attributes] if attributes is not None else []
    if not frames:
        return None
    found, expected = keep(reduce(DataFrame.unionByName, frames)), counts.quarantined + bad_labels
    if expected and (rows := found.count()) < expected:
        raise DataError(f"{expected} rows to set aside, but {rows} were found; were files changed? Run again")
    return found


def refusal_of(spec: DataSetSpec, counts: IngestCounts, share: float) -> str | None:
    """Why tables should not be replaced by what was read; None when nothing speaks against it."""
    if counts.quarantined <= share * counts.rows_in:
        return None
    worst = sorted(counts.reasons.items(), key=lambda item: -item[1])
    return (
        f"data set {spec.name}: {counts.quarantined} of {counts.rows_in} rows are bad "
        f"({', '.join(f'{reason}: {count}' for reason, count in worst)}), more than max_quarantined_share {share}; "
        "look at table quarantine, then mend the spec or raise it; all other tables are as they were"
    )


def most_unknown(events: DataFrame, known: DataFrame, spec: DataSetSpec, most: int) -> Mapping[str, Any]:
    """The most frequent codes without a description, by field."""
    if not most or not any(field.dictionary for field in spec.fields):
        return {}
    found: dict[str, dict[str, int]] = {}
    for row in unknown_codes(events, known, spec).limit(most).collect():
        found.setdefault(row["field"], {})[row["code"]] = row["events"]
    return found
