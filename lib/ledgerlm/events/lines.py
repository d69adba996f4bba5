"""Lines of text files as Spark reads them, and records of several lines put together as RFC 4180 says."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from ledgerlm.events.columns import BLOCK, DAMAGE, FILE_PATH, LINE, PATH, PAYLOAD, PLACE
from ledgerlm.events.file_heads import Dialect
from ledgerlm.events.quality import Reason, said

MENDED = "_mended"
"""Name of `damaged_line`."""
DAMAGE_SIGNS = "[\ufffd\\u0000]"
"""What bytes that are none of the encoding become, and NUL."""
_BASE64 = "base64:"
_BOM = "\ufeff"
_JAVA = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}
_MOST_LINES = 1_000  # of one record; quotes further apart than this belong to nothing


def read_lines(
    spark: SparkSession, paths: Sequence[str], dialect: Dialect, quote: str, before: Collection[str]
) -> DataFrame:
    """The rows of text files of one dialect; blank lines are none.

    Args:
        spark: session.
        paths: files as Spark takes them.
        dialect: how they are written.
        quote: quote character, needed where records have several lines.
        before: lines before the headers, which are no rows.

    Returns:
        PAYLOAD (base64 after `base64:` where it is no UTF-8), PATH, BLOCK, PLACE, LINE, DAMAGE.
    """
    reader = spark.read.option("lineSep", dialect.newline).option("recursiveFileLookup", "true")
    if dialect.encoding.startswith("utf-16"):
        reader = reader.option("encoding", _JAVA[dialect.encoding])
    raw = reader.text(list(paths)).select(
        F.col("value").cast("binary").alias("_bytes"),
        F.col(FILE_PATH).alias(PATH),
        F.col("_metadata.file_block_start").alias(BLOCK),
        F.monotonically_increasing_id().alias(PLACE),
    )
    text, fault = _text(dialect.encoding)
    lines = raw.withColumns({"_text": text, DAMAGE: fault})
    bare = F.coalesce("_text", F.lit(""))
    bare = F.when(bare.startswith(_BOM), F.substring(bare, 2, 2**31 - 1)).otherwise(bare)
    damage = F.coalesce(DAMAGE, F.when(F.contains(bare, F.lit("\0")), Reason.NUL_BYTE.value))
    payload = F.when(F.col(DAMAGE).isNull(), bare).otherwise(F.concat(F.lit(_BASE64), F.base64("_bytes")))
    rows = lines.select(payload.alias(PAYLOAD), PATH, BLOCK, PLACE, bare.alias(LINE), damage.alias(DAMAGE))
    if dialect.records:
        rows = _joined(rows, dialect, quote)
    rows = rows.withColumns({name: F.regexp_replace(name, r"\r$", "") for name in (LINE, PAYLOAD)})
    rows = rows.where((F.trim(LINE) != "") | F.col(DAMAGE).isNotNull())
    return rows.where((F.col(BLOCK) > 0) | ~F.col(LINE).isin(*before)) if before else rows


def _text(encoding: str) -> tuple[Column, Column]:
    """The text of `_bytes`, null where they are none of the encoding, and the fault then."""
    data = F.col("_bytes")
    bad = Reason.BAD_UTF8.value if encoding == "utf-8" else Reason.BAD_ENCODING.value
    if encoding == "utf-8":
        valid = F.is_valid_utf8(data.cast("string"))
        return F.when(valid, data.cast("string")), F.when(~valid, bad)
    if encoding.startswith("utf-16"):
        # Halves of a pair that stand alone would stop the job, so they are looked for in units of four digits.
        order = "$2$1 " if encoding.endswith("le") else "$1$2 "
        units = F.regexp_replace(F.hex(data), "(..)(..)", order)
        alone = units.rlike(r"D[89AB].. (?!D[C-F])|(?<!D[89AB].. )D[C-F].. ")
        valid = (F.octet_length(data) % 2 == 0) & ~alone
        return F.when(valid, F.decode(data, _JAVA[encoding])), F.when(~valid, bad)
    high = [bytes([code]) for code in range(0x80, 0x100)]
    usual = [(one.decode("latin-1"), one.decode(encoding, "ignore")) for one in high]
    moved = [(sign, other) for sign, other in usual if other and sign != other]
    signs, others = ("".join(part) for part in zip(*moved, strict=True))
    return F.translate(F.decode(data, "ISO-8859-1"), signs, others), F.lit(None).cast("string")


def damaged_line() -> Column:
    """The line of a row with a NUL, or with bytes that are no UTF-8, which become U+FFFD; null of other rows."""
    found = F.try_to_binary(F.substring(PAYLOAD, len(_BASE64) + 1, 2**31 - 1), F.lit("base64")).cast("string")
    mended = F.regexp_replace(F.make_valid_utf8(found), r"\r$", "")
    return F.when(F.col(DAMAGE) == Reason.BAD_UTF8.value, mended).when(
        F.col(DAMAGE) == Reason.NUL_BYTE.value, F.col(LINE)
    )


def damaged_value(values: Mapping[str, Column]) -> Column:
    """The first column, and its value, in which a sign of MENDED stands; null where none does.

    Args:
        values: columns of MENDED, which has `damaged_line`.
    """
    found = (F.when(value.rlike(DAMAGE_SIGNS), said(name, value)) for name, value in values.items())
    # Spark's from_csv may make the row before of a null.
    return F.when(F.col(MENDED).isNotNull(), F.coalesce(F.lit(None).cast("string"), *found))


def open_at_end(line: Column, separator: str, quote: str) -> Column:
    """Whether a line ends inside a quoted value: an odd number of quotes, one of which begins a value."""
    return F.when(odd_quotes(line, quote), _begun(line, separator, quote)).otherwise(F.lit(False))


def odd_quotes(line: Column, quote: str) -> Column:
    """Whether a line has an odd number of quotes."""
    return (F.length(line) - F.length(F.replace(line, F.lit(quote), F.lit("")))) % 2 == 1


def without_values(line: Column, separator: str, quote: str) -> Column:
    """A line without its quoted values, so that what stands between them can be counted."""
    sep, sign = re.escape(separator), re.escape(quote)
    # Doubled quotes first: a pattern that steps over each of them would need a stack for a long value.
    single = F.replace(line, F.lit(quote * 2), F.lit(""))
    return F.regexp_replace(single, rf"(?<=^|{sep}){sign}[^{sign}]*+{sign}(?={sep}|$)", "")


def _begun(line: Column, separator: str, quote: str) -> Column:
    """Whether a quote begins a value that does not end."""
    sep, sign = re.escape(separator), re.escape(quote)
    return without_values(line, separator, quote).rlike(f"(?:^|{sep}){sign}")


def _joined(rows: DataFrame, dialect: Dialect, quote: str) -> DataFrame:
    """Records of the lines of each file.

    A line that ends inside a quoted value begins a record, and the next line with an odd number of quotes ends it. A
    record that is not well-formed then is set aside line by line, for none of its lines can be told from a forged one;
    an open quote that nothing ends is a damaged line of its own.
    """
    bare = F.regexp_replace(LINE, r"\r$", "")
    w = Window.partitionBy(PATH).orderBy(BLOCK, PLACE)
    before = w.rowsBetween(Window.unboundedPreceding, -1)
    marked = rows.withColumns({"_odd": odd_quotes(bare, quote), "_opens": open_at_end(bare, dialect.separator, quote)})
    marked = marked.withColumn("_turns", F.coalesce(F.sum(F.col("_opens").cast("long")).over(before), F.lit(0)))
    # After an odd line that opens nothing, the text is outside of quotes whatever it was before.
    settled = F.max(F.when(F.col("_odd") & ~F.col("_opens"), F.col("_turns"))).over(before)
    marked = marked.withColumn("_inside", (F.col("_turns") - F.coalesce(settled, F.lit(0))) % 2 == 1)
    marked = marked.withColumn("_record", F.sum((~F.col("_inside")).cast("long")).over(w))
    parts = F.array_sort(F.collect_list(F.struct(BLOCK, PLACE, LINE, PAYLOAD, DAMAGE)))
    records = marked.groupBy(PATH, "_record").agg(parts.alias("_lines"))
    return records.select(PATH, F.inline(_records(dialect, quote)))


def _records(dialect: Dialect, quote: str) -> Column:
    """The lines of a record as one row, or as rows of their own with their fault."""
    lines = F.col("_lines")
    line, payload = (F.array_join(lines[name], dialect.newline) for name in (LINE, PAYLOAD))
    text = F.regexp_replace(line, r"\r$", "")
    never = odd_quotes(text, quote)
    sound = (F.size(lines) <= _MOST_LINES) & ~never & ~_begun(text, dialect.separator, quote)
    first = F.element_at(lines, 1)
    whole = F.struct(
        first[BLOCK].alias(BLOCK),
        first[PLACE].alias(PLACE),
        line.alias(LINE),
        payload.alias(PAYLOAD),
        F.array_max(lines[DAMAGE]).alias(DAMAGE),
    )

    def alone(one: Column, place: Column) -> Column:
        fault = F.when(~never | (place == 0), Reason.UNCLOSED_QUOTE.value)
        return one.withField(DAMAGE, F.coalesce(one[DAMAGE], fault))

    # A line with an odd number of quotes of which none begins a value (3" pipe) is a row as it is.
    single = (F.size(lines) == 1) & ~open_at_end(text, dialect.separator, quote)
    return F.when(single, lines).when(sound, F.array(whole)).otherwise(F.transform(lines, alone))
