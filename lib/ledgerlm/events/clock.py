"""What a clock in the zone of a data set shows: hours, days, and instants without a zone of their own."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pyspark.sql import functions as F

from ledgerlm.events.condition import Condition
from ledgerlm.events.patterns import ZONE, offset_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from ledgerlm.events.spec import DataSetSpec


def zoned(time: Column, zone: str | Column | None) -> Column:
    """The instant at which a clock in the zone shows a time; null where the zone is."""
    return time if zone is None or (isinstance(zone, str) and zone == "UTC") else F.to_utc_timestamp(time, zone)


def known_zone(zone: Column) -> Column:
    """The zone of a row; null where it is none, or means several."""
    # Spark is asked, since its list of regions may be of another year than Python's.
    taken = F.concat(F.lit("2000-01-01 00:00:00 "), zone).try_cast("timestamp").isNotNull()
    return F.when(zone.rlike(ZONE) & taken, zone)


def local(time: Column, zone: str | Column) -> Column:
    """What a clock in the zone shows at an instant."""
    return time if isinstance(zone, str) and zone == "UTC" else F.from_utc_timestamp(time, zone)


def aware(time: dt.datetime, zone: str) -> dt.datetime:
    """A time without a zone as that of a clock in the data's; without a change where that is UTC."""
    return time if time.tzinfo or zone == "UTC" else time.replace(tzinfo=offset_of(zone))


def instant(time: dt.datetime, zone: str) -> dt.datetime:
    """A time with a zone: its own, or the data's."""
    found = aware(time, zone)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def in_zone(value: Any, zone: str) -> Any:
    """A setting in which each time without a zone, in conditions too, is that of the data's clock, however deep."""
    if isinstance(value, dt.datetime):
        return aware(value, zone)
    if isinstance(value, Condition):
        return value if value.zone == zone else Condition(value, zone)
    if isinstance(value, BaseModel):
        found = {name: in_zone(getattr(value, name), zone) for name in type(value).model_fields}
        changed = {name: one for name, one in found.items() if one is not getattr(value, name)}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, Mapping):
        mapped = {key: in_zone(one, zone) for key, one in value.items()}
        return mapped if any(mapped[key] is not one for key, one in value.items()) else value
    if isinstance(value, tuple | list):
        listed = [in_zone(one, zone) for one in value]
        return type(value)(listed) if any(new is not old for new, old in zip(listed, value, strict=True)) else value
    return value


def fixed_instant(time: dt.datetime, zone: str) -> Column:
    """A timestamp; a time without a zone is taken in `zone`."""
    return F.lit(aware(time, zone).isoformat(sep=" ")).cast("timestamp")


def has_time_of_day(time: Column, zone: str) -> Column:
    """Whether a clock in the zone shows another time than midnight."""
    shown = local(time, zone)
    return F.coalesce(shown != F.date_trunc("day", shown), F.lit(False))


def with_clock(spec: DataSetSpec, events: DataFrame) -> DataSetSpec:
    """The spec, with `time.clock` as the events have it where spec and format leave it open.

    Dates alone are midnights to a reader; an hour that is always 0 tells nothing and is not told.

    Args:
        spec: the data set.
        events: the `events` table; looked at up to its first time of day, and only if the spec leaves it open.
    """
    if spec.time.clock is not None or not spec.time.has_clock:
        return spec
    clock = not events.where(has_time_of_day(F.col("event_time"), spec.time.zone)).limit(1).isEmpty()
    return spec.model_copy(update={"time": spec.time.model_copy(update={"clock": clock})})
