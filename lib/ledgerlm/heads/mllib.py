"""MLlib heads: logistic regression, random forest and boosted trees, trained and scored in Spark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep
from ledgerlm.errors import ConfigError
from ledgerlm.files import url_of
from ledgerlm.heads.scoring import REASONS
from ledgerlm.heads.tasks import Task, class_index, refuse_one_class
from ledgerlm.heads.vectors import KEY, Block, pieces, to_matrix
from ledgerlm.lake.schemas import VECTOR

if TYPE_CHECKING:
    from pyspark.ml import Estimator, PipelineModel

MllibKind = Literal["logistic_regression", "random_forest", "gbt"]
_DENSE = "vector"


class MllibConf(Conf):
    """Settings of MLlib's estimators."""

    max_iter: int = Field(100, ge=1, description="iterations of a linear model, or trees")
    reg_param: float = Field(0.1, ge=0, description="penalty of a linear model")
    elastic_net: float = Field(0.0, ge=0, le=1, description="share of L1 in the penalty")
    max_depth: int = Field(5, ge=1, description="depth of a tree")
    step_size: float = Field(0.1, gt=0, le=1, description="shrinkage of a tree")


def fit_mllib(
    joined: DataFrame,
    blocks: Sequence[Block],
    task: Task,
    kind: MllibKind,
    conf: MllibConf,
    *,
    seed: int,
    keep: Keep | None = None,
) -> PipelineModel:
    """Trains a head in Spark: VectorAssembler, MaxAbsScaler, model.

    Args:
        joined: from `join_sources`, with column `label` (from the tasks' classes).
        blocks: columns of the matrix.
        task: what is predicted.
        kind: logistic_regression (for a regression task a linear regression), random_forest, or gbt.
        conf: settings.
        seed: of the trees.
        keep: computes a frame once; the scaler and each iteration read the rows again, unless MLlib keeps them.

    Raises:
        ConfigError: for gbt with more than two classes, which MLlib does not have.
        DataError: all rows are of one class.
    """
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import MaxAbsScaler, VectorAssembler

    rows = dense_rows(joined, blocks, keep=("label",))
    stages: list[Any] = [
        VectorAssembler(inputCols=[_DENSE], outputCol="assembled"),
        MaxAbsScaler(inputCol="assembled", outputCol="features"),
        _estimator(task, kind, conf, seed),
    ]
    labelled = rows.withColumn("label", class_index(task))
    labelled = labelled if keep is None else keep(labelled)
    if task.kind != "regression":
        counts = np.zeros(task.outputs, np.int64)
        for row in labelled.groupBy("label").count().toLocalIterator():
            counts[int(row["label"])] = row["count"]
        refuse_one_class(task, counts)
    return Pipeline(stages=stages).fit(labelled)


def _estimator(task: Task, kind: MllibKind, conf: MllibConf, seed: int) -> Estimator[Any]:
    from pyspark.ml.classification import GBTClassifier, LogisticRegression, RandomForestClassifier
    from pyspark.ml.regression import GBTRegressor, LinearRegression, RandomForestRegressor

    linear: dict[str, Any] = {"maxIter": conf.max_iter, "regParam": conf.reg_param, "elasticNetParam": conf.elastic_net}
    forest: dict[str, Any] = {"numTrees": conf.max_iter, "maxDepth": conf.max_depth, "seed": seed}
    trees: dict[str, Any] = {
        "maxIter": conf.max_iter,
        "maxDepth": conf.max_depth,
        "stepSize": conf.step_size,
        "seed": seed,
    }
    if kind == "logistic_regression":
        return LinearRegression(**linear) if task.kind == "regression" else LogisticRegression(**linear)
    if kind == "random_forest":
        return RandomForestRegressor(**forest) if task.kind == "regression" else RandomForestClassifier(**forest)
    if task.kind == "multiclass":
        raise ConfigError(f"task {task.name} has {task.outputs} classes; MLlib's gbt knows two: use lightgbm")
    return GBTRegressor(**trees) if task.kind == "regression" else GBTClassifier(**trees)


def _labels(task: Task) -> Column:
    return F.array(*(F.lit(label) for label in task.classes))


def dense_rows(joined: DataFrame, blocks: Sequence[Block], keep: Sequence[str] = ()) -> DataFrame:
    """Rows of `join_sources` as MLlib vectors.

    Returns:
        client_id, as_of, the kept columns, and `vector`.
    """
    from pyspark.ml.functions import array_to_vector

    kept = [*KEY, *keep]
    fields = [joined.schema[name] for name in kept]
    schema = T.StructType([*fields, T.StructField(_DENSE, T.ArrayType(T.FloatType(), containsNull=False))])
    work = partial(_dense_batches, blocks=list(blocks), keep=kept)
    return joined.mapInArrow(work, schema).withColumn(_DENSE, array_to_vector(F.col(_DENSE)))


def _dense_batches(
    batches: Iterator[pa.RecordBatch], *, blocks: Sequence[Block], keep: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for batch in pieces(batches, blocks):
        x = to_matrix(batch, blocks).toarray()
        offsets = pa.array(range(0, x.size + 1, x.shape[1]), pa.int32())
        columns = [*(batch.column(name) for name in keep), pa.ListArray.from_arrays(offsets, pa.array(x.ravel()))]
        yield pa.RecordBatch.from_arrays(columns, names=[*keep, _DENSE])


def score_mllib(joined: DataFrame, blocks: Sequence[Block], task: Task, folder: Path) -> DataFrame:
    """Scores clients with an MLlib head.

    Returns:
        The columns of `scoring.score_rows`; MLlib gives no reasons, so that array is empty.
    """
    from pyspark.ml import PipelineModel
    from pyspark.ml.functions import vector_to_array

    model = PipelineModel.load(url_of(folder))
    scored = model.transform(dense_rows(joined, blocks))
    if task.kind == "regression":
        probabilities, prediction = F.array().cast(VECTOR), F.col("prediction")
        margin = prediction
    else:
        probabilities = vector_to_array(F.col("probability"), "float32")
        prediction = _labels(task)[F.col("prediction").cast("int")]
        margin = vector_to_array(F.col("rawPrediction"))[1] if task.kind == "binary" else F.array_max(probabilities)
    return scored.select(
        *KEY,
        margin.cast("double").alias("margin"),
        probabilities.alias("probabilities"),
        prediction.alias("prediction"),
        F.array().cast(REASONS).alias("reasons"),
    )
