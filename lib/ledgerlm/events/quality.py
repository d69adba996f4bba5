"""What makes a row bad, and how texts lose what names a person.

Native Spark expressions only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import SpecError

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
_MASKS = {
    "iban": ((r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", "[iban]"),),
    "card": ((r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])", "[card]"),),
    "email": ((r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", "[email]"),),
    "phone": (
        (r"(?<![0-9A-Za-z+])(?:\+|00)[1-9][0-9]{0,2}(?:[ ()./-]{0,2}[0-9]){6,12}(?![0-9])", "[phone]"),
        (r"(?<![0-9-])(?:\([0-9]{3}\) ?|[0-9]{3}[-.])[0-9]{3}[-.][0-9]{4}(?![0-9-])", "[phone]"),
        (r"\b((?i:tel|telefon|phone|mobile|mob|cell|handy)\b[.: ]{0,3})[0-9(](?:[ ()./-]?[0-9]){5,13}", "$1[phone]"),
    ),
    "name": (
        (rf"(?<!\p{{L}})({_TITLES}\b\.? +)(?!{_BRANDS}){_NAME}(?: +{_NAME}){{0,2}}", "$1[name]"),
        (rf"(?<!\p{{L}})({_DEGREES}\b\.? +)(?!{_BRANDS}){_NAMES}", "$1[name]"),
        (rf"(?<!\p{{L}})({_MOVED}(?!\p{{L}}).{{0,40}}?(?<!\p{{L}}){_FROM_TO} +){_NAMES}", "$1[name]"),
        (rf"^( *(?iu:from|von|от) +){_NAMES}", "$1[name]"),
    ),
}
_HMAC_BLOCK = 64  # bytes of a SHA-256 block


class Reason(StrEnum):
    """Why a row went to quarantine. The first that applies is given."""

    NUL_BYTE = "nul_byte"
    BAD_UTF8 = "bad_utf8"
    BAD_ENCODING = "bad_encoding"
    CONTROL_SIGN = "control_sign"
    UNCLOSED_QUOTE = "unclosed_quote"
    WRONG_COLUMN_COUNT = "wrong_column_count"
    OTHER_HEADER = "other_header"
    BAD_JSON = "bad_json"
    NO_CLIENT = "no_client"
    NO_EVENT_ID = "no_event_id"
    DAMAGED_ID = "damaged_id"
    BAD_TIME = "bad_time"
    TIME_BEFORE_RANGE = "time_before_range"
    TIME_IN_FAR_FUTURE = "time_in_far_future"
    BAD_AMOUNT = "bad_amount"
    SIGNED_AMOUNT = "signed_amount"
    BAD_NUMBER = "bad_number"
    BAD_FLAG = "bad_flag"
    CONFLICTING_EVENT = "conflicting_event"
    NO_LABEL = "no_label"
    LABEL_OUTSIDE = "label_outside"
    BAD_LABEL = "bad_label"
    CONFLICTING_LABEL = "conflicting_label"
    LABEL_WITHOUT_HISTORY = "label_without_history"


def recoded(value: Column, values: Mapping[str, str]) -> Column:
    """The text with `values` put in place; others stay as they are."""
    if not values:
        return value
    pairs = [F.lit(part) for pair in values.items() for part in pair]
    return F.coalesce(F.try_element_at(F.create_map(*pairs), value), value)


def masked(text: Column, masks: Sequence[str], words: Sequence[str] = ()) -> Column:
    """The text with what names a person replaced by its kind.

    * `iban`, `email`, and `card`: runs of 13 to 19 digits;
    * `phone`: international numbers, North American ones, and numbers after `tel`, `phone`, `mobile`;
    * `name`: capitalised words after a salutation (Mr, Frau, Mme), two or more after a degree (Dr, Prof), after `from`
      or `to` in the words of a transfer, and after a leading `from`. Names of firms, shops and accounts stay where a
      word tells them (Ltd, Bank, Savings). A person's name in another place, or without a capital, is not found.

    Args:
        text: string column.
        masks: kinds, in the order to apply.
        words: further names, masked as `[name]` wherever they stand as whole words, in upper or lower case.
    """
    for name in masks:
        for pattern, kind in _MASKS[name]:
            text = F.regexp_replace(text, pattern, kind)
    if words:
        listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        text = F.regexp_replace(text, rf"(?iu)(?<![\p{{L}}\p{{N}}])(?:{listed})(?![\p{{L}}\p{{N}}])", "[name]")
    return text


def pseudonymised(frame: DataFrame, columns: Sequence[str], key_env: str | None) -> DataFrame:
    """Replaces columns by their HMAC-SHA256 (RFC 2104), in lower-case hex; null stays null.

    The key comes from the environment. It reaches the executors as a one-row table, not as literals, so that it
    stands in no plan, no Spark UI and no event log.

    Args:
        frame: any rows.
        columns: string columns to replace.
        key_env: environment variable that holds the key; None leaves the frame as it is.

    Raises:
        SpecError: when the variable is not set.
    """
    if key_env is None:
        return frame
    secret = os.environ.get(key_env, "")
    if not secret:
        raise SpecError(
            f"pseudonymise.key_env: the environment variable {key_env} is not set; put the secret key there"
        )
    key = secret.encode()
    block = (hashlib.sha256(key).digest() if len(key) > _HMAC_BLOCK else key).ljust(_HMAC_BLOCK, b"\0")
    pads = [(bytes(byte ^ 0x36 for byte in block), bytes(byte ^ 0x5C for byte in block))]
    keys = frame.sparkSession.createDataFrame(pads, "_inner binary, _outer binary")
    inner = {name: F.unhex(F.sha2(F.concat("_inner", F.col(name).cast("binary")), 256)) for name in columns}
    replaced = {name: F.sha2(F.concat(F.col("_outer"), inner[name]), 256) for name in columns}
    return frame.crossJoin(F.broadcast(keys)).withColumns(replaced).drop("_inner", "_outer")
