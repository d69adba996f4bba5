"""How numbers are written as text: which sign is the decimal mark, and what stands around the digits.

One sign before exactly three digits (`1.234`) can mean either, so it decides nothing: other values of the file must.
Reported of other readers: `1.000` beside `1.111,11` read as 1 (actualbudget/actual #2143), `25,000` as 25
(securo-finance/securo #665).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from ledgerlm.events.guesses.columns import CACHED, Column
from ledgerlm.events.guesses.words import CURRENCIES, MARKS, SIGNS

_TEXTS = 1 << 17  # that are taken apart once
_MOSTLY = 0.95  # a column of numbers may hold some that are none
_DASHES = str.maketrans("\u2212\ufe63\uff0d\ufe62\uff0b", "---++")
_BLANKS = " \u00a0\u202f\u2009"
_AFFIX = r"[^\d\s()+\-.,'’]{1,4}|R\$|US\$"
_NUMBER = re.compile(
    rf"(?P<open>\()?\s*(?P<s1>[+-])?\s*(?P<a1>{_AFFIX})?\s*(?P<s2>[+-])?\s*"
    rf"(?P<body>\.?,?\d(?:[\d.,'’{_BLANKS}]*\d)?[.,]?)(?P<exp>[eE][+-]?\d{{1,3}})?\s*(?P<s3>-)?\s*"
    rf"(?P<a2>{_AFFIX})?\.?\s*(?P<a3>{_AFFIX})?\s*(?P<close>\))?"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What one text says as a number.

    Attributes:
        digits: parts between the signs inside.
        signs: signs inside, in order.
        minus: whether it is negative.
        form: of `(`, `-` behind: what else shows that it is.
        words: currencies and marks at it.
    """

    digits: tuple[str, ...]
    signs: tuple[str, ...]
    minus: bool
    form: str
    words: tuple[str, ...]


@dataclass(kw_only=True)
class Evidence:
    """What values say of a file's numbers.

    Attributes:
        decimal: sign -> values in which it can only be the decimal mark.
        groups: sign -> values in which it can only set groups of digits apart.
        either: sign -> values in which it can be both.
        examples: sign and role -> one such value.
        forms: `(`, `-` and words at numbers -> values.
    """

    decimal: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    either: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    forms: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, count: int) -> None:
        """Takes one value in."""
        number = written(text)
        if number is None:
            return
        for one in (number.form, *number.words):
            if one:
                self.forms[one] += count
                self.examples.setdefault(("form", one), text)
        for role, sign in _roles(number):
            getattr(self, role)[sign] += count
            self.examples.setdefault((role, sign), text)


@lru_cache(_TEXTS)
def written(text: str) -> Written | None:
    """Takes a number apart; None of a text that is none in any way of writing."""
    found = _NUMBER.fullmatch(text.strip().translate(_DASHES))
    if found is None or (found["open"] is None) != (found["close"] is None):
        return None
    words = tuple(word for word in (found["a1"], found["a2"], found["a3"]) if word)
    if any(word not in SIGNS and word.upper() not in CURRENCIES and word not in MARKS for word in words):
        return None
    letters = [word for word in words if word in MARKS and len(word) == 1]
    if letters and not re.search(rf"\d [{''.join(letters)}]$", text.strip()):
        return None  # `12.50 D` is a number, the code `D12` none
    if found["exp"] and not re.fullmatch(r"\d*[.,]?\d*", found["body"]):
        return None
    body = re.sub(f"[{_BLANKS}]", " ", found["body"]).replace("’", "'")
    signs = tuple(re.findall(r"[^\d]", body))
    digits = tuple(re.split(r"[^\d]", body))
    minus = "-" in (found["s1"], found["s2"], found["s3"]) or found["open"] is not None
    form = "(" if found["open"] else "-" if found["s3"] else ""
    one = Written(digits=digits, signs=signs, minus=minus, form=form, words=words)
    return one if len(set(signs)) <= 2 and _sound(one) else None


def _sound(number: Written) -> bool:
    """Whether the signs inside can be groups of three digits and a decimal mark."""
    if len(number.signs) <= 1:
        return number.signs[:1] not in ((" ",), ("'",)) or (len(number.digits[1]) == 3 and bool(number.digits[0]))
    groups = number.digits[1:-1] if number.signs[-1] != number.signs[0] else number.digits[1:]
    one_group = len(set(number.signs[:-1])) == 1
    sizes = [len(group) for group in groups]
    # 2,45,500.00: lakhs and crores.
    indian = number.signs[0] == "," and sizes == [2] * (len(sizes) - 1) + [3]
    return one_group and 1 <= len(number.digits[0]) <= 3 and (indian or sizes == [3] * len(sizes))


def _roles(number: Written) -> Iterable[tuple[str, str]]:
    """What the signs of a number can only be, or can be both."""
    if not number.signs:
        return
    first, last = number.signs[0], number.signs[-1]
    if first != last:
        yield "groups", first
        yield "decimal", last
    elif len(number.signs) > 1 or first in " '":
        yield "groups", first
    elif len(number.digits[1]) != 3 or not 1 <= len(number.digits[0]) <= 3 or number.digits[0].startswith("0"):
        yield "decimal", first
    else:
        yield "either", first


@lru_cache(CACHED)
def is_numeric(column: Column, share: float = _MOSTLY) -> bool:
    """Whether nearly all values of a column are numbers, and none of them shows that it is a code (`0742`)."""
    if column.kind != "text":
        return column.kind in ("number", "float")
    sound = Counter({value: count for value, count in column.counts.items() if written(value) is not None})
    return bool(column.filled) and column.share(sound) >= share and not has_leading_zeros(column)


def has_leading_zeros(column: Column) -> bool:
    """Whether values begin with a zero that no number needs."""
    return column.kind == "text" and any(re.fullmatch(r"0\d+", value) for value in column.counts)


@lru_cache(CACHED)
def has_decimals(column: Column) -> bool:
    """Whether values have decimal places, whatever their mark is; exponents aside, which spreadsheets make of ids."""
    plain = (value for value in column.counts if not re.search("[eE]", value))
    if column.kind == "float":
        return any(not value.removesuffix(".0").lstrip("-").isdigit() for value in plain)
    return any(re.search(r"[.,]\d{1,2}\D*$|[.,]\d{4,}", value) for value in plain)


def value_of(text: str, decimal: str) -> Decimal | None:
    """The number that a text is under a decimal mark; None of a text that is none."""
    number = written(text)
    if number is None:
        return None
    whole, places = number.digits, ""
    if number.signs and number.signs[-1] == decimal and number.signs.count(decimal) == 1:
        whole, places = number.digits[:-1], number.digits[-1]
    try:
        value = Decimal(f"{''.join(whole) or '0'}.{places or '0'}")
    except InvalidOperation:
        return None
    marked = any(MARKS.get(word) == "-" for word in number.words if word not in SIGNS)
    return -value if number.minus or marked else value


def evidence_of(columns: Iterable[Column]) -> Evidence:
    """What the values of some columns say together."""
    found = Evidence()
    for column in columns:
        if column.kind == "text":
            for value, count in column.counts.items():
                found.add(value, count)
    return found
