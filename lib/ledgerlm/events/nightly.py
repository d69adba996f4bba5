"""Taking in what is new: the files that arrived since, and what they change in the tables of a bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.appending import Appended, append, first_changes
from ledgerlm.events.arrivals import Arrivals, Arrived, arrivals, event_files, joined_files, only_files
from ledgerlm.events.attributes import damaged_attributes
from ledgerlm.events.files import in_order_of_names
from ledgerlm.events.ingest import ingest_events
from ledgerlm.events.ingesting import (
    IngestConf,
    Ingestion,
    bank_of,
    count_facts,
    ingest_files,
    most_unknown,
    refusal_of,
    set_aside,
)
from ledgerlm.events.labels import first_events
from ledgerlm.lake.differences import CHANGE, INSERT, applied, differences
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.schemas import EVENTS, TABLES
from ledgerlm.lake.slices import predicate

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.engines.frames import Keep
    from ledgerlm.events.counts import IngestCounts
    from ledgerlm.events.files import Found
    from ledgerlm.events.ingest import Ingested
    from ledgerlm.events.spec import DataSetSpec

Before = Callable[[str], "DataFrame | None"]
"""Gives a table as it was before the batch, or None."""
Content = Callable[["Found"], "str | None"]
"""Gives the hash of a file of this machine; None of one elsewhere."""
_KINDS = ("appended", "corrected", "deleted", "repeated", "outdated", "unknown_deletions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What was taken in before.

    Attributes:
        batch: number of the newest batch; 0 before the first.
        files: path -> content of every event file.
        came: path -> batch that brought it; of a file that was read, and not of its copies.
        joined: path -> content of the files whose columns events got by a join.
    """

    batch: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    came: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: DataFrame | None) -> Taken:
        """Reads the `batches` table: a row for each file that was ever taken."""
        rows = [] if batches is None else batches.select("batch", "file", "content", "taken").orderBy("batch").collect()
        joined = {row["file"]: row["content"] for row in rows if row["taken"] == "joined"}
        files = {row["file"]: row["content"] for row in rows if row["taken"] != "joined"}
        came: dict[str, int] = {}
        for row in rows:
            if row["taken"] == "read":
                came.setdefault(row["file"], row["batch"])
        return cls(batch=max((row["batch"] for row in rows), default=0), files=files, came=came, joined=joined)


def take_in(
    spark: SparkSession,
    spec: DataSetSpec,
    conf: IngestConf,
    *,
    before: Before,
    standing: bool,
    content: Content,
    keep: Keep,
) -> Ingestion:
    """Takes in the files that arrived since the last batch; the first time, all of them.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        conf: bounds.
        before: `batches`, `events`, `deletions`, `clients`, `labels`, `dictionaries` and `quarantine` as they were.
        standing: the tables were made by these very settings; else everything is read anew.
        content: hashes of files.
        keep: computes a frame once.

    Returns:
        Differences of the tables of a bank, of `deletions`, and `changes` and `batches`, the latter last: what is not
        in it was not taken. Facts as of `ingest_files`, of the batch alone, and `batch`, `files`, `renamed` and the
        counts of `Appended`.

    Raises:
        SpecError: no source, nothing at its path, or a column that the files lack.
        DataError: a file changed under its name, or everything is to be read anew and files are gone.
    """
    taken = Taken.of(before("batches"))
    here, joined = event_files(spark, spec, content), joined_files(spark, spec, content)
    anew = not standing or joined != taken.joined or before("events") is None
    batch = taken.batch + 1
    if anew:
        _refuse_lost(taken, here)
        return _everything(spark, spec, conf, here, joined, batch=batch, came=taken.came, keep=keep)
    found = arrivals(here, taken.files)
    return _batch(spark, spec, conf, found, batch=batch, before=before, keep=keep)


def _refuse_lost(taken: Taken, here: list[Arrived]) -> None:
    lost = sorted(set(taken.files.values()) - {one.content for one in here})
    if lost:
        gone = [path for path, content in taken.files.items() if content in lost]
        raise DataError(
            f"ingest reads everything anew, since its settings, a join file or the data set spec changed, but "
            f"{len(gone)} files that were taken before are gone, such as {gone[0]}; put them back, or take the change "
            "back; the events are as they were"
        )


def _everything(
    spark: SparkSession,
    spec: DataSetSpec,
    conf: IngestConf,
    here: list[Arrived],
    joined: Mapping[str, str],
    *,
    batch: int,
    came: Mapping[str, int],
    keep: Keep,
) -> Ingestion:
    """All files as one batch that replaces whatever was there; a file that lies there twice is read once.

    Files that came one after the other are read in that order, whatever their names.
    """
    found = arrivals(sorted(here, key=lambda one: (came.get(one.path, batch), in_order_of_names(one.path))), {})
    whole = spec if not found.renamed else only_files(spec, found.new, found.renamed)
    here_before = {one.path: came[one.path] for one in found.new if one.path in came}
    read = ingest_files(spark, whole, conf, came=here_before, keep=keep)
    made = read.made
    events = made.tables["events"].frame
    counts = {
        "rows_in": made.rows_in or 0,
        "quarantined": made.quarantined or 0,
        "duplicates": made.duplicates,
        "withdrawn": made.withdrawn,
        "appended": made.rows_out or 0,
        **dict.fromkeys(_KINDS[1:], 0),
    }
    files = _batch_rows(spark, found, joined, events, batch=batch, counts=counts)
    tables = {
        **{name: one for name, one in made.tables.items() if name != "events"},
        "changes": Rows(frame=first_changes(events, batch)),
        "events": made.tables["events"],
        **({} if read.deletions is None else {"deletions": Rows(frame=read.deletions)}),
        "batches": Rows(frame=files),
    }
    facts = {**made.facts, **_batch_facts(counts, found, batch)}
    return Ingestion(made=replace(made, tables=tables, facts=facts), refusal=read.refusal)


def _batch(
    spark: SparkSession, spec: DataSetSpec, conf: IngestConf, found: Arrivals, *, batch: int, before: Before, keep: Keep
) -> Ingestion:
    """What new files change; labels, attributes and dictionaries are read as they are now."""
    events = before("events")
    assert events is not None, "a batch comes to events that are there"
    read = _read(spark, spec, conf, found, before, batch=batch, keep=keep) if found.new else None
    if read is not None:
        events = applied(events, read.appended.differences, EVENTS.key)
    firsts = keep(first_events(events))
    clients = firsts.count()
    told = bank_of(spark, spec, events, firsts, keep)
    tables = {
        name: _differences(name, rows, before, keep)
        for name, rows in told.bank.tables(spec).items()
        if name != "events"
    }
    made = Made(main="events", tables=tables, none=told.none, aside_too=True, facts={**told.facts, "clients": clients})
    if read is None:
        return Ingestion(made=_nothing_new(spark, made, found, batch - 1, keep), refusal=None)
    counts = read.counts
    aside = set_aside(read.ingested, counts, told.labelled, damaged_attributes(spark, spec), keep)
    figures = {
        "rows_in": counts.rows_in,
        "quarantined": counts.quarantined,
        "duplicates": counts.duplicates,
        "withdrawn": counts.withdrawn,
        **read.appended.counts,
    }
    figures["duplicates"] += figures["repeated"]
    figures["withdrawn"] += figures["outdated"]
    files = _batch_rows(spark, found, {}, read.delivered, batch=batch, counts=figures)
    made = replace(
        made,
        rows_in=counts.rows_in,
        rows_out=figures["appended"] + figures["corrected"],
        quarantined=counts.quarantined,
        duplicates=figures["duplicates"],
        withdrawn=figures["withdrawn"],
        aside=_not_yet(aside, before("quarantine")),
        tables={
            **tables,
            "changes": _added(read.appended.changes),
            "events": Rows(frame=read.appended.differences, differences=True),
            **_deletions(read.appended, before),
            "batches": _added(keep(files)),
        },
        facts={
            **count_facts(counts, told),
            **made.facts,
            **_batch_facts(figures, found, batch),
            "unknown_codes": most_unknown(read.delivered, told.bank.dictionaries, spec, conf.unknown_codes),
        },
    )
    return Ingestion(made=made, refusal=refusal_of(spec, counts, told, conf))


def _nothing_new(spark: SparkSession, made: Made, found: Arrivals, batch: int, keep: Keep) -> Made:
    """No batch: what has another name than before is noted beside the newest one."""
    tables = dict(made.tables)
    none = dict.fromkeys(_KINDS, 0)
    if found.renamed:
        events = spark.createDataFrame([], "source_file string")
        tables["batches"] = _added(keep(_batch_rows(spark, found, {}, events, batch=batch, counts=none)))
    facts = {**made.facts, **_batch_facts(none, found, batch)}
    return replace(made, main=None, tables=tables, rows_in=0, rows_out=0, facts=facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """What the files of a batch gave, and what it changes."""

    ingested: Ingested
    delivered: DataFrame
    counts: IngestCounts
    appended: Appended


def _read(
    spark: SparkSession,
    spec: DataSetSpec,
    conf: IngestConf,
    found: Arrivals,
    before: Before,
    *,
    batch: int,
    keep: Keep,
) -> _Read:
    events = before("events")
    assert events is not None, "a batch comes to events that are there"
    ingested = ingest_events(spark, only_files(spec, found.new, (*found.known, *found.renamed)), conf.partitions)
    delivered = keep(ingested.delivered)
    # Computes the rows, and so fills in their counts.
    ingested = replace(ingested, empty=not delivered.count())
    counts = ingested.counts()
    if counts.rows_in:  # a day without an event is a day, too
        counts.check(f"data set {spec.name}, batch {batch}")
    appended = append(delivered, events, before("deletions"), spec, batch=batch, keep=keep)
    return _Read(ingested=ingested, delivered=delivered, counts=counts, appended=appended)


def _deletions(appended: Appended, before: Before) -> dict[str, Rows]:
    """What was taken away and stays so, as a table of its own."""
    rows = appended.deletions
    if rows is None:
        return {}
    whole = before("deletions") is None
    return {"deletions": Rows(frame=rows.drop(CHANGE)) if whole else Rows(frame=rows, differences=True)}


def _differences(name: str, rows: Rows, before: Before, keep: Keep) -> Rows:
    """What changes in a table that is read whole each time."""
    old = before(name)
    if old is None:
        return rows
    if rows.slice:
        old = old.where(predicate(rows.slice))
    key = TABLES[name].key
    told_by = [column for column in rows.frame.columns if column not in key]
    if set(told_by) - set(old.columns):
        return rows  # other attributes than before: the table is written anew
    return Rows(frame=keep(differences(old, rows.frame, key, told_by)), slice=rows.slice, differences=True)


def _added(rows: DataFrame) -> Rows:
    return Rows(frame=rows.withColumn(CHANGE, F.lit(INSERT)), differences=True)


def _not_yet(aside: DataFrame | None, before: DataFrame | None) -> DataFrame | None:
    """What is set aside, without rows of labels and attributes that were set aside in an earlier batch as well."""
    if aside is None or before is None:
        return aside
    key = ("reason", "detail", "source_file", "payload")
    same = [F.col(f"a.{name}").eqNullSafe(F.col(f"b.{name}")) for name in key]
    return aside.alias("a").join(before.select(*key).alias("b"), reduce(and_, same), how="left_anti")


def _batch_facts(counts: Mapping[str, int], found: Arrivals, batch: int) -> dict[str, int]:
    return {"batch": batch, "files": len(found.new), "renamed": len(found.renamed), **{k: counts[k] for k in _KINDS}}


def _batch_rows(
    spark: SparkSession,
    found: Arrivals,
    joined: Mapping[str, str],
    events: DataFrame,
    *,
    batch: int,
    counts: Mapping[str, int],
) -> DataFrame:
    """A row of `batches` for each file."""
    kept = {row["source_file"]: row["count"] for row in events.groupBy("source_file").count().collect()}
    files = [(one, "read", kept.get("/".join(one.path.split("/")[-2:]), 0)) for one in found.new]
    files += [(one, "renamed", 0) for one in found.renamed]
    files += [(Arrived(path=path, size=0, content=content), "joined", 0) for path, content in joined.items()]
    rows = [(batch, one.path, one.size, one.content, taken, count, dict(counts)) for one, taken, count in files]
    schema = (
        "batch long, file string, size long, content string, taken string, events long, batch_counts map<string,long>"
    )
    return spark.createDataFrame(rows, schema).withColumn("taken_at", F.current_timestamp())
