"""Agg: aggregate features of a history, the baseline of pytorch-lifestream, folded from monthly partials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.baselines.codes import ABSENT, most_frequent
from ledgerlm.baselines.folding import KEY, Number, Partials, fold_codes, fold_whole
from ledgerlm.baselines.partials import LOGS, Summed, in_doubles
from ledgerlm.baselines.recency import recency
from ledgerlm.config import Conf
from ledgerlm.engines.frames import small_frame
from ledgerlm.errors import ArtefactError, ConfigError, DataError
from ledgerlm.events.asked import AsOfConf
from ledgerlm.events.clock import with_clock
from ledgerlm.events.dictionaries import with_description
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from ledgerlm.engines.frames import Keep

ATTRIBUTES = "attributes"
"""The feature set of client attributes."""


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


def what_is_summed(conf: AggConf, spec: DataSetSpec, events: DataFrame) -> Summed:
    """What partials hold: as configured, or else what the data set has.

    Args:
        conf: what is aggregated.
        spec: the data set.
        events: the `events` table; looked at only where the spec leaves open whether there is a time of day.

    Raises:
        ConfigError: `by_code` names a number that there is none of.
    """
    numeric, categorical = _names(conf.numeric, spec, "numeric"), _names(conf.categorical, spec, "categorical")
    by_code = conf.by_code if conf.by_code is not None else ("log_amount",) if spec.amount else numeric
    known = ("amount", *LOGS, *numeric, *(field.name for field in spec.fields if field.kind == "numeric"))
    strange = [name for name in by_code if name not in known]
    if strange:
        raise ConfigError(
            f"aggregate: by_code: no number {', '.join(strange)}; there are {', '.join(dict.fromkeys(known))}"
        )
    several = spec.several_currencies and "currency" not in categorical
    return Summed(
        categorical=(*categorical, "currency") if several else categorical,
        numeric=numeric,
        by_code=by_code,
        amounts=spec.amount is not None,
        currencies=spec.several_currencies,
        hour=conf.calendar and with_clock(spec, events).time.has_clock,
        weekday=conf.calendar,
        zone=spec.time.zone,
    )


class Agg(Conf):
    """Agg as it was fitted: which codes and currencies have features of their own."""

    summed: Summed = Field(description="what partials hold")
    codes: dict[str, tuple[str, ...]] = Field(description="field -> its most frequent codes, most frequent first")
    recency: bool = Field(description="features of the clock, from `recency.recency`")
    currencies: tuple[str, ...] = Field(
        (), description="currencies whose amounts have features, each of its own; none: all amounts are of one"
    )

    @classmethod
    def fit(cls, histories: DataFrame, conf: AggConf, summed: Summed) -> Agg:
        """Learns which codes and currencies are frequent.

        Args:
            histories: of training clients alone, from `Partials.histories`, so that no test client shapes a feature.
            conf: what is aggregated.
            summed: what the partials hold.
        """
        currencies = _currencies(histories, summed, conf.max_currencies) if summed.currencies else ()
        groups = histories.select(F.explode("groups").alias("part")).select("part.field", "part.code", "part.events")
        # A currency is a code where there are several of them, unless it is configured to be one.
        alone = summed.currencies and len(currencies) < 2 and "currency" not in (conf.categorical or ())
        fields = [name for name in summed.fields if not (alone and name == "currency")]
        found = most_frequent(groups.where(F.col("field").isin(fields)), conf.max_codes)
        codes = {field: tuple(kept) for field, kept in found.items()}
        return cls(summed=summed, codes=codes, recency=conf.recency, currencies=currencies)

    def transform(self, histories: DataFrame, as_of: DataFrame) -> DataFrame:
        """The features of each history (pytorch-lifestream's `AggFeatureSeqEncoder`).

        `count` of events; `amount:sum`, `:mean`, `:std` of each number; for each known code `department=GROCERY:count`
        and, for the numbers told by code, `department=GROCERY:log_amount:mean` and `:std`; `department:distinct` codes,
        unknown ones included. Deviations are of the sample, 0 for one event. Of several currencies each has numbers of
        its own (`amount in EUR`). And the features of the clock.

        Args:
            histories: from `Partials.histories`.
            as_of: client_id, as_of of every row wanted; distinct; one without events gets no features, but is there.

        Returns:
            client_id, as_of, features map<string, float> without zeros; key (client_id, as_of).
        """
        whole = self._numbers(self.summed.whole)
        folded = fold_whole(histories, whole, self.summed)
        values = {"count": F.col("count")} | _values(whole, ("sum", "mean", "std"))
        if self.recency:
            values |= recency([one for one in whole if one.kind == "amount"])
        everything = folded.select(*KEY, _entries(values).alias("whole"))
        joined = as_of.join(everything, list(KEY), how="left").join(self._by_code(histories), list(KEY), how="left")
        none = F.array().cast(_ENTRIES)
        entries = F.concat(F.coalesce("whole", none), F.coalesce("by_code", none))
        return joined.select(*KEY, _without_zeros(entries).alias("features"))

    def _by_code(self, histories: DataFrame) -> DataFrame:
        """client_id, as_of, `by_code`: entries of each known code, and how many codes of each field there are."""
        numbers = self._numbers(self.summed.by_code)
        folded = fold_codes(histories, numbers, self.summed)
        pairs = [(field, code, f"{field}={code}:") for field, kept in self.codes.items() for code in kept]
        known = F.broadcast(small_frame(histories.sparkSession, pairs, "field string, code string, prefix string"))
        values = {"count": F.col("count")} | _values(numbers, ("mean", "std"))
        entries = F.when(F.col("prefix").isNotNull(), _entries(values, F.col("prefix")))
        distinct = {f"{field}:distinct": F.count_if(F.col("field") == field) for field in self.codes}
        return (
            folded.join(known, on=["field", "code"], how="left")
            .groupBy(*KEY)
            .agg(F.concat(F.flatten(F.collect_list(entries)), _entries(distinct)).alias("by_code"))
        )

    def _numbers(self, kinds: Sequence[str]) -> list[Number]:
        """Numbers as features name them: of amounts one a currency."""
        return [one for kind in kinds for one in self._by_currency(kind)]

    def _by_currency(self, kind: str) -> list[Number]:
        if kind not in ("amount", "log_amount") or not self.currencies:
            return [Number(name=kind, kind=kind)]
        if len(self.currencies) == 1:
            return [Number(name=kind, kind=kind, currency=self.currencies[0])]
        return [Number(name=f"{kind} in {one}".replace("`", "'"), kind=kind, currency=one) for one in self.currencies]

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
    keep: Keep,
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
        keep: computes a frame once.
        dictionaries: the `dictionaries` table, for `described`.

    Returns:
        `partials` of all months, and `features` of each set, a row for every row of `as_of`. Facts: `feature_sets`, and
        how many `codes` of each field have features, and of which `currencies` amounts have (none: all are of one).

    Raises:
        ConfigError: `by_code` names a number that there is none of.
        DataError: an attribute that the clients lack.
    """
    events = described(events, conf, dictionaries)
    partials = Partials.of(events, what_is_summed(conf, spec, events), keep=keep)
    histories = partials.histories(as_of)
    training = clients.where("split = 'train'").select("client_id")
    model = Agg.fit(histories.join(training, on="client_id", how="leftsemi"), conf, partials.summed)
    model.save(folder)
    sets = {conf.feature_set: model.transform(histories, as_of)}
    if conf.attributes:
        sets[ATTRIBUTES] = attribute_features(clients, as_of, conf.attributes)
    named = [rows.withColumn("feature_set", F.lit(name)) for name, rows in sets.items()]
    return Made(
        rows_in=as_of.count() * len(sets),
        tables={
            "partials": named_partials(partials.rows, conf),
            "features": Rows(frame=reduce(DataFrame.unionByName, named), slice={"feature_set": conf.feature_sets}),
        },
        main="features",
        artefacts=(folder,),
        facts={
            "feature_sets": list(conf.feature_sets),
            "codes": {field: len(kept) for field, kept in model.codes.items()},
            "currencies": list(model.currencies),
        },
    )


def described(events: DataFrame, conf: AggregateConf, dictionaries: DataFrame | None) -> DataFrame:
    """The events, with the descriptions of codes in place of those that are configured to be read so."""
    for field in conf.described:
        events = with_description(events, dictionaries, field, field)
    return events


def named_partials(rows: DataFrame, conf: AggregateConf, *, differences: bool = False) -> Rows:
    """Partials as rows of their table."""
    named = rows.withColumn("feature_set", F.lit(conf.feature_set))
    return Rows(frame=named, slice={"feature_set": (conf.feature_set,)}, differences=differences)


def _names(chosen: tuple[str, ...] | None, spec: DataSetSpec, kind: str) -> tuple[str, ...]:
    return tuple(field.name for field in spec.fields if field.kind == kind) if chosen is None else chosen


def _currencies(histories: DataFrame, summed: Summed, most: int) -> tuple[str, ...]:
    """The most frequent currencies of amounts in histories, most frequent first; ABSENT for amounts that have none."""
    place = in_doubles(summed.whole).index("amount")
    totals = histories.select(F.explode("totals").alias("part")).select(
        F.lit("currency").alias("field"),
        F.col("part.currency").alias("code"),
        F.col("part.doubles")[place]["events"].alias("events"),
    )
    return tuple(most_frequent(totals.where("events > 0"), most).get("currency", ()))


_ENTRIES = "array<struct<name:string,value:float>>"


def _values(numbers: Sequence[Number], kinds: Sequence[str]) -> dict[str, Column]:
    """Columns of a fold by the names of their features."""
    columns = [f"{one.name}:{kind}" for one in numbers for kind in kinds]
    return {column: F.col(f"`{column}`") for column in columns}


def _entries(values: Mapping[str, Column], prefix: Column | None = None) -> Column:
    """Named values, as array<struct<name, value>>."""
    return F.array(
        *(
            F.struct(
                (F.lit(name) if prefix is None else F.concat(prefix, F.lit(name))).alias("name"),
                F.coalesce(value.cast("float"), F.lit(0.0).cast("float")).alias("value"),
            )
            for name, value in values.items()
        )
    ).cast(_ENTRIES)


def _without_zeros(entries: Column) -> Column:
    return F.map_from_entries(F.filter(entries, lambda entry: entry["value"] != 0))


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
    rows = clients.join(as_of.select(*KEY).distinct(), on="client_id", how="inner")
    return rows.select(*KEY, _without_zeros(F.array(*entries)).alias("features"))
