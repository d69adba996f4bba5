"""Wide to long: columns of periods become rows, after each was read as what it is used for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.events.cells import Uses, hidden
from ledgerlm.events.columns import FAULT, LEFT_OUT, ROW
from ledgerlm.events.numbers import EXACT
from ledgerlm.events.spec_files import FileSpec, UnpivotSpec

_ONE = "_one"


def wide_names(names: Collection[str], unpivot: UnpivotSpec) -> dict[str, str]:
    """The columns of a file that its rows need, each to the column that it becomes (itself, if it stays)."""
    kept = {name: name for name in names if name not in (*unpivot.columns, unpivot.name)}
    return kept | {wide: name for row in unpivot.rows.values() for name, wide in row.items() if name in names}


def wide_file(file: FileSpec, unpivot: UnpivotSpec) -> FileSpec:
    """The file as it stands, each of its columns with the `values` of the column that it becomes."""
    values = {
        wide: file.values[name] for row in unpivot.rows.values() for name, wide in row.items() if name in file.values
    }
    return file.model_copy(update={"values": {**file.values, **values}})


def wide_uses(uses: Uses, wide: Mapping[str, str]) -> Uses:
    """What the columns of the file are read as: that of the columns that they become."""

    def also(names: Collection[str]) -> set[str]:
        return {*names, *(one for one, name in wide.items() if name in names)}

    return replace(
        uses,
        codes=also(uses.codes),
        reals=also(uses.reals),
        exact=also(uses.exact),
        times=also(uses.times),
        currencies=also(uses.currencies),
    )


def long_rows(rows: DataFrame, unpivot: UnpivotSpec, needed: Collection[str], uses: Uses) -> DataFrame:
    """A row for each period.

    Args:
        rows: of `wide_file`, with the columns of `wide_names`.
        unpivot: the periods.
        needed: the columns that are wanted.
        uses: what they are used as.
    """
    outs = [name for name in unpivot.columns if name in needed]
    wide = {hidden(one, form) for row in unpivot.rows.values() for one in row.values() for form in "rindc"}
    periods = [
        F.struct(
            *(F.col(hidden(row[name], form)).alias(hidden(name, form)) for name in outs for form in _forms(name, uses)),
            *(_period(text, form).alias(hidden(unpivot.name, form)) for form in _forms(unpivot.name, uses)),
            F.concat(ROW, F.lit(f"\n{unpivot.name}={text}")).alias(ROW),
            _empty([row[name] for name in outs], unpivot.nulls).alias(LEFT_OUT),
        )
        for text, row in unpivot.rows.items()
    ]
    kept = [name for name in rows.columns if name not in wide and name not in (ROW, LEFT_OUT)]
    return rows.select(*kept, F.explode(F.array(*periods)).alias(_ONE)).select(*kept, f"{_ONE}.*")


def _forms(name: str, uses: Uses) -> list[str]:
    return [form for form in "rindc" if hidden(name, form) in uses.columns(name)]


def _period(text: str, form: str) -> Column:
    """The text of a period in one of the forms of `Uses.columns`."""
    value = F.lit(text)
    return {
        "r": value,
        "i": value,
        "n": value.try_cast("double"),
        "d": value.try_cast(EXACT),
        "c": F.lit(None).cast("string"),
    }[form]


def _empty(names: Collection[str], nulls: Collection[str]) -> Column:
    """Whether a sound line holds nothing in any of the columns."""
    return reduce(and_, (_nothing(hidden(name), nulls) for name in names), F.col(FAULT).isNull())


def _nothing(name: str, nulls: Collection[str]) -> Column:
    value = F.col(name)
    return value.isNull() | value.cast("string").isin(*nulls) if nulls else value.isNull()
