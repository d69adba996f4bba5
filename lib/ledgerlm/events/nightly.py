"""Taking in what is new: the files that arrived since, and what they change in the tables of a bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
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
from ledgerlm.events.files import in_order_of_names
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
_BATCH_ROW = (
    "batch long, file string, size long, content string, taken string, entry string, columns array<string>, "
    "currencies array<string>, events long, batch_counts map<string,long>, taken_at timestamp"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What was taken in before.

    Attributes:
        batch: number of the newest batch; 0 before the first.
        files: path -> content of every event file.
        came: path -> batch that brought it; of a file that was read, and not of its copies.
        joined: path -> content of the files whose columns events got by a join.
        known: what a new batch is held against.
    """

    batch: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    came: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    known: Known = field(default_factory=Known)

    @classmethod
    def of(cls, batches: DataFrame | None) -> Taken:
        """Reads the `batches` table: a row for each file that was ever taken."""
        rows = [] if batches is None else batches.orderBy("batch", "file").collect()
        joined = {row["file"]: row["content"] for row in rows if row["taken"] == "joined"}
        files = {row["file"]: row["content"] for row in rows if row["taken"] != "joined"}
        came: dict[str, int] = {}
        for row in rows:
            if row["taken"] == "read":
                came.setdefault(row["file"], row["batch"])
        newest = max((row["batch"] for row in rows), default=0)
        return cls(batch=newest, files=files, came=came, joined=joined, known=Known.of(rows))


def take_in(
    spark: SparkSession,
    spec: DataSetSpec,
    conf: IngestConf,
    terms: Terms,
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
        terms: when the batch is taken in, and by which rules.
        before: `batches`, `events`, `deletions`, `clients`, `labels`, `dictionaries` and `quarantine` as they were.
        standing: the tables were made by these very settings; else everything is read anew.
        content: hashes of files.
        keep: computes a frame once.

    Returns:
        Differences of the tables of a bank, of `deletions`, and `changes` and `batches`, the latter last: what is not
        in it was not taken. Facts as of `ingest_files`, of the batch alone, and `batch`, `files`, `renamed`, the counts
        of `Appended`, and `batch_rules`: what rules found.

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
        joined=joined if anew else {},
        known=taken.known,
        keep=keep,
    )
    return batch.everything(taken.came) if anew or events is None else batch.added(events, before)


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
    """What the files of a batch gave, what it changes, and what rules found."""

    ingested: Ingested
    delivered: DataFrame
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
        joined: path -> content of join files, where they are taken in.
        known: what it is held against.
        keep: computes a frame once.
    """

    spark: SparkSession
    spec: DataSetSpec
    conf: IngestConf
    terms: Terms
    number: int
    found: Arrivals
    joined: Mapping[str, str]
    known: Known
    keep: Keep

    @property
    def name(self) -> str:
        """For messages."""
        return f"data set {self.spec.name}, batch {self.number}"

    def everything(self, came: Mapping[str, int]) -> Ingestion:
        """All files as one batch that replaces whatever was there; it is held against the clock alone."""
        found, spec = self.found, self.spec
        whole = spec if not found.renamed else only_files(spec, found.new, found.renamed)
        came = {one.path: came[one.path] for one in found.new if one.path in came}
        read = ingest_files(self.spark, whole, self.conf, came=came, held=self.terms.held(), keep=self.keep)
        made, ingested = read.made, read.ingested
        assert ingested is not None, "all files were read"
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
            "batches": Rows(frame=self._files(events, ingested.columns, counts)),
        }
        facts = {**made.facts, **self._facts(counts, findings)}
        made = replace(made, tables=tables, facts=facts, report=report_of_findings(findings))
        return replace(read, made=made, findings=findings)

    def added(self, events: DataFrame, before: Before) -> Ingestion:
        """What new files change; labels, attributes and dictionaries are read as they are now."""
        read = self._read(events, before("deletions")) if self.found.new else None
        if read is not None:
            events = applied(events, read.appended.differences, EVENTS.key)
        firsts = settled(first_events(events), self.keep)
        clients = firsts.count()
        told = bank_of(self.spark, self.spec, events, firsts, self.keep)
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
        )

    def _made(self, made: Made, read: _Read, told: Told, before: Before) -> Made:
        spec, counts = self.spec, read.counts
        aside = set_aside(read.ingested, counts, told.labelled, damaged_attributes(self.spark, spec), self.keep)
        figures = {
            "rows_in": counts.rows_in,
            "quarantined": counts.quarantined,
            "duplicates": counts.duplicates,
            "withdrawn": counts.withdrawn,
            **read.appended.counts,
        }
        figures["duplicates"] += figures["repeated"]
        figures["withdrawn"] += figures["outdated"]
        return replace(
            made,
            rows_in=counts.rows_in,
            rows_out=figures["appended"] + figures["corrected"],
            quarantined=counts.quarantined,
            duplicates=figures["duplicates"],
            withdrawn=figures["withdrawn"],
            aside=_not_yet(aside, before("quarantine")),
            tables={
                **made.tables,
                "changes": _added(read.appended.changes),
                "events": Rows(frame=read.appended.differences, differences=True),
                **_deletions(read.appended, before),
                "batches": _added(settled(self._files(read.delivered, read.ingested.columns, figures), self.keep)),
            },
            facts={
                **count_facts(counts, told),
                **made.facts,
                **self._facts(figures, read.findings),
                "unknown_codes": most_unknown(read.delivered, told.bank.dictionaries, spec, self.conf.unknown_codes),
            },
            report=report_of_findings(read.findings),
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
        new = only_files(self.spec, found.new, (*found.known, *found.renamed))
        ingested = ingest_events(self.spark, new, self.conf.partitions, held=self.terms.held(known.currencies))
        told = {one.path: (self._entry(one), ingested.columns.get(one.path, ())) for one in found.new}
        findings = [one.checked(self.name) for one in odd_columns(told, known, rules)]
        delivered = settled(ingested.delivered, self.keep)
        # Computes the rows, and so fills in their counts.
        ingested = replace(ingested, empty=not delivered.count())
        counts = ingested.counts()
        if counts.rows_in:  # a day without an event is a day, too
            counts.check(self.name)
        odd = [*odd_rows(ingested.seen(), rules, self.terms.at), *odd_count(counts.rows_in, known, rules)]
        findings += [one.checked(self.name) for one in odd]
        appended = append(delivered, events, deletions, self.spec, batch=self.number, keep=self.keep)
        findings += [one.checked(self.name) for one in nothing_new(appended.counts, rules)]
        return _Read(ingested=ingested, delivered=delivered, counts=counts, appended=appended, findings=findings)

    def _facts(self, counts: Mapping[str, int], findings: Sequence[Finding]) -> dict[str, Any]:
        return {
            "batch": self.number,
            "files": len(self.found.new),
            "renamed": len(self.found.renamed),
            **{kind: counts[kind] for kind in _KINDS},
            "batch_rules": facts_of_findings(findings),
        }

    def _files(self, events: DataFrame, columns: Mapping[str, Sequence[str]], counts: Mapping[str, int]) -> DataFrame:
        """A row of `batches` for each file."""
        money = F.slice(F.array_sort(F.collect_set("currency")), 1, MOST_CURRENCIES)
        grouped = events.groupBy("source_file").agg(F.count(F.lit(1)).alias("events"), money.alias("currencies"))
        kept = {row["source_file"]: (row["events"], row["currencies"]) for row in grouped.collect()}

        def row(one: Arrived, taken: str, entry: str) -> tuple[Any, ...]:
            read = taken == "read"
            count, currencies = kept.get("/".join(one.path.split("/")[-2:]), (0, [])) if read else (0, [])
            told = (taken, entry, list(columns.get(one.path, ())) if read else [], currencies, count)
            return self.number, one.path, one.size, one.content, *told, dict(counts), self.terms.at

        rows = [row(one, "read", self._entry(one)) for one in self.found.new]
        rows += [row(one, "renamed", self._entry(one)) for one in self.found.renamed]
        joined = (Arrived(path=path, size=0, content=content) for path, content in self.joined.items())
        rows += [row(one, "joined", "") for one in joined]
        return self.spark.createDataFrame(rows, _BATCH_ROW)

    def _entry(self, one: Arrived) -> str:
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
