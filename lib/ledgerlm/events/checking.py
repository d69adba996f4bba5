"""A look at the files of a data set before a run: columns, rows before and after, what would be set aside and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F

from ledgerlm.events.attributes import attribute_rows
from ledgerlm.events.clock import local
from ledgerlm.events.columns import LEFT_OUT
from ledgerlm.events.judging import good_rows, judged_entry
from ledgerlm.events.labels import label_rows
from ledgerlm.events.sources import columns_in
from ledgerlm.events.spec import DataSetSpec, source_of
from ledgerlm.events.spec_files import FileSpec

_SHOWN = 5  # rows before and after
_EXAMPLES = 3  # of each reason
_CLASSES = 8  # whose labels are counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row that would be set aside: what is wrong with it, and the row as it stands."""

    detail: str
    payload: str
    source_file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasons:
    """Rows that were, or would be, set aside for one reason.

    Attributes:
        stage: who set them aside; empty before a run.
        reason: a name of `quality.Reason`.
        rows: how many.
        examples: some of them.
    """

    stage: str
    reason: str
    rows: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What an entry of files holds.

    Attributes:
        glob: the entry.
        columns: names in the files; none of JSON.
        rows: rows that were looked at.
        shown: raw row and what it becomes, of the first good ones.
        reasons: what would be set aside, most frequent first.
        figures: what the good rows hold: of events clients, span and amounts, of labels how many of each.
    """

    glob: str
    columns: tuple[str, ...]
    rows: int
    shown: tuple[tuple[str, Mapping[str, Any]], ...]
    reasons: tuple[Reasons, ...]
    figures: Mapping[str, str]

    @property
    def bad(self) -> float:
        """The share of the rows that would be set aside."""
        return sum(one.rows for one in self.reasons) / self.rows if self.rows else 0.0


def look_at(spark: SparkSession, spec: DataSetSpec, *, rows: int) -> list[Entry]:
    """Reads the head of the files of each entry as ingest would: events, attributes, dictionaries, labels.

    Duplicates, conflicts and labels without a history show when all rows are read: those are for a run to tell.

    Args:
        spark: session in UTC with ANSI mode.
        spec: the data set.
        rows: rows of each entry that are looked at.

    Raises:
        SpecError: no source, nothing at its path, or files that are not as the spec says.
    """
    found = []
    for place, file in enumerate(source_of(spec).files):
        judged = judged_entry(spark, spec, place).where(~F.col(LEFT_OUT)).limit(rows).localCheckpoint()
        good = good_rows(judged).limit(_SHOWN).collect()
        shown = [(row["payload"], _event(row, spec)) for row in good]
        found.append(_entry(spark, spec, file, judged, shown=shown, figures=_event_figures(good_rows(judged), spec)))
    labels = list(label_rows(spark, spec))
    for file, others in (*attribute_rows(spark, spec), *labels):
        judged = others.limit(rows).localCheckpoint()
        good = judged.where("reason IS NULL").limit(_SHOWN).collect()
        shown = [
            (row["payload"], {name: value for name, value in row["shown"].items() if value is not None}) for row in good
        ]
        figures = _label_figures(judged) if (file, others) in labels else {}
        found.append(_entry(spark, spec, file, judged, shown=shown, figures=figures))
    return found


def _entry(
    spark: SparkSession,
    spec: DataSetSpec,
    file: FileSpec,
    judged: DataFrame,
    *,
    shown: Sequence[tuple[str, Mapping[str, Any]]],
    figures: Mapping[str, str],
) -> Entry:
    return Entry(
        glob=file.glob,
        columns=tuple(columns_in(spark, file, source_of(spec))),
        rows=judged.count(),
        shown=tuple(shown),
        reasons=tuple(reasons_of(judged.where("reason IS NOT NULL").withColumn("stage", F.lit("")))),
        figures=figures,
    )


def _event_figures(good: DataFrame, spec: DataSetSpec) -> dict[str, str]:
    """Clients, span and amounts of events, for a reader."""
    time, amount = local(F.col("event_time"), spec.time.zone), F.col("amount")
    row = good.agg(
        F.count(F.lit(1)).alias("events"),
        F.count_distinct("client_id").alias("clients"),
        *(F.date_format(of(time), "yyyy-MM-dd HH:mm").alias(name) for name, of in (("first", F.min), ("last", F.max))),
        F.count("amount").alias("amounts"),
        F.min("amount").alias("least"),
        F.max("amount").alias("most"),
        F.count_if(amount < 0).alias("below"),
        F.collect_set("currency").alias("currencies"),
    ).collect()[0]
    if not row["events"]:
        return {}
    figures = {"clients": str(row["clients"]), "span": f"{row['first']} to {row['last']}"}
    if row["amounts"]:
        of = f" {' '.join(sorted(row['currencies']))}" if row["currencies"] else ""
        below = f"{row['below'] / row['amounts']:.0%} below zero"
        figures["amounts"] = f"{row['least'].normalize():f} to {row['most'].normalize():f}{of}, {below}"
    return figures


def _label_figures(judged: DataFrame) -> dict[str, str]:
    """How many labels of each kind there are, the most frequent first."""
    text = F.col("shown")["label_text"].alias("text")
    rows = judged.where("reason IS NULL").groupBy(text).count().orderBy(F.desc("count"), "text").take(_CLASSES)
    return {"labels": ", ".join(f"{row['text']} {row['count']}" for row in rows)} if rows else {}


def reasons_of(quarantine: DataFrame, *, examples: int = _EXAMPLES) -> Sequence[Reasons]:
    """Reasons with counts and examples, most frequent first.

    Args:
        quarantine: stage, reason, detail, source_file, payload.
        examples: how many of each reason.
    """
    same = Window.partitionBy("stage", "reason")
    numbered = quarantine.select(
        "stage", "reason", "detail", "payload", "source_file",
        F.row_number().over(same.orderBy("source_file", "payload")).alias("_nth"),
        F.count(F.lit(1)).over(same).alias("_rows"),
    )  # fmt: skip
    kept: dict[tuple[str, str], list[Row]] = {}
    for row in numbered.where(F.col("_nth") <= max(examples, 1)).orderBy("_nth").collect():
        kept.setdefault((row["stage"], row["reason"]), []).append(row)
    found = [
        Reasons(
            stage=stage,
            reason=reason,
            rows=rows[0]["_rows"],
            examples=tuple(
                Example(detail=row["detail"] or "", payload=row["payload"] or "", source_file=row["source_file"] or "")
                for row in rows[:examples]
            ),
        )
        for (stage, reason), rows in kept.items()
    ]
    return sorted(found, key=lambda one: (-one.rows, one.stage, one.reason))


def _event(row: Row, spec: DataSetSpec) -> dict[str, Any]:
    names = ("client_id", "event_time", "amount", "currency")
    own = {name: row[name] for name in names} | {field.name: row[f"f_{field.name}"] for field in spec.fields}
    return {name: value for name, value in own.items() if value is not None}
