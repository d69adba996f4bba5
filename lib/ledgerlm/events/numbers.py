"""Numbers written as text: a grammar of signs, groups and decimals, and what a dialect writes around them.

A number is what its grammar takes as a whole, or none: no sign is deleted wherever it stands. Native Spark expressions.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.events.spec_files import FileSpec
from ledgerlm.lake.schemas import AMOUNT, amount_type

_MINUS, _PLUS = "-\u2212\ufe63\uff0d", "+\ufe62\uff0b"
_SPACE = "[ \\u00a0\\u202f\\u2009]"
# Signs that are written for the same group sign.
_GROUPS = {" ": " \u00a0\u202f\u2009", "'": "'\u2019", "\u2019": "'\u2019"}
_PLAIN = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
_LARGEST = 3.4028234e38  # of a float32, in which features are kept
_FITS = r"^[^eE.]*(?:\.[0-9]{0,18}0*)?$"  # at most eighteen places, zeros at the end aside
_MOST_EXPONENT_DIGITS = 15
_NOISE = 1e-15  # relative error of a double that was computed from decimals
_NOISE_PLACES = 9
_LAST_PLACE = Decimal("1e-17")  # one place less than EXACT has, since a sum may need another digit before the point
EXACT = T.DecimalType(38, 18)
"""Numbers whose every digit counts, before they are judged."""


def number(value: Column) -> Column:
    """A double; null where the text is no number in plain form, or one that a float32 cannot hold."""
    return real_number(F.when(value.rlike(_PLAIN), value))


def real_number(value: Column) -> Column:
    """A double; null where a number, typed or a text in plain form, is none that a float32 can hold, or too small."""
    parsed = value.try_cast("double")
    return F.when((F.abs(parsed) <= _LARGEST) & ((parsed != 0) | ~_has_digits(value)), parsed)


def _has_digits(value: Column) -> Column:
    """Whether a number has another digit than 0: one that a double takes for zero need not be it (1e-400)."""
    return value.cast("string").rlike("^[^eE]*[1-9]")


def lost_digits(written: Column, read: Column) -> Column:
    """Whether a number has digits that its double does not print; false of none.

    Args:
        written: text of the number, in any dialect.
        read: the double that was read.
    """
    long = F.length(written) > _MOST_EXPONENT_DIGITS  # so many digits and less a double always keeps
    return F.coalesce(long & (_significant(written) != _significant(read.cast("string"))), F.lit(False))


def _significant(text: Column) -> Column:
    """The digits of a number without zeros at its ends."""
    return F.btrim(F.regexp_replace(F.regexp_replace(text, "[eE].*$", ""), "[^0-9]", ""), F.lit("0"))


def exact_number(value: Column) -> Column:
    """A decimal(38,18) of a number in plain form; one that has more places is no number of few, see `_with_more`."""
    exact = value.try_cast(EXACT)
    # With an exponent: fifteen digits are told apart by their double, so an equal one lost none.
    digits = F.length(F.regexp_replace(F.regexp_replace(value, "[eE].*$", ""), "[^0-9]", ""))
    same = (digits <= _MOST_EXPONENT_DIGITS) & (exact.try_cast("double") == real_number(value))
    return F.when(value.rlike(_FITS) | (value.rlike("[eE]") & same), exact).otherwise(_with_more(exact, value))


def exact_double(value: Column) -> Column:
    """A decimal(38,18) of a double: the digits that it prints; what was computed from decimals is their decimal.

    A double holds some sixteen digits, and the noise of a sum or a product (0.30000000000000004) stands behind them.
    """
    exact = value.try_cast(EXACT)
    near = F.round(exact, _NOISE_PLACES).try_cast(EXACT)
    noisy = F.abs(near.cast("double") - value) <= F.abs(value) * _NOISE
    return F.when(noisy, near).when(exact.cast("double") == value, exact).otherwise(_with_more(exact, value))


def _with_more(rounded: Column, value: Column) -> Column:
    """What stands for a number of more than eighteen places: never one of few places, so that it counts as rounded."""
    more = F.when(value.try_cast("double") < 0, -_LAST_PLACE).otherwise(_LAST_PLACE)
    return (rounded + more).try_cast(EXACT)


def amount_of(exact: Column, scale: int = AMOUNT.scale, *, rounded: bool = False) -> Column:
    """An amount of the type that `scale` asks for; null where the number is too large, or has more places.

    Args:
        exact: decimal(38,18).
        scale: decimal places that are kept.
        rounded: whether more places are rounded away, half up.
    """
    kept = F.round(exact, scale).try_cast(amount_type(scale))
    return kept if rounded else F.when(same(kept, exact), kept)


def same(rounded: Column, exact: Column) -> Column:
    """Whether rounding changed nothing; compared in one type, since Spark shortens what it compares in two."""
    return rounded.try_cast(EXACT) == exact


def product(one: Column, other: Column) -> Column:
    """The exact product of two decimals as a decimal(38,18); null where one has more than six places."""
    left, right = (
        F.when(value.try_cast(kind) == value, value.try_cast(kind))
        for value, kind in ((one, "decimal(22,6)"), (other, "decimal(14,6)"))
    )
    return (left * right).try_cast(EXACT)


def converted(exact: Column, rate: Column) -> Column:
    """An amount times a rate as a decimal(38,18), from exact products; null where either has too many digits.

    Args:
        exact: decimal(38,18).
        rate: text of a number.
    """
    kinds = (("decimal(22,6)", "decimal(15,9)"), ("decimal(18,8)", "decimal(19,6)"))
    products = (
        F.when(same(exact.try_cast(one), exact), exact.try_cast(one))
        * F.when(same(rate.try_cast(other), rate.try_cast(EXACT)), rate.try_cast(other))
        for one, other in kinds
    )
    return F.coalesce(*(one.try_cast(EXACT) for one in products))


def plain_number(value: Column, file: FileSpec) -> tuple[Column, Column]:
    """A number of a file's dialect in plain form (digits, `.`, `-`), and the currency that stands at it.

    Args:
        value: text without outer white space.
        file: the dialect.

    Returns:
        The number as text, null where the text is none; the currency, null where none is written.
    """
    text = F.translate(value, _MINUS[1:] + _PLUS[1:], "-" * (len(_MINUS) - 1) + "+" * (len(_PLUS) - 1))
    none = F.lit(None).cast("string")
    if file.plain_numbers and file.decimal == ".":
        # Nearly all numbers are in plain form; only others are searched for signs of other keyboards.
        return F.when(value.rlike(_PLAIN), value).when(text.rlike(_PLAIN), text), none
    body = _body(file)
    if file.plain_numbers:
        return _cleaned(F.when(text.rlike(rf"^[+-]?{body}(?:[eE][+-]?[0-9]{{1,3}})?$"), text), file), none
    return _dressed(text, body, file)


def _body(file: FileSpec) -> str:
    """Digits with a group sign before exactly three of them, or as in India, and decimals."""
    whole = "[0-9]+"
    if file.thousands:
        sign = f"[{re.escape(_GROUPS.get(file.thousands, file.thousands))}]"
        whole = rf"(?:[1-9][0-9]{{0,2}}(?:{sign}[0-9]{{3}})+|[0-9]+)"
        if file.thousands == ",":  # 2,45,500: lakhs and crores
            whole = whole.replace("|", "|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}|")
    decimal = re.escape(file.decimal)
    return rf"(?:{whole}(?:{decimal}[0-9]*)?|{decimal}[0-9]+)"


def _cleaned(text: Column, file: FileSpec) -> Column:
    groups = _GROUPS.get(file.thousands, file.thousands)
    text = F.translate(text, groups, "") if groups else text
    return F.translate(text, file.decimal, ".") if file.decimal != "." else text


def _dressed(text: Column, body: str, file: FileSpec) -> tuple[Column, Column]:
    """A number with what may stand around it: one sign, parentheses, a currency, a mark of its direction."""
    words = sorted((*file.currency_signs, *file.marks), key=len, reverse=True)
    affix = f"({'|'.join(re.escape(word) for word in words)})?" if words else "()"
    tail = "([+-])?" if file.trailing_minus else "()"
    inner = f"([+-])?{_SPACE}*{affix}{_SPACE}*([+-])?{_SPACE}*({body}){_SPACE}*{tail}{_SPACE}*{affix}"
    bare = f"^{inner}{_SPACE}*{affix}$"
    closed = rf"^{affix}{_SPACE}*\({_SPACE}*{affix}{_SPACE}*({body}){_SPACE}*{affix}{_SPACE}*\){_SPACE}*{affix}$"
    number_text, currency = _read(text, _Groups(bare, (2, 6, 7), (1, 3, 5), 4), file)
    if file.parentheses:
        inside, code = _read(text, _Groups(closed, (1, 2, 4, 5), (), 3), file)
        number_text, currency = F.coalesce(number_text, inside), F.coalesce(currency, code)
    return number_text, currency


class _Groups(NamedTuple):
    """A pattern of a number, and which of its groups are words, signs and digits; without signs it is negative."""

    pattern: str
    affixes: tuple[int, ...]
    signs: tuple[int, ...]
    digits: int


def _read(text: Column, form: _Groups, file: FileSpec) -> tuple[Column, Column]:
    """Number and currency of a text that meets a pattern; null of others."""
    words = F.array(*(F.regexp_extract(text, form.pattern, place) for place in form.affixes))
    signs = F.array(*(F.regexp_extract(text, form.pattern, place) for place in form.signs), F.lit(""))
    written = F.filter(signs, lambda sign: sign != "") if form.signs else F.array(F.lit("-"))
    directions = F.concat(written, _found(words, dict(file.marks)))
    currencies = F.array_distinct(_found(words, file.currency_signs))
    clear = text.rlike(form.pattern) & (F.size(directions) <= 1) & (F.size(currencies) <= 1)
    minus = F.when(F.array_contains(directions, "-"), "-").otherwise("")
    value = F.concat(minus, _cleaned(F.regexp_extract(text, form.pattern, form.digits), file))
    return F.when(clear, value), F.when(clear, F.try_element_at(currencies, F.lit(1)))


def _found(words: Column, meanings: dict[str, str]) -> Column:
    """What those of the words mean that mean anything, in order."""
    if not meanings:
        return F.array().cast("array<string>")
    known = F.create_map(*(F.lit(part) for pair in meanings.items() for part in pair))
    return F.filter(F.transform(words, lambda word: F.try_element_at(known, word)), lambda one: one.isNotNull())
