"""Representations: which vectors of a client a head reads, and how they become a matrix."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ledgerlm.config import Conf, StageName
from ledgerlm.engines.collect import collectable
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from scipy import sparse

Times = NDArray[np.datetime64]
KEY = ("client_id", "as_of")
_WORD = r"^[A-Za-z0-9_]+$"
_LARGEST = float(np.finfo(np.float32).max)
# Of a value that is not zero on its way to the driver: its place and itself.
BYTES_A_VALUE = 8
_SHARES = 10_000
# Of a matrix were it dense; bounds a worker's memory to some ten megabytes.
_NUMBERS_AT_ONCE = 4_000_000


class Source(Conf):
    """Vectors from one table."""

    table: Literal["features", "embeddings"] = Field(description="table that holds the vectors")
    feature_set: str | None = Field(None, pattern=_WORD, description="features: which set; default agg")
    parts: tuple[Annotated[str, Field(pattern=_WORD)], ...] = Field(
        (), description="embeddings: named parts, laid side by side; default mean"
    )
    stage: StageName | None = Field(
        None, description="embeddings: the embed stage that wrote them; default the latest embed stage"
    )
    backbone_id: str | None = Field(None, description="embeddings: backbone; default the one of the stage")
    definition_id: str | None = Field(None, description="embeddings: definition; default the one of the stage")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: object) -> object:
        if isinstance(content, Mapping) and content.get("table") == "features":
            return {**content, "feature_set": content.get("feature_set") or "agg"}
        if isinstance(content, Mapping) and content.get("table") == "embeddings":
            return {**content, "parts": content.get("parts") or ("mean",)}
        return content

    @model_validator(mode="after")
    def _fitting_keys(self) -> Source:
        strange = (self.parts or self.stage or self.backbone_id) if self.table == "features" else self.feature_set
        if strange:
            raise ValueError(f"{strange!r} does not belong to table {self.table}")
        return self

    def pinned(self, facts: Callable[[str], Mapping[str, Any]]) -> Source:
        """Fills in backbone and definition from what the embed stage reported.

        Args:
            facts: gives the facts of a finished stage by its name, or by its job's.
        """
        if self.table == "features" or (self.backbone_id and self.definition_id):
            return self
        found = facts(self.stage or "embed")
        return self.model_copy(
            update={
                "backbone_id": self.backbone_id or found["backbone_id"],
                "definition_id": self.definition_id or found["definition_id"],
            }
        )


Representation = tuple[Source, ...]


class Block(Conf):
    """Adjacent columns of a matrix that come from one column of a table."""

    column: str = Field(description="name of the column that holds this block's values")
    group: str = Field(description="feature set or part, for grouped importances")
    sparse: bool = Field(description="a map from feature name to value, else an array")
    names: tuple[str, ...] = Field(description="feature names in order")
    flag: bool = Field(False, description="whether one more feature says that the client has no such vector")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the matrix columns."""
        return (*self.names, f"{self.group}:missing") if self.flag else self.names


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Vectors of some clients.

    Attributes:
        client_ids: client of each row.
        as_of: time of each row, microseconds.
        x: rows x features, float32.
        names: feature names.
        groups: group of each feature.
        columns: block column of each feature.
    """

    client_ids: NDArray[np.object_]
    as_of: Times
    x: sparse.csr_matrix
    names: tuple[str, ...]
    groups: tuple[str, ...]
    columns: tuple[str, ...]

    def of_sources(self, indices: Sequence[int]) -> Matrix:
        """The features of some sources, by their numbers in `select_source`."""
        wanted = {str(index) for index in indices}
        kept = [place for place, column in enumerate(self.columns) if column[1:].partition("_")[0] in wanted]
        return replace(
            self,
            x=self.x[:, kept],
            names=tuple(self.names[place] for place in kept),
            groups=tuple(self.groups[place] for place in kept),
            columns=tuple(self.columns[place] for place in kept),
        )


def select_source(table: DataFrame, source: Source, index: int) -> DataFrame:
    """Takes one source's vectors out of its table.

    Args:
        table: `features` or `embeddings`.
        source: what to take; for embeddings with backbone and definition filled in.
        index: number of the source in its representation; keeps column names apart.

    Returns:
        Columns client_id, as_of, and one column `s{index}_{part}` for each block; key (client_id, as_of).

    Raises:
        ConfigError: for embeddings whose backbone or definition is open.
    """
    from pyspark.sql import functions as F

    if source.table == "features":
        rows = table.where(F.col("feature_set") == F.lit(source.feature_set))
        return rows.select(*KEY, F.col("features").alias(f"s{index}_{source.feature_set}"))
    if source.backbone_id is None or source.definition_id is None:
        raise ConfigError(f"embeddings of stage {source.stage}: backbone_id and definition_id must be known")
    rows = table.where(F.col("backbone_id") == source.backbone_id)
    rows = rows.where(F.col("definition_id") == source.definition_id)
    parts = [F.try_element_at("parts", F.lit(part)).alias(f"s{index}_{part}") for part in source.parts]
    return rows.select(*KEY, *parts)


def newest_vectors(table: DataFrame, name: str, night: dt.datetime) -> DataFrame:
    """Each client's newest vectors as of a time, under that time.

    A vector serves every time after its own until an event comes, and whoever makes vectors makes one for each client
    to whom an event came.

    Args:
        table: `features` or `embeddings`.
        name: which of the two.
        night: the time.

    Returns:
        Rows of the table, one for each client and kind of vector.
    """
    from pyspark.sql import functions as F

    kinds = ("feature_set",) if name == "features" else ("backbone_id", "definition_id")
    vectors = "features" if name == "features" else "parts"
    instant = F.lit(night.isoformat(sep=" ")).cast("timestamp")
    known = table.where(F.col("as_of") <= instant).groupBy("client_id", *kinds)
    newest = known.agg(F.max_by(vectors, "as_of").alias(vectors))
    return newest.withColumn("as_of", instant)


def join_sources(sources: Sequence[Source], tables: Mapping[str, DataFrame], *, union: bool = False) -> DataFrame:
    """Lays the blocks of several sources side by side.

    Args:
        sources: what to take, backbone and definition filled in.
        tables: the `features` and `embeddings` tables, as far as the sources name them.
        union: keep clients that only some sources know; else only those that all know.

    Returns:
        Columns client_id, as_of, then all blocks; key (client_id, as_of).
    """
    how = "full" if union else "inner"
    frames = [select_source(tables[source.table], source, index) for index, source in enumerate(sources)]
    return reduce(lambda one, other: one.join(other, on=list(KEY), how=how), frames)


def is_finite(blocks: Sequence[Block]) -> Column:
    """Whether all numbers of the blocks are numbers that float32 can hold; a block that is absent has none."""
    from pyspark.sql import functions as F

    each = [F.coalesce(F.forall(_numbers(block.column, block.sparse), _fits), F.lit(True)) for block in blocks]
    return reduce(lambda one, other: one & other, each)


def _numbers(column: str, is_map: bool) -> Column:
    """The numbers of a block as an array."""
    from pyspark.sql import functions as F

    return F.map_values(column) if is_map else F.col(column)


def _fits(number: Column) -> Column:
    """Whether float32 holds it; for Spark NaN is larger than any number."""
    from pyspark.sql import functions as F

    return F.coalesce(F.abs(number) <= F.lit(_LARGEST), F.lit(False))


def tables_of(representations: Iterable[Sequence[Source]]) -> list[str]:
    """The tables that some representations read."""
    return sorted({source.table for sources in representations for source in sources})


def component_names(sources: Sequence[Source], facts: Callable[[str], Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the embed stages say that each number of a part is called.

    Args:
        sources: as configured; those that name their backbone themselves have no stage to ask.
        facts: gives the facts of a finished stage by its name, or by its job's.

    Returns:
        Part to names.
    """
    names: dict[str, list[str]] = {}
    for source in sources:
        if source.table == "embeddings" and source.backbone_id is None:
            file = facts(source.stage or "embed").get("components")
            names |= json.loads(Path(file).read_text(encoding="utf-8"))["components"] if file else {}
    return names


def learn_blocks(
    joined: DataFrame,
    *,
    union: bool = False,
    max_features: int = 100_000,
    named: Mapping[str, Sequence[str]] | None = None,
) -> list[Block]:
    """Finds the feature names and lengths of each block of `join_sources`.

    Args:
        joined: rows that the features are learned from; training clients, for a head.
        union: whether rows may lack a block; each block then gets a flag.
        max_features: bound on the features of one block, since they are held on the driver.
        named: from `component_names`; a part that is not in it has numbered names.

    Raises:
        DataError: for an empty block, too many features, vectors of different length, or numbers that are not finite
            or beyond float32.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    arrays = [field.name for field in joined.schema if isinstance(field.dataType, T.ArrayType)]
    maps = [field.name for field in joined.schema if isinstance(field.dataType, T.MapType)]
    sizes = [F.struct(F.min(F.size(name)), F.max(F.size(name))).alias(name) for name in arrays]
    strange = [
        F.sum(F.size(F.filter(_numbers(name, name in maps), lambda number: ~_fits(number)))).alias(f"{name}_strange")
        for name in (*arrays, *maps)
    ]
    row = joined.agg(*sizes, *strange).first()
    assert row is not None  # an aggregate has a row
    if wrong := [name for name in (*arrays, *maps) if row[f"{name}_strange"]]:
        _refuse(joined, {name: int(row[f"{name}_strange"]) for name in wrong}, maps)
    found: dict[str, tuple[str, ...]] = {}
    if arrays:
        for name in arrays:
            low, high = row[name]
            if low is None or low != high:
                raise DataError(
                    f"part '{_group(name)}': vectors have {low} to {high} numbers, one length is needed; "
                    "the embed stage must write this part for every client"
                )
            found[name] = _component_names(_group(name), int(high), named or {})
    for name in maps:
        names = joined.select(F.explode(F.map_keys(name)).alias("name")).distinct().orderBy("name")
        found[name] = tuple(row["name"] for row in names.limit(max_features + 1).toLocalIterator())
        if not 0 < len(found[name]) <= max_features:
            raise DataError(f"feature set '{_group(name)}': {len(found[name])} features, 1 to {max_features} needed")
    return [
        Block(column=name, group=_group(name), sparse=name in maps, names=found[name], flag=union)
        for name in joined.columns
        if name not in KEY
    ]


def _refuse(joined: DataFrame, counts: Mapping[str, int], maps: Sequence[str]) -> None:
    """Tells which features have numbers that no head can learn from."""
    from pyspark.sql import functions as F

    told = []
    for name, count in counts.items():
        entries = (
            F.map_entries(name)
            if name in maps
            else F.arrays_zip(
                F.transform(F.col(name), lambda _, place: place.cast("string")).alias("key"), F.col(name).alias("value")
            )
        )
        entry = joined.select(F.explode(entries).alias("entry")).select("entry.*").toDF("key", "value")
        features = entry.where(~_fits(F.col("value"))).groupBy("key").count().orderBy(F.desc("count"), "key").limit(3)
        listed = ", ".join(f"'{row['key']}' ({row['count']:,})" for row in features.toLocalIterator())
        told.append(f"{count:,} of '{_group(name)}', the most of {listed}")
    raise DataError(
        f"numbers that are not finite or beyond float32 ({_LARGEST:.1e}), which no head can learn from: "
        f"{'; '.join(told)}; mend the stage that writes them"
    )


def _component_names(part: str, width: int, named: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    given = tuple(named.get(part, ()))
    return given if len(given) == width else tuple(f"{part}:{place}" for place in range(width))


def _group(column: str) -> str:
    return column.partition("_")[2]


def to_matrix(batch: pa.RecordBatch | pa.Table, blocks: Sequence[Block]) -> sparse.csr_matrix:
    """Turns rows of `join_sources` into a matrix; a feature that a row lacks is zero, an unknown one is ignored."""
    from scipy import sparse

    if isinstance(batch, pa.Table):
        # One after the other: lists of more than 2^31 numbers do not fit into one Arrow array.
        return _stacked([to_matrix(one, blocks) for one in batch.to_batches()], sum(len(b.features) for b in blocks))
    parts = []
    for block in blocks:
        column = batch.column(block.column)
        parts.append(_from_maps(column, block) if block.sparse else _from_arrays(column, block))
        if block.flag:
            parts.append(sparse.csr_matrix(column.is_null().to_numpy(zero_copy_only=False)[:, None].astype(np.float32)))
    x = sparse.csr_matrix(sparse.hstack(parts, format="csr", dtype=np.float32))
    x.sort_indices()
    return x


def _stacked(parts: Sequence[sparse.csr_matrix], width: int) -> sparse.csr_matrix:
    """Parts of a matrix below each other."""
    from scipy import sparse

    filled = [part for part in parts if part.shape[0]]
    return sparse.csr_matrix(sparse.vstack(filled, format="csr") if filled else (0, width), dtype=np.float32)


def _from_maps(column: pa.MapArray, block: Block) -> sparse.csr_matrix:
    from scipy import sparse

    offsets = column.offsets.to_numpy()
    keys, values = (child.slice(offsets[0], offsets[-1] - offsets[0]) for child in (column.keys, column.items))
    places = pc.index_in(keys, value_set=pa.array(block.names, pa.string()))
    known = places.is_valid().to_numpy(zero_copy_only=False)
    kept = np.r_[0, np.cumsum(known)]
    return sparse.csr_matrix(
        (
            values.to_numpy(zero_copy_only=False).astype(np.float32)[known],
            places.fill_null(0).to_numpy()[known],
            kept[offsets - offsets[0]],
        ),
        shape=(len(column), len(block.names)),
    )


def _from_arrays(column: pa.ListArray, block: Block) -> sparse.csr_matrix:
    from scipy import sparse

    width = len(block.names)
    dense = np.zeros((len(column), width), np.float32)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if len(flat) != there.sum() * width:
        raise DataError(f"part '{block.group}': a vector has not the {width} numbers that the head was trained on")
    dense[there] = flat.reshape(-1, width)
    return sparse.csr_matrix(dense)


def read_matrix(joined: DataFrame, blocks: Sequence[Block]) -> Matrix:
    """Reads rows to this machine by Arrow; the caller bounds their number (`within`).

    Each task sends 8 bytes for a value that is not zero: the names of a thousand features beside each client's values
    are several times that, and Spark loses results of a hundred megabytes.

    Returns:
        The matrix, sorted by client and as_of.
    """
    kept = joined.select(*KEY, *(block.column for block in blocks))
    keys = ", ".join(f"{name} {kept.schema[name].dataType.simpleString()}" for name in KEY)
    work = partial(encode_rows, blocks=list(blocks), keep=KEY)
    table: pa.Table = kept.mapInArrow(work, f"{keys}, places array<int>, values array<float>").toArrow()
    # The keys alone: Arrow sorts lists by putting them into one array first, which holds 2^31 numbers at the most.
    order = pc.sort_indices(table.select(KEY), [(name, "ascending") for name in KEY]).to_numpy()
    return Matrix(
        client_ids=table.column("client_id").to_numpy(zero_copy_only=False)[order],
        as_of=table.column("as_of").to_numpy().astype("datetime64[us]")[order],
        x=decode_rows(table, sum(len(block.features) for block in blocks))[order],
        names=tuple(name for block in blocks for name in block.features),
        groups=tuple(block.group for block in blocks for _ in block.features),
        columns=tuple(block.column for block in blocks for _ in block.features),
    )


def count_values(joined: DataFrame) -> tuple[int, int]:
    """Rows of `join_sources`, and the numbers in their blocks: what reading them brings, 8 bytes each."""
    from pyspark.sql import functions as F

    sizes = [F.coalesce(F.sum(F.size(name).cast("long")), F.lit(0)) for name in joined.columns if name not in KEY]
    row = joined.agg(F.count(F.lit(1)).alias("rows"), sum(sizes, F.lit(0)).alias("values")).first()
    assert row is not None  # an aggregate has a row
    return int(row["rows"]), int(row["values"])


def readable(spark: SparkSession) -> int:
    """Numbers of vectors that one query may bring to this process."""
    return collectable(spark) // BYTES_A_VALUE


def within(joined: DataFrame, most: int) -> tuple[DataFrame, float]:
    """Rows of `join_sources` with at most about so many numbers.

    Whole clients are left out by the hash of their id, the same ones every time.

    Args:
        joined: rows; they are counted, so they should have been kept.
        most: numbers that may be read.

    Returns:
        The rows, and the share of the clients that is left.

    Raises:
        DataError: hardly one client would be left.
    """
    from pyspark.sql import functions as F

    rows, values = count_values(joined)
    if values <= most:
        return joined, 1.0
    share = int(most / values * _SHARES)
    if not share:
        raise DataError(
            f"{rows:,} rows have {values:,} numbers and {most:,} can be read: give the driver more "
            "(spark.driver.memory, spark.driver.maxResultSize) or choose fewer vectors"
        )
    return joined.where(F.pmod(F.xxhash64("client_id"), F.lit(_SHARES)) < share), share / _SHARES


def method_matrices(
    representations: Mapping[str, Sequence[Source]],
    tables: Mapping[str, DataFrame],
    facts: Callable[[str], Mapping[str, Any]],
    keys: DataFrame,
    *,
    union: bool = False,
    most: int | None = None,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> dict[str, Matrix]:
    """The vectors of several methods over the same rows, each source read once.

    Args:
        representations: method -> its sources.
        tables: the `features` and `embeddings` tables, as far as the sources name them.
        facts: gives the facts of a finished stage by its name, or by its job's.
        keys: client_id, as_of of the rows wanted; distinct.
        union: keep rows that only some sources know, with zeros and a flag; else only those that all know.
        most: numbers read to this machine; whole clients are left out above it. Left out, what the engine profile
            lets the driver take (`readable`).
        keep: computes a frame once; left out, the rows are joined three times.
        progress: told when clients are left out.
    """
    pinned = {name: [one.pinned(facts) for one in chosen] for name, chosen in representations.items()}
    sources = list(dict.fromkeys(source for chosen in pinned.values() for source in chosen))
    rows = join_sources(sources, tables, union=union).join(keys, on=list(KEY), how="inner")
    rows = rows if keep is None else keep(rows)
    limit = readable(keys.sparkSession) if most is None else most
    rows, share = within(rows, limit)
    if share < 1:
        (progress or Progress()).say(
            f"    {share:.1%} of the clients are read, whose vectors have {limit:,} numbers, the most that may be"
        )
    named = component_names([source for chosen in representations.values() for source in chosen], facts)
    matrix = read_matrix(rows, learn_blocks(rows, union=union, named=named))
    return {name: matrix.of_sources([sources.index(source) for source in chosen]) for name, chosen in pinned.items()}


def encode_rows(
    batches: Iterable[pa.RecordBatch], blocks: Sequence[Block], keep: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """For `mapInArrow`: replaces the blocks by `places` and `values` of what is not zero.

    Args:
        batches: rows of `join_sources`.
        blocks: columns of the matrix.
        keep: further columns to hand through.

    Yields:
        The kept columns, `places` list<int>, `values` list<float>.
    """
    for batch in pieces(batches, blocks):
        x = to_matrix(batch, blocks)
        offsets = pa.array(x.indptr, pa.int32())
        columns = [batch.column(name) for name in keep]
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(x.indices, pa.int32())))
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(x.data, pa.float32())))
        yield pa.RecordBatch.from_arrays(columns, names=[*keep, "places", "values"])


def pieces(batches: Iterable[pa.RecordBatch], blocks: Sequence[Block]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches whose matrix, were it dense, has a bounded number of numbers."""
    step = max(1, _NUMBERS_AT_ONCE // max(1, sum(len(block.features) for block in blocks)))
    for batch in batches:
        yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def decode_rows(table: pa.Table | pa.RecordBatch, width: int) -> sparse.csr_matrix:
    """The matrix that `encode_rows` took apart."""
    return _stacked(list(decode_parts(table, width)), width)


def decode_parts(table: pa.Table | pa.RecordBatch, width: int) -> Iterator[sparse.csr_matrix]:
    """The same chunk by chunk: the lists of 932,000 clients of 2,304 numbers do not fit into one Arrow array."""
    from scipy import sparse

    for batch in table.to_batches() if isinstance(table, pa.Table) else [table]:
        places, values = batch.column("places"), batch.column("values")
        lengths = pc.list_value_length(places).to_numpy(zero_copy_only=False)
        yield sparse.csr_matrix(
            (
                values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False),
                places.flatten().to_numpy(zero_copy_only=False),
                np.r_[0, np.cumsum(lengths, dtype=np.int64)],
            ),
            shape=(len(batch), width),
        )
