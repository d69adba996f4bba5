"""What a model is told about a client: known attributes and the last n events, in words, by native Spark.

The events are rendered by `ledgerlm.text.serialize`, so they are sanitised, end strictly before `as_of`, and say what
a document says. Shorter histories are the last lines of longer ones; so one pass serves every length.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError
from ledgerlm.events.condition import Condition
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.text.sanitise import sanitise, sanitised
from ledgerlm.text.serialize import DocumentConf, serialize

_EVENTS_LINE = "Transactions, oldest first:"
_CHARACTERS_AN_EVENT = 4096  # above what any event takes: the number of events alone bounds a prompt


class PromptConf(Conf):
    """How a question is put."""

    instruction: str | None = Field(
        "Predict from a client's transactions where the client shops next.",
        description="first line of every prompt; null: no words of ours at all, for a backbone trained from scratch, "
        "which has read documents and nothing else",
    )
    question: str | None = Field(
        "Where does the client shop next?\n",
        description="text between the last event and the answer, which it touches; null: no question, the answer is "
        "the first value of the next event, as a backbone has read it in compact documents of the same fields",
    )
    answers: dict[str, str] = Field(
        default_factory=dict,
        description="class name -> words of its answer, where they are not the name: a model trained from scratch "
        "answers best with what it has read, such as a cell of compact text",
    )
    attributes: tuple[str, ...] = Field((), description="client attributes that are told, in order")
    format: Literal["lines", "compact", "table"] = Field(
        "lines",
        description="format of the events, one line each: lines for a model that knows language, compact for "
        "one trained from scratch on compact documents",
    )
    fields: tuple[str, ...] = Field((), description="what each event shows, as in the serialize job")
    only: Condition | None = Field(None, description="SQL condition on columns of the events; others are not told")
    max_value_length: int = Field(48, ge=1, description="characters of a value that are kept")

    @property
    def preface_lines(self) -> int:
        """Lines of a body before its first event."""
        return 1 + bool(self.attributes) + bool(self.events_line)

    @property
    def events_line(self) -> str:
        """What announces the events, with its line break."""
        return "" if self.instruction is None else f"{_EVENTS_LINE}\n"


def tell(
    events: DataFrame,
    clients: DataFrame,
    examples: DataFrame,
    spec: DataSetSpec,
    conf: PromptConf,
    *,
    most: int,
    dictionaries: DataFrame | None,
) -> DataFrame:
    """Renders the last events of each example once, for prompts of any length up to `most`.

    Args:
        events: the events table.
        clients: the clients table.
        examples: client_id and as_of, distinct.
        spec: the data set.
        conf: what is told.
        most: events that are kept, the newest ones.
        dictionaries: the dictionaries table, if there is one; codes are told as their descriptions.

    Returns:
        One row an example whose client is known: client_id, as_of, `preface` (text before the events, with its line
        break) and `lines` (texts of the events, oldest first; empty where there is none). Unordered.
    """
    told = events if conf.only is None else Condition(conf.only, spec.time.zone).rows(events)
    asked = told.join(examples.select("client_id").distinct(), on="client_id", how="left_semi")
    shown = DocumentConf(
        format=conf.format,
        fields=conf.fields,
        max_events=most,
        max_tokens=most * _CHARACTERS_AN_EVENT,
        max_value_length=conf.max_value_length,
    )
    # Every client left has an as_of of its own among the examples, so the default one is never used.
    never = dt.datetime(1970, 1, 1)
    described = (
        [] if dictionaries is None else [row["field"] for row in dictionaries.select("field").distinct().collect()]
    )
    documents = serialize(asked, examples, never, spec, shown, dictionaries=dictionaries, described=described)
    rows = F.split("text", "\n")
    known = documents.select("client_id", "as_of", rows.alias("_rows"))
    named = clients.select("client_id", _client_line(clients, conf).alias("_client"))
    joined = examples.select("client_id", "as_of").join(known, on=["client_id", "as_of"], how="left")
    joined = joined.join(named, on="client_id", how="inner")
    header = F.coalesce(F.concat(F.get("_rows", F.lit(0)), F.lit("\n")), F.lit("-\n"))
    lines = F.slice("_rows", 2, F.greatest(F.size("_rows") - 1, F.lit(0)))
    return joined.select(
        "client_id",
        "as_of",
        F.concat(F.col("_client"), F.lit(conf.events_line), header).alias("preface"),
        F.coalesce(lines, F.array().cast("array<string>")).alias("lines"),
    )


def body(length: Column | int) -> Column:
    """The text of a prompt between instruction and question, from the columns of `tell`.

    Args:
        length: newest events that are told.
    """
    count = F.lit(length) if isinstance(length, int) else length
    size = F.size("lines")
    kept = F.least(count, size)
    newest = F.slice("lines", F.greatest(size - kept + 1, F.lit(1)), kept)
    return F.concat("preface", F.array_join(newest, "\n"))


def compose(conf: PromptConf, attributes: Mapping[str, str | None], document: str, length: int) -> str:
    """The same text as `body` for one client, without Spark.

    Args:
        conf: what is told.
        attributes: of the client; others than the configured ones are not looked at.
        document: the client's events as the serialize job writes them, with the format, fields and `only` of `conf`.
        length: newest events that are told.
    """
    told = [
        f"{name.replace('_', ' ')} {sanitised(attributes.get(name) or '', conf.max_value_length) or 'unknown'}"
        for name in conf.attributes
    ]
    client = f"Client: {'; '.join(told)}\n" if told else ""
    header, *lines = document.split("\n")
    newest = "\n".join(lines[-length:])
    return f"{client}{conf.events_line}{header or '-'}\n{newest}"


def _client_line(clients: DataFrame, conf: PromptConf) -> Column:
    """`Client: region London; tenure years 12` and a line break; nothing without attributes."""
    for name in conf.attributes:
        if name not in clients.columns:
            raise ConfigError(f"prompt.attributes: no attribute '{name}': {nearest(name, clients.columns)}")
    if not conf.attributes:
        return F.lit("")
    parts = [
        F.concat(
            F.lit(f"{'; ' if place else ''}{name.replace('_', ' ')} "),
            F.coalesce(F.nullif(sanitise(F.col(name), conf.max_value_length), F.lit("")), F.lit("unknown")),
        )
        for place, name in enumerate(conf.attributes)
    ]
    return F.concat(F.lit("Client: "), *parts, F.lit("\n"))
