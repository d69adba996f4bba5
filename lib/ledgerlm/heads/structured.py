"""Structured features by an MLlib pipeline: imputed, standardised, one-hot; further vectors appended and projected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.storagelevel import StorageLevel

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.mllib import dense_rows
from ledgerlm.heads.vectors import KEY, Block

if TYPE_CHECKING:
    from pyspark.ml import PipelineModel

# Spark's PCA holds a matrix of columns x columns on the driver.
_MOST_APPENDED = 4000
_VECTOR = "vector"


class StructuredConf(Conf):
    """What becomes of client attributes and appended vectors."""

    numeric: tuple[str, ...] = Field((), description="client attributes that are numbers")
    categorical: tuple[str, ...] = Field((), description="client attributes that are categories")
    log: tuple[str, ...] = Field((), description="of the numeric ones, those taken as sign(x) ln(1 + |x|)")
    components: int = Field(16, ge=1, description="directions that each appended vector is projected on")


@dataclass(frozen=True, kw_only=True)
class Structured:
    """A fitted pipeline.

    Attributes:
        model: MLlib's pipeline model.
        conf: its settings.
        names: features in order.
        blocks: columns of the appended vectors; none when nothing is appended.
    """

    model: PipelineModel
    conf: StructuredConf
    names: tuple[str, ...]
    blocks: tuple[Block, ...]


def fit_structured(training: DataFrame, blocks: Sequence[Block], conf: StructuredConf) -> Structured:
    """Fits Imputer, StandardScaler, StringIndexer, OneHotEncoder and PCA; nothing of them sees other rows.

    Args:
        training: rows of training clients alone: client_id, as_of, the attributes as strings, and the columns of the
            blocks.
        blocks: vectors to append; the pipeline standardises each, projects it by a PCA of its own (one over all would
            give the directions to the widest), and standardises the result.
        conf: the attributes.

    Raises:
        ConfigError: an attribute that the rows lack.
        DataError: too wide vectors.
    """
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import StringIndexerModel

    unknown = [name for name in (*conf.numeric, *conf.categorical) if name not in training.columns]
    if unknown:
        raise ConfigError(f"no client attribute '{unknown[0]}': {nearest(unknown[0], training.columns)}")
    width = sum(len(block.features) for block in blocks)
    if width > _MOST_APPENDED:
        raise DataError(f"{width} appended features, {_MOST_APPENDED} are the most; take fewer sources or codes")
    rows = _typed(training, blocks, conf).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        model = Pipeline(stages=_stages(conf, blocks)).fit(rows)
    finally:
        rows.unpersist()
    names = [*conf.numeric]
    for stage in model.stages:
        if isinstance(stage, StringIndexerModel):
            pairs = zip(conf.categorical, stage.labelsArray, strict=True)
            names += [f"{name}={label}" for name, labels in pairs for label in (*labels, "(unknown)")]
    groups = Counter(block.group for block in blocks)
    for block in blocks:
        # The same part of two sources, say of two layers, is told apart by its column.
        title = block.group if groups[block.group] == 1 else block.column
        names += [f"{title}:direction:{place}" for place in range(_directions(block, conf))]
    return Structured(model=model, conf=conf, names=tuple(names), blocks=tuple(blocks))


def structured_features(rows: DataFrame, fitted: Structured) -> DataFrame:
    """Applies a fitted pipeline.

    Args:
        rows: as the training rows, of any clients. A category unseen in training becomes `NAME=(unknown)`.
        fitted: from `fit_structured`.

    Returns:
        client_id, as_of, features map<string, float> without zeros; key (client_id, as_of).
    """
    from pyspark.ml.functions import vector_to_array

    made = fitted.model.transform(_typed(rows, fitted.blocks, fitted.conf))
    names = F.array(*(F.lit(name) for name in fitted.names))
    values = vector_to_array(F.col("structured"), "float32")
    return made.select(
        *KEY, F.map_filter(F.map_from_arrays(names, values), lambda _, value: value != 0).alias("features")
    )


def _typed(rows: DataFrame, blocks: Sequence[Block], conf: StructuredConf) -> DataFrame:
    """Attributes as doubles or strings, and the appended vectors as one column."""
    attributes = [*conf.numeric, *conf.categorical]
    wide = dense_rows(rows, blocks, keep=attributes) if blocks else rows.select(*KEY, *attributes)
    numbers = {}
    for name in conf.numeric:
        number = F.col(name).try_cast("double")
        numbers[name] = F.signum(number) * F.log1p(F.abs(number)) if name in conf.log else number
    return wide.withColumns(numbers) if numbers else wide


def _directions(block: Block, conf: StructuredConf) -> int:
    return min(conf.components, len(block.features))


def _stages(conf: StructuredConf, blocks: Sequence[Block]) -> list[Any]:
    from pyspark.ml.feature import (
        PCA,
        Imputer,
        OneHotEncoder,
        StandardScaler,
        StringIndexer,
        VectorAssembler,
        VectorSlicer,
    )

    stages: list[Any] = []
    parts: list[str] = []
    if conf.numeric:
        filled = [f"{name}_filled" for name in conf.numeric]
        stages += [
            Imputer(inputCols=list(conf.numeric), outputCols=filled, strategy="median"),
            VectorAssembler(inputCols=filled, outputCol="numbers"),
            StandardScaler(inputCol="numbers", outputCol="scaled", withMean=True, withStd=True),
        ]
        parts.append("scaled")
    if conf.categorical:
        indexed = [f"{name}_index" for name in conf.categorical]
        encoded = [f"{name}_hot" for name in conf.categorical]
        stages += [
            StringIndexer(
                inputCols=list(conf.categorical),
                outputCols=indexed,
                handleInvalid="keep",
                stringOrderType="alphabetAsc",
            ),
            OneHotEncoder(inputCols=indexed, outputCols=encoded, dropLast=False),
        ]
        parts += encoded
    start = 0
    for block in blocks:
        end = start + len(block.features)
        sliced, scaled, projected, directions = (f"{block.column}_{step}" for step in range(4))
        stages += [
            VectorSlicer(inputCol=_VECTOR, outputCol=sliced, indices=list(range(start, end))),
            StandardScaler(inputCol=sliced, outputCol=scaled, withMean=True, withStd=True),
            PCA(k=_directions(block, conf), inputCol=scaled, outputCol=projected),
            StandardScaler(inputCol=projected, outputCol=directions, withMean=True, withStd=True),
        ]
        parts.append(directions)
        start = end
    return [*stages, VectorAssembler(inputCols=parts, outputCol="structured")]
