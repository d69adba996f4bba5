"""Uplift by regression on the transformed outcome, in Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.heads.mllib import MllibConf, dense_rows, fit_mllib
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import KEY, Source, join_sources, learn_blocks

_TASK = Task(name="transformed_outcome", kind="regression")
# The outcome is nearly all noise: a penalty this strong keeps the few directions that matter.
_LINEAR = MllibConf(reg_param=1.0)


def transformed_uplift(
    sources: Sequence[Source], tables: Mapping[str, DataFrame], experiment: DataFrame, *, seed: int
) -> DataFrame:
    """Ridge regression of y (t - e) / (e (1 - e)), whose mean given the features is the uplift (Athey, Imbens 2015).

    Args:
        sources: vectors to read, backbone and definition filled in.
        tables: the tables that hold them.
        experiment: client_id, as_of, y, treated of training clients, contacted or not at random.
        seed: of the regression.

    Returns:
        client_id, as_of, uplift_transformed, for every client that has the vectors.

    Raises:
        DataError: one of the two groups is empty.
    """
    row = experiment.agg(F.avg(F.col("treated").cast("double")).alias("share")).first()
    share = float(row["share"] or 0.0) if row is not None else 0.0
    if not 0 < share < 1:
        raise DataError(f"{share:.0%} of the training clients were contacted; uplift needs both groups")
    treated = F.col("treated").cast("double")
    outcome = F.col("y") * (treated - share) / (share * (1 - share))
    joined = join_sources(sources, tables)
    training = joined.join(experiment.select(*KEY, outcome.alias("label")), on=list(KEY), how="inner")
    blocks = learn_blocks(training.drop("label"))
    model = fit_mllib(training, blocks, _TASK, "logistic_regression", _LINEAR, seed=seed)
    scored = model.transform(dense_rows(joined, blocks))
    return scored.select(*KEY, F.col("prediction").alias("uplift_transformed"))
