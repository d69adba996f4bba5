"""The days of a simulation as literal arrays: month, weekday, holidays, paydays, by day since the first."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from ledgerlm.events.simulator.clients import SimulatorConf
from ledgerlm.events.simulator.draws import lookup

PAYDAY = 25  # day of the month on which salaries come


@dataclass(frozen=True, slots=True)
class Calendar:
    """Days of a simulation.

    Attributes:
        days: every day, the future part included.
        past: number of days before as_of.
        first_of_month: index of the first day of each simulated month, which begins on the day of the month of as_of.
        country: ISO code of the country whose holidays count.
    """

    days: tuple[dt.date, ...]
    past: int
    first_of_month: tuple[int, ...]
    country: str

    def month(self, day: Column) -> Column:
        """Month (1 to 12) of a day index."""
        return lookup([date.month for date in self.days], day)

    def since_saturday(self, day: Column) -> Column:
        """Days since the last Saturday: 0 on Saturday, 1 on Sunday, up to 6."""
        return F.pmod(day + F.lit((self.days[0].weekday() + 2) % 7), F.lit(7))

    def is_holiday(self, day: Column) -> Column:
        """Whether a day index is a public holiday."""
        import holidays

        closed = holidays.country_holidays(self.country, years=sorted({date.year for date in self.days}))
        return day.isin([index for index, date in enumerate(self.days) if date in closed])

    def last_payday(self, day: Column) -> Column:
        """Index of the last payday up to a day; negative when it was before the first day."""
        return lookup([self._payday_before(date) for date in self.days], day)

    def month_start(self, month: Column) -> Column:
        """Index of the first day of a simulated month (from 0)."""
        return lookup(self.first_of_month, month)

    def at(self, day: Column, second: Column) -> Column:
        """The timestamp (UTC) of a second of a day."""
        start = int(dt.datetime.combine(self.days[0], dt.time(), tzinfo=dt.UTC).timestamp())
        return F.timestamp_seconds(F.lit(start) + day.cast("long") * F.lit(86_400) + second.cast("long"))

    def _payday_before(self, date: dt.date) -> int:
        month = date if date.day >= PAYDAY else date.replace(day=1) - dt.timedelta(days=1)
        return (month.replace(day=PAYDAY) - self.days[0]).days


def calendar_of(conf: SimulatorConf, country: str) -> Calendar:
    """The days from `months` before as_of to `future_months` after it."""
    starts = [_add_months(conf.as_of, offset) for offset in range(-conf.months, conf.future_months + 1)]
    total = (starts[-1] - starts[0]).days
    return Calendar(
        days=tuple(starts[0] + dt.timedelta(days=index) for index in range(total)),
        past=(conf.as_of - starts[0]).days,
        first_of_month=tuple((start - starts[0]).days for start in starts[:-1]),
        country=country,
    )


def _add_months(date: dt.date, months: int) -> dt.date:
    year, month = divmod(date.year * 12 + date.month - 1 + months, 12)
    return date.replace(year=year, month=month + 1)
