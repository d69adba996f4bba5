"""Computes the Agg features of each client's history before its `as_of`, and client attributes as features."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.baselines.agg import (
    AggConf,
    Codes,
    aggregate,
    attribute_features,
    histories,
    learn_codes,
    observe,
)
from ledgerlm.errors import DataError
from ledgerlm.events.asked import asked
from ledgerlm.events.dictionaries import with_description
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ATTRIBUTES = "attributes"


class AggregateConf(AggConf):
    """Settings of the aggregate job."""

    feature_set: str = Field("agg", description="name of the features written")
    as_of: dt.datetime | None = Field(
        None,
        description="end of the histories of clients without a label; left out, the data set's, or else midnight after "
        "the last event",
    )
    described: tuple[str, ...] = Field(
        (), description="fields whose codes are read as their descriptions, so that banks with other codes agree"
    )
    attributes: tuple[str, ...] = Field(
        (), description="client attributes to write as feature set `attributes`; none that a task predicts"
    )


def run(ctx: Context, conf: AggregateConf) -> StageResult:
    """Learns the codes on training clients, then aggregates the histories of all."""
    clients = ctx.read("clients")
    events = ctx.read("events")
    for field in conf.described:
        events = with_description(events, ctx.read("dictionaries"), field, field)
    as_of = asked(clients, ctx.maybe("labels"), ctx.end(conf.as_of))
    numeric = _names(conf.numeric, ctx, "numeric")
    observed = observe(
        events,
        categorical=_names(conf.categorical, ctx, "categorical"),
        numeric=numeric,
        hour=conf.calendar and ctx.spec.time.has_clock,
        weekday=conf.calendar,
    )
    training = as_of.join(clients.where("split = 'train'").select("client_id"), on="client_id", how="leftsemi")
    codes = learn_codes(histories(observed, training), conf.max_codes)
    _save(ctx, conf, codes)
    amounts = ("amount", "log_amount") if ctx.spec.amount else ()
    by_code = conf.by_code if conf.by_code is not None else ("log_amount",) if ctx.spec.amount else numeric
    whole = (*amounts, "log_days", *numeric)
    sets = {conf.feature_set: aggregate(histories(observed, as_of), as_of, codes, numeric=whole, by_code=by_code)}
    if conf.attributes:
        sets[ATTRIBUTES] = attribute_features(clients, as_of, conf.attributes)
    written = ctx.write("features", _together(sets), {"feature_set": tuple(sets)})
    wanted = as_of.count() * len(sets)
    if written.rows != wanted:
        raise DataError(f"{wanted} rows of features were to be written, but {written.rows} were; run the stage again")
    return StageResult(
        rows_in=wanted,
        rows_out=written.rows,
        facts={"feature_sets": list(sets), "codes": {field: len(kept) for field, kept in codes.items()}},
    )


def _names(chosen: tuple[str, ...] | None, ctx: Context, kind: str) -> tuple[str, ...]:
    return tuple(field.name for field in ctx.spec.fields if field.kind == kind) if chosen is None else chosen


def _save(ctx: Context, conf: AggregateConf, codes: Codes) -> None:
    folder = ctx.artefacts / "features" / conf.feature_set
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "codes.json").write_text(json.dumps(codes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _together(sets: Mapping[str, DataFrame]) -> DataFrame:
    named = [rows.withColumn("feature_set", F.lit(name)) for name, rows in sets.items()]
    return reduce(lambda one, other: one.unionByName(other), named)


JOB = Job(
    name="aggregate",
    engine="spark",
    conf=AggregateConf,
    run=run,
    reads=("events", "clients", "labels?", "dictionaries?"),
    writes=lambda stage: {
        "features": {"feature_set": (stage.conf.feature_set, *((ATTRIBUTES,) if stage.conf.attributes else ()))}
    },
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
