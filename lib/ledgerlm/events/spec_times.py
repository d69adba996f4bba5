"""The part of a data set spec that says when something happened, and how that is written."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

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
        "case; second 60 is read as 59",
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
        description="time zone of the data: of times that carry none, and of the hours, weekdays and dates told",
    )
    zone_column: str | None = Field(
        None,
        description="column with the time zone of each row (Europe/Berlin, +02:00), where rows have their own; an "
        "empty one is `zone`, an unknown one a bad time",
    )
    pivot: int = Field(1970, description="first year that a two-digit year can mean")
    earliest: dt.date | None = Field(
        None,
        description="events before it go to quarantine; left out, 1900, and 1971 for epochs, which another unit than "
        "the true one puts into January 1970",
    )
    far_future: dt.date = Field(dt.date(2100, 1, 1), description="events at or after it go to quarantine")
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
