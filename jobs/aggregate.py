"""Computes the Agg features of each client's history before its `as_of`, and client attributes as features."""

from __future__ import annotations

import json
import sys

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import AggConf, aggregate, as_of_rows, attribute_features, histories, learn_codes, observe
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult


class AggregateConf(JobConf, AggConf):
    """Settings of the aggregate job."""

    feature_set: str = Field("agg", description="name of the features written")
    attributes: tuple[str, ...] = Field(
        (), description="client attributes written as feature set `attributes`; none that a task predicts"
    )


def run(ctx: Context, conf: AggregateConf) -> StageResult:
    """Learns the codes on training clients, then aggregates all clients."""
    spec = ctx.spec
    clients = ctx.read("clients")
    as_of = as_of_rows(clients, ctx.read("labels") if ctx.exists("labels") else None, spec.as_of)
    categorical = conf.categorical or tuple(field.name for field in spec.fields_of("categorical"))
    numeric = conf.numeric or tuple(field.name for field in spec.fields_of("numeric"))
    observed = observe(
        ctx.read("events"), categorical=categorical, numeric=numeric, weekday=conf.calendar,
        hour=conf.calendar and spec.time.has_clock,
    )
    training = as_of.join(clients.where(F.col("split") == "train").select("client_id"), on="client_id", how="leftsemi")
    codes = learn_codes(histories(observed, training), conf.max_codes)
    folder = ctx.artefacts / "features" / conf.feature_set
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "codes.json").write_text(json.dumps(codes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = aggregate(
        histories(observed, as_of), codes, numeric=("amount", "log_amount", "log_days", *numeric), by_code=conf.by_code
    )
    sets = {conf.feature_set: rows}
    if conf.attributes:
        sets["attributes"] = attribute_features(clients, as_of, conf.attributes)
    written = ctx.write("features", _named(sets), where=f"feature_set IN ({_quoted(sets)})")
    return StageResult(
        rows_in=as_of.count() * len(sets),
        rows_out=written.rows,
        tables={"features": written.version},
        facts={"codes": {field: len(kept) for field, kept in codes.items()}, "feature_sets": list(sets)},
    )
