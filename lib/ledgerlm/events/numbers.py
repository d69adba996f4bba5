"""Numbers written as text: a grammar of signs, groups and decimals, and what a dialect writes around them.

A number is what its grammar takes as a whole, or none: no sign is deleted wherever it stands. Native Spark expressions.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyspark.sql import Column
from pyspark.sql import functions as F

from ledgerlm.events.spec_files import FileSpec
from ledgerlm.lake.schemas import AMOUNT

_MINUS, _PLUS = "-\u2212\ufe63\uff0d", "+\ufe62\uff0b"
_SPACE = "[ \\u00a0\\u202f\\u2009]"
# Signs that are written for the same group sign.
_GROUPS = {" ": " \u00a0\u202f\u2009", "'": "'\u2019", "\u2019": "'\u2019"}
_PLAIN = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
_LARGEST = 3.4028234e38  # of a float32, in which features are kept
_MOST_EXPONENT_DIGITS = 14


def number(value: Column) -> Column:
    """A double; null where the text is no number in plain form, or one that a float32 cannot hold."""
    parsed = F.when(value.rlike(_PLAIN), value.try_cast("double"))
    return F.when(F.abs(parsed) <= _LARGEST, parsed)


def fits(value: Column, scale: int) -> Column:
    """Whether a number in plain form has no more decimal places than `scale`, zeros at the end aside."""
    exponent = value.rlike("[eE]")
    short = F.length(F.regexp_replace(F.regexp_replace(value, "[eE].*$", ""), "[^0-9]", "")) <= _MOST_EXPONENT_DIGITS
    wide = value.try_cast("decimal(38,18)")
    zero = (wide == 0) & value.rlike("^[^eE]*[1-9]")
    whole = short & ~zero & (wide == F.round(wide, scale))
    return F.when(exponent, F.coalesce(whole, F.lit(False))).otherwise(value.rlike(rf"^[^.]*\.?[0-9]{{0,{scale}}}0*$"))


def decimal_amount(value: Column, scale: int = AMOUNT.scale, *, rounded: bool = False) -> Column:
    """A decimal(18,4); null where the text is no number in plain form, too large, or has more places than `scale`.

    Args:
        value: string column.
        scale: decimal places that are kept.
        rounded: whether more places are rounded away, half up.
    """
    amount = F.when(value.rlike(_PLAIN), value)
    if rounded:
        return F.round(amount.try_cast("decimal(38,18)"), scale).try_cast(AMOUNT)
    return F.when(fits(amount, scale), amount.try_cast(AMOUNT))


def product(one: Column, other: Column, scale: int = AMOUNT.scale, *, rounded: bool = False) -> Column:
    """The product of two numbers in plain form as a decimal(18,4); null as for `decimal_amount`.

    Each may have six decimal places, so that the product is exact before it is judged.
    """
    left, right = (
        F.when(value.rlike(_PLAIN) & fits(value, 6), value.try_cast(kind))
        for value, kind in ((one, "decimal(22,6)"), (other, "decimal(14,6)"))
    )
    exact = left * right
    kept = F.round(exact, scale)
    return (kept if rounded else F.when(kept == exact, kept)).try_cast(AMOUNT)


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
        return F.when(text.rlike(_PLAIN), text), none
    body = _body(file)
    if file.plain_numbers:
        return _cleaned(F.when(text.rlike(rf"^[+-]?{body}(?:[eE][+-]?[0-9]{{1,3}})?$"), text), file), none
    return _dressed(text, body, file)


def _body(file: FileSpec) -> str:
    """Digits with a group sign before exactly three of them, and decimals."""
    whole = "[0-9]+"
    if file.thousands:
        sign = f"[{re.escape(_GROUPS.get(file.thousands, file.thousands))}]"
        whole = rf"(?:[1-9][0-9]{{0,2}}(?:{sign}[0-9]{{3}})+|[0-9]+)"
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
