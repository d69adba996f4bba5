"""Ids and codes: the same text for the same thing, whatever file, keyboard or spreadsheet it came from.

Native Spark expressions only. Values of plain ASCII, nearly all, pay for one comparison of lengths.
"""

from __future__ import annotations

import json
import sys
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
_MARKED = r"\p{M}"
# What spreadsheets leave of long numbers, and of formulas that failed.
_DAMAGE = (
    r"^[+-]?[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+$|^[+-]?[0-9]+\.[0-9]+[eE]-?[0-9]+$"
    r"|^#(?:REF!|N/A|NAME\?|VALUE!|DIV/0!|NUM!|NULL!|SPILL!|CALC!)$|^#{3,}$"
)
_NOBODY = ("null", "none", "nan", "nat", "<na>", r"\n", "n/a", "undefined", "nil", "(null)")


def present(value: Column, nulls: Sequence[str] = ()) -> Column:
    """The text without outer white space and invisible signs; null where nothing is left, or it stands for absent."""
    trimmed = F.btrim(value, F.lit(SPACES + INVISIBLE))
    return F.when(~trimmed.isin("", *nulls), trimmed)


def identity(value: Column, nulls: Sequence[str] = ()) -> Column:
    """An id or a code in its one form; null where there is none.

    Trimmed as by `present`, without invisible signs inside, letters composed (NFC; Hangul stays as it is), and without
    the guards that spreadsheets write around text: `="0742"` and `'0742` are 0742.

    Args:
        value: string column.
        nulls: values that mean absent, beside the empty one.
    """
    text = present(value, nulls)
    ascii_only = F.length(text) == F.octet_length(text)
    text = F.when(ascii_only, text).otherwise(_composed(F.translate(text, INVISIBLE, "")))
    guarded = F.when(text.rlike(r'^="[^"]*"$'), F.substring(text, F.lit(3), F.length(text) - 3))
    quoted = F.when(text.rlike(r"^'[0-9]+$"), F.substring(text, 2, 2**31 - 1))
    return (
        F.when(text.startswith("="), F.coalesce(guarded, text))
        .when(text.startswith("'"), F.coalesce(quoted, text))
        .otherwise(text)
    )


def damaged_id(value: Column) -> Column:
    """Whether an id is what a spreadsheet left of one: `4.11E+15`, `1.2345678E7`, `#REF!`."""
    return value.rlike(_DAMAGE)


def nobody(value: Column) -> Column:
    """Whether an id is a program's word for none: `null`, `None`, `NaN`."""
    return F.lower(value).isin(*_NOBODY)


def _composed(text: Column) -> Column:
    """Letters and their marks as one sign where Unicode has it."""
    compositions = F.from_json(F.lit(_compositions()), "map<string,string>")
    for sign, usual in _SINGLETONS.items():
        text = F.replace(text, F.lit(sign), F.lit(usual))
    letters = F.regexp_extract_all(text, F.lit(r"(\P{M}\p{M}*|\p{M}+)"), F.lit(1))

    def one(letter: Column) -> Column:
        whole = F.try_element_at(compositions, letter)
        begun = F.try_element_at(compositions, F.substring(letter, 1, 2))
        return F.coalesce(whole, F.concat(begun, F.substring(letter, 3, 2**31 - 1)), letter)

    return F.when(text.rlike(_MARKED), F.array_join(F.transform(letters, one), "")).otherwise(text)


@cache
def _compositions() -> str:
    """JSON of letter and marks -> the one sign, for all but Hangul; partly composed letters included."""
    found: dict[str, str] = {}
    for code in range(sys.maxunicode + 1):
        sign = chr(code)
        apart = unicodedata.normalize("NFD", sign)
        if len(apart) > 1 and not 0xAC00 <= code <= 0xD7A3 and unicodedata.normalize("NFC", apart) == sign:
            found[apart] = sign
            for cut in range(2, len(apart)):
                begun = unicodedata.normalize("NFC", apart[:cut])
                found[begun + apart[cut:]] = sign
    return json.dumps(found, ensure_ascii=True)
