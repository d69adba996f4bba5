"""The part of a data set spec that says when something happened, and how that is written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from ledgerlm.events.clock import aware
from ledgerlm.events.patterns import EPOCH_DIGITS, check_format, check_zone
from ledgerlm.events.spec_files import SpecPart

Format = Annotated[str, AfterValidator(check_format)]
Zone = Annotated[str, AfterValidator(check_zone)]
FILE_ORDER = "file"
"""The word of `time.order` that means the order in the files."""


class TimeSpec(SpecPart):
    """The time of an event, and how it is written. Times without a zone are taken in `zone`."""

    column: str = Field("", description="column of the time")
    columns: tuple[str, ...] = Field(
        (), description="in place of column: several that `format` reads joined by a blank, such as a date and a time"
    )
    format: Format = Field(
        "timestamp",
        description="timestamp (typed, or ISO 8601 text), epoch, epoch_ms, epoch_us or epoch_ns (seconds to "
        "nanoseconds since 1970), days (since origin, fractions allowed), days_clock (day number and hh:mm:ss), "
        "days_before (whole days back from origin), or a Spark pattern such as yyMMdd. Month names may be in any "
        "case; second 60 behind a colon is read as 59, digits beyond the microsecond are cut, and both are counted",
    )
    origin: dt.date | None = Field(None, description="day 0 of the formats days, days_clock and days_before")
    hour: str | None = Field(
        None, description="column with the hour of the day, 0 to 23, added to a time of whole days"
    )
    calendar: bool = Field(
        True,
        description="whether weekdays and dates mean something; false where each client's days are counted from an "
        "unknown day: then texts show gaps in days and no weekday or date unless asked",
    )
    zone: Zone = Field(
        "UTC",
        description="time zone of the data: of times that carry none, and of the hours, weekdays and dates told. Of an "
        "hour that the clock shows twice in autumn the earlier is taken, and counted",
    )
    zone_column: str | None = Field(
        None,
        description="column with the time zone of each row (Europe/Berlin, +02:00, UTC+2, Z), where rows have their "
        "own; an empty one is `zone`, another (CST, which means several) a bad time. Days without a time of day are "
        "those of `zone`, unless `clock` is true",
    )
    pivot: int = Field(1970, description="first year that a two-digit year can mean")
    earliest: dt.date | None = Field(
        None,
        description="events before it go to quarantine; left out, 1900, and 1971 for epochs, which another unit than "
        "the true one puts into January 1970",
    )
    far_future: dt.date = Field(dt.date(2100, 1, 1), description="events at or after it go to quarantine")
    end: dt.datetime | None = Field(
        None,
        description="instant up to which the data are complete (2024-06-01: its midnight): labels that look beyond it "
        "are left out, and histories without an as_of end there. Left out, midnight after the last event that does not "
        "stand alone: at most one in a thousand (or a single one) that come more than a year after all others count "
        "for nothing",
    )
    order: str | None = Field(
        None,
        description="numeric column that orders events of the same instant, or `file`: as they stand in the files; "
        "else event id. Values that are no number come first and are counted",
    )
    clock: bool | None = Field(None, description="whether there is a time of day; left out, the format decides")

    @model_validator(mode="after")
    def _origin_given(self) -> Self:
        if self.format in ("days", "days_clock", "days_before") and self.origin is None:
            raise ValueError(f"format {self.format} counts from a day: give 'origin', such as 2015-01-01")
        if bool(self.column) == bool(self.columns):
            raise ValueError("give 'column' or 'columns'")
        return self

    @field_validator("end")
    @classmethod
    def _in_zone(cls, end: dt.datetime | None, info: ValidationInfo) -> dt.datetime | None:
        return end if end is None or "zone" not in info.data else aware(end, info.data["zone"])

    @property
    def first_day(self) -> dt.date:
        """`earliest`, or what stands for it."""
        return self.earliest or dt.date(1971 if self.format in EPOCH_DIGITS else 1900, 1, 1)

    @property
    def parts(self) -> tuple[str, ...]:
        """The columns that make up the time."""
        return self.columns or (self.column,)

    @property
    def has_clock(self) -> bool:
        """Whether the data have a time of day."""
        if self.clock is not None:
            return self.clock
        if self.format in ("timestamp", "days_clock", *EPOCH_DIGITS):
            return True
        if self.hour or self.format in ("days", "days_before"):
            return self.hour is not None
        return any(letter in self.format for letter in "HhKk")


UTC_TIME = TimeSpec(column="event_time")
"""What holds where nothing is said of the time."""


class GridSpec(SpecPart):
    """A grid of instants, midnights in time.zone: a label as of each, for training on many months and backtests."""

    every: Literal["week", "month", "quarter", "year"] = Field(description="step of the grid")
    first: dt.date = Field(alias="from", description="first day; of month, quarter and year its day is 1 to 28")
    to: dt.date | None = Field(
        None, description="no instant after it; left out, up to the last whose days the data cover"
    )

    @model_validator(mode="after")
    def _days_exist(self) -> Self:
        if self.every != "week" and self.first.day > 28:
            raise ValueError(f"from must be on day 1 to 28 of a month, not {self.first}")
        if self.to is not None and self.to < self.first:
            raise ValueError(f"to ({self.to}) lies before from ({self.first})")
        return self


class AsOfSpec(SpecPart):
    """Instant of a label that stands in a column; only events before it belong to the history."""

    column: str = Field(description="column of the instant")
    format: Format = Field("timestamp", description="as time.format")
    origin: dt.date | None = Field(None, description="as time.origin")
    pivot: int = Field(1970, description="as time.pivot")
    zone: Zone | None = Field(None, description="time zone of instants that carry none; left out, time.zone")
    start_of: Literal["month"] | None = Field(None, description="month: the first day of the month that is named")
    hours: float = Field(0.0, description="hours added to the instant, such as the first day of a stay in hospital")

    @model_validator(mode="after")
    def _origin_given(self) -> Self:
        if self.format in ("days", "days_clock", "days_before") and self.origin is None:
            raise ValueError(f"format {self.format} counts from a day: give 'origin', such as 2015-01-01")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, GridSpec) or (isinstance(value, Mapping) and "every" in value):
        return "grid"
    return "column" if isinstance(value, AsOfSpec | Mapping) else "time"


AsOf = Annotated[
    Annotated[dt.datetime, Tag("time")] | Annotated[AsOfSpec, Tag("column")] | Annotated[GridSpec, Tag("grid")],
    Discriminator(_kind),
]
"""An instant, the column of it, or a grid (which has `every`)."""
