"""Taking in what is new: files that arrived, what changed in Delta tables, and what comes of it in those of a bank."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.engines.frames import settled
from ledgerlm.errors import DataError
from ledgerlm.events.appending import Appended, append, first_changes
from ledgerlm.events.arrivals import Arrivals, Arrived, arrivals, event_files, joined_files, only_files
from ledgerlm.events.attributes import damaged_attributes
from ledgerlm.events.batch_rules import (
    MOST_CURRENCIES,
    Finding,
    Known,
    Terms,
    facts_of_findings,
    nothing_new,
    odd_columns,
    odd_count,
    odd_rows,
    report_of_findings,
)
from ledgerlm.events.files import in_order_of_names, name_of, table_names
from ledgerlm.events.ingest import ingest_events
from ledgerlm.events.ingesting import (
    IngestConf,
    Ingestion,
    Told,
    bank_of,
    count_facts,
    ingest_files,
    most_unknown,
    refusal_of,
    set_aside,
)
from ledgerlm.events.labels import first_events
from ledgerlm.events.spec import source_of
from ledgerlm.events.table_changes import TableChange, TakenTable, newest_versions, report_of_tables, table_changes
from ledgerlm.events.table_events import table_events
from ledgerlm.lake.differences import CHANGE, INSERT, applied, differences
from ledgerlm.lake.lake import conform
from ledgerlm.lake.made import Made, Rows
from ledgerlm.lake.schemas import EVENTS, TABLES
from ledgerlm.lake.slices import predicate
from ledgerlm.lake.source_tables import TableVersion

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row, SparkSession

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
_BATCH_ROW = (
    "batch long, file string, size long, content string, taken string, entry string, columns array<string>, "
    "currencies array<string>, events long, batch_counts map<string,long>, taken_at timestamp, since long, "
    "version long, way string"
)
_BESIDE = "beside"
"""Count of a table: see `IngestCounts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What was taken in before.

    Attributes:
        batch: number of the newest batch; 0 before the first.
        files: path -> content of every event file.
        tables: path of each Delta table -> what was taken in of it.
        came: path -> batch that brought it; of a file that was read, and not of its copies.
        joined: path -> content of the files whose columns events got by a join.
        known: what a new batch is held against.
    """

    batch: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, TakenTable] = field(default_factory=dict)
    came: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    known: Known = field(default_factory=Known)

    @classmethod
    def of(cls, batches: DataFrame | None) -> Taken:
        """Reads the `batches` table: a row for each file, or range of versions of a table, that was ever taken."""
        found = None if batches is None else conform(TABLES["batches"], batches)
        rows = [] if found is None else found.orderBy("batch", "file").collect()
        joined = {row["file"]: row["content"] for row in rows if row["taken"] == "joined"}
        files = {row["file"]: row["content"] for row in rows if row["taken"] != "joined" and row["way"] is None}
        came: dict[str, int] = {}
        for row in rows:
            if row["taken"] == "read" and row["way"] is None:
                came.setdefault(row["file"], row["batch"])
        newest = max((row["batch"] for row in rows), default=0)
        known, tables = Known.of(rows), _taken_tables([row for row in rows if row["way"] is not None])
        return cls(batch=newest, files=files, tables=tables, came=came, joined=joined, known=known)


def _taken_tables(rows: Sequence[Row]) -> dict[str, TakenTable]:
    """What the newest batch of each table says of it."""
    found: dict[str, TakenTable] = {}
    for row in rows:
        before = found.get(row["file"])
        once = before is None or before.once or row["way"] in {"whole", "lake"}  # all its rows were read
        found[row["file"]] = TakenTable(
            at=_version(row["content"], row["version"]),
            once=once and not row["batch_counts"][_BESIDE],
        )
    return found


def terms_now(spark: SparkSession, spec: DataSetSpec, conf: IngestConf) -> Terms:
    """The terms of a batch that begins now.

    Raises:
        SpecError: the spec names a Delta table that is not there.
    """
    return Terms(at=dt.datetime.now(dt.UTC), rules=conf.batch, tables=newest_versions(spark, spec))


def take_in(
    spark: SparkSession,
    spec: DataSetSpec,
    conf: IngestConf,
    terms: Terms,
    *,
    before: Before,
    standing: bool,
    content: Content,
    erased: DataFrame | None = None,
    keep: Keep,
) -> Ingestion:
    """Takes in the files that arrived and what changed in Delta tables since the last batch; the first time, all.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        conf: bounds.
        terms: when the batch is taken in, and by which rules.
        before: `batches`, `changes`, `events`, `deletions`, `clients`, `labels`, `dictionaries`, `quarantine`: as they
            were.
        standing: the tables were made by these very settings; else everything is read anew.
        content: hashes of files.
        erased: digests of clients who were erased, whose rows are none; None: nobody was.
        keep: computes a frame once.

    Returns:
        Differences of the tables of a bank, of `deletions`, and `changes` and `batches`, the latter last: what is not
        in it was not taken. Facts as of `ingest_files`, of the batch alone, and `batch`, `files`, `renamed`, `tables`
        (see `TableChange.facts`), the counts of `Appended`, and `batch_rules`: what rules found.

    Raises:
        SpecError: no source, nothing at its path, or a column that the files lack.
        DataError: a file changed under its name, everything is to be read anew and files are gone, or a rule refuses
            the batch.
    """
    taken = Taken.of(before("batches"))
    here, joined = event_files(spark, spec, content), joined_files(spark, spec, content)
    events = before("events")
    anew = not standing or joined != taken.joined or events is None
    if anew:
        _refuse_lost(taken, here)
    number = taken.batch + 1
    # Files that came one after the other are read in that order, whatever their names; one that lies there twice once.
    here = sorted(here, key=lambda one: (taken.came.get(one.path, number), in_order_of_names(one.path)))
    batch = _Batch(
        spark=spark,
        spec=spec,
        conf=conf,
        terms=terms,
        number=number,
        found=arrivals(here, {} if anew else taken.files),
        tables=table_changes(
            spark,
            spec,
            {} if anew else taken.tables,
            terms.tables,
            half=bool(terms.tables) and _newest_batch(before("changes")) >= number,
            keep=keep,
        ),
        joined=joined if anew else {},
        known=taken.known,
        erased=erased,
        keep=keep,
    )
    return batch.everything(taken.came) if anew or events is None else batch.added(events, before)


def _version(content: str, version: int) -> TableVersion:
    """A version as `_content` noted it."""
    table_id, committed = content.rsplit(" ", 1)
    return TableVersion(table_id=table_id, version=version, committed=int(committed))


def _content(at: TableVersion) -> str:
    """What tells a version from any other of its number, for `batches`."""
    return f"{at.table_id} {at.committed}"


def _newest_batch(changes: DataFrame | None) -> int:
    """The newest batch that `changes` tells of, taken or not; 0 without one."""
    row = None if changes is None else changes.agg(F.max("batch").alias("batch")).first()
    return 0 if row is None or row["batch"] is None else int(row["batch"])


def _refuse_lost(taken: Taken, here: list[Arrived]) -> None:
    lost = sorted(set(taken.files.values()) - {one.content for one in here})
    if lost:
        gone = [path for path, content in taken.files.items() if content in lost]
        raise DataError(
            f"ingest reads everything anew, since its settings, a join file or the data set spec changed, but "
            f"{len(gone)} files that were taken before are gone, such as {gone[0]}; put them back, or take the change "
            "back; the events are as they were"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """What the files and tables of a batch gave, what it changes, and what rules found.

    Attributes:
        ingested: the rows.
        delivered: what they deliver.
        gone: events that tables hold no more.
        counts: of the rows.
        appended: what changes.
        findings: what rules found.
    """

    ingested: Ingested
    delivered: DataFrame
    gone: int
    counts: IngestCounts
    appended: Appended
    findings: Sequence[Finding]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """A batch as it is taken in.

    Attributes:
        spark: session.
        spec: the data set.
        conf: bounds.
        terms: when it is taken in, and by which rules.
        number: its number.
        found: its files.
        tables: what changed in Delta tables.
        joined: path -> content of join files, where they are taken in.
        known: what it is held against.
        erased: digests of clients who were erased.
        keep: computes a frame once.
    """

    spark: SparkSession
    spec: DataSetSpec
    conf: IngestConf
    terms: Terms
    number: int
    found: Arrivals
    tables: Sequence[TableChange]
    joined: Mapping[str, str]
    known: Known
    erased: DataFrame | None
    keep: Keep

    @property
    def name(self) -> str:
        """For messages."""
        return f"data set {self.spec.name}, batch {self.number}"

    def everything(self, came: Mapping[str, int]) -> Ingestion:
        """All files as one batch that replaces whatever was there; it is held against the clock alone."""
        found, spec = self.found, self.spec
        paths = {one.path for one in self.tables}
        whole = spec if not found.renamed else only_files(spec, found.new, found.renamed, paths)
        came = {one.path: came[one.path] for one in found.new if one.path in came}
        rows = {one.path: table_events(self.spark, spec, one, None, self.keep).rows for one in self.tables}
        held, keep = self.terms.held(erased=self.erased), self.keep
        read = ingest_files(self.spark, whole, self.conf, came=came, held=held, tables=rows, keep=keep)
        made, ingested = read.made, read.ingested
        assert ingested is not None and read.counts is not None, "all files were read"
        findings = [one.checked(self.name) for one in odd_rows(ingested.seen(), self.terms.rules, self.terms.at)]
        events = made.tables["events"].frame
        counts = {
            "rows_in": made.rows_in or 0,
            "quarantined": made.quarantined or 0,
            "duplicates": made.duplicates,
            "withdrawn": made.withdrawn,
            "appended": made.rows_out or 0,
            **dict.fromkeys(_KINDS[1:], 0),
        }
        tables = {
            **{name: one for name, one in made.tables.items() if name != "events"},
            "changes": Rows(frame=first_changes(events, self.number)),
            "events": made.tables["events"],
            **({} if read.deletions is None else {"deletions": Rows(frame=read.deletions)}),
            "batches": Rows(frame=self._files(events, ingested.columns, counts, read.counts.beside)),
        }
        facts = {**made.facts, **self._facts(counts, findings)}
        made = replace(made, tables=tables, facts=facts, report=self._report(findings))
        return replace(read, made=made, findings=findings, tables=self.tables)

    def added(self, events: DataFrame, before: Before) -> Ingestion:
        """What new files and tables change; labels, attributes and dictionaries are read as they are now."""
        read = self._read(events, before("deletions")) if self.found.new or self.tables else None
        if read is not None:
            events = applied(events, read.appended.differences, EVENTS.key)
        firsts = settled(first_events(events), self.keep)
        clients = firsts.count()
        told = bank_of(self.spark, self.spec, events, firsts, self.keep, erased=self.erased)
        tables = {
            name: _differences(name, rows, before, self.keep)
            for name, rows in told.bank.tables(self.spec).items()
            if name != "events"
        }
        facts = {**told.facts, "clients": clients}
        made = Made(main="events", tables=tables, none=told.none, aside_too=True, facts=facts)
        if read is None:
            return Ingestion(made=replace(self, number=self.number - 1)._nothing(made), refusal=None)
        return Ingestion(
            made=self._made(made, read, told, before),
            refusal=refusal_of(self.spec, read.counts, told, self.conf),
            ingested=read.ingested,
            findings=read.findings,
            tables=self.tables,
        )

    def _made(self, made: Made, read: _Read, told: Told, before: Before) -> Made:
        spec, counts = self.spec, read.counts
        bad = self.keep(read.ingested.quarantine) if counts.quarantined else None
        damaged = damaged_attributes(self.spark, spec, self.erased)
        aside = set_aside(bad, counts, told.labelled, damaged, self.keep)
        new = _not_yet(bad, before("quarantine"))
        # Rows of a batch that was refused, and rows beside others of their event in a table, come again.
        again = 0 if new is None else counts.quarantined - new.count()
        figures = {
            "rows_in": counts.rows_in + read.gone,
            "quarantined": counts.quarantined - again,
            "duplicates": counts.duplicates + again,
            "withdrawn": counts.withdrawn + read.gone,
            **read.appended.counts,
        }
        figures["duplicates"] += figures["repeated"]
        figures["withdrawn"] += figures["outdated"]
        batches = self._files(read.delivered, read.ingested.columns, figures, counts.beside)
        return replace(
            made,
            rows_in=figures["rows_in"],
            rows_out=figures["appended"] + figures["corrected"],
            quarantined=figures["quarantined"],
            duplicates=figures["duplicates"],
            withdrawn=figures["withdrawn"],
            aside=_not_yet(aside, before("quarantine")),
            tables={
                **made.tables,
                "changes": _added(read.appended.changes),
                "events": Rows(frame=read.appended.differences, differences=True),
                **_deletions(read.appended, before),
                "batches": _added(settled(batches, self.keep)),
            },
            facts={
                **count_facts(counts, told),
                **made.facts,
                **self._facts(figures, read.findings),
                "unknown_codes": most_unknown(read.delivered, told.bank.dictionaries, spec, self.conf.unknown_codes),
            },
            report=self._report(read.findings),
        )

    def _nothing(self, made: Made) -> Made:
        """No batch: what has another name than before is noted beside the newest one."""
        tables = dict(made.tables)
        none = dict.fromkeys(_KINDS, 0)
        if self.found.renamed:
            events = self.spark.createDataFrame([], "source_file string, currency string")
            tables["batches"] = _added(settled(self._files(events, {}, none), self.keep))
        facts = {**made.facts, **self._facts(none, ())}
        return replace(made, main=None, tables=tables, rows_in=0, rows_out=0, facts=facts)

    def _read(self, events: DataFrame, deletions: DataFrame | None) -> _Read:
        """Reads new files; what a rule refuses ends as soon as it shows: by heads, by rows, by what is there."""
        found, rules, known = self.found, self.terms.rules, self.known
        of_tables = [table_events(self.spark, self.spec, one, events, self.keep) for one in self.tables]
        new = only_files(self.spec, found.new, (*found.known, *found.renamed), {one.path for one in self.tables})
        ingested = ingest_events(
            self.spark,
            new,
            self.conf.partitions,
            held=self.terms.held(known.currencies, self.erased),
            tables={one.change.path: one.rows for one in of_tables},
        )
        read: list[Arrived | TableChange] = [*found.new, *self.tables]
        told = {one.path: (self._entry(one), ingested.columns.get(one.path, ())) for one in read}
        findings = [one.checked(self.name) for one in odd_columns(told, known, rules)]
        delivered = settled(ingested.delivered, self.keep)
        # Computes the rows, and so fills in their counts.
        ingested = replace(ingested, empty=not delivered.count())
        counts = ingested.counts()
        if counts.rows_in:  # a day without an event is a day, too
            counts.check(self.name)
        gone = [settled(one.gone(events, delivered, self.spec), self.keep) for one in of_tables]
        away = [one.count() for one in gone]
        # A table made anew with a part of its rows takes away what is missing: so its rows alone are counted there.
        told_away = sum(n for n, one in zip(away, self.tables, strict=True) if one.way != "lake")
        odd = [*odd_rows(ingested.seen(), rules, self.terms.at), *odd_count(counts.rows_in + told_away, known, rules)]
        findings += [one.checked(self.name) for one in odd]
        appended = append(
            reduce(lambda one, other: one.unionByName(other), gone, delivered),
            events,
            deletions,
            self.spec,
            batch=self.number,
            tables=table_names(self.spec.source),
            keep=self.keep,
        )
        findings += [one.checked(self.name) for one in nothing_new(appended.counts, rules)]
        return _Read(
            ingested=ingested,
            delivered=delivered,
            gone=sum(away),
            counts=counts,
            appended=appended,
            findings=findings,
        )

    def _facts(self, counts: Mapping[str, int], findings: Sequence[Finding]) -> dict[str, Any]:
        return {
            "batch": self.number,
            "files": len(self.found.new),
            "renamed": len(self.found.renamed),
            "tables": [one.facts() for one in self.tables],
            **{kind: counts[kind] for kind in _KINDS},
            "batch_rules": facts_of_findings(findings),
        }

    def _report(self, findings: Sequence[Finding]) -> list[dict[str, Any]]:
        """Sections of the report."""
        return [*report_of_findings(findings), *report_of_tables(self.tables)]

    def _files(
        self,
        events: DataFrame,
        columns: Mapping[str, Sequence[str]],
        counts: Mapping[str, int],
        beside: Mapping[str, int] = MappingProxyType({}),
    ) -> DataFrame:
        """A row of `batches` for each file and each range of versions of a table."""
        money = F.slice(F.array_sort(F.collect_set("currency")), 1, MOST_CURRENCIES)
        grouped = events.groupBy("source_file").agg(F.count(F.lit(1)).alias("events"), money.alias("currencies"))
        kept = {row["source_file"]: (row["events"], row["currencies"]) for row in grouped.collect()}

        def row(one: Arrived, taken: str, entry: str, **more: int) -> tuple[Any, ...]:
            read = taken == "read"
            count, currencies = kept.get(name_of(one.path), (0, [])) if read else (0, [])
            told = (taken, entry, list(columns.get(one.path, ())) if read else [], currencies, count)
            return self.number, one.path, one.size, one.content, *told, {**counts, **more}, self.terms.at

        of_files = [row(one, "read", self._entry(one)) for one in self.found.new]
        of_files += [row(one, "renamed", self._entry(one)) for one in self.found.renamed]
        joined = (Arrived(path=path, size=0, content=content) for path, content in self.joined.items())
        of_files += [row(one, "joined", "") for one in joined]
        rows = [(*one, None, None, None) for one in of_files]
        for table in self.tables:
            one = Arrived(path=table.path, size=0, content=_content(table.at), entry=table.entry)
            told = row(one, "read", self._entry(one), **{_BESIDE: beside.get(name_of(one.path), 0)})
            rows.append((*told, table.since, table.at.version, table.way))
        return self.spark.createDataFrame(rows, _BATCH_ROW)

    def _entry(self, one: Arrived | TableChange) -> str:
        return source_of(self.spec).files[one.entry].glob


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
    return Rows(frame=settled(differences(old, rows.frame, key, told_by), keep), slice=rows.slice, differences=True)


def _added(rows: DataFrame) -> Rows:
    return Rows(frame=rows.withColumn(CHANGE, F.lit(INSERT)), differences=True)


def _not_yet(aside: DataFrame | None, before: DataFrame | None) -> DataFrame | None:
    """What is set aside, without rows of labels and attributes that were set aside in an earlier batch as well."""
    if aside is None or before is None:
        return aside
    key = ("reason", "detail", "source_file", "payload")
    same = [F.col(f"a.{name}").eqNullSafe(F.col(f"b.{name}")) for name in key]
    return aside.alias("a").join(before.select(*key).alias("b"), reduce(and_, same), how="left_anti")
