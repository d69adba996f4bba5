"""From the files of a data set to the tables of a bank, with every row accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Self

from pydantic import Field, model_validator
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import DataError
from ledgerlm.events.bank import BankTables, count_labels
from ledgerlm.events.batch_rules import BatchRules, Finding, Held
from ledgerlm.events.ends import End, end_of_data
from ledgerlm.events.ingest import (
    IngestCounts,
    Ingested,
    damaged_attributes,
    dictionaries,
    facts_of,
    ingest_events,
    ordered,
    taken_away,
    unknown_codes,
)
from ledgerlm.events.labels import LabelCounts, Labelled, client_attributes, first_events, labels_of
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.splits import with_split
from ledgerlm.events.table_changes import TableChange
from ledgerlm.events.table_rows import TableRows
from ledgerlm.events.times import CLOCK_CHOICES, DOUBLED, LOSSY, SKIPPED
from ledgerlm.lake.made import Made
from ledgerlm.lake.slices import WHOLE, Slice

REMEDY = "look at table quarantine, then mend the spec or raise it; all other tables are as they were"
"""How a refusal ends."""


class IngestConf(Conf):
    """Reads the files that the data set spec names."""

    HOW = frozenset({"batch", "partitions"})

    append: bool = Field(
        False,
        description="take in files that were not taken before, and keep the events that are there, whose files may be "
        "gone: rows of a known event id are repetitions or corrections, and event_id.deleted takes events away; false: "
        "the tables are what the files say",
    )
    max_quarantined_share: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="stop when a larger share of the rows is bad, or of the label rows of a task: then "
        "the spec is probably wrong. Labels of clients without events are not bad, but a task must keep one label at "
        "least; 1: never stop, unless there is no event",
    )
    max_unmatched_share: float = Field(
        0.99,
        ge=0.0,
        le=1.0,
        description="stop when a larger share of the rows that have a key does not find it in a join file: then "
        "ids are probably written otherwise there",
    )
    partitions: int | None = Field(None, ge=1, description="partitions of the shuffle by client; Spark chooses if null")
    unknown_codes: int = Field(20, ge=0, description="how many codes without a description the report lists")
    batch: BatchRules = Field(
        default_factory=BatchRules,  # type: ignore[arg-type]
        description="with append: what is done with a batch that is not as batches are (refuse: nothing of it is "
        "taken; quarantine: its odd rows are set aside; warn)",
    )

    def not_defining(self) -> frozenset[str]:
        """What is there came in under the tolerances of its night, and is not read anew for those of another one."""
        tolerances = {"max_quarantined_share", "max_unmatched_share", "unknown_codes"}
        return self.HOW | tolerances if self.append else self.HOW

    @model_validator(mode="after")
    def _batches_alone(self) -> Self:
        if not self.append and self.batch != BatchRules():
            raise ValueError("batch: only files that arrive come in batches; say 'append: true', or leave it out")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingestion:
    """What the files of a data set gave.

    Attributes:
        made: the tables of the bank, what was set aside, and the counts. Rows in are those of the event files.
        deletions: rows of the `deletions` table; None where the data set's rows do not take events away by their order.
        refusal: why these tables should not replace those that are there; None when nothing speaks against it.
        ingested: the events as they were read; None where there was nothing to read.
        counts: what happened to their rows.
        findings: what the rules for batches found, and did not refuse.
        tables: what the Delta tables of the source brought.
    """

    made: Made
    refusal: str | None
    deletions: DataFrame | None = None
    ingested: Ingested | None = None
    counts: IngestCounts | None = None
    findings: Sequence[Finding] = ()
    tables: Sequence[TableChange] = ()


def ingest_files(
    spark: SparkSession,
    spec: DataSetSpec,
    conf: IngestConf,
    *,
    came: Mapping[str, int] | None = None,
    held: Held | None = None,
    tables: Mapping[str, TableRows] | None = None,
    keep: Keep,
) -> Ingestion:
    """Reads the files of a data set.

    The events are computed once and kept, so that all counts are known before anything is written: a spec that does
    not fit its files leaves the tables as they were.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        conf: bounds.
        came: see `ingest.ingest_events`.
        keep: holds events, first events, dictionaries and labels, each read several times.
        held: what each row is held against beside the spec.
        tables: see `ingest.ingest_events`.

    Returns:
        Tables as `BankTables.tables` has them. Facts: `quarantined_by_reason`, `first_event`, `last_event`,
        `unmatched`, `absent`, `choices`, `end_of_data`, `clients`, `label_rows`, `labels` (task -> class -> rows) and
        `unknown_codes` (field -> code -> events).

    Raises:
        SpecError: no source, nothing at its path, or a column that the files lack.
        DataError: rows vanished, or a file has another header than the first.
    """
    ingested = ingest_events(spark, spec, conf.partitions, came=came, held=held, tables=tables)
    ends = bool(spec.event_id.deleted) and ordered(spec)
    if ends:
        ingested = replace(ingested, delivered=keep(ingested.delivered))
    events = ingested.events if ends else keep(ingested.events)
    firsts = keep(first_events(events))
    clients = firsts.count()  # computes the events, and so fills in their counts
    ingested = replace(ingested, empty=not clients)
    counts = ingested.counts()
    counts.check(f"data set {spec.name}")
    erased = None if held is None else held.erased
    told = bank_of(spark, spec, events, firsts, keep, erased=erased)
    made = Made(
        rows_in=counts.rows_in,
        rows_out=counts.rows_out,
        quarantined=counts.quarantined,
        duplicates=counts.duplicates,
        withdrawn=counts.withdrawn,
        tables=told.bank.tables(spec),
        none=told.none,
        main="events",
        aside=set_aside(
            ingested.quarantine if counts.quarantined else None,
            counts,
            told.labelled,
            damaged_attributes(spark, spec, erased),
            keep,
        ),
        facts={
            **count_facts(counts, told),
            "clients": clients,
            **told.facts,
            "unknown_codes": most_unknown(events, told.bank.dictionaries, spec, conf.unknown_codes),
        },
    )
    away = taken_away(ingested.delivered) if ends else None
    refusal = refusal_of(spec, counts, told, conf)
    return Ingestion(made=made, refusal=refusal, deletions=away, ingested=ingested, counts=counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A bank, and what became of its label rows.

    Attributes:
        bank: its tables.
        labelled: labels and what was set aside of them; None of a data set without labels, or events.
        tasks: counts of label rows, by task.
        end: where the data end; None without events.
        facts: `label_rows` and `labels`.
    """

    bank: BankTables
    labelled: Labelled | None
    tasks: Mapping[str, LabelCounts]
    end: End | None
    facts: Mapping[str, Any]

    @property
    def none(self) -> dict[str, Slice]:
        """Tables of which the data set has no rows: what they held before goes."""
        return {} if self.bank.dictionaries is not None else {"dictionaries": WHOLE}


def bank_of(
    spark: SparkSession,
    spec: DataSetSpec,
    events: DataFrame,
    firsts: DataFrame,
    keep: Keep,
    *,
    erased: DataFrame | None = None,
) -> Told:
    """Everything that a bank has beside its events.

    Args:
        spark: session in UTC.
        spec: the data set.
        events: the `events` table; kept.
        firsts: from `first_events`; kept.
        keep: holds dictionaries and labels.
        erased: digests of clients who were erased; None: nobody was.
    """
    books = dictionaries(spark, spec)
    known = None if books is None else keep(books)
    end = None if firsts.isEmpty() else end_of_data(events, spec.time)
    labelled = None
    if spec.labels and end:
        labelled = labels_of(spark, spec, firsts, events, end.time, erased=erased).kept(keep)
    labels = labelled.labels if labelled else None
    by_class = {} if labels is None else count_labels(labels, spec)
    tasks = labelled.by_task() if labelled else {}
    ids = firsts.select("client_id").limit(0) if labels is None else labels.select("client_id").distinct()
    bank = BankTables(
        events=events,
        dictionaries=known,
        clients=with_split(client_attributes(spark, spec, firsts), ids, spec.split),
        labels=labels,
    )
    facts = {"label_rows": _label_rows(tasks), "labels": by_class}
    return Told(bank=bank, labelled=labelled, tasks=tasks, end=end, facts=facts)


def count_facts(counts: IngestCounts, told: Told) -> dict[str, Any]:
    """The counts of events, and among the choices what was decided about labels and the end of the data."""
    tasks, end = told.tasks, told.end
    facts = facts_of(counts)
    choices = {"events beyond the end of the data": end.beyond if end else 0}
    for task, found in tasks.items():
        choices[f"task {task}: rows outside only"] = found.left_out
        choices[f"task {task}: labels that look beyond the end of the data"] = found.censored
        choices[f"task {task}: sums over events without an amount"] = found.unpriced
        choices[f"task {task}: labels of more digits than a double keeps"] = found.cut
        for flag, count in ((SKIPPED, found.skipped), (DOUBLED, found.doubled), (LOSSY, found.lossy)):
            choices[f"task {task}: as_of: {CLOCK_CHOICES[flag]}"] = count
    made = {name: count for name, count in choices.items() if count}
    return facts | {"choices": facts["choices"] | made, "end_of_data": str(end.time) if end else None}


def _label_rows(tasks: Mapping[str, LabelCounts]) -> dict[str, int]:
    found = list(tasks.values())
    return {
        "in": sum(one.rows for one in found),
        "out": sum(one.out for one in found),
        "quarantined": sum(one.quarantined for one in found),
        "duplicates": sum(one.duplicates for one in found),
    }


def set_aside(
    events: DataFrame | None, counts: IngestCounts, labelled: Labelled | None, attributes: DataFrame | None, keep: Keep
) -> DataFrame | None:
    """What is set aside; event and label files are read again only if something in them is bad.

    Args:
        events: rows of event files; None where none is bad.
        counts: of the event files.
        labelled: labels, and their rows.
        attributes: rows of attribute files.
        keep: computes a frame once.
    """
    bad_labels = labelled.counts().quarantined if labelled else 0
    frames = [events] if events is not None else []
    frames += [labelled.quarantine] if labelled and bad_labels else []
    frames += [attributes] if attributes is not None else []
    if not frames:
        return None
    found, expected = keep(reduce(DataFrame.unionByName, frames)), counts.quarantined + bad_labels
    rows = found.count()
    if rows < expected:
        raise DataError(f"{expected} rows to set aside, but {rows} were found; were files changed? Run again")
    return found if rows else None


def refusal_of(spec: DataSetSpec, counts: IngestCounts, told: Told, conf: IngestConf) -> str | None:
    """Why the tables should not be believed; None when nothing speaks against it."""
    share, most = conf.max_quarantined_share, conf.max_unmatched_share
    remedy = REMEDY
    nothing = bool(counts.quarantined) and told.end is None
    if nothing or counts.quarantined > share * counts.rows_in:
        worst = sorted(counts.reasons.items(), key=lambda item: -item[1])
        why = f"more than max_quarantined_share {share}" if not nothing else "so that there is no event"
        return (
            f"data set {spec.name}: {counts.quarantined} of {counts.rows_in} rows are bad "
            f"({', '.join(f'{reason}: {count}' for reason, count in worst)}), {why}; {remedy}"
        )
    for key, unmatched in counts.unmatched.items():
        if unmatched > most * counts.keyed[key]:
            return (
                f"data set {spec.name}: {unmatched} of {counts.keyed[key]} rows do not find their '{key}' in its join "
                f"file, more than max_unmatched_share {most}; compare how both write it, or raise it; all other tables "
                "are as they were"
            )
    for task, found in told.tasks.items():
        bad = found.quarantined - found.lonely
        if not found.out and share < 1:
            return f"data set {spec.name}: task {task} has no label: {_why_none(found, told.end)}; {remedy}"
        if bad > share * found.rows:
            return (
                f"data set {spec.name}: {bad} of {found.rows} label rows of task {task} are bad, more than "
                f"max_quarantined_share {share}; {remedy}"
            )
    return None


def _why_none(found: LabelCounts, end: End | None) -> str:
    parts = {
        "bad or contradict each other": found.quarantined - found.lonely,
        "belong to clients without an event before their as_of": found.lonely,
        "are passed over by 'only'": found.left_out,
        f"look beyond the end of the data, {end.time if end else ''}": found.censored,
    }
    said = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return f"of its labels {said}" if said else "its file has no row, or no client an event before as_of"


def most_unknown(events: DataFrame, known: DataFrame | None, spec: DataSetSpec, most: int) -> Mapping[str, Any]:
    """The most frequent codes without a description, by field."""
    if not most or known is None:
        return {}
    found: dict[str, dict[str, int]] = {}
    for row in unknown_codes(events, known, spec).limit(most).collect():
        found.setdefault(row["field"], {})[row["code"]] = row["events"]
    return found
