"""Rewrites documents into other formats by an engine in a pool of Ray actors, and keeps what is faithful."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ledgerlm.enrich.engine import check_engine
from ledgerlm.enrich.estimate import CostConf, Estimate, estimate
from ledgerlm.enrich.pool import Pool, PoolConf
from ledgerlm.enrich.rewrite import RewriteConf
from ledgerlm.enrich.shards import Shard, ShardStats, write_aside
from ledgerlm.enrich.staging import example, kept, refused, sharded, shards_of, to_enrich, volume
from ledgerlm.errors import DataError
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, JobConf, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class EnrichConf(JobConf, RewriteConf):
    """Settings of the enrich job."""

    source: Literal["compact", "lines"] = Field("compact", description="format of the documents that are rewritten")
    clients: Literal["train", "all"] = Field("train", description="whose documents; rewrites serve training alone")
    min_kept: float = Field(0.5, ge=0, le=1, description="share of rewrites to be kept, below which the stage fails")
    pool: PoolConf = Field(PoolConf(), description="workers and what each may use")
    cost: CostConf = Field(CostConf(), description="what the estimate before the start takes for granted")


def run(ctx: Context, conf: EnrichConf) -> StageResult:
    """Stages documents as shards, enriches them, commits once."""
    check_engine(conf.engine, conf.options)
    documents, expected = _documents(ctx, conf)
    shards = _staged(ctx, conf, documents, expected.shards)
    ctx.failpoint("after_staging")
    ctx.ray.start()
    with ctx.progress.task("Enriching documents", total=expected.documents) as task:

        def finished(shard: ShardStats) -> None:
            task.advance(shard.documents)
            ctx.failpoint("after_shard")

        stats = Pool(conf.pool, conf, ctx.seed).run(shards, finished)
    ctx.failpoint("after_pool")
    facts = _facts(stats, shards, expected)
    rewrites = ctx.spark.read.option("pathGlobFilter", "shard-*.parquet").parquet(str(ctx.staging / "out"))
    set_aside = ctx.quarantine(refused(rewrites))
    _check(conf, facts, expected.rewrites)
    written = ctx.write("enriched_documents", kept(rewrites))
    if (written.rows, set_aside.rows) != (facts["kept"], sum(facts["refused"].values())):
        raise DataError(
            f"workers kept {facts['kept']} rewrites and refused {facts['refused']}, but {written.rows} were written "
            f"and {set_aside.rows} set aside; delete {ctx.staging} and run again"
        )
    return StageResult(
        rows_in=expected.rewrites,
        rows_out=written.rows,
        quarantined=set_aside.rows,
        tables={"enriched_documents": written.version, "quarantine": set_aside.version},
        facts=facts,
    )


def _documents(ctx: Context, conf: EnrichConf) -> tuple[DataFrame, Estimate]:
    """The documents to rewrite, and what that will take."""
    documents = ctx.read("documents", ctx.table_version("documents"))
    clients = ctx.read("clients", ctx.table_version("clients")) if conf.clients == "train" else None
    chosen = to_enrich(documents, clients, format=conf.source)
    expected = estimate(volume(chosen, max_events=conf.max_events), conf, conf.pool, conf.cost)
    if not expected.documents:
        raise DataError(
            f"no document of format '{conf.source}' for clients '{conf.clients}' in {ctx.table_path('documents')}; "
            f"add a serialize stage with format: {conf.source}, or set stages.{ctx.stage}.source"
        )
    ctx.progress.say(f"    {conf.engine}: {expected}")
    return chosen, expected


def _staged(ctx: Context, conf: EnrichConf, documents: DataFrame, shards: int) -> list[Shard]:
    """Writes the documents as one Parquet file a shard, or finds them written by an earlier attempt."""
    source, target, manifest = (ctx.staging / name for name in ("in", "out", "manifest.json"))
    versions = {table: ctx.table_version(table) for table in ("documents", "clients") if ctx.exists(table)}
    content = json.dumps({"conf": conf.model_dump(mode="json"), "seed": ctx.seed, "shards": shards, **versions})
    if not manifest.exists() or manifest.read_text() != content:
        shutil.rmtree(ctx.staging)
        target.mkdir(parents=True)
        sharded(documents, shards).write.partitionBy("shard").parquet(str(source))
        write_aside(manifest, content)
    return shards_of(source, target)


def _facts(stats: Sequence[ShardStats], shards: Sequence[Shard], expected: Estimate) -> dict[str, Any]:
    refusals = sum((Counter(shard.refused) for shard in stats), Counter[str]())
    kept_rows, refused_rows = sum(shard.kept for shard in stats), sum(refusals.values())
    characters = sum(shard.characters for shard in stats)
    return {
        "engine": stats[0].engine_id,
        "documents": sum(shard.documents for shard in stats),
        "kept": kept_rows,
        "kept_share": kept_rows / max(1, kept_rows + refused_rows),
        "refused": dict(refusals.most_common()),
        "characters": characters,
        "input_tokens": sum(shard.input_tokens for shard in stats),
        "output_tokens": sum(shard.output_tokens for shard in stats),
        "worker_seconds": round(sum(shard.seconds for shard in stats), 1),
        "shards": len(stats),
        "shards_resumed": sum(shard.resumed for shard in stats),
        "estimate": asdict(expected),
        "example": example(shards),
    }


def _check(conf: EnrichConf, facts: Mapping[str, Any], expected: int) -> None:
    """Raises DataError when rows were lost, or when too few rewrites were kept to trust the engine."""
    made = facts["kept"] + sum(facts["refused"].values())
    if made != expected:
        raise DataError(f"{expected} rewrites were to be made, but {made} were: {facts['shards']} shards lost rows")
    if facts["kept_share"] < conf.min_kept:
        raise DataError(
            f"only {facts['kept_share']:.1%} of the rewrites passed the check, not min_kept = {conf.min_kept:.0%}; "
            f"refused: {facts['refused']}; look at them in the quarantine table, then at the engine and its prompt"
        )


JOB = Job(
    name="enrich",
    engine="ray",
    conf=EnrichConf,
    run=run,
    reads=("documents", "clients"),
    writes=("enriched_documents", "quarantine"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
