"""Rewrites documents into other formats by an engine in a pool of Ray actors, and keeps what is faithful."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import check_engine
from ledgerlm.enrich.estimate import CostConf, Estimate, estimate
from ledgerlm.enrich.pool import Pool, PoolConf
from ledgerlm.enrich.rewrite import RewriteConf
from ledgerlm.enrich.shards import Shard, ShardStats, write_aside
from ledgerlm.enrich.staging import example, kept, refused, sharded, shards_of, to_enrich, volume
from ledgerlm.errors import DataError
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.jobs.summarize import SummarizeConf
    from ledgerlm.lake.lake import Written


class PoolJobConf(Conf):
    """Settings of the jobs that let a pool of workers write texts."""

    source: Literal["compact", "lines"] = Field("compact", description="format of the documents that are read")
    clients: Literal["train", "all"] = Field("train", description="whose documents; training needs the training ones")
    min_kept: float = Field(0.5, ge=0, le=1, description="share of texts to be kept, below which the stage fails")
    pool: PoolConf = Field(PoolConf(), description="workers and what each may use")
    cost: CostConf = Field(CostConf(), description="what the estimate before the start takes for granted")


class EnrichConf(PoolJobConf, RewriteConf):
    """Settings of the enrich job."""


def run(ctx: Context, conf: EnrichConf) -> StageResult:
    """Stages documents as shards, enriches them, commits once."""
    made = write_texts(ctx, conf)
    written = ctx.write(
        "enriched_documents", kept(made.texts).withColumn("stage", F.lit(ctx.stage)), {"stage": (ctx.stage,)}
    )
    return finished(ctx, made, written)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What the pool made.

    Attributes:
        texts: one row a text, kept or refused, as the workers staged them.
        sources: the documents that they were made of.
        set_aside: the commit of the refused ones.
        expected: texts that were to be made.
    """

    texts: DataFrame
    sources: DataFrame
    set_aside: Written
    expected: int
    facts: dict[str, Any]


def write_texts(ctx: Context, conf: EnrichConf | SummarizeConf) -> Made:
    """Lets the pool work through the documents, and sets aside what it refused.

    Raises:
        DataError: when there is nothing to do, rows were lost, or too few texts were kept.
    """
    check_engine(conf.engine, conf.options)
    documents, expected = _documents(ctx, conf)
    ctx.progress.say(f"    {conf.engine}: {expected}")
    shards = _staged(ctx, conf, documents, expected.shards)
    ctx.failpoint("after_staging")
    ctx.ray.start()
    with ctx.progress.task("Writing texts", total=expected.documents) as task:

        def finished(shard: ShardStats) -> None:
            task.advance(shard.documents)
            ctx.failpoint("after_shard")

        stats = Pool(conf.pool, conf, ctx.seed).run(shards, finished)
    ctx.failpoint("after_pool")
    facts = _facts(stats, shards, expected) | {"max_events": conf.max_events}
    texts = ctx.spark.read.option("pathGlobFilter", "shard-*.parquet").parquet(str(ctx.staging / "out"))
    set_aside = ctx.quarantine(refused(texts))
    _check(conf, facts, expected.rewrites)
    return Made(texts=texts, sources=documents, set_aside=set_aside, expected=expected.rewrites, facts=facts)


def finished(ctx: Context, made: Made, written: Written) -> StageResult:
    """The stage's result.

    Raises:
        DataError: when other numbers of rows were written than the workers counted.
    """
    counted = (made.facts["kept"], sum(made.facts["refused"].values()))
    if (written.rows, made.set_aside.rows) != counted:
        raise DataError(
            f"workers kept {counted[0]} texts and refused {made.facts['refused']}, but {written.rows} were written "
            f"and {made.set_aside.rows} set aside; delete {ctx.staging} and run again"
        )
    return StageResult(
        rows_in=made.expected,
        rows_out=written.rows,
        quarantined=made.set_aside.rows,
        facts=made.facts | {"report": [_section(ctx.stage, made.facts)]},
    )


def expect(ctx: Context, conf: EnrichConf | SummarizeConf) -> list[str]:
    """What the stage would take, for --dry-run: texts, tokens, time and cost."""
    check_engine(conf.engine, conf.options)
    if ctx.maybe("documents") is None:
        return ["tokens and cost are known once the stage that writes documents has run"]
    return [f"{conf.engine}: {_documents(ctx, conf)[1]}"]


def _documents(ctx: Context, conf: EnrichConf | SummarizeConf) -> tuple[DataFrame, Estimate]:
    """The documents to read, and what that will take."""
    documents = ctx.read("documents")
    clients = ctx.read("clients") if conf.clients == "train" else None
    chosen = to_enrich(documents, clients, format=conf.source)
    expected = estimate(volume(chosen, max_events=conf.max_events), conf, conf.pool, conf.cost)
    if not expected.documents:
        raise DataError(
            f"no document of format '{conf.source}' for clients '{conf.clients}' ; "
            f"add a serialize stage with format: {conf.source}, or set stages.{ctx.stage}.source"
        )
    return chosen, expected


def _staged(ctx: Context, conf: EnrichConf | SummarizeConf, documents: DataFrame, shards: int) -> list[Shard]:
    """Writes the documents as one Parquet file a shard, or finds them written by an earlier attempt."""
    source, target, manifest = (ctx.staging / name for name in ("in", "out", "manifest.json"))
    content = json.dumps({"conf": conf.model_dump(mode="json"), "shards": shards})
    if not manifest.exists() or manifest.read_text() != content:
        shutil.rmtree(ctx.staging)
        target.mkdir(parents=True)
        sharded(documents, shards).write.partitionBy("shard").parquet(str(source))
        write_aside(manifest, content)
    return shards_of(source, target)


def _facts(stats: Sequence[ShardStats], shards: Sequence[Shard], expected: Estimate) -> dict[str, Any]:
    refusals = sum((Counter(shard.refused) for shard in stats), Counter[str]())
    kept_rows, refused_rows = sum(shard.kept for shard in stats), sum(refusals.values())
    names = sorted({name for shard in stats for name in shard.formats})
    return {
        "engine": stats[0].engine_id,
        "prompt": stats[0].prompt_id,
        "documents": sum(shard.documents for shard in stats),
        "kept": kept_rows,
        "kept_share": kept_rows / max(1, kept_rows + refused_rows),
        "refused": dict(refusals.most_common()),
        "formats": {
            name: [sum(shard.formats.get(name, (0, 0))[side] for shard in stats) for side in (0, 1)] for name in names
        },
        "again": sum(shard.again for shard in stats),
        "characters": sum(shard.characters for shard in stats),
        "input_tokens": sum(shard.input_tokens for shard in stats),
        "output_tokens": sum(shard.output_tokens for shard in stats),
        "worker_seconds": round(sum(shard.seconds for shard in stats), 1),
        "shards": len(stats),
        "shards_resumed": sum(shard.resumed for shard in stats),
        "estimate": asdict(expected),
        "example": example(shards),
    }


def _check(conf: EnrichConf | SummarizeConf, facts: Mapping[str, Any], expected: int) -> None:
    """Raises DataError when rows were lost, or when too few texts were kept to trust the engine."""
    made = facts["kept"] + sum(facts["refused"].values())
    if made != expected:
        raise DataError(f"{expected} texts were to be made, but {made} were: {facts['shards']} shards lost rows")
    if facts["kept_share"] < conf.min_kept:
        raise DataError(
            f"only {facts['kept_share']:.1%} of the rewrites passed the check, not min_kept = {conf.min_kept:.0%}; "
            f"refused: {facts['refused']}; look at them in the quarantine table, then at the engine and its prompt"
        )


def _section(stage: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The share kept by format, for the report."""
    rows = [
        [facts["engine"], facts["prompt"], name, f"{kept:,}", f"{refused:,}", f"{kept / (kept + refused):.1%}"]
        for name, (kept, refused) in facts["formats"].items()
    ]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in facts["refused"].items()) or "none"
    note = (
        f"Texts that passed the faithfulness check and texts set aside (reasons: {reasons}). {facts['again']:,} "
        f"attempts beyond the first; {facts['input_tokens']:,} tokens read and {facts['output_tokens']:,} written, as "
        "far as the engine counts them."
    )
    columns = ["engine", "prompt", "format", "kept", "set aside", "share kept"]
    table = {"kind": "table", "columns": columns, "rows": rows}
    return {"title": f"Texts of stage {stage}", "note": note, "blocks": [table]}


JOB = Job(
    name="enrich",
    engine="ray",
    conf=EnrichConf,
    run=run,
    reads=("documents", "clients"),
    writes=lambda stage: {"enriched_documents": {"stage": (stage.name,)}},
    expect=expect,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
