"""JSON lines: one object a line, whose numbers keep their digits."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from ledgerlm.config import nearest
from ledgerlm.errors import SpecError
from ledgerlm.events.columns import DAMAGE, DAMAGED, FAULT, LINE
from ledgerlm.events.csv_files import Part
from ledgerlm.events.file_heads import Dialect, FileHead, file_heads_of, folded
from ledgerlm.events.files import Found
from ledgerlm.events.lines import MENDED, damaged_line, damaged_value, read_lines
from ledgerlm.events.quality import Reason
from ledgerlm.events.spec_files import FileSpec

_DIGITS = 38
# Numbers with an exponent or more digits, of which the parser keeps some sixteen digits, or infinity.
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?"
_DOUBLE = rf"^{_NUMBER}[eE][+-]?[0-9]+$|^(?=[0-9.-]{{{_DIGITS + 1}}}){_NUMBER}$"
_DOUBLES = rf"[:\[,]\s*+-?(?:[0-9.]++[eE]|[0-9.]{{{_DIGITS}}})"
_WHOLE = r"^(-?[1-9][0-9]*)[eE]\+?([0-9]|[1-2][0-9])$"
_TOKENS = r'"(?:[^"\\]++|\\.)*+"|[\[\]{},:\s]++|[^"\[\]{},:\s]++|"'


def json_parts(
    spark: SparkSession, file: FileSpec, files: Sequence[Found], needed: Collection[str], optional: Collection[str]
) -> Iterator[Part]:
    """The files of a JSON entry, by encoding. A key may be missing from any line.

    Args:
        spark: session.
        file: the entry.
        files: from `found_files`.
        needed: keys that some line must have.
        optional: keys that may be nowhere.

    Raises:
        SpecError: for a file that is one array, a needed key that no line has, or files without a row.
    """
    heads = file_heads_of(spark, [one for one in files if one.size], file)
    keys: set[str] = set()
    groups: dict[Dialect, list[Found]] = {}
    names: dict[Dialect, set[str]] = {}
    for head in heads:
        dialect = Dialect(encoding=head.encoding, newline=head.newline)
        names.setdefault(dialect, set()).update(keys_in(head))
        keys |= names[dialect]
        groups.setdefault(dialect, []).append(head.file)
    filled = any(head.text.strip() for head in heads)
    if not filled and not file.empty:
        raise SpecError(f"{files[0].path}: no rows in {file.glob}; give another path, or leave the entry out")
    missing = [name for name in needed if folded(name) not in {folded(key) for key in keys}] if filled else []
    for dialect, found in groups.items():
        lines = read_lines(spark, [one.pattern for one in found], dialect, "", ())
        missing = [name for name in missing if lines.where(F.contains(LINE, F.lit(json.dumps(name)))).isEmpty()]
        text, damage = _with_digits(F.trim(LINE)), F.col(DAMAGE)
        # The parser stops after the first value, so what follows it on the line would vanish: an array shows it.
        whole = F.when(text.startswith("{") & text.endswith("}"), F.concat(F.lit("["), text, F.lit("]")))
        array = F.when(damage.isNull(), F.try_parse_json(whole))
        alone = F.try_variant_get("_row", "$[1]", "variant").isNull()
        parsed = lines.withColumn("_row", array).withColumn("_row", F.when(alone, F.col("_row")))
        fault = F.coalesce(damage, F.when(F.col("_row").isNull(), Reason.BAD_JSON.value))
        columns = {name: _value(name, keys) for name in (*needed, *optional)}
        torn = F.try_parse_json(F.concat(F.lit("["), F.trim(MENDED), F.lit("]")))
        parsed = parsed.withColumns({FAULT: fault, MENDED: damaged_line()}).withColumn("_torn", torn)
        damaged = damaged_value({name: _value(name, keys, "_torn") for name in columns})
        told = sorted(names[dialect])
        rows = parsed.withColumn(DAMAGED, damaged)
        # Printed, the keys of a variant are in order.
        yield Part(rows=rows, columns=columns, row=F.to_json("_row"), files=found, names=told)
    if missing:
        raise no_key(missing[0], keys, files[0], file)


def _with_digits(line: Column) -> Column:
    """The line without numbers of which the parser would lose digits: 1e3 as 1000, and others as texts."""

    def exact(token: Column) -> Column:
        zeros = F.repeat(F.lit("0"), F.regexp_extract(token, _WHOLE, 2).try_cast("int"))
        whole = F.concat(F.regexp_extract(token, _WHOLE, 1), zeros)
        fits = token.rlike(_WHOLE) & (F.length(whole) <= _DIGITS)
        return F.when(fits, whole).when(token.rlike(_DOUBLE), F.concat(F.lit('"'), token, F.lit('"'))).otherwise(token)

    tokens = F.regexp_extract_all(line, F.lit(_TOKENS), F.lit(0))
    return F.when(line.rlike(_DOUBLES), F.array_join(F.transform(tokens, exact), "")).otherwise(line)


def no_key(name: str, keys: Collection[str], first: Found, file: FileSpec) -> SpecError:
    """What is said of a key that no line has."""
    return SpecError(f"{first.path}: no line of {file.glob} has a column '{name}': {nearest(name, keys)}")


def keys_in(head: FileHead) -> set[str]:
    """Keys of the objects in a file's beginning.

    Raises:
        SpecError: the file is one array, or its objects stand on several lines.
    """
    start = head.text.lstrip()[:1]
    if start == "[":
        raise SpecError(f"{head.file.path} is one JSON array: write one object a line (jq -c '.[]' FILE)")
    found: set[str] = set()
    pretty = False
    for place, line in enumerate(head.lines()):
        try:
            one = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            pretty = pretty or (place == 0 and line.strip() == "{")
            continue
        found |= set(one) if isinstance(one, dict) else set()
    if pretty and not found:
        raise SpecError(f"{head.file.path}: an object stands on several lines: write one a line (jq -c . FILE)")
    return found


def _value(name: str, keys: Collection[str], row: str = "_row") -> Column:
    """Text of a key, in any case; what the key itself says comes first."""
    names = [name, *sorted(key for key in keys if key != name and folded(key) == folded(name))]
    return F.coalesce(*(F.try_variant_get(F.col(row), _path(one), "string") for one in names))


def _path(name: str) -> str:
    quote = '"' if "'" in name else "'"
    if quote in name:
        raise SpecError(f"the JSON key {name!r} holds both kinds of quotes and cannot be named")
    return f"$[0][{quote}{name}{quote}]"
