"""Histories, metadata and external factors as arrays, by Spark's own expressions; what is fitted sees training rows."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.baselines.codes import ABSENT, histories
from ledgerlm.baselines.sequence.histories import SeenColumns, assemble, choose, learn_fields, observe
from ledgerlm.baselines.sequence.settings import FIRST_CODE, UNKNOWN, FieldsConf
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.clock import local
from ledgerlm.events.condition import Condition
from ledgerlm.events.dictionaries import with_description
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.heads.recurrent.settings import ContextFields, HolidaysConf, InputsConf, RowsShape, SeriesConf

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_KEY = ("client_id", "as_of")
_HOLIDAY, _TO_HOLIDAY = "holiday", "days_to_holiday"
# Farther than this no holiday is looked for; the longest stretch without one is about four months.
_FARTHEST = 200


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What inputs are made from.

    Attributes:
        events: the `events` table.
        clients: the `clients` table.
        dictionaries: the `dictionaries` table, if there is one: codes are read by what they mean.
        days: first and last day that a calendar is needed for.
        series: from `read_series`, if there is one.
    """

    events: DataFrame
    clients: DataFrame
    dictionaries: DataFrame | None
    days: tuple[dt.date, dt.date]
    series: DataFrame | None = None


def sources_of(
    events: DataFrame,
    clients: DataFrame,
    dictionaries: DataFrame | None,
    conf: InputsConf,
    files: Mapping[str, Path],
) -> Sources:
    """The tables that inputs are made from, and the days that they span.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        dictionaries: the `dictionaries` table, if there is one.
        conf: what the head sees.
        files: name in a configuration -> path; has the series, where the head sees one.

    Raises:
        ConfigError: the series is none of `files`.
        DataError: there is no event, or the series lacks columns or has a day twice.
    """
    row = events.agg(
        F.to_date(F.min("event_time")).alias("first"), F.to_date(F.max("event_time")).alias("last")
    ).first()
    if row is None or row["first"] is None:
        raise DataError("the events table is empty; look at the quarantine table")
    series = None
    if conf.series:
        if conf.series.path not in files:
            raise ConfigError(
                f"inputs.series.path: '{conf.series.path}' is none of the files known: {', '.join(files)}"
            )
        series = read_series(events.sparkSession, conf.series, files[conf.series.path].as_uri())
    return Sources(
        events=events,
        clients=clients,
        dictionaries=dictionaries,
        # Histories may end after the last event; a year more of calendar costs nothing.
        days=(row["first"], row["last"] + dt.timedelta(days=366)),
        series=series,
    )


def chosen_columns(spec: DataSetSpec, conf: InputsConf) -> SeenColumns:
    """The columns of an event that the head sees, external factors among them."""
    own = choose(spec, FieldsConf(categorical=conf.categorical, numeric=conf.numeric))
    external = (_HOLIDAY, _TO_HOLIDAY) if conf.holidays else ()
    series = conf.series.columns if conf.series else ()
    return replace(own, numeric=(*own.numeric, *external, *series))


def observed_events(sources: Sources, chosen: SeenColumns, conf: InputsConf) -> DataFrame:
    """Events as `histories.observe` gives them, codes by description, with the factors of their day as numbers.

    A holiday calendar is known in advance; the numbers of a series are those of the day `lag_days` before the event.
    """
    events = reduce(
        lambda rows, field: with_description(rows, sources.dictionaries, field, field),
        chosen.categorical,
        sources.events if conf.only is None else Condition(conf.only, chosen.zone).rows(sources.events),
    )
    if conf.holidays:
        events = _with_holidays(events, sources, conf.holidays, chosen.zone)
    if conf.series and sources.series is not None:
        day = F.date_sub(F.to_date(local(F.col("event_time"), chosen.zone)), conf.series.lag_days)
        events = events.withColumn("_day", day).join(F.broadcast(sources.series), on="_day", how="left").drop("_day")
    return observe(events, chosen)


def _with_holidays(events: DataFrame, sources: Sources, conf: HolidaysConf, zone: str) -> DataFrame:
    if conf.event_country is None:
        homes = sources.clients.select("client_id", F.expr(conf.home).alias("_country"))
        placed = events.join(homes, on="client_id", how="left")
    else:
        placed = events.withColumn("_country", F.expr(conf.event_country))
    calendar = holiday_calendar(events.sparkSession, conf.countries, *sources.days)
    days = calendar.select(F.col("day").alias("_day"), F.col("country").alias("_country"), _HOLIDAY, _TO_HOLIDAY)
    dated = placed.withColumn("_day", F.to_date(local(F.col("event_time"), zone)))
    return dated.join(F.broadcast(days), on=["_day", "_country"], how="left").drop("_day", "_country")


def holiday_calendar(spark: SparkSession, countries: Sequence[str], first: dt.date, last: dt.date) -> DataFrame:
    """Public holidays of each day.

    Returns:
        day, country, holiday (1 or 0), days_to_holiday (0 on one); one row for each day and country.

    Raises:
        ConfigError: for a country that the library does not know.
    """
    import holidays

    known = holidays.list_supported_countries()
    if unknown := [country for country in countries if country not in known]:
        raise ConfigError(f"holidays.countries: no calendar of {', '.join(unknown)}; give ISO 3166 codes such as GB")
    years = range(first.year, last.year + 2)
    rows = []
    for country in countries:
        closed = holidays.country_holidays(country, years=years)
        ahead = _FARTHEST
        for place in range((last - first).days + _FARTHEST, -1, -1):
            day = first + dt.timedelta(days=place)
            ahead = 0 if day in closed else min(ahead + 1, _FARTHEST)
            if day <= last:
                rows.append((day, country, float(day in closed), float(ahead)))
    return spark.createDataFrame(rows, f"day date, country string, {_HOLIDAY} double, {_TO_HOLIDAY} double")


def read_series(spark: SparkSession, conf: SeriesConf, path: str) -> DataFrame:
    """The series as `_day` and its columns; an empty number is unknown.

    Raises:
        DataError: for missing columns, a day that stands twice, or what is no date or no number.
    """
    reader = spark.read.option("header", "true") if conf.format == "csv" else spark.read
    rows = reader.format(conf.format).load(path)
    if missing := [name for name in (conf.date, *conf.columns) if name not in rows.columns]:
        raise DataError(f"series {path}: no column {', '.join(missing)}; there are {', '.join(rows.columns)}")
    numbers = {name: F.col(name).try_cast("double") for name in conf.columns}
    day = F.col(conf.date).try_cast("date")
    wrong = [
        F.when(number.isNull(), F.nullif(F.trim(F.col(name).cast("string")), F.lit("")))
        for name, number in numbers.items()
    ]
    odd = F.coalesce(F.when(day.isNull(), F.coalesce(F.col(conf.date).cast("string"), F.lit("an empty date"))), *wrong)
    if (bad := rows.select(odd.alias("odd")).where("odd IS NOT NULL").first()) is not None:
        raise DataError(
            f"series {path}: '{bad['odd']}' is no date in column '{conf.date}' or no number in "
            f"{', '.join(conf.columns)}; write dates as 2024-01-31, numbers with a point"
        )
    series = rows.select(day.alias("_day"), *(number.alias(name) for name, number in numbers.items()))
    if series.groupBy("_day").count().where("count > 1").limit(1).count():
        raise DataError(f"series {path}: a day of column '{conf.date}' stands twice; one row a day is needed")
    return series


def with_context(rows: DataFrame, sources: Sources, conf: InputsConf) -> DataFrame:
    """Adds what is known of the client and of the time at as_of.

    Args:
        rows: client_id, as_of, event_count_used, event_count_cut, last_event_time.

    Returns:
        The rows with `metadata` array<string> and `context` array<double>, in the order of `context_names`.
    """
    clients = sources.clients
    if missing := [name for name in (*conf.metadata, *conf.metadata_numbers) if name not in clients.columns]:
        raise DataError(f"clients have no column {', '.join(missing)}; they have {', '.join(clients.columns)}")
    known = [F.coalesce(F.col(name).cast("string"), F.lit(ABSENT)) for name in conf.metadata]
    numbers = [F.coalesce(F.col(name).try_cast("double"), F.lit(0.0)) for name in conf.metadata_numbers]
    home = F.expr(conf.holidays.home) if conf.holidays else F.lit(None).cast("string")
    people = clients.select(
        "client_id",
        F.array(*known).cast("array<string>").alias("metadata"),
        F.array(*numbers).cast("array<double>").alias("_numbers"),
        home.alias("_country"),
    )
    joined = rows.join(people, on="client_id", how="left")
    factors = _time_numbers()
    if conf.holidays:
        joined = _with_coming_holidays(joined, sources, conf.holidays)
        factors.append(F.coalesce(F.col("_coming"), F.lit(0.0)))
    if conf.series and sources.series is not None:
        # The newest numbers that are out at as_of: those of the day `lag_days` before it.
        lag = conf.series.lag_days
        joined = joined.withColumn("_day", F.date_sub(F.to_date("as_of"), lag))
        joined = joined.join(F.broadcast(sources.series), on="_day", how="left").drop("_day")
        factors += [F.coalesce(F.col(name), F.lit(0.0)) for name in conf.series.columns]
    named = joined.withColumn("context", F.concat("_numbers", F.array(*factors)))
    return named.select(*rows.columns, "metadata", "context")


def context_names(conf: InputsConf) -> tuple[str, ...]:
    """Names of the numbers of `context`."""
    coming = ("holidays_coming",) if conf.holidays else ()
    series = conf.series.columns if conf.series else ()
    return (*conf.metadata_numbers, "log_days_since_last", "log_events", "year_sin", "year_cos", *coming, *series)


def _time_numbers() -> list[Column]:
    quiet = (F.col("as_of").cast("double") - F.col("last_event_time").cast("double")) / 86_400.0
    angle = F.dayofyear("as_of") * (2 * math.pi / 365.25)
    events = F.col("event_count_used") + F.col("event_count_cut")
    return [F.log1p(quiet), F.log1p(events.cast("double")), F.sin(angle), F.cos(angle)]


def _with_coming_holidays(rows: DataFrame, sources: Sources, conf: HolidaysConf) -> DataFrame:
    """Adds `_coming`: public holidays of the client's country in the days after as_of."""
    last = sources.days[1] + dt.timedelta(days=conf.ahead_days)
    calendar = holiday_calendar(rows.sparkSession, conf.countries, sources.days[0], last).where(F.col(_HOLIDAY) == 1)
    closed = calendar.groupBy(F.col("country").alias("_country")).agg(F.collect_list("day").alias("_closed"))
    first = F.to_date("as_of")
    coming = F.size(F.filter("_closed", lambda day: (day >= first) & (day < F.date_add(first, conf.ahead_days)))).cast(
        "double"
    )
    return rows.join(F.broadcast(closed), on="_country", how="left").withColumn("_coming", coming)


def learn_shape(
    training: DataFrame, observed: DataFrame, sources: Sources, chosen: SeenColumns, conf: InputsConf
) -> RowsShape:
    """Fits vocabularies and scales on training rows.

    Args:
        training: client_id, as_of of the training rows.
        observed: from `observed_events`.
    """
    newest = training.groupBy("client_id").agg(F.max("as_of").alias("as_of"))
    sizes = FieldsConf(max_codes=conf.max_codes, max_events=conf.max_events)
    fields = learn_fields(histories(observed, newest), chosen, sizes)
    counted = (
        histories(observed, training)
        .groupBy(*_KEY)
        .agg(
            F.count(F.lit(1)).alias("event_count_used"),
            F.lit(0).alias("event_count_cut"),
            F.max("event_time").alias("last_event_time"),
        )
    )
    told = with_context(counted, sources, conf)
    names = context_names(conf)
    numbers = [F.col("context")[place] for place in range(len(names))]
    row = told.agg(*(F.avg(one) for one in numbers), *(F.stddev_pop(one) for one in numbers)).first()
    values = [float(value or 0.0) for value in row] if row is not None else []
    context = ContextFields(
        codes={name: _codes(told, place, conf.max_codes) for place, name in enumerate(conf.metadata)},
        numbers=names,
        mean=tuple(values[: len(names)]),
        std=tuple(max(value, 1e-3) for value in values[len(names) :]),
    )
    return RowsShape(fields=fields, context=context)


def _codes(told: DataFrame, place: int, most: int) -> tuple[str, ...]:
    counts = told.groupBy(F.col("metadata")[place].alias("code")).count()
    return tuple(row["code"] for row in counts.orderBy(F.desc("count"), "code").limit(most).collect())


def head_rows(as_of: DataFrame, observed: DataFrame, sources: Sources, shape: RowsShape, conf: InputsConf) -> DataFrame:
    """The arrays that the head reads.

    Args:
        as_of: client_id, as_of of the rows wanted; one without an event before it gets none.
        observed: from `observed_events`.
        shape: from `learn_shape`.

    Returns:
        client_id, as_of, `codes` and `numbers` as `histories.assemble` gives them, `metadata` array<int> (1 is an
        unknown code), `context` array<float> (scaled), event_count_used, event_count_cut, last_event_time; key
        (client_id, as_of).
    """
    told = with_context(assemble(histories(observed, as_of), shape.fields), sources, conf)
    codes = [
        F.coalesce(F.try_element_at(_ranks(known), F.col("metadata")[place]), F.lit(UNKNOWN))
        for place, known in enumerate(shape.context.codes.values())
    ]
    scales = zip(shape.context.mean, shape.context.std, strict=True)
    scaled = [(F.col("context")[place] - mean) / std for place, (mean, std) in enumerate(scales)]
    return told.withColumns(
        {
            "metadata": F.array(*codes).cast("array<int>"),
            "context": F.array(*scaled).cast("array<float>"),
        }
    )


def _ranks(codes: Sequence[str]) -> Column:
    return F.create_map(*(F.lit(part) for rank, code in enumerate(codes, FIRST_CODE) for part in (code, rank)))
