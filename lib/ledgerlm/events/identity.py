"""Ids and codes: the same text for the same thing, whatever file, keyboard or spreadsheet it came from.

Native Spark expressions only. Rows of plain ASCII, nearly all, pay for one search over all their texts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

from pyspark.sql import Column
from pyspark.sql import functions as F

SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""White space of every kind, no-break spaces included."""
INVISIBLE = "".join(chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) == "Cf")
"""Signs without a picture: byte order marks, zero widths, soft hyphens, directions."""
_SINGLETONS = {"\u212a": "K", "\u212b": "Å", "\u2126": "Ω", "\u0340": "\u0300", "\u0341": "\u0301", "\u0374": "ʹ"}
# What spreadsheets leave of long numbers, and of formulas that failed.
_DAMAGE = (
    r"^[+-]?[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+$|^[+-]?[0-9]+\.[0-9]+[eE]-?[0-9]+$"
    r"|^#(?:REF!|N/A|NAME\?|VALUE!|DIV/0!|NUM!|NULL!|SPILL!|CALC!)$|^#{3,}$"
)
_NOBODY = r"^(?i:null|none|nan|nat|<na>|\\n|n/a|undefined|nil|\(null\))$"
_ODD = r"[^ -~\x01]|(?:^|\x01)[=']"
_JOINT = "\x01"


def given(text: Column, nulls: Sequence[str] = ()) -> Column:
    """A trimmed text; null where it is empty, or stands for absent."""
    return F.when(~text.isin("", *nulls), text)


def without(nulls: Sequence[str], text: Column) -> Column:
    """A text; null where it stands for absent."""
    return F.when(~text.isin(*nulls), text) if nulls else text


def trimmed(text: Column) -> Column:
    """The text without outer white space and invisible signs."""
    return F.btrim(text, F.lit(SPACES + INVISIBLE))


def present(value: Column, nulls: Sequence[str] = ()) -> Column:
    """The text without outer blanks; null where nothing is left, or it stands for absent."""
    return given(F.trim(value), nulls)


def odd_texts(texts: Column) -> Column:
    """Whether any of an array of texts needs more than blanks cut off: one search for all, since few rows do."""
    return F.concat_ws(_JOINT, texts).rlike(_ODD)


def in_one_form(texts: Column, codes: int) -> Column:
    """An array of texts without outer white space and invisible signs; its first `codes` as ids and codes.

    Those lose invisible signs inside, have letters composed (NFC; Hangul stays as it is), and no guards that
    spreadsheets write around text: `="0742"` and `'0742` are 0742. One expression for all columns keeps plans small.

    Args:
        texts: array of strings; nulls stay.
        codes: how many of them are ids or codes.
    """

    def bare(text: Column, place: Column) -> Column:
        usual = "".join(_SINGLETONS.values())
        return F.when(place < codes, F.translate(trimmed(text), "".join(_SINGLETONS) + INVISIBLE, usual)).otherwise(
            trimmed(text)
        )

    def composed(text: Column, place: Column) -> Column:
        return F.when((place < codes) & text.rlike(r"\p{M}"), _composed(text)).otherwise(text)

    def unguarded(text: Column, place: Column) -> Column:
        code = place < codes
        formula = F.trim(F.substring(text, F.lit(3), F.length(text) - 3))
        marked = F.substring(text, 2, 2**31 - 1)
        return (
            F.when(code & text.rlike('^="[^"]*"$'), formula)
            .when(code & text.rlike("^'[0-9]+$"), marked)
            .otherwise(text)
        )

    return F.transform(F.transform(F.transform(texts, bare), composed), unguarded)


def identity(text: Column) -> Column:
    """One id or code in its one form; null where there is none."""
    return given(F.get(in_one_form(F.array(text), 1), F.lit(0)))


def damaged_id(value: Column) -> Column:
    """Whether an id is what a spreadsheet left of one: `4.11E+15`, `1.2345678E7`, `#REF!`."""
    return value.rlike(_DAMAGE)


def nobody(value: Column) -> Column:
    """Whether an id is a program's word for none: `null`, `None`, `NaN`."""
    return value.rlike(_NOBODY)


def damaged_client(value: Column) -> Column:
    """Whether an id of a client is damaged, or a word for none: one search."""
    return value.rlike(f"{_DAMAGE}|{_NOBODY}")


def _composed(text: Column) -> Column:
    """Letters and their marks as one sign where Unicode has it."""
    letters = F.regexp_extract_all(text, F.lit(r"(\P{M}\p{M}*|\p{M}+)"), F.lit(1))

    def one(letter: Column) -> Column:
        begun = F.concat(_known(F.substring(letter, 1, 2)), F.substring(letter, 3, 2**31 - 1))
        return F.when(F.length(letter) == 1, letter).otherwise(F.coalesce(_known(letter), begun, letter))

    return F.array_join(F.transform(letters, one), "")


def _known(letter: Column) -> Column:
    """The one sign of a letter and its marks; null where there is none."""
    # A text to search in: a map of a thousand pairs would be sent and unpacked with every task.
    table = F.lit(_compositions())
    place = F.position(F.concat(F.lit("\x01"), letter, F.lit("\x02")), table)
    return F.when(place > 0, F.substring(table, place + F.length(letter) + 2, F.lit(1)))


@cache
def _compositions() -> str:
    """\\x01, letter and marks, \\x02, the one sign: for all letters but Hangul; partly composed ones included."""
    found: dict[str, str] = {}
    for code in range(0x2000):
        sign = chr(code)
        apart = unicodedata.normalize("NFD", sign)
        if len(apart) > 1 and unicodedata.normalize("NFC", apart) == sign:
            found[apart] = sign
            for cut in range(2, len(apart)):
                begun = unicodedata.normalize("NFC", apart[:cut])
                found[begun + apart[cut:]] = sign
    return "".join(f"\x01{apart}\x02{sign}" for apart, sign in found.items())
