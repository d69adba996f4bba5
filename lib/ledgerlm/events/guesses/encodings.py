"""Which code page a text is written in, where nothing says it: by the letters that it makes of the bytes."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# By how often they are met; of equal readings the first is taken.
_PAGES = ("windows-1252", "windows-1251", "windows-1250", "koi8-r", "ibm850", "ibm852", "windows-1253", "windows-1254",
          "windows-1257")  # fmt: skip
_NEAR = 0.85  # of the best score: a reading that is nearly as good, and another one
_WORD = re.compile(r"\w*[^\x00-\x7f]\w*")
# Letters that are half of a text in their script, or usual in several languages of one.
_COMMON = frozenset("оеаинтсрвлкмдпуяαοιετσνηυρπκλάέίόήäöüéèàçáíóúñãõôêßåøæčšžřěýůłąęśćőűşğı")
_USUAL = frozenset("€–—‘’“”„•…§°²³½£«»№´·")


class Encoding(NamedTuple):
    """A code page.

    Attributes:
        name: as a spec has it.
        why: what was seen; empty of UTF-8.
        other: another page that reads the text as well, otherwise.
    """

    name: str
    why: str = ""
    other: str = ""


def encoding_of(data: bytes) -> Encoding:
    """The code page of a file's bytes.

    Args:
        data: its beginning, or pieces of it.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:3] == b"\xef\xbb\xbf":
        return Encoding("utf-8")  # the mark itself says it
    start = data[:1000]
    if start.count(0) > len(start) // 3 and len(start) > 3:
        little = start[1::2].count(0) >= start[::2].count(0)
        return Encoding("utf-16-le" if little else "utf-16-be", "every other byte is zero")
    text = data.decode("utf-8", "replace")
    damaged, whole = text.count("\ufffd"), sum(1 for sign in text if "\x7f" < sign != "\ufffd")
    if damaged <= 3 + whole // 5 and (whole > damaged or not damaged):
        return Encoding("utf-8")  # what is cut at the end of a piece is no damage, and a damaged row is set aside
    scores = {page: _score(data.decode(page, "replace")) for page in _PAGES}
    best = max(_PAGES, key=lambda page: scores[page])
    read = data.decode(best, "replace")
    near = [page for page in _PAGES if page != best and scores[page] >= _NEAR * scores[best] > 0]
    other = next((page for page in near if data.decode(page, "replace") != read), "")
    return Encoding(best, f"not UTF-8; read so it holds {_words(read)}", other)


def _words(text: str) -> str:
    return ", ".join(f"'{word}'" for word in list(dict.fromkeys(_WORD.findall(text)))[:3])


def _score(text: str) -> float:
    """How much a text looks like words: letters among letters of their kind, and no capital behind a small one."""
    score = 0.0
    for found in re.finditer(r"[^\x00-\x7f]", text):
        sign, at = found.group(), found.start()
        before, after = text[max(at - 1, 0) : at], text[at + 1 : at + 2]
        if sign == "\ufffd" or unicodedata.category(sign) in ("Cc", "Cn"):
            score -= 3
        elif not sign.isalpha():
            inside = before.isalpha() and after.isalpha()
            score += -2 if inside else 0.5 if sign in _USUAL else -1
        else:
            score += _as_letter(sign, before, after)
    return score


def _as_letter(sign: str, before: str, after: str) -> float:
    script = _script(sign)
    others = [one for one in (before, after) if one.isalpha()]
    if any(_script(one) != script for one in others):
        return -2.0
    if sign.isupper() and before.islower():
        return -2.0
    if sign.islower() and before.isupper() and after.isupper():
        return -1.0
    if script == "LATIN" and len(others) == 2 and not any(one.isascii() for one in others):
        return -1.0  # words of marked letters alone are another script, read wrongly
    if sign == "ς" and after.isalpha():
        return -2.0  # stands at the end of words alone
    alone = not others and script != "LATIN"
    return 0.25 if alone or sign in "ªºµ" else 1.0 + (sign.lower() in _COMMON)


def _script(sign: str) -> str:
    return unicodedata.name(sign, "?").split()[0] if not sign.isascii() else "LATIN"
