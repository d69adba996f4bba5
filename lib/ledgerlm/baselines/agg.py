"""Agg: aggregate features of a history, the baseline of pytorch-lifestream, by Spark's own expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

from pydantic import Field
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ledgerlm.baselines.recency import recency
from ledgerlm.config import Conf
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.events.asked import AsOfConf
from ledgerlm.events.clock import local, with_clock
from ledgerlm.events.dictionaries import with_description
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.made import Made, Rows

Codes = dict[str, list[str]]
ATTRIBUTES = "attributes"
"""The feature set of client attributes."""

# Stands for an absent code, as in a compact document.
ABSENT = "-"
_KEY = ("client_id", "as_of")
# The pseudo field under which the whole history is aggregated along with its codes.
_ALL = ""
_DAY_SECONDS = 86_400.0


class AggConf(Conf):
    """What is aggregated; lists left out are filled in from the data set spec."""

    categorical: tuple[str, ...] | None = Field(None, description="columns of codes; default the spec's")
    numeric: tuple[str, ...] | None = Field(None, description="columns of numbers but the amount; default the spec's")
    by_code: tuple[str, ...] | None = Field(
        None,
        description="numbers with a mean and a deviation for each code: log_amount, amount, log_days…; default "
        "log_amount, for data without amounts the spec's numbers",
    )
    calendar: bool = Field(True, description="take hour (where there is one) and weekday of an event as codes")
    recency: bool = Field(
        True, description="how long ago a history ended and began, and its last 30, 90 and 365 days against before"
    )
    max_codes: int = Field(200, ge=1, description="most frequent codes of a column that get features of their own")
    max_currencies: int = Field(
        4,
        ge=1,
        description="most frequent currencies whose amounts get features, each of its own, where the data have several",
    )


class AggregateConf(AggConf, AsOfConf):
    """Settings of the aggregate job."""

    feature_set: str = Field("agg", description="name of the features written")
    described: tuple[str, ...] = Field(
        (), description="fields whose codes are read as their descriptions, so that banks with other codes agree"
    )
    attributes: tuple[str, ...] = Field(
        (), description="client attributes to write as feature set `attributes`; none that a task predicts"
    )

    @property
    def feature_sets(self) -> tuple[str, ...]:
        """Names of the sets that are made."""
        return (self.feature_set, *((ATTRIBUTES,) if self.attributes else ()))


class Agg(Conf):
    """Agg as it was fitted: which codes have features of their own, and which numbers are summed up."""

    codes: dict[str, tuple[str, ...]] = Field(description="field -> its most frequent codes, most frequent first")
    categorical: tuple[str, ...] = Field(description="columns of codes")
    numeric: tuple[str, ...] = Field(description="columns of numbers beside the amount")
    whole: tuple[str, ...] = Field(description="numbers aggregated over the whole history")
    by_code: tuple[str, ...] = Field(description="numbers aggregated for each code")
    hour: bool = Field(description="the hour is a code")
    weekday: bool = Field(description="the weekday is a code")
    recency: bool = Field(description="features of the clock, from `recency.recency`")
    zone: str = Field("UTC", description="time zone of hours and weekdays")
    currencies: tuple[str, ...] = Field(
        (), description="currencies whose amounts have features, each of its own; none: all amounts are of one"
    )

    @classmethod
    def fit(cls, events: DataFrame, as_of: DataFrame, conf: AggConf, spec: DataSetSpec) -> Agg:
        """Learns which codes are frequent.

        Args:
            events: the `events` table.
            as_of: client_id, as_of of training clients alone, so that no test client shapes a feature.
            conf: what is aggregated.
            spec: the data set, for what the configuration leaves out.
        """
        numeric = _names(conf.numeric, spec, "numeric")
        currencies = _currencies(events, as_of, conf.max_currencies) if spec.several_currencies else ()
        amounts = [name for one in _amounts(currencies) for name in (one, f"log_{one}")] if spec.amount else []
        by_code = conf.by_code if conf.by_code is not None else ("log_amount",) if spec.amount else numeric
        categorical = _names(conf.categorical, spec, "categorical")
        open_model = cls(
            codes={},
            categorical=(*categorical, "currency") if len(currencies) > 1 else categorical,
            numeric=numeric,
            whole=(*amounts, "log_days", *numeric),
            by_code=tuple(one for name in by_code for one in _by_currency(name, currencies)),
            hour=conf.calendar and with_clock(spec, events).time.has_clock,
            weekday=conf.calendar,
            recency=conf.recency,
            zone=spec.time.zone,
            currencies=currencies,
        )
        found = learn_codes(open_model.histories(events, as_of), conf.max_codes)
        return open_model.model_copy(update={"codes": {field: tuple(kept) for field, kept in found.items()}})

    def histories(self, events: DataFrame, as_of: DataFrame) -> DataFrame:
        """The events before each `as_of`, as `aggregate` takes them."""
        observed = observe(
            events,
            categorical=self.categorical,
            numeric=self.numeric,
            hour=self.hour,
            weekday=self.weekday,
            zone=self.zone,
            currencies=self.currencies,
        )
        return histories(observed, as_of)

    def transform(self, events: DataFrame, as_of: DataFrame) -> DataFrame:
        """The features of each history.

        Args:
            events: the `events` table.
            as_of: client_id, as_of of every row wanted; distinct.

        Returns:
            client_id, as_of, features map<string, float> without zeros; key (client_id, as_of).
        """
        rows = self.histories(events, as_of)
        sums = aggregate(rows, as_of, self.codes, numeric=self.whole, by_code=self.by_code)
        if not self.recency:
            return sums
        both = sums.join(
            recency(rows, amounts=[name for name in _amounts(self.currencies) if name in self.whole]),
            on=list(_KEY),
            how="left",
        )
        none = F.create_map().cast("map<string, float>")
        return both.select(*_KEY, F.map_concat("features", F.coalesce("recency", none)).alias("features"))

    def save(self, folder: Path) -> None:
        """Writes `agg.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "agg.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Agg:
        """Reads what `save` wrote.

        Raises:
            ArtefactError: the folder holds no such model.
        """
        try:
            return cls.model_validate_json((folder / "agg.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{folder}: no model of Agg that can be read: {error}; run aggregate again") from error


def aggregate_histories(
    events: DataFrame,
    clients: DataFrame,
    as_of: DataFrame,
    conf: AggregateConf,
    *,
    spec: DataSetSpec,
    folder: Path,
    dictionaries: DataFrame | None = None,
) -> Made:
    """Fits Agg on training clients and gives everyone's features, and attributes of clients as a set of their own.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        as_of: client_id, as_of of every row wanted; distinct.
        conf: settings.
        spec: the data set.
        folder: where the fitted model goes.
        dictionaries: the `dictionaries` table, for `described`.

    Returns:
        `features` of each set, a row for every row of `as_of`. Facts: `feature_sets`, and how many `codes` of each
        field have features, and of which `currencies` amounts have (none: all are of one).

    Raises:
        DataError: an attribute that the clients lack.
    """
    for field in conf.described:
        events = with_description(events, dictionaries, field, field)
    training = as_of.join(clients.where("split = 'train'").select("client_id"), on="client_id", how="leftsemi")
    model = Agg.fit(events, training, conf, spec)
    model.save(folder)
    sets = {conf.feature_set: model.transform(events, as_of)}
    if conf.attributes:
        sets[ATTRIBUTES] = attribute_features(clients, as_of, conf.attributes)
    named = [rows.withColumn("feature_set", F.lit(name)) for name, rows in sets.items()]
    return Made(
        rows_in=as_of.count() * len(sets),
        tables={
            "features": Rows(frame=reduce(DataFrame.unionByName, named), slice={"feature_set": conf.feature_sets}),
        },
        artefacts=(folder,),
        facts={
            "feature_sets": list(conf.feature_sets),
            "codes": {field: len(kept) for field, kept in model.codes.items()},
            "currencies": list(model.currencies),
        },
    )


def _names(chosen: tuple[str, ...] | None, spec: DataSetSpec, kind: str) -> tuple[str, ...]:
    return tuple(field.name for field in spec.fields if field.kind == kind) if chosen is None else chosen


def _currencies(events: DataFrame, as_of: DataFrame, most: int) -> tuple[str, ...]:
    """The most frequent currencies of amounts in histories, most frequent first; ABSENT for amounts that have none."""
    known = histories(events.where("amount IS NOT NULL"), as_of)
    counts = known.groupBy(F.coalesce("currency", F.lit(ABSENT)).alias("currency")).count()
    return tuple(row["currency"] for row in counts.orderBy(F.desc("count"), "currency").limit(most).collect())


def _amounts(currencies: Sequence[str]) -> list[str]:
    """Names of amount columns: by currency where there are several, since they must not be added up."""
    names = [f"amount in {one}".replace("`", "'") for one in currencies]
    return names if len(currencies) > 1 else ["amount"]


def _by_currency(name: str, currencies: Sequence[str]) -> list[str]:
    """The columns that stand for a number: of amounts one a currency."""
    kind = name.removesuffix("amount")
    return [f"{kind}{one}" for one in _amounts(currencies)] if name in ("amount", "log_amount") else [name]


def observe(
    events: DataFrame,
    *,
    categorical: Sequence[str],
    numeric: Sequence[str],
    hour: bool,
    weekday: bool,
    zone: str = "UTC",
    currencies: Sequence[str] = (),
) -> DataFrame:
    """Prepares events for aggregation.

    Args:
        events: the `events` table.
        categorical: columns of codes.
        numeric: columns of numbers beside the amount.
        hour: take the hour as a code, where the data have a time of day.
        weekday: take the weekday as a code (1 is Sunday).
        zone: time zone of hours and weekdays.
        currencies: those whose amounts are taken, ABSENT for amounts without one; none: all amounts are of one.

    Returns:
        client_id, event_time, `codes` array<struct<field, code>>, and as doubles: amount, log_amount = sign(x) ln(1 +
        |x|) (of several currencies `amount in EUR`, `log_amount in EUR` ..., null for events of others), log_days =
        ln(1 + days since the client's previous event) and the numeric columns. The time itself is
        no feature.
    """
    before = Window.partitionBy("client_id").orderBy("event_time", "event_seq", "event_id")
    seconds = F.col("event_time").cast("double") - F.lag("event_time").over(before).cast("double")
    amount = F.col("amount").cast("double")
    here = dict.fromkeys(_amounts(currencies), amount)
    for name, one in zip(here, currencies, strict=bool(currencies)):
        here[name] = F.when(F.coalesce("currency", F.lit(ABSENT)) == one, amount)
    fields: dict[str, Column] = {name: F.col(name) for name in categorical}
    time = local(F.col("event_time"), zone)
    # A field of the data of the same name wins, as in documents.
    fields |= {"hour": F.hour(time).cast("string")} if hour and "hour" not in fields else {}
    fields |= {"weekday": F.dayofweek(time).cast("string")} if weekday and "weekday" not in fields else {}
    codes = [
        F.struct(F.lit(name).alias("field"), F.coalesce(code, F.lit(ABSENT)).alias("code"))
        for name, code in fields.items()
    ]
    return events.select(
        "client_id",
        "event_time",
        F.array(*codes).cast("array<struct<field:string,code:string>>").alias("codes"),
        *(column.alias(name) for name, column in here.items()),
        *((F.signum(one) * F.log1p(F.abs(one))).alias(f"log_{name}") for name, one in here.items()),
        F.log1p(F.coalesce(seconds, F.lit(0.0)) / _DAY_SECONDS).alias("log_days"),
        *(F.col(name).cast("double").alias(name) for name in numeric),
    )


def histories(observed: DataFrame, as_of: DataFrame) -> DataFrame:
    """Gives each event to each `as_of` of its client that lies after it.

    Args:
        observed: from `observe`.
        as_of: client_id, as_of.

    Returns:
        The columns of `observed` and as_of; every event_time is before its as_of.
    """
    pairs = as_of.select(*_KEY).distinct()
    return observed.join(pairs, on="client_id", how="inner").where(F.col("event_time") < F.col("as_of"))


def learn_codes(training: DataFrame, max_codes: int) -> Codes:
    """The most frequent codes of each field, most frequent first, ties by code.

    Args:
        training: `histories` of training clients, so that no test client shapes a feature.
        max_codes: codes kept of a field.

    Returns:
        Field to codes; at most fields x max_codes strings reach the driver.
    """
    counts = (
        training.select(F.explode("codes").alias("pair"))
        .groupBy("pair.field", "pair.code")
        .agg(F.count(F.lit(1)).alias("events"))
    )
    rank = F.row_number().over(Window.partitionBy("field").orderBy(F.desc("events"), "code"))
    kept = counts.withColumn("rank", rank).where(F.col("rank") <= max_codes).orderBy("field", "rank")
    codes: Codes = {}
    for row in kept.toLocalIterator():
        codes.setdefault(row["field"], []).append(row["code"])
    return codes


def aggregate(
    rows: DataFrame,
    as_of: DataFrame,
    codes: Mapping[str, Sequence[str]],
    *,
    numeric: Sequence[str],
    by_code: Sequence[str],
) -> DataFrame:
    """Aggregates histories (pytorch-lifestream's `AggFeatureSeqEncoder`, in long form instead of one wide pivot).

    Features: `count` of events; `amount:sum`, `:mean`, `:std` of each number; for each known code
    `department=GROCERY:count` and, for the numbers in `by_code`, `department=GROCERY:log_amount:mean` and `:std`;
    `department:distinct` codes, unknown ones included. Deviations are of the sample, 0 for one event.

    Args:
        rows: from `histories`.
        as_of: client_id, as_of of every row wanted; one without events gets no features, but is there.
        codes: from `learn_codes`.
        numeric: numbers aggregated over the whole history.
        by_code: numbers aggregated for each code.

    Returns:
        client_id, as_of, features map<string, float> without zeros; key (client_id, as_of).
    """
    whole = F.array(F.struct(F.lit(_ALL).alias("field"), F.lit("").alias("code")))
    numbers = list(dict.fromkeys([*numeric, *by_code]))
    groups = (
        rows.select(*_KEY, *(f"`{name}`" for name in numbers), F.explode(F.concat(whole, F.col("codes"))).alias("pair"))
        .groupBy(*_KEY, "pair.field", "pair.code")
        .agg(F.count(F.lit(1)).cast("double").alias("count"), *(s for name in numbers for s in _statistics(name)))
    )
    known = F.broadcast(_known(rows, codes))
    entries = F.when(F.col("field") == _ALL, _entries("", numeric, ("sum", "mean", "std"))).when(
        F.col("known"), _entries(F.concat("field", F.lit("="), "code", F.lit(":")), by_code, ("mean", "std"))
    )
    distinct: list[Column] = [
        F.struct(
            F.lit(f"{field}:distinct").alias("name"),
            F.count_if(F.col("field") == field).cast("float").alias("value"),
        )
        for field in codes
    ]
    made = (
        groups.join(known, on=["field", "code"], how="left")
        .groupBy(*_KEY)
        .agg(F.flatten(F.concat(F.collect_list(entries), F.array(F.array(*distinct)))).alias("entries"))
        .select(*_KEY, _without_zeros(F.col("entries")).alias("features"))
    )
    features = F.coalesce("features", F.create_map().cast("map<string, float>"))
    return as_of.join(made, on=list(_KEY), how="left").select(*_KEY, features.alias("features"))


def _statistics(name: str) -> list[Column]:
    return [
        F.sum(f"`{name}`").alias(f"{name}:sum"),
        F.avg(f"`{name}`").alias(f"{name}:mean"),
        F.stddev_samp(f"`{name}`").alias(f"{name}:std"),
    ]


def _entries(prefix: Column | str, names: Sequence[str], kinds: Sequence[str]) -> Column:
    """Named values of one group, as array<struct<name, value>>."""
    start = F.lit(prefix) if isinstance(prefix, str) else prefix
    columns = ["count", *(f"{name}:{kind}" for name in names for kind in kinds)]
    return F.array(
        *(
            F.struct(
                F.concat(start, F.lit(column)).alias("name"),
                F.coalesce(F.col(f"`{column}`"), F.lit(0.0)).cast("float").alias("value"),
            )
            for column in columns
        )
    )


def _without_zeros(entries: Column) -> Column:
    return F.map_from_entries(F.filter(entries, lambda entry: entry["value"] != 0))


def _known(rows: DataFrame, codes: Mapping[str, Sequence[str]]) -> DataFrame:
    pairs = [(field, code, True) for field, kept in codes.items() for code in kept]
    return rows.sparkSession.createDataFrame(pairs, "field string, code string, known boolean")


def attribute_features(clients: DataFrame, as_of: DataFrame, columns: Sequence[str]) -> DataFrame:
    """Client attributes as features: a number as it is, any other text as `column=text` with the value 1.

    Only attributes that were known at `as_of` belong here (terms of a loan, say), and none that a task predicts.

    Args:
        clients: the `clients` table.
        as_of: client_id, as_of.
        columns: attributes to take.

    Returns:
        client_id, as_of, features map<string, float> without zeros; key (client_id, as_of).

    Raises:
        DataError: for an attribute that the table lacks.
    """
    missing = [name for name in columns if name not in clients.columns]
    if missing:
        raise DataError(f"clients have no column {', '.join(missing)}; they have {', '.join(clients.columns)}")
    entries = []
    for name in columns:
        number = F.col(name).try_cast("float")
        text = F.concat(F.lit(f"{name}="), F.coalesce(F.col(name), F.lit(ABSENT)))
        entries.append(
            F.struct(
                F.when(number.isNotNull(), F.lit(name)).otherwise(text).alias("name"),
                F.coalesce(number, F.lit(1.0)).cast("float").alias("value"),
            )
        )
    rows = clients.join(as_of.select(*_KEY).distinct(), on="client_id", how="inner")
    return rows.select(*_KEY, _without_zeros(F.array(*entries)).alias("features"))
