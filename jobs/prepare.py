"""Makes structured features of client attributes, with further vectors appended, fitted on training clients."""

from __future__ import annotations

import sys

from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.asked import asked
from ledgerlm.heads.structured import StructuredConf, fit_structured, structured_features
from ledgerlm.heads.vectors import KEY, Source, component_names, join_sources, learn_blocks
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class PrepareConf(StructuredConf):
    """Settings of the prepare job."""

    feature_set: str = Field("structured", pattern=r"^[A-Za-z0-9_]+$", description="name of the features written")
    append: tuple[Source, ...] = Field((), description="vectors appended to the attributes: features or embeddings")

    @model_validator(mode="after")
    def _something(self) -> PrepareConf:
        if not (self.numeric or self.categorical or self.append):
            raise ValueError("name client attributes under numeric or categorical, or vectors under append")
        return self


def run(ctx: Context, conf: PrepareConf) -> StageResult:
    """Fits the pipeline on training clients, keeps it as an artefact, and writes everyone's features."""
    clients = ctx.read("clients")
    labels = ctx.read("labels")
    keys = asked(clients, labels, ctx.spec.as_of) if ctx.spec.as_of else labels.select(*KEY).distinct()
    sources = tuple(source.pinned(ctx.facts) for source in conf.append)
    rows = keys.join(clients.drop("run_id"), on="client_id", how="inner")
    if sources:
        vectors = join_sources(sources, {source.table: ctx.read(source.table) for source in sources})
        rows = rows.join(vectors, on=list(KEY), how="inner")
    # Read by each stage of the fit, then once more by all clients.
    rows = ctx.keep(rows)
    counted = {row["split"]: row["count"] for row in rows.groupBy("split").count().collect()}
    training = rows.where("split = 'train'")
    appended = training.drop(*(name for name in clients.columns if name != "client_id"))
    blocks = learn_blocks(appended, named=component_names(conf.append, ctx.facts)) if sources else []
    fitted = fit_structured(training, blocks, conf)
    folder = ctx.artefacts / "structured" / conf.feature_set
    fitted.model.write().overwrite().save(folder.absolute().as_uri())
    found = structured_features(rows, fitted).withColumn("feature_set", F.lit(conf.feature_set))
    written = ctx.write("features", found, {"feature_set": (conf.feature_set,)})
    rows_in = sum(counted.values())
    if written.rows != rows_in:
        raise DataError(f"{rows_in} clients gave {written.rows} rows of features; run the stage again")
    return StageResult(
        rows_in=rows_in,
        rows_out=written.rows,
        artefacts=[str(folder)],
        facts={
            "feature_set": conf.feature_set,
            "features": len(fitted.names),
            "appended": sum(len(block.features) for block in blocks),
            "training_rows": counted.get("train", 0),
        },
    )


JOB = Job(
    name="prepare",
    engine="spark",
    conf=PrepareConf,
    run=run,
    reads=("clients", "labels", "features?", "embeddings?"),
    writes=lambda stage: {"features": {"feature_set": (stage.conf.feature_set,)}},
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
