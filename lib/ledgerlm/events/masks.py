"""Masks of free text: what names a person, an account or a card is replaced by its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

if TYPE_CHECKING:
    from pyspark.sql import Column

    from ledgerlm.events.spec import Mask

# What follows country and check digits of an IBAN (ISO 13616), by the registry: n digits, a letters, c both.
_IBANS = """
AD 8n12c|AE 19n|AL 8n16c|AT 16n|AZ 4a20c|BA 16n|BE 12n|BG 4a6n8c|BH 4a14c|BI 23n|BR 23n1a1c|BY 4c4n16c|CH 5n12c|CR 18n|
CY 8n16c|CZ 20n|DE 18n|DJ 23n|DK 14n|DO 4c20n|EE 16n|EG 25n|ES 20n|FI 14n|FK 2a12n|FO 14n|FR 10n11c2n|GB 4a14n|GE 2a16n|
GI 4a15c|GL 14n|GR 7n16c|GT 24c|HN 4a20n|HR 17n|HU 24n|IE 4a14n|IL 19n|IQ 4a15n|IS 22n|IT 1a10n12c|JO 4a4n18c|KW 4a22c|
KZ 3n13c|LB 4n20c|LC 4a24c|LI 5n12c|LT 16n|LU 3n13c|LV 4a13c|LY 21n|MC 10n11c2n|MD 20c|ME 18n|MK 3n10c2n|MN 16n|MR 23n|
MT 4a5n18c|MU 4a19n3a|NI 4a20n|NL 4a10n|NO 11n|OM 3n16c|PK 4a16c|PL 24n|PS 4a21c|PT 21n|QA 4a21c|RO 4a16c|RS 18n|
RU 14n15c|SA 2n18c|SC 4a20n3a|SD 14n|SE 20n|SI 15n|SK 20n|SM 1a10n12c|SO 19n|ST 21n|SV 4a20n|TL 19n|TN 20n|TR 6n16c|
UA 6n19c|VA 18n|VG 4a16n|XK 16n|YE 4a4n18c
"""
_SIGNS = {"n": "[0-9]", "a": "[A-Z]", "c": "[0-9A-Z]"}
_GAP = r"[ .\u00A0-]?"  # between any two signs: people write groups as they like

# What a document does not tell, or tells as one blank (`ledgerlm.text.sanitise`), and what looks like another sign.
_ODD = r"[^ -{}~]|  "
_INVISIBLE = r"[\p{Cc}\p{Cf}\p{Co}\p{Cs}&&[^\t-\r\x85]]"
_BLANKS = r"[\t-\r\x85\p{Z}|]+"
_DIGITS_OF = (0x660, 0x6F0, 0x966, 0x9E6, 0xE50)  # the zeros of Arabic, Persian, Hindi, Bengali and Thai digits
_ASCII = "".join(chr(code) for code in range(0x21, 0x7F)) + "0123456789" * len(_DIGITS_OF)
_FULL_WIDTH = "".join(chr(code) for code in range(0xFF01, 0xFF5F))
_FULL_WIDTH += "".join(chr(zero + digit) for zero in _DIGITS_OF for digit in range(10))

# Words that no person is called and that firms and accounts are: what holds one of them after `from` stays.
_NO_PERSON = (
    r"(?iu:the|a|an|our|my|your|go|with|of|and|for|bank|account|konto|savings|checking|current|card|loan|deposit|salary|"
    r"pension|office|council|city|insurance|store|shop|market|markt|cafe|restaurant|hotel|school|university|hospital|"
    r"company|group|trading|services?|ltd|limited|gmbh|ag|kg|inc|llc|plc|corp|co|sa|sas|srl|spa|bv|nv|oy|ab|as|sro)\b"
)
# Brands that begin like a person with a title.
_BRANDS = r"(?iu:price|bricolage|clean|muscle|pizza|fields|kipling|porter|oetker|pepper|martens|scholl|hauschka)\b"
_NAME = rf"(?!{_NO_PERSON})\p{{Lu}}(?:\.|[\p{{L}}'’-]++)"
_NAMES = rf"{_NAME}(?: +{_NAME}){{1,3}}+(?! +{_NO_PERSON})"
_TITLES = r"(?iu:mr|mrs|ms|herrn?|frau|monsieur|mme|mlle|señora?|signora?)"
_DEGREES = r"(?iu:dr|prof|miss|sir|madame|lady)"
_MOVED = (
    r"(?iu:transfers?|transferred|sent|received|money|standing order|zelle|venmo|p2p|überweisung|gutschrift|"
    r"dauerauftrag|virement|bonifico|transferencia|перевод)"
)
_FROM_TO = r"(?iu:from|to|von|an|de|da|para|от)"
_OF_EMAIL = r"[\p{L}\p{M}\p{N}._%+-]"
_PATTERNS = {
    # Begun where a word begins and not given back: a long word without an @ is read once, not from each of its letters.
    "email": (
        (
            rf"(?:\G|(?<!{_OF_EMAIL})){_OF_EMAIL}++@[\p{{L}}\p{{M}}\p{{N}}-]+(?:\.[\p{{L}}\p{{M}}\p{{N}}-]+)+",
            "[email]",
        ),
    ),
    "phone": (
        (r"(?<![0-9A-Za-z+])(?:\+|00)[1-9][0-9]{0,2}(?:[ ()./-]{0,2}[0-9]){6,12}(?![0-9])", "[phone]"),
        (r"(?<![0-9-])(?:\([0-9]{3}\) ?|[0-9]{3}[-.])[0-9]{3}[-.][0-9]{4}(?![0-9-])", "[phone]"),
        (r"(?<![0-9+-])8[ -]?(?:\(9[0-9]{2}\) ?|9[0-9]{2}[ -])[0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{2}(?![0-9-])", "[phone]"),
        (r"(?<![0-9-])01[567][0-9][ /-][0-9]{3,4} ?[0-9]{4}(?![0-9-])", "[phone]"),
        (r"(?<![0-9.-])0[1-9](?:([ .])[0-9]{2})(?:\1[0-9]{2}){3}(?![0-9.-])", "[phone]"),
        (r"\b((?i:tel|telefon|phone|mobile|mob|cell|handy)\b[.: ]{0,3})[0-9(](?:[ ()./-]?[0-9]){5,13}", "$1[phone]"),
    ),
    "name": (
        (rf"(?<!\p{{L}})({_TITLES}\b\.? +)(?!{_BRANDS}){_NAME}(?: +{_NAME}){{0,2}}", "$1[name]"),
        (rf"(?<!\p{{L}})({_DEGREES}\b\.? +)(?!{_BRANDS}){_NAMES}", "$1[name]"),
        (rf"(?<!\p{{L}})({_MOVED}(?!\p{{L}}).{{0,40}}?(?<!\p{{L}}){_FROM_TO} +){_NAMES}", "$1[name]"),
        (rf"^( *(?iu:from|von|от) +){_NAMES}", "$1[name]"),
    ),
}


def masked(text: Column, masks: Sequence[Mask], words: Sequence[str] = ()) -> Column:
    """The text with what names a person replaced by its kind; a text without such a thing stays as it is.

    It is looked for in the text as documents tell it, `told`, so that no sign hides it that is dropped later.

    * `iban`: country, length and kind of its signs as the IBAN registry has them and right check digits (ISO 7064),
      upper or lower case, in groups by blanks, dots or hyphens, or glued to a word;
    * `card`: 13 to 19 digits with a right check digit (Luhn, ISO/IEC 7812), in one piece or in groups;
    * `email`;
    * `phone`: international numbers, North American ones, Russian and German mobile ones, French ones in pairs, and
      numbers after `tel`, `phone`, `mobile`;
    * `name`: capitalised words after a salutation (Mr, Frau, Mme), two or more after a degree (Dr, Prof), after `from`
      or `to` in the words of a transfer, and after a leading `from`. Names of firms, shops and accounts stay where a
      word tells them (Ltd, Bank, Savings). A person's name in another place, or without a capital, is not found.

    Args:
        text: string column.
        masks: kinds, in the order to apply.
        words: further names, masked as `[name]` wherever they stand as whole words, in upper or lower case.
    """
    found = told(text)
    for step in mask_steps(masks, words):
        found = step(found)
    return chosen(text, found)


def told(text: Column) -> Column:
    """The text without invisible signs, white space and `|` as one blank, full-width signs and any digits as usual."""
    usual = F.regexp_replace(F.regexp_replace(F.translate(text, _FULL_WIDTH, _ASCII), _INVISIBLE, ""), _BLANKS, " ")
    return F.when(text.rlike(_ODD), usual).otherwise(text)


def chosen(text: Column, found: Column) -> Column:
    """What the steps made of `told`, if they found something; else the text as it is."""
    return F.when(found == told(text), text).otherwise(found)


def mask_steps(masks: Sequence[Mask], words: Sequence[str] = ()) -> list[Callable[[Column], Column]]:
    """The steps of `masked` between `told` and `chosen`.

    Some name their text several times: as a projection each, none stands twice in a plan.
    """
    steps: list[Callable[[Column], Column]] = []
    for name in masks:
        patterns, valid = _CHECKED.get(name, ((), None))
        if valid is not None:
            steps += [partial(_masked_if, pattern=pattern, valid=valid, kind=f"[{name}]") for pattern in patterns]
        steps += [partial(F.regexp_replace, pattern=one, replacement=kind) for one, kind in _PATTERNS.get(name, ())]
    if words:
        listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        pattern = rf"(?iu)(?<![\p{{L}}\p{{N}}])(?:{listed})(?![\p{{L}}\p{{N}}])"
        steps.append(partial(F.regexp_replace, pattern=pattern, replacement="[name]"))
    return steps


def _masked_if(text: Column, pattern: str, valid: Callable[[Column], Column], kind: str) -> Column:
    """Replaces what matches and is valid; the rest of the expression is not reached where nothing matches."""
    found = F.filter(F.regexp_extract_all(text, F.lit(pattern), 0), lambda one: valid(_plain(one)))
    replaced = F.aggregate(found, text, lambda rest, one: F.replace(rest, one, F.lit(kind)))
    return F.when(F.regexp_like(text, F.lit(pattern)), replaced).otherwise(text)


def _plain(found: Column) -> Column:
    return F.upper(F.regexp_replace(found, "[^0-9A-Za-z]", ""))


def _signs(text: Column) -> Column:
    return F.split(text, "(?!^)(?=.)")


def _iban_is_right(iban: Column) -> Column:
    """Remainder 1 of the division by 97, letters as 10 to 35 and the first four signs last (ISO 7064, MOD 97-10)."""
    turned = F.concat(F.substr(iban, F.lit(5)), F.substr(iban, F.lit(1), F.lit(4)))

    def joined(rest: Column, sign: Column) -> Column:
        letter = F.ascii(sign) - 55  # A is 10
        return F.when(letter >= 10, rest * 100 + letter).otherwise(rest * 10 + F.ascii(sign) - 48) % 97

    return F.aggregate(_signs(turned), F.lit(0), joined) == 1


def _card_is_right(card: Column) -> Column:
    """Luhn: from the right, every second digit doubled, the digits of all summed up, divisible by 10."""
    digits = F.transform(_signs(F.reverse(card)), lambda sign: F.ascii(sign) - 48)

    def counted(digit: Column, place: Column) -> Column:
        doubled = digit * 2
        return F.when(place % 2 == 0, digit).when(doubled > 9, doubled - 9).otherwise(doubled)

    return F.aggregate(F.transform(digits, counted), F.lit(0), lambda rest, digit: rest + digit) % 10 == 0


def _iban_pattern() -> str:
    countries = []
    for entry in "".join(_IBANS.split("\n")).split("|"):
        country, structure = entry.split()
        parts = re.findall(r"(\d+)([nac])", structure)
        signs = "".join(f"(?:{_GAP}{_SIGNS[kind]}){{{count}}}" for count, kind in parts)
        countries.append(f"{country}{_GAP}[0-9]{_GAP}[0-9]{signs}")
    return f"(?i)(?:{'|'.join(countries)})(?![0-9])"


_CHECKED: dict[str, tuple[tuple[str, ...], Callable[[Column], Column]]] = {
    "iban": ((_iban_pattern(),), _iban_is_right),
    "card": (
        (
            # Groups of four (a year before or after them is no part), of 4, 6 and 5, and any others.
            rf"(?<![0-9])[0-9]{{4}}(?:{_GAP}[0-9]{{4}}){{2}}{_GAP}[0-9]{{1,7}}(?![0-9])",
            rf"(?<![0-9])[0-9]{{4}}{_GAP}[0-9]{{6}}{_GAP}[0-9]{{5}}(?![0-9])",
            rf"(?<![0-9])[0-9](?:{_GAP}[0-9]){{12,18}}(?![0-9])",
        ),
        _card_is_right,
    ),
}
