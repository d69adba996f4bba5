"""Frames of other libraries: pandas, Polars and Arrow in, and the same out, by way of Arrow.

Whatever hands its columns over as an Arrow stream (DuckDB, Ibis) comes in as well, and goes out as Arrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ledgerlm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import types as T

Kind = Literal["spark", "pandas", "polars", "arrow"]
_KINDS: dict[str, Kind] = {"pyspark": "spark", "pandas": "pandas", "polars": "polars", "pyarrow": "arrow"}


def kind_of(frame: object) -> Kind:
    """The library that a frame is of.

    Raises:
        DataError: it is no frame.
    """
    found = _KINDS.get(type(frame).__module__.partition(".")[0])
    if found is not None and hasattr(type(frame), "columns"):
        return found
    if hasattr(frame, "__arrow_c_stream__"):
        return "arrow"
    raise DataError(
        f"a value of type {type(frame).__name__} is no frame: give one of Spark, pandas, Polars or Arrow, or whatever "
        "has __arrow_c_stream__"
    )


def to_arrow(frame: Any) -> pa.Table:
    """A frame of another library than Spark as an Arrow table; the index of pandas is left behind.

    A lazy frame of Polars is computed; its categories become texts.

    Raises:
        DataError: a column holds values of several types, or two have one name.
    """
    import pyarrow as pa

    kind = kind_of(frame)
    names = names_of(frame)
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise DataError(f"columns {', '.join(twice)} stand twice; give each a name of its own")
    try:
        if kind == "pandas":
            return pa.Table.from_pandas(frame, preserve_index=False)
        table = pa.table(_plain(frame) if kind == "polars" else frame)
        for place, column in enumerate(table.schema):
            if pa.types.is_string_view(column.type):  # as Polars has them; Spark knows none
                table = table.set_column(place, column.name, table[column.name].cast(pa.string()))
        return table
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(f"a column holds values of several types, or of one that Arrow lacks: {error}") from error


def names_of(frame: Any) -> list[str]:
    """The columns of a frame."""
    if hasattr(frame, "collect_schema"):  # of Polars, lazy or not
        return list(frame.collect_schema().names())
    return list(frame.column_names if hasattr(frame, "column_names") else getattr(frame, "columns", ()))


def _plain(frame: Any) -> Any:
    """A frame of Polars that is computed, and holds no categories, which Arrow cannot turn into texts."""
    import polars as pl

    computed = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    categories = [name for name, kind in computed.schema.items() if isinstance(kind, pl.Categorical | pl.Enum)]
    return computed.with_columns(pl.col(categories).cast(pl.String)) if categories else computed


def to_spark(spark: SparkSession, frame: Any, schema: T.StructType) -> DataFrame:
    """A frame as Spark's, its columns of the types of a schema; those that the schema lacks stay as they are.

    Args:
        spark: session in UTC.
        frame: of any kind; one of Spark is given back as it is.
        schema: of a table.

    Raises:
        DataError: a value is none of its column's type.
    """
    if kind_of(frame) == "spark":
        own: DataFrame = frame
        return own
    import pyarrow as pa
    from pyspark.errors import PySparkTypeError
    from pyspark.sql.pandas.types import to_arrow_type

    table = to_arrow(frame)
    types = {field.name: to_arrow_type(field.dataType, timezone="UTC") for field in schema}
    for place, name in enumerate(table.column_names):
        if name in types and table.schema.types[place] != types[name]:
            try:
                table = table.set_column(place, name, _cast(table[name], types[name]))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
                raise DataError(
                    f"column {name} is of type {table.schema.types[place]} and not of {types[name]}: {error}"
                ) from error
    try:
        return spark.createDataFrame(table)
    except PySparkTypeError as error:
        raise DataError(f"Spark has no such type: {error}; make it another one") from error


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    """A column of another type; maps are dicts in pandas, and lists of keys and values in Polars."""
    import pyarrow as pa

    if not pa.types.is_map(wanted) or pa.types.is_map(column.type):
        return column.cast(wanted)
    if pa.types.is_struct(column.type):  # of dicts, whose keys Arrow takes for names; those that are absent are null
        told = [one and {k: v for k, v in one.items() if v is not None} for one in column.to_pylist()]
    else:
        told = [one and {entry["key"]: entry["value"] for entry in one} for one in column.to_pylist()]
    rows = [None if one is None else list(dict(one).items()) for one in told]
    return pa.chunked_array([pa.array(rows, type=wanted)])


def from_spark(frame: DataFrame, kind: Kind) -> Any:
    """Spark's rows as a frame of a kind, on this machine unless that is Spark; times are in UTC, and say so."""
    if kind == "spark":
        return frame
    table = frame.toArrow()
    if kind == "pandas":
        return table.to_pandas(maps_as_pydicts="strict")
    if kind == "polars":
        import polars as pl

        return pl.from_arrow(table)
    return table
