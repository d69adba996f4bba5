"""What is said about a client, sentence by sentence: free text of events, and attributes put into words."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pyspark.errors import AnalysisException
from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.asked import AsOfConf, asked
from ledgerlm.events.condition import Condition
from ledgerlm.lake.made import Made, Rows
from ledgerlm.text.sanitise import sanitise

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

KEY = ("client_id", "as_of")
_PLACE = re.compile(r"\{(\w+)\}")
_ENDS = r"(?<=[.!?;])\s+"
_LENGTH = 400  # characters kept of a sentence
_EXAMPLE_LENGTH = 1500  # characters of the example in the report


class TextSource(Conf):
    """Where sentences come from."""

    of: Literal["events", "clients"] = Field(description="table whose rows speak")
    domain: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="tag of the text, which chooses the adapter")
    text: str | None = Field(None, description="events: SQL expression of the free text; it is cut into sentences")
    document: str = Field("event_id", description="events: SQL expression; equal values make one document")
    where: Condition = Field(Condition("true"), description="SQL condition of the rows that speak")
    sentences: tuple[str, ...] = Field(
        (), description="clients: sentences with {column}; one whose column is absent is left out"
    )

    @model_validator(mode="after")
    def _whole(self) -> TextSource:
        if self.of == "events" and (self.text is None or self.sentences):
            raise ValueError("of: events needs 'text' and no 'sentences'")
        if self.of == "clients" and (not self.sentences or self.text is not None):
            raise ValueError("of: clients needs 'sentences' and no 'text'")
        return self


class DescribeConf(AsOfConf):
    """Settings of the describe job."""

    sources: tuple[TextSource, ...] = Field(min_length=1, description="where sentences come from")
    most: int = Field(24, ge=1, description="newest sentences kept of a client")


def describe_clients(
    events: DataFrame,
    clients: DataFrame,
    conf: DescribeConf,
    *,
    end: dt.datetime,
    labels: DataFrame | None = None,
    keep: Keep,
) -> Made:
    """Gathers what is said of each client, as sentences and as documents of format `notes`.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        conf: where sentences come from.
        end: end of what is told of clients without a label.
        labels: the `labels` table, if there is one.
        keep: sentences are counted, and written twice.

    Returns:
        `sentences` and `documents`; rows in are whose history is asked for. Facts: `as_of`, `domains` (domain ->
        sentences), `clients_described` and an `example`.

    Raises:
        ConfigError: a source names a column that is not there.
        DataError: not one sentence was found.
    """
    as_of = asked(clients, labels, end, conf)
    sentences = settled(sentences_of(events, clients, as_of, conf.sources, conf.most), keep)
    counted = sentences.groupBy("domain").agg(F.count(F.lit(1)).alias("rows")).orderBy("domain").collect()
    domains = {row["domain"]: row["rows"] for row in counted}
    if not domains:
        raise DataError("not one sentence was found: look at the sources' `where` and `text`, and at the events table")
    documents = settled(notes(sentences, as_of), keep)
    example = documents.orderBy(F.desc("event_count_used"), "client_id").first()
    return Made(
        rows_in=as_of.count(),
        rows_out=sum(domains.values()),
        tables={"sentences": Rows(frame=sentences), "documents": Rows(frame=documents, slice={"format": ("notes",)})},
        facts={
            "as_of": end.isoformat(),
            "domains": domains,
            "clients_described": documents.count(),
            "example": example["text"][:_EXAMPLE_LENGTH] if example is not None else "",
        },
    )


def sentences_of(
    events: DataFrame, clients: DataFrame, as_of: DataFrame, sources: Sequence[TextSource], most: int
) -> DataFrame:
    """All sentences about each client before its `as_of`.

    Args:
        events: the `events` table.
        clients: the `clients` table; its attributes must have been known at `as_of`.
        as_of: client_id, as_of.
        sources: where sentences come from.
        most: newest sentences kept of a client.

    Returns:
        client_id, as_of, document int (from 0, oldest first), place int (within the client), domain, text; key
        (client_id, as_of, place).
    """
    found = [
        _of_events(events, as_of, one, number) if one.of == "events" else _of_clients(clients, as_of, one, number)
        for number, one in enumerate(sources)
    ]
    rows = reduce(lambda one, other: one.unionByName(other), found)
    newest = Window.partitionBy(*KEY).orderBy(F.desc("_time"), F.desc("_order"), F.desc("_part"))
    kept = rows.withColumn("_age", F.row_number().over(newest)).where(F.col("_age") <= most)
    own = Window.partitionBy(*KEY)
    # Documents are numbered by their first sentence, so that equal numbers stand together.
    begun = kept.withColumn("_begun", F.min(F.struct("_time", "_order", "_part")).over(own.partitionBy(*KEY, "_doc")))
    return begun.select(
        *KEY,
        (F.dense_rank().over(own.orderBy("_begun", "_doc")) - 1).alias("document"),
        (F.row_number().over(own.orderBy("_begun", "_doc", "_time", "_order", "_part")) - 1).alias("place"),
        "domain",
        "text",
    )


def _of_events(events: DataFrame, as_of: DataFrame, source: TextSource, number: int) -> DataFrame:
    try:
        spoken = source.where.rows(events).select(
            "client_id",
            F.col("event_time").alias("_time"),
            F.col("event_seq").alias("_order"),
            F.expr(str(source.text)).cast("string").alias("_text"),
            F.concat_ws(":", F.lit(str(number)), F.expr(source.document).cast("string")).alias("_doc"),
        )
    except AnalysisException as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(f"text source {number}: {reason}; columns are {', '.join(events.columns)}") from error
    before = spoken.join(as_of, on="client_id", how="inner").where(F.col("_time") < F.col("as_of"))
    return _sentences(before, F.split("_text", _ENDS), source.domain)


def _of_clients(clients: DataFrame, as_of: DataFrame, source: TextSource, number: int) -> DataFrame:
    texts = F.array(*(_filled(sentence, clients.columns, number) for sentence in source.sentences))
    rows = source.where.rows(clients).join(as_of, on="client_id", how="inner")
    told = rows.select(
        *KEY,
        F.lit(None).cast("timestamp").alias("_time"),
        F.lit(number).cast("long").alias("_order"),
        texts.alias("_texts"),
        F.lit(str(number)).alias("_doc"),
    )
    return _sentences(told, F.col("_texts"), source.domain)


def _filled(sentence: str, columns: Sequence[str], number: int) -> Column:
    """The sentence with the columns' values; null when one is absent."""
    parts: list[Column] = []
    for place, piece in enumerate(_PLACE.split(sentence)):
        if place % 2 and piece not in columns:
            raise ConfigError(f"text source {number}: '{sentence}': no column '{piece}': {nearest(piece, columns)}")
        parts.append(F.col(piece).cast("string") if place % 2 else F.lit(piece))
    return F.concat(*parts)


def _sentences(rows: DataFrame, texts: Column, domain: str) -> DataFrame:
    """One row a sentence; blank ones and null ones are none."""
    exploded = rows.select(*KEY, "_time", "_order", "_doc", F.posexplode(texts).alias("_part", "_raw"))
    clean = exploded.withColumn("text", sanitise(F.col("_raw"), _LENGTH)).where(F.length("text") > 0)
    return clean.withColumn("domain", F.lit(domain)).drop("_raw")


def notes(sentences: DataFrame, as_of: DataFrame) -> DataFrame:
    """Each client's sentences as one document of format `notes`: a line a sentence, a blank line between documents.

    Args:
        sentences: from `sentences_of`.
        as_of: client_id, as_of of all clients; one about whom nothing is said has no row.

    Returns:
        The columns of `documents`.
    """
    line = F.struct("place", "document", "text")
    gathered = sentences.groupBy(*KEY).agg(F.sort_array(F.collect_list(line)).alias("lines"))
    text = F.aggregate(
        "lines",
        F.struct(F.lit("").alias("text"), F.lit(-1).alias("document")),
        lambda so_far, one: F.struct(
            F.concat(
                so_far["text"],
                F.when(so_far["document"] < 0, "").when(so_far["document"] == one["document"], "\n").otherwise("\n\n"),
                one["text"],
            ).alias("text"),
            one["document"].alias("document"),
        ),
        lambda whole: whole["text"],
    )
    rows = gathered.join(as_of, on=list(KEY), how="left_semi").withColumn("text", text)
    return rows.select(
        *KEY,
        F.lit("notes").alias("format"),
        "text",
        F.size("lines").alias("event_count_used"),
        F.lit(0).alias("event_count_cut"),
        F.lit(None).cast("timestamp").alias("first_event_time"),
        F.lit(None).cast("timestamp").alias("last_event_time"),
        F.ceil(F.length("text") / 4).cast("int").alias("token_estimate"),
        F.sha2("text", 256).alias("input_hash"),
        F.lit("notes/1").alias("serializer"),
    )
