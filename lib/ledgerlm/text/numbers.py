"""Numbers as text, by native Spark expressions: rounded to the E12 series, or as they are."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

from pyspark.sql import Column
from pyspark.sql import functions as F

# IEC 60063: twelve preferred values a decade.
E12 = ("1", "1.2", "1.5", "1.8", "2.2", "2.7", "3.3", "3.9", "4.7", "5.6", "6.8", "8.2")
COUNTED = 12  # whole numbers up to this one, with either sign, are counts of things and stay as they are
SMALLEST, LARGEST = 1e-6, 8.2e15  # below the one a number is written 0, above the other as the other

_LOW, _HIGH = -7, 16  # decades of the tables below
_FINENESS = 20  # all midpoints between neighbours in E12 are multiples of 1/20
# Twice the rounding error of a product: puts a midpoint such as 0.036 on the same side as 3.6.
_NUDGE = 1 + 4e-15


def e12(number: Column) -> Column:
    """The nearest value of the E12 series, as text without exponent; whole numbers up to twelve as they are.

    Midpoints round away from zero. One logarithm and three lookups in constant tables: about 0.1 microseconds, where
    formatting a rounded double takes several times that.

    Args:
        number: double; infinities are taken as `LARGEST`.

    Returns:
        String column such as `3.9`, `-120`, `0`; null for null and NaN.
    """
    size = F.when(F.abs(number) > LARGEST, F.lit(LARGEST)).otherwise(F.abs(number))
    decade = F.floor(F.log10(size)).cast("int")
    mantissa = F.floor(size * F.get(_table(_scales(), "double"), decade - _LOW) * F.lit(_NUDGE)).cast("int")
    step = F.get(_table(_steps(), "int"), mantissa)
    digits = F.get(_table(_labels(), "string"), decade * 12 + step - _LOW * 12)
    counted = (size <= COUNTED) & (size == F.floor(size))
    count = F.least(size, F.lit(float(COUNTED))).cast("int").cast("string")
    digits = F.when(counted, count).otherwise(digits)
    sign = F.when(number < 0, F.lit("-")).otherwise(F.lit(""))
    return F.when(size < SMALLEST, F.lit("0")).when(~F.isnan(number), F.concat(sign, digits))


def plain_number(number: Column) -> Column:
    """A double as a person writes it: no exponent between 0.0001 and a million billion, six decimals at most.

    Returns:
        String column, a valid JSON number; null for null, NaN and infinities.
    """
    size = F.abs(number)
    whole = (size < 1e15) & (number == F.floor(number))
    decimal = F.rtrim(number.try_cast("decimal(38,6)").cast("string"), F.lit("0"))
    text = F.when(whole, number.cast("bigint").cast("string")).when(size.between(1e-4, 1e15), decimal)
    # With its sign the exponent is a number in YAML, too.
    other = F.regexp_replace(number.cast("string"), r"E(\d)", "E+$1")
    return F.when(size < float("inf"), F.coalesce(text, other))


def plain_amount(amount: Column) -> Column:
    """An amount with two decimals, or four where it has them, or as many more as a finer one has."""
    usual = amount.try_cast("decimal(18,4)")
    text = usual.cast("string")
    short = F.when(F.endswith(text, F.lit("00")), F.substring(text, F.lit(1), F.length(text) - 2)).otherwise(text)
    finer = F.regexp_replace(amount.cast("string"), r"^(-?[0-9]+\.[0-9]{2}[0-9]*?)0+$", "$1")
    return F.when(usual == amount, short).otherwise(finer)


def _table(values: list[str], kind: str) -> Column:
    """A constant array; one expression that Spark folds, instead of a call to the JVM for each element."""
    return F.split(F.lit(",".join(values)), ",").cast(f"array<{kind}>")


def _scales() -> list[str]:
    """For each decade, what brings its numbers to 20 .. 200."""
    return [f"{_FINENESS}e{-decade}" for decade in range(_LOW, _HIGH + 1)]


def _steps() -> list[str]:
    """For each twentieth of a mantissa from 0 to 10 (and a little beyond), the nearest step; 12 is the next decade.

    A logarithm that is off by one unit in the last place puts 1000 into the decade below or 999.9… into the one
    above, so the table also answers for mantissas just outside 1 .. 10.
    """
    values = [Decimal(value) for value in E12] + [Decimal(10)]
    middles = [(one + other) / 2 for one, other in pairwise(values)]
    return [str(sum(Decimal(i) / _FINENESS >= middle for middle in middles)) for i in range(10 * _FINENESS + 2)]


def _labels() -> list[str]:
    decades = range(_LOW, _HIGH + 1)
    return [format(Decimal(value).scaleb(decade).normalize(), "f") for decade in decades for value in E12]
