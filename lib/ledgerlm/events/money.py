"""Amounts of several currencies, which are never added up."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import DataError

_SHOWN = 4  # currencies that a message names


def currency_of(text: Column, signs: Mapping[str, str]) -> Column:
    """The currency that a text names, in upper case; null for null.

    Args:
        text: a code or a sign, without outer white space.
        signs: sign or code, in any case, to currency.
    """
    code = F.upper(text)
    if not signs:
        return code
    known = {sign.upper(): currency for sign, currency in signs.items()} | dict(signs)
    names = F.create_map(*(F.lit(part) for pair in known.items() for part in pair))
    return F.coalesce(F.try_element_at(names, text), F.try_element_at(names, code), code)


def currencies(events: DataFrame, most: int) -> list[str | None]:
    """The currencies of amounts, by name; at most so many. None is an amount that has none."""
    found = events.where("amount IS NOT NULL").select("currency").distinct().orderBy("currency").limit(most)
    return [row["currency"] for row in found.collect()]


def one_currency(events: DataFrame, what: str, otherwise: str) -> None:
    """Refuses to add up amounts of several currencies.

    Args:
        events: those whose amounts are added.
        what: what adds them, for the message.
        otherwise: what else than `amount.convert` mends it.

    Raises:
        DataError: naming the currencies and what to do.
    """
    found = [name or "none" for name in currencies(events, _SHOWN + 1)]
    if len(found) > 1:
        listed = ", ".join(found[:_SHOWN]) + (" ..." if len(found) > _SHOWN else "")
        raise DataError(
            f"{what}: amounts of several currencies ({listed}) cannot be added up; give rates under 'amount.convert' "
            f"of the data set spec, or {otherwise}"
        )
