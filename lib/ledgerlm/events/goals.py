"""Next goals: rules turn the events after a cut into what the client did first within a horizon."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.frames import small_frame
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.clock import local, zoned
from ledgerlm.events.condition import Condition
from ledgerlm.events.dictionaries import with_description
from ledgerlm.events.ends import end_of_data
from ledgerlm.events.spec_times import UTC_TIME, TimeSpec

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

NONE = "none"
_ORDER = ("event_time", "event_seq", "event_id")
_SHOWN = "_shown"  # the time of an event on the clock of the data's zone


class GoalRule(Conf):
    """What makes an event reach a goal; all conditions must hold."""

    name: str = Field(min_length=1, description="the goal, also the text of its label")
    fields: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="event field -> descriptions (or codes, where it has no dictionary)"
    )
    amount: Literal["in", "out", "any"] = Field("any", description="out: amount below zero; in: above zero")
    when: Condition | None = Field(
        None, description="SQL condition over event columns; FIELD_text is the description of a field named in a rule"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.fields and self.when is None:
            raise ValueError(f"goal {self.name}: give fields, when, or both")
        return self


class CutsConf(Conf):
    """The instants (midnights in time.zone) that part what is known from what is to come, the same for all clients."""

    dates: tuple[dt.date, ...] = Field((), description="days, or else first, last and every_months")
    first: dt.date | None = Field(None, description="first day of a sliding cut")
    last: dt.date | None = Field(None, description="no cut after it")
    every_months: int = Field(1, ge=1, description="months between sliding cuts")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        sliding = self.first is not None and self.last is not None
        if bool(self.dates) == sliding or (self.first is None) != (self.last is None):
            raise ValueError("give either dates, or first and last")
        if self.first is not None and self.first.day > 28:
            raise ValueError(f"first must be on day 1 to 28 of a month, not {self.first}")
        return self

    def days(self) -> list[dt.date]:
        """The cuts, ascending."""
        if self.first is None or self.last is None:
            return sorted(set(self.dates))
        found, months = [], self.first.year * 12 + self.first.month - 1
        while (day := dt.date(months // 12, months % 12 + 1, self.first.day)) <= self.last:
            found.append(day)
            months += self.every_months
        return found


class GoalsConf(Conf):
    """Goals from events: what a client does first after a cut, or nothing of it."""

    task: str = Field("next_goal", description="the tasks are TASK_30d, TASK_90d ... by horizon")
    rules: tuple[GoalRule, ...] = Field(min_length=1, description="the goals; an event reaches the first that fits")
    horizons: tuple[int, ...] = Field((30,), min_length=1, description="days after the cut in which a goal counts")
    cuts: CutsConf = Field(description="when")
    min_events: int = Field(1, ge=1, description="events before the cut that a client must have")
    none: bool = Field(True, description="label clients who reach no goal as 'none'; else they have no label")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names) or NONE in names:
            raise ValueError(f"goals {', '.join(names)}: names must differ, and '{NONE}' is the class of no goal")
        if min(self.horizons) < 1:
            raise ValueError(f"horizons {self.horizons} must be one day or more")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Text of each label, in the order of the numbers."""
        return (*(rule.name for rule in self.rules), *((NONE,) if self.none else ()))


def task_name(conf: GoalsConf, horizon: int) -> str:
    """Name of the task of one horizon, such as `next_goal_30d`."""
    return f"{conf.task}_{horizon}d"


def with_goal(events: DataFrame, rules: Sequence[GoalRule], dictionaries: DataFrame | None = None) -> DataFrame:
    """Adds `goal` int to each event: the place of the first rule that it fits, null for none.

    Args:
        events: the `events` table.
        rules: the goals.
        dictionaries: the `dictionaries` table; a field named in a rule is matched by its description, so that banks
            with codes of their own share the rules.

    Raises:
        ConfigError: for a field that events lack.
    """
    named = list(dict.fromkeys(field for rule in rules for field in rule.fields))
    if unknown := set(named) - set(events.columns):
        raise ConfigError(f"goals: no event field {', '.join(sorted(unknown))}; there are {', '.join(events.columns)}")
    described = reduce(lambda rows, field: with_description(rows, dictionaries, field, f"{field}_text"), named, events)
    plain = _plain(rules)
    for place, (field, texts) in enumerate(plain.items()):
        # By a join, since rules may be as many as a dictionary has codes: no expression may grow with it.
        known = small_frame(events.sparkSession, [*texts.items()], f"{field}_text string, _goal{place} int")
        described = described.join(F.broadcast(known), on=f"{field}_text", how="left")
    conditions = {place: rule.when for place, rule in enumerate(rules) if rule.when is not None}
    for place, condition in conditions.items():
        described = condition.marked(described, f"_when{place}", f"goal {rules[place].name}: when")
    others = [F.when(_fits(rule, place), place) for place, rule in enumerate(rules) if not _is_plain(rule)]
    found = [*(F.col(f"_goal{place}") for place in range(len(plain))), *others]
    nothing = F.lit(None).cast("int")
    goal = F.least(nothing, nothing, *found)  # of those that are there
    return described.withColumn("goal", goal).drop(
        *(f"{field}_text" for field in named),
        *(f"_goal{place}" for place in range(len(plain))),
        *(f"_when{place}" for place in conditions),
    )


def _is_plain(rule: GoalRule) -> bool:
    """Whether a rule only asks for texts of one field."""
    return len(rule.fields) == 1 and rule.when is None and rule.amount == "any"


def _plain(rules: Sequence[GoalRule]) -> dict[str, dict[str, int]]:
    """Field -> text -> place of the first plain rule that names it."""
    found: dict[str, dict[str, int]] = {}
    for place, rule in enumerate(rules):
        if _is_plain(rule):
            field, texts = next(iter(rule.fields.items()))
            for text in texts:
                found.setdefault(field, {}).setdefault(text, place)
    return found


def _fits(rule: GoalRule, place: int) -> Column:
    parts = [F.col(f"{field}_text").isin(list(texts)) for field, texts in rule.fields.items()]
    parts += [F.col(f"_when{place}")] if rule.when is not None else []
    sign = {"in": F.col("amount") > 0, "out": F.col("amount") < 0}
    parts += [sign[rule.amount]] if rule.amount != "any" else []
    return reduce(lambda one, other: one & other, parts)


def goal_labels(
    events: DataFrame,
    clients: DataFrame,
    conf: GoalsConf,
    dictionaries: DataFrame | None = None,
    *,
    time: TimeSpec = UTC_TIME,
) -> DataFrame:
    """Labels each client at each cut with the goal reached first in the horizon.

    History is what lies before the cut; an event at the very instant of the cut belongs to what is to come. A cut whose
    horizon reaches beyond the end of the data gets no label, since what came is not known.

    Args:
        events: the `events` table.
        clients: the `clients` table; others' events are left out.
        conf: goals, horizons and cuts.
        dictionaries: as for `with_goal`.
        time: the data set's, for the zone of cuts and days, and the end of its data.

    Returns:
        client_id, task, as_of, label (place of the goal in `conf.classes`), label_text; key (client_id, task, as_of).
    """
    cuts = [F.lit(f"{day} 00:00:00").cast("timestamp") for day in conf.cuts.days()]
    own = events.join(clients.select("client_id"), on="client_id", how="leftsemi")
    own = own.withColumn(_SHOWN, local(F.col("event_time"), time.zone))
    asked = _asked(own, cuts, conf, _end(own, time))
    reached = with_goal(own, conf.rules, dictionaries).where("goal IS NOT NULL")
    later = reached.withColumn("cut", F.explode(_cuts_before(cuts, max(conf.horizons))))
    firsts = later.groupBy("client_id", "cut").agg(F.min(F.struct(*_ORDER, _SHOWN, "goal")).alias("first"))
    found = asked.join(firsts, on=["client_id", "cut"], how="left")
    inside = F.col(f"first.{_SHOWN}") < F.col("cut") + F.make_dt_interval(F.col("horizon"))
    place = F.when(inside, F.col("first.goal"))
    labelled = found.withColumn("place", F.coalesce(place, F.lit(len(conf.rules))) if conf.none else place)
    names = F.array(*(F.lit(name) for name in conf.classes))
    return labelled.where("place IS NOT NULL").select(
        "client_id",
        F.concat(F.lit(f"{conf.task}_"), F.col("horizon").cast("string"), F.lit("d")).alias("task"),
        zoned(F.col("cut"), time.zone).alias("as_of"),
        F.col("place").cast("double").alias("label"),
        F.get(names, F.col("place")).alias("label_text"),
    )


def _end(events: DataFrame, time: TimeSpec) -> Column:
    """The end of the data as a clock in their zone shows it."""
    end = F.lit(end_of_data(events, time).time.isoformat(sep=" ")).cast("timestamp")
    return local(end, time.zone)


def count_goals(labels: DataFrame, clients: DataFrame) -> dict[str, dict[str, Any]]:
    """How many labels there are.

    Args:
        labels: from `goal_labels`.
        clients: the `clients` table.

    Returns:
        Of each task `candidates` and `kept`, which are the same; `dropped`, nothing; `labels`: of each class those of
        `train` and `test` clients.

    Raises:
        DataError: there are none.
    """
    of_split = labels.join(clients.select("client_id", "split"), on="client_id", how="inner")
    found: dict[str, dict[str, Any]] = {}
    for row in of_split.groupBy("task", "label_text", "split").count().orderBy("task", "label_text").collect():
        one = found.setdefault(row["task"], {"candidates": 0, "kept": 0, "dropped": {}, "labels": {}})
        one["labels"].setdefault(row["label_text"], {"train": 0, "test": 0})[row["split"]] = row["count"]
        one["candidates"] += row["count"]
        one["kept"] += row["count"]
    if not found:
        raise DataError("goals: no client has enough events before a cut whose horizon the events cover; see cuts")
    return found


def _cuts_before(cuts: Sequence[Column], horizon: int) -> Column:
    """The cuts that an event is to come for, within the horizon."""
    reach = F.make_dt_interval(F.lit(horizon))
    time = F.col(_SHOWN)
    return F.filter(F.array(*cuts), lambda cut: (cut <= time) & (time < cut + reach))


def _asked(events: DataFrame, cuts: Sequence[Column], conf: GoalsConf, end: Column) -> DataFrame:
    """client_id, cut, horizon: what is asked of clients with enough history, where the answer is known."""
    counts = [F.struct(cut.alias("cut"), F.count_if(F.col(_SHOWN) < cut).alias("before")) for cut in cuts]
    histories = events.groupBy("client_id").agg(F.array(*counts).alias("cuts"))
    each = histories.select("client_id", F.explode("cuts").alias("one")).where(F.col("one.before") >= conf.min_events)
    horizons = F.array(*(F.lit(days) for days in conf.horizons))
    asked = each.select("client_id", F.col("one.cut").alias("cut"), F.explode(horizons).alias("horizon"))
    return asked.where(F.col("cut") + F.make_dt_interval(F.col("horizon")) <= end)
