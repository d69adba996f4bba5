"""Random draws as columns: a hash of (key, stream, index), the same whatever the partitioning.

A stream is a name for one kind of draw. The key of a client is itself a hash of seed, bank and number, so two draws
share no input unless they share client, stream and index.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

SCALE = 2.0**-53
GROUP = 8


def hashed(key: Column, stream: str, *index: Column) -> Column:
    """A 64-bit hash of client key, stream name and index."""
    return F.xxhash64(key, F.lit(zlib.crc32(stream.encode())), *index)


def uniform(key: Column, stream: str, *index: Column) -> Column:
    """A double in [0, 1): the upper 53 bits of the hash."""
    return F.shiftrightunsigned(hashed(key, stream, *index), 11) * F.lit(SCALE)


def normal(key: Column, stream: str, *index: Column) -> Column:
    """A standard normal double, by Box and Muller from two uniforms."""
    radius = F.sqrt(F.lit(-2.0) * F.log(F.lit(1.0) - uniform(key, stream + "/radius", *index)))
    return radius * F.cos(F.lit(2.0 * math.pi) * uniform(key, stream + "/angle", *index))


def floor_int(value: Column) -> Column:
    """The integer part of a column of doubles that are not negative."""
    return value.cast("int")


def lookup(values: Sequence[str | int | float | bool | None], index: Column) -> Column:
    """`values[index]` out of a literal array of one type; `index` must lie inside it."""
    kinds: dict[type, str] = {str: "string", int: "int", float: "double", bool: "boolean"}
    kind = kinds[next(type(value) for value in values if value is not None)]
    # One literal that the optimizer folds: a literal for each element would cost a call to the JVM each.
    return F.get(F.from_json(F.lit(json.dumps(values)), f"array<{kind}>"), index)


def pick(draw: Column, cumulative: Column, size: int) -> Column:
    """Index of the class that a `draw` falls into.

    Args:
        draw: uniform between zero and the last running sum.
        cumulative: array of running sums of the classes' weights.
        size: number of classes.
    """
    return reduce(Column.__add__, [(F.get(cumulative, F.lit(at)) <= draw).cast("int") for at in range(size - 1)])


def add(frame: DataFrame, columns: Mapping[str, Column], *, group: int = GROUP) -> DataFrame:
    """Adds columns, `group` of them to each Java method that Spark generates.

    Spark fuses all steps of a row into one method, and the JVM never compiles a method above 8,000 bytes: it interprets
    it, many times slower. An explode is where Spark starts a new method, so each group ends with one of one element.
    """
    names = list(columns)
    for start in range(0, len(names), group):
        part = {name: columns[name] for name in names[start : start + group]}
        last = names[start : start + group][-1]
        part[last] = F.explode(F.array(part[last]))
        frame = frame.select(
            *(name for name in frame.columns if name not in part), *(c.alias(n) for n, c in part.items())
        )
    return frame


def gathered(frame: DataFrame, name: str, values: Sequence[Column], *, group: int = GROUP) -> DataFrame:
    """Adds an array column of many values, `group` of them to each generated method (see `add`)."""
    parts = {f"{name}_{start}": F.array(*values[start : start + group]) for start in range(0, len(values), group)}
    return add(frame, parts, group=1).withColumn(name, F.concat(*parts)).drop(*parts)


def sigmoid(logit: Column) -> Column:
    """1 / (1 + exp(-logit))."""
    return F.lit(1.0) / (F.lit(1.0) + F.exp(-logit))


def clip(value: Column, low: float, high: float) -> Column:
    """`value` held between two bounds."""
    return F.least(F.greatest(value, F.lit(low)), F.lit(high))


def trait(name: str) -> Column:
    """The column of a hidden trait."""
    return F.col(f"trait_{name}")


def weighted(loadings: Mapping[Any, float]) -> Column:
    """Sum of traits times their weights; zero when there are none."""
    return reduce(Column.__add__, [F.lit(float(w)) * trait(name) for name, w in loadings.items()], F.lit(0.0))


def softmax(scores: Sequence[Column]) -> Column:
    """Array of class probabilities from scores."""
    powers = [F.exp(score) for score in scores]
    total = reduce(Column.__add__, powers)
    return F.array(*(power / total for power in powers))


def cumulated(weights: Column) -> Column:
    """Array of running sums of an array of doubles."""
    empty = F.array().cast("array<double>")
    return F.aggregate(
        weights,
        empty,
        lambda sums, p: F.concat(sums, F.array(F.coalesce(F.try_element_at(sums, F.lit(-1)), F.lit(0.0)) + p)),
    )


def bell(key: Column, stream: str, *index: Column) -> Column:
    """A bell-shaped double (mean 0, deviation 1, within 3.5) from one hash: the sum of its four 16-bit parts.

    Much cheaper than `normal`; for noise whose far tail does not matter.
    """
    bits = hashed(key, stream, *index)
    parts = [F.shiftrightunsigned(bits, 16 * part).bitwiseAND(F.lit(0xFFFF)) for part in range(4)]
    return (reduce(Column.__add__, parts) * F.lit(2.0**-16) - F.lit(2.0)) * F.lit(math.sqrt(3.0))
