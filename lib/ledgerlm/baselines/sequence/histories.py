"""Histories as arrays of codes and numbers, by Spark's own expressions; what is fitted sees training clients only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import isqrt
from typing import TYPE_CHECKING

from pyspark.sql import Column, Window
from pyspark.sql import functions as F

from ledgerlm.baselines.codes import ABSENT, Codes, learn_codes
from ledgerlm.baselines.sequence.settings import FIRST_CODE, LOG_DAYS, UNKNOWN, Fields, FieldsConf
from ledgerlm.errors import DataError
from ledgerlm.events.clock import local
from ledgerlm.events.spec import DataSetSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_KEY = ("client_id", "as_of")
_ORDER = ("event_time", "event_seq", "event_id")
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenColumns:
    """Columns that an encoder sees.

    Attributes:
        categorical: columns of codes.
        numeric: columns of numbers, the amount among them.
        hour: whether the hour is a code.
        weekday: whether the weekday is a code.
        zone: time zone of hours and weekdays.
    """

    categorical: tuple[str, ...]
    numeric: tuple[str, ...]
    hour: bool
    weekday: bool
    zone: str = "UTC"

    @classmethod
    def of(cls, fields: Fields, spec: DataSetSpec) -> SeenColumns:
        """The columns that fields were learnt from: `choose` again, for a trained encoder."""
        own = {field.name for field in spec.fields if field.kind == "categorical"}
        computed = {"hour", "weekday"} & set(fields.codes) - own
        return cls(
            categorical=tuple(name for name in fields.codes if name not in computed),
            numeric=fields.numbers[:-1],  # the last is the time since the event before
            hour="hour" in computed,
            weekday="weekday" in computed,
            zone=spec.time.zone,
        )


def choose(spec: DataSetSpec, conf: FieldsConf) -> SeenColumns:
    """The columns as configured, or else those of the data set."""
    names = {
        kind: tuple(field.name for field in spec.fields if field.kind == kind) for kind in ("categorical", "numeric")
    }
    amount = ("amount",) if spec.amount else ()
    return SeenColumns(
        categorical=names["categorical"] if conf.categorical is None else conf.categorical,
        numeric=(*amount, *(names["numeric"] if conf.numeric is None else conf.numeric)),
        hour=conf.calendar and spec.time.has_clock,
        weekday=conf.calendar,
        zone=spec.time.zone,
    )


def observe(events: DataFrame, chosen: SeenColumns) -> DataFrame:
    """Turns events into codes and numbers.

    Args:
        events: the `events` table.
        chosen: columns to take.

    Returns:
        client_id, event_time, event_seq, event_id, `codes` array<struct<field, code>> and `numbers` array<double>:
        sign(x) ln(1 + |x|) of each numeric column (absent is 0), then ln(1 + days since the client's event before).
    """
    columns: dict[str, Column] = {name: F.col(name) for name in chosen.categorical}
    time = local(F.col("event_time"), chosen.zone)
    # A field of the data of the same name wins, as in documents.
    columns |= {"hour": F.hour(time).cast("string")} if chosen.hour and "hour" not in columns else {}
    columns |= {"weekday": F.dayofweek(time).cast("string")} if chosen.weekday and "weekday" not in columns else {}
    codes = [
        F.struct(F.lit(name).alias("field"), F.coalesce(code, F.lit(ABSENT)).alias("code"))
        for name, code in columns.items()
    ]
    before = F.lag("event_time").over(Window.partitionBy("client_id").orderBy(*_ORDER))
    seconds = F.col("event_time").cast("double") - before.cast("double")
    numbers = [F.coalesce(_signed_log(F.col(name).cast("double")), F.lit(0.0)) for name in chosen.numeric]
    numbers.append(F.log1p(F.coalesce(seconds, F.lit(0.0)) / _DAY_SECONDS))
    return events.select("client_id", *_ORDER, F.array(*codes).alias("codes"), F.array(*numbers).alias("numbers"))


def _signed_log(value: Column) -> Column:
    return F.signum(value) * F.log1p(F.abs(value))


def newest(as_of: DataFrame, clients: DataFrame) -> DataFrame:
    """The one history of each training client that encoders learn from: the newest, which holds the others.

    Args:
        as_of: client_id, as_of.
        clients: the `clients` table.

    Returns:
        client_id, as_of; one row for each client of split `train`.
    """
    training = clients.where("split = 'train'").select("client_id")
    return as_of.join(training, on="client_id", how="leftsemi").groupBy("client_id").agg(F.max("as_of").alias("as_of"))


def learn_fields(training: DataFrame, chosen: SeenColumns, conf: FieldsConf) -> Fields:
    """Fits vocabularies and the scale of numbers.

    Args:
        training: events of training clients before their `as_of`, from `observe` and `codes.histories`.
        chosen: as given to `observe`.
        conf: sizes.

    Raises:
        DataError: when there is no event.
    """
    found = learn_codes(training, max(conf.max_codes, *conf.codes.values(), 1))
    if not found:
        raise DataError("no training client has an event before its as_of; look at the tables events and labels")
    codes: Codes = {name: kept[: conf.codes.get(name, conf.max_codes)] for name, kept in found.items()}
    names = (*chosen.numeric, LOG_DAYS)
    numbers = [F.col("numbers")[place] for place in range(len(names))]
    moments = training.agg(*(F.avg(each) for each in numbers), *(F.stddev_pop(each) for each in numbers)).first()
    values = [float(value) for value in moments] if moments is not None else []
    return Fields(
        codes={name: tuple(codes[name]) for name in _names(chosen)},
        embeddings={name: conf.embeddings.get(name, _width(len(codes[name]))) for name in _names(chosen)},
        numbers=names,
        mean=tuple(values[: len(names)]),
        std=tuple(max(value, 1e-3) for value in values[len(names) :]),
        max_events=conf.max_events,
    )


def _names(chosen: SeenColumns) -> tuple[str, ...]:
    computed = (*(["hour"] if chosen.hour else []), *(["weekday"] if chosen.weekday else []))
    return tuple(dict.fromkeys((*chosen.categorical, *computed)))


def _width(codes: int) -> int:
    return min(16, max(4, isqrt(codes + FIRST_CODE)))


def assemble(histories: DataFrame, fields: Fields) -> DataFrame:
    """One row a history, its newest `max_events` events in order.

    A client with a million events costs no more than `max_events`: older ones are dropped before anything is gathered.

    Args:
        histories: `observe`d events with `as_of`, all before it.
        fields: from `learn_fields`.

    Returns:
        client_id, as_of, `codes` array<int> (event after event, a place for each field; 1 is an unknown code),
        `numbers` array<float> (the same), event_count_used, event_count_cut, last_event_time.
    """
    coded = reduce(lambda rows, item: _encode(rows, item[0], item[1]), enumerate(fields.codes.values()), histories)
    of_client = Window.partitionBy(*_KEY)
    ranked = coded.select(
        *_KEY,
        F.row_number().over(of_client.orderBy(*(F.desc(name) for name in _ORDER))).alias("age"),
        F.count(F.lit(1)).over(of_client).alias("total"),
        "event_time",
        F.array(*(F.col(f"_code{place}") for place in range(len(fields.codes)))).alias("codes"),
        F.col("numbers").cast("array<float>").alias("numbers"),
    ).where(F.col("age") <= fields.max_events)
    event = F.struct((-F.col("age")).alias("place"), "codes", "numbers")
    gathered = ranked.groupBy(*_KEY).agg(
        F.sort_array(F.collect_list(event)).alias("events"),
        F.max("total").cast("int").alias("total"),
        F.max("event_time").alias("last_event_time"),
    )
    used = F.size("events")
    return gathered.select(
        *_KEY,
        F.flatten(F.col("events.codes")).alias("codes"),
        F.flatten(F.col("events.numbers")).alias("numbers"),
        used.alias("event_count_used"),
        (F.col("total") - used).alias("event_count_cut"),
        "last_event_time",
    )


def without_events(asked: DataFrame, done: DataFrame, key: Sequence[str] = _KEY) -> DataFrame:
    """Rows for `quarantine`: histories that were asked for and that no event stands for.

    Args:
        asked: client_id, as_of and what else `key` names.
        done: the histories that there are, with the columns of `key`.
        key: tells histories apart; the payload.

    Returns:
        reason `no_events`, detail, payload.
    """
    rest = asked.join(done.select(*key), on=list(key), how="leftanti")
    return rest.select(
        F.lit("no_events").alias("reason"),
        F.concat(F.lit("client "), "client_id", F.lit(" as of "), F.col("as_of").cast("string")).alias("detail"),
        F.to_json(F.struct(*key)).alias("payload"),
    )


def _encode(rows: DataFrame, place: int, codes: Sequence[str]) -> DataFrame:
    """Adds `_code{place}`; a broadcast join looks up ten codes as fast as ten thousand."""
    ranks = [(code, rank) for rank, code in enumerate(codes, FIRST_CODE)]
    known = rows.sparkSession.createDataFrame(ranks, "_text string, _rank int")
    keyed = rows.withColumn("_text", F.col("codes")[place]["code"]).join(F.broadcast(known), on="_text", how="left")
    return keyed.withColumn(f"_code{place}", F.coalesce("_rank", F.lit(UNKNOWN))).drop("_text", "_rank")
