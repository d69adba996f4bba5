"""What a batch may be: rules by which what was delivered is refused, set aside or warned of, before any of it is taken.

A batch is held against the clock, and against the batches that were taken in before it.
"""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.errors import DataError
from ledgerlm.events.columns import FILE, LEFT_OUT
from ledgerlm.events.erased import ERASED, passed_over
from ledgerlm.events.file_heads import folded
from ledgerlm.events.quality import Reason
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.source_tables import TableVersion

Action = Literal["refuse", "quarantine", "warn"]
CLOCKS = dt.timedelta(hours=1)
"""By how much the clocks of machines may differ."""
MOST_CURRENCIES = 1000
"""Currencies that are remembered of a file; there are some three hundred, living and dead."""
_RECENT = 30  # batches whose median a new one is held against
_NAMED = 3  # files and columns that a message names


class BatchRules(Conf):
    """What is done with a batch that is not as batches are."""

    columns: Literal["refuse", "warn"] = Field(
        "warn", description="a file has a column that no delivery of its entry had, or lacks one that the last one had"
    )
    future: Action = Field(
        "quarantine", description="rows whose time is more than an hour after the instant at which they are taken in"
    )
    currencies: Action = Field("warn", description="rows in a currency that no event had in the batches before")
    rows: Literal["refuse", "warn"] = Field(
        "warn",
        description="rows below `least` or above `most` times the median of the 30 batches before; the first, which "
        "reads everything, is none of them",
    )
    repeated: Literal["refuse", "warn"] = Field("warn", description="nothing in it but rows that were there")
    least: float = Field(0.1, ge=0, le=1, description="of the median: fewer rows are too few")
    most: float = Field(10.0, ge=1, description="of the median: more rows are too many")


class Terms(Conf):
    """Under what a batch is taken in: the same however often taking it in is killed and goes on.

    Attributes:
        at: the instant, in UTC.
        rules: the rules.
        tables: path of each Delta table of the source -> the version that is taken in.
    """

    at: dt.datetime
    rules: BatchRules
    tables: dict[str, TableVersion] = Field(default_factory=dict)

    def held(self, currencies: Iterable[str] | None = None, erased: DataFrame | None = None) -> Held:
        """What each row is held against.

        Args:
            currencies: those of earlier batches; None: there are none, so that any will do.
            erased: see `Held`.
        """
        reasons = {Reason.TIME_IN_FUTURE: self.rules.future, Reason.NEW_CURRENCY: self.rules.currencies}
        return Held(
            until=self.at + CLOCKS,
            currencies=None if currencies is None else frozenset(currencies),
            aside=frozenset(reason for reason, action in reasons.items() if action == "quarantine"),
            erased=erased,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Rows that are not as a rule has them.

    Attributes:
        rows: how many.
        value: the latest time, or the first currency by name.
        file: where it stands.
    """

    rows: int
    value: str
    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What each row is held against, while it is judged and counted.

    Attributes:
        until: times after it are in the future; None: no time is.
        currencies: those that are known; None: all are.
        aside: reasons for which rows are set aside; for others they are only counted.
        erased: digests of clients who were erased, whose rows are none; None: nobody was.
    """

    until: dt.datetime | None = None
    currencies: frozenset[str] | None = None
    aside: frozenset[Reason] = frozenset()
    erased: DataFrame | None = None

    @property
    def flags(self) -> dict[Reason, str]:
        """Reason -> the column that says whether it applies to a row."""
        asked = {Reason.TIME_IN_FUTURE: self.until, Reason.NEW_CURRENCY: self.currencies}
        return {reason: f"_{reason.value}" for reason, limit in asked.items() if limit is not None}

    def marked(self, rows: DataFrame, spec: DataSetSpec) -> DataFrame:
        """The judged rows with the columns of `flags`, and with the reasons of those that are set aside.

        Where somebody was erased, also ERASED; those rows are left out.
        """
        if self.erased is not None:
            rows = passed_over(rows, self.erased, spec)
        conditions = {}
        if self.until is not None:
            conditions[Reason.TIME_IN_FUTURE] = F.col("event_time") > F.lit(self.until.isoformat(sep=" ")).cast(
                "timestamp"
            )
        if self.currencies is not None:
            conditions[Reason.NEW_CURRENCY] = F.col("currency").isNotNull() & ~F.col("currency").isin(
                sorted(self.currencies)
            )
        time = F.concat(F.lit(" ".join(spec.time.parts) + ": "), F.col("event_time").cast("string"), F.lit(" UTC"))
        details = {Reason.TIME_IN_FUTURE: time, Reason.NEW_CURRENCY: F.concat(F.lit("currency: "), F.col("currency"))}
        for reason, flag in self.flags.items():
            # What takes an event away need not say more than which.
            good = F.col("reason").isNull() & ~F.col(LEFT_OUT) & ~F.col("_gone")
            rows = rows.withColumn(flag, F.coalesce(good & conditions[reason], F.lit(False)))
            if reason in self.aside:
                rows = rows.withColumns(
                    {
                        "reason": F.when(F.col(flag), reason.value).otherwise(F.col("reason")),
                        "detail": F.when(F.col(flag), details[reason]).otherwise(F.col("detail")),
                    }
                )
        return rows

    def counters(self) -> dict[str, Column]:
        """What is counted of marked rows, by name."""
        such = {
            Reason.TIME_IN_FUTURE: lambda flag: F.max(F.when(F.col(flag), F.struct("event_time", FILE))),
            Reason.NEW_CURRENCY: lambda flag: F.min(F.when(F.col(flag), F.struct("currency", FILE))),
        }
        value = {Reason.TIME_IN_FUTURE: "event_time", Reason.NEW_CURRENCY: "currency"}
        found: dict[str, Column] = {}
        for reason, flag in self.flags.items():
            one = such[reason](flag)
            found |= {flag: F.count_if(flag), f"{flag}_file": one[FILE]}
            found[f"{flag}_value"] = one[value[reason]].cast("string")
        if self.erased is not None:
            found[ERASED] = F.count_if(ERASED)
        return found

    def seen(self, counted: Mapping[str, Any]) -> dict[Reason, Seen]:
        """What the counters found; nothing of a reason that applies to no row."""
        return {
            reason: Seen(rows=counted[flag], value=counted[f"{flag}_value"], file=counted[f"{flag}_file"])
            for reason, flag in self.flags.items()
            if counted[flag]
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What earlier batches tell.

    Attributes:
        columns: entry -> columns that any of its files had, and those that all files of its newest delivery had; in the
            form in which names are compared.
        currencies: of all events that ever came.
        rows: rows of the newest batches, but for the first, which read everything.
    """

    columns: Mapping[str, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    currencies: frozenset[str] = frozenset()
    rows: Sequence[int] = ()

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Known:
        """Sums up rows of `batches`, oldest first."""
        read = [row for row in rows if row["taken"] == "read"]
        columns: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        newest: dict[str, int] = {}
        for row in read:
            own, entry = frozenset(map(folded, row["columns"])), row["entry"]
            ever, last = columns.get(entry, (frozenset(), own))
            columns[entry] = (ever | own, last & own if newest.get(entry) == row["batch"] else own)
            newest[entry] = row["batch"]
        counts = {row["batch"]: row["batch_counts"]["rows_in"] for row in read}
        return cls(
            columns=columns,
            currencies=frozenset(one for row in read for one in row["currencies"]),
            rows=[counts[batch] for batch in sorted(counts)[1:]][-_RECENT:],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a rule found in a batch.

    Attributes:
        rule: key of `BatchRules`.
        action: what is done about it.
        said: what was found, with the figure, in words.
        remedy: what to do where the batch is refused.
    """

    rule: str
    action: Action
    said: str
    remedy: str = "mend or withdraw the file"

    def checked(self, batch: str) -> Finding:
        """Itself, if the batch may be taken.

        Raises:
            DataError: its rule refuses the batch.
        """
        if self.action == "refuse":
            raise DataError(
                f"{batch}: {self.said}, and batch.{self.rule} is refuse, so nothing of the batch was taken; "
                f"{self.remedy}, or set batch.{self.rule} to warn"
            )
        return self


def odd_columns(files: Mapping[str, tuple[str, Sequence[str]]], known: Known, rules: BatchRules) -> list[Finding]:
    """What is told of files by their columns.

    Args:
        files: path -> entry and columns.
        known: earlier batches; an entry that they do not have is not judged.
        rules: what to do.
    """
    said = []
    for path, (entry, names) in files.items():
        if entry not in known.columns:
            continue
        ever, last = known.columns[entry]
        new = [name for name in names if folded(name) not in ever]
        gone = sorted(last - {folded(name) for name in names})
        said += [f"{path} has {_listed(new)}, which no delivery of {entry} had before"] if new else []
        said += [f"{path} lacks {_listed(gone)}, which the last delivery of {entry} had"] if gone else []
    more = f", and {len(said) - _NAMED} more such files" if len(said) > _NAMED else ""
    return [Finding(rule="columns", action=rules.columns, said="; ".join(said[:_NAMED]) + more)] if said else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(repr(name) for name in names[:_NAMED])}{more}"


def odd_rows(seen: Mapping[Reason, Seen], rules: BatchRules, at: dt.datetime) -> list[Finding]:
    """What is told of rows in the future, and of currencies that are new.

    Args:
        seen: from `Held.seen`.
        rules: what to do.
        at: the instant at which the batch is taken in.
    """
    found = []
    if (late := seen.get(Reason.TIME_IN_FUTURE)) is not None:
        said = (
            f"{late.rows} rows have a time in the future, up to {late.value} in {late.file}, taken in at "
            f"{at:%Y-%m-%d %H:%M:%S} (all in UTC)"
        )
        remedy = "mend the file, or time.zone and time.format of the data set spec"
        found.append(Finding(rule="future", action=rules.future, said=said, remedy=remedy))
    if (strange := seen.get(Reason.NEW_CURRENCY)) is not None:
        said = (
            f"{strange.rows} rows have a currency that no event had before, such as {strange.value} in {strange.file}"
        )
        found.append(Finding(rule="currencies", action=rules.currencies, said=said))
    return found


def odd_count(rows: int, known: Known, rules: BatchRules) -> list[Finding]:
    """What is told of a batch by how many rows it has."""
    median = statistics.median(known.rows) if known.rows else 0
    if not median or rules.least * median <= rows <= rules.most * median:
        return []
    few = rows < median
    limit = f"less than batch.least {rules.least}" if few else f"more than batch.most {rules.most}"
    said = f"{rows} rows, {rows / median:.2g} times the median {median:g} of the {len(known.rows)} batches before"
    remedy = "deliver what is missing" if few else "withdraw what is too much"
    return [Finding(rule="rows", action=rules.rows, said=f"{said}, {limit}", remedy=remedy)]


def nothing_new(counts: Mapping[str, int], rules: BatchRules) -> list[Finding]:
    """What is told of a batch that changes nothing.

    Args:
        counts: from `appending.Appended`.
        rules: what to do.
    """
    there = counts["repeated"] + counts["unknown_deletions"]
    if not there or counts["appended"] or counts["corrected"] or counts["deleted"]:
        return []
    said = f"nothing in it is new: {there} rows were there, or take away what is not"
    return [Finding(rule="repeated", action=rules.repeated, said=said, remedy="withdraw the file")]


def facts_of_findings(findings: Sequence[Finding]) -> dict[str, dict[str, str]]:
    """Rule -> `action` and `said`, as JSON values."""
    return {one.rule: {"action": one.action, "said": one.said} for one in findings}


def report_of_findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """A section of the report; none where nothing was found."""
    if not findings:
        return []
    rows = [[one.rule, one.action, one.said] for one in findings]
    block = {"kind": "table", "columns": ["rule", "action", "found"], "rows": rows}
    note = "The newest batch is not as the ones before it, or holds times that are still to come."
    return [{"title": "What the batch was like", "note": note, "blocks": [block]}]
