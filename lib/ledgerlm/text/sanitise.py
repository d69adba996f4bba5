"""Text from outside is data: values lose what a tokenizer, a chat template or a terminal would take as a command."""

from __future__ import annotations

import re
import unicodedata

from pyspark.sql import Column
from pyspark.sql import functions as F

# Stands between values that are sanitised together, which costs one set of regular expressions an event instead of one
# a value. No value can hold it: it is a control character.
SEPARATOR = "\x1f"

# Also bidi controls, zero widths, NUL; joiners (U+200C, U+200D) are looked at by themselves.
_INVISIBLE = rf"[\p{{Cc}}\p{{Cf}}\p{{Co}}\p{{Cs}}&&[^{SEPARATOR}\t-\r\x85\u200C\u200D]]"
# A joiner belongs to the spelling between letters or marks of Arabic, Persian and the scripts of India.
_JOINED = "\u0600-\u06ff\u0750-\u077f\u0870-\u0dff"
_JOINERS = f"(?<![{_JOINED}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINED}])"
_BLANKS = r"[\t-\r\x85\p{Z}|]+"
# <s>, <|eot_id|>, full width; not what stands between the signs of `age <25, income >75K`.
_INNER = rf"(?![\d =])[^<>\uFF1C\uFF1E\uFE64\uFE65{SEPARATOR}]*|[^<>\uFF1C\uFF1E\uFE64\uFE65{SEPARATOR} ]*"
_ANGLES = rf"[<\uFF1C\uFE64]({_INNER})[>\uFF1E\uFE65]"
# Left alone it could open a token with the text of the next field; before a number it is a comparison.
_OPENING = r"[<\uFF1C\uFE64](?![\d =])"
_SQUARES = r"[\[\uFF3B](/?\w{1,32})[\]\uFF3D]"  # [INST], [/INST], [CLS], [TOOL_CALLS]
_AROUND = f" *{SEPARATOR} *"
_KEPT, _BREAKS = "\t\n\v\f\r\x85\u200c\u200d", "\t\n\v\f\r\x85|"

# What `sanitise` may change lies outside these; other signs are letters, marks and digits of any script.
_HARMLESS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "|<[")


def sanitise(text: Column, max_length: int) -> Column:
    """Makes values harmless; what comes out stays the same when sanitised again.

    * control, bidirectional, zero-width, private-use characters and NUL are deleted; a zero-width joiner stays between
      letters of scripts that need it;
    * line breaks, tabs, other white space and `|` become one blank; blanks around a value go;
    * chat and special tokens lose their brackets: `<|im_start|>` becomes `( im_start )`, `[INST]` becomes `(INST)`;
    * a value is cut after `max_length` characters.

    Args:
        text: one value, or several joined by `SEPARATOR`, each of which is treated alone.
        max_length: characters to keep of each value.

    Returns:
        String column; null for null.
    """
    text = F.regexp_replace(F.regexp_replace(text, _INVISIBLE, ""), _JOINERS, "")
    text = F.regexp_replace(text, _ANGLES, "($1)")
    text = F.regexp_replace(text, _SQUARES, "($1)")
    text = F.regexp_replace(text, _BLANKS, " ")
    text = F.trim(F.regexp_replace(text, _AROUND, SEPARATOR))
    text = F.regexp_replace(text, f"([^{SEPARATOR}]{{{max_length}}})[^{SEPARATOR}]+", "$1")
    text = F.trim(F.regexp_replace(text, f" {SEPARATOR}", SEPARATOR))
    # Last, since cutting and trimming can bring a sign to the end.
    return F.regexp_replace(F.regexp_replace(text, _JOINERS, ""), _OPENING, "(")


def sanitised(text: str, max_length: int) -> str:
    """One value as `sanitise` makes it, for a service that answers one client at a time without Spark."""
    kept = (sign for sign in text if sign in _KEPT or unicodedata.category(sign) not in ("Cc", "Cf", "Co", "Cs"))
    text = re.sub(_ANGLES, r"(\1)", re.sub(_JOINERS, "", "".join(kept)), flags=re.ASCII)
    text = re.sub(_SQUARES, r"(\1)", text, flags=re.ASCII)
    blank = "".join(" " if sign in _BREAKS or unicodedata.category(sign).startswith("Z") else sign for sign in text)
    text = re.sub(" +", " ", blank).strip(" ")[:max_length].strip(" ")
    return re.sub(_OPENING, "(", re.sub(_JOINERS, "", text), flags=re.ASCII)


def suspicious(text: Column, escaped: str = "") -> Column:
    """Whether `sanitise`, or escaping the characters `escaped`, might change text; true more often than need be.

    One pass over the text, so that nearly all events need no further one. Lengths are not looked at.
    """
    harmless = "".join(f"\\x{ord(sign):02x}" for sign in _HARMLESS if sign not in escaped)
    return F.rlike(text, F.lit(rf"[^{harmless}\p{{L}}\p{{M}}\p{{N}}]")) | F.contains(text, F.lit("  "))
