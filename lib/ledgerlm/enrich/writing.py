"""Lets a pool of workers write texts of documents: rewrites in other formats, or documents by a text recipe.

The documents are staged as one Parquet file a shard, the pool works through the shards, and what the workers staged
is read back as rows: kept, or refused with a reason. Killed at any point, the same call goes on at unfinished shards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.ray import RayEngine
from ledgerlm.enrich.engine import check_engine
from ledgerlm.enrich.estimate import CostConf, Estimate, estimate
from ledgerlm.enrich.pool import Pool, PoolConf
from ledgerlm.enrich.recipes.writer import VERSION, RecipeConf
from ledgerlm.enrich.rewrite import RewriteConf, WriterConf
from ledgerlm.enrich.shards import Shard, ShardStats, write_aside
from ledgerlm.enrich.staging import as_documents, example, kept, refused, sharded, shards_of, to_enrich, volume
from ledgerlm.errors import DataError
from ledgerlm.files import bring, push, remove, url_of
from ledgerlm.lake.made import Made, Rows
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class PoolJobConf(Conf):
    """Settings of the jobs that let a pool of workers write texts."""

    source: Literal["compact", "lines"] = Field("compact", description="format of the documents that are read")
    clients: Literal["train", "all"] = Field("train", description="whose documents; training needs the training ones")
    min_kept: float = Field(0.5, ge=0, le=1, description="share of texts to be kept, below which the stage fails")
    pool: PoolConf = Field(PoolConf(), description="workers and what each may use")
    cost: CostConf = Field(CostConf(), description="what the estimate before the start takes for granted")


def extras_of(conf: WriterConf) -> tuple[str, ...]:
    """Extras of ledgerlm that the pool and its engine import; vLLM's machines have their own, and it tells itself."""
    return ("ray", *{"transformers": ("embed",), "openai": ("endpoint",)}.get(conf.engine, ()))


class EnrichConf(PoolJobConf, RewriteConf):
    """Settings of the enrich job."""


class SummarizeConf(PoolJobConf, RecipeConf):
    """Settings of the summarize job."""

    clients: Literal["train", "all"] = Field(
        "all", description="whose documents; embedding needs all, training the training ones"
    )


TextsConf = EnrichConf | SummarizeConf


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenDocuments:
    """Documents to write texts of.

    Attributes:
        documents: rows of the `documents` table.
        estimate: what that will take.
    """

    documents: DataFrame
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the pool made.

    Attributes:
        rows: one row a text, kept or refused, as the workers staged them (`shards.STAGED`).
        sources: the documents that they were made of.
        expected: texts that were to be made.
        facts: engine, prompt, counts of kept and refused ones, by format and reason, tokens, time, an example.
    """

    rows: DataFrame
    sources: DataFrame
    expected: int
    facts: Mapping[str, Any]

    @property
    def refused(self) -> DataFrame:
        """Rows for `quarantine`."""
        return refused(self.rows)

    def rewrites(self, stage: str, report: Sequence[Mapping[str, Any]] = ()) -> Made:
        """As rows of `enriched_documents`, a stage's own.

        Args:
            stage: who writes.
            report: sections of the report.
        """
        rows = kept(self.rows).withColumn("stage", F.lit(stage))
        return self._made("enriched_documents", Rows(frame=rows, slice={"stage": (stage,)}), report)

    def documents(self, conf: SummarizeConf, report: Sequence[Mapping[str, Any]] = ()) -> Made:
        """As rows of `documents`, in the recipe's format.

        Args:
            conf: the recipe.
            report: sections of the report.
        """
        serializer = f"{conf.recipe}/{VERSION}/{self.facts['engine']}"
        rows = as_documents(self.rows, self.sources, max_events=conf.max_events, serializer=serializer)
        return self._made("documents", Rows(frame=rows, slice={"format": (conf.format,)}), report)

    def _made(self, table: str, rows: Rows, report: Sequence[Mapping[str, Any]]) -> Made:
        return Made(
            rows_in=self.expected,
            tables={table: rows},
            rows_out=self.facts["kept"],
            aside=self.refused,
            quarantined=sum(self.facts["refused"].values()),
            facts=self.facts,
            report=report,
        )

    def check(self, min_kept: float) -> None:
        """Whether enough texts were kept to trust the engine.

        Raises:
            DataError: naming the reasons of the refused ones.
        """
        if self.facts["kept_share"] < min_kept:
            raise DataError(
                f"only {self.facts['kept_share']:.1%} of the rewrites passed the check, not min_kept = {min_kept:.0%}; "
                f"refused: {self.facts['refused']}; look at them in the quarantine table, then at the engine and its "
                "prompt"
            )


def choose_documents(documents: DataFrame, clients: DataFrame | None, conf: TextsConf) -> ChosenDocuments:
    """The documents that texts are written of, and what that will take: texts, tokens, time and cost.

    Args:
        documents: the `documents` table.
        clients: the `clients` table, when only those of split `train` are wanted.
        conf: source format, writer and prices.

    Raises:
        ConfigError: an unknown engine or option, or a cost above `cost.at_most`.
        DataError: when there is no such document.
    """
    check_engine(conf.engine, conf.options)
    chosen = to_enrich(documents, clients, format=conf.source)
    expected = estimate(volume(chosen, max_events=conf.max_events), conf, conf.pool, conf.cost)
    if not expected.documents:
        raise DataError(
            f"no document of format '{conf.source}' for clients '{conf.clients}'; add a serialize stage with format: "
            f"{conf.source}, or set `source` of the stage that writes texts"
        )
    return ChosenDocuments(documents=chosen, estimate=expected)


def expectation(documents: DataFrame | None, clients: DataFrame | None, conf: TextsConf) -> str:
    """One line on what a stage would take; see `choose_documents`.

    Args:
        documents: None where they are not written yet.
        clients: as there.
        conf: as there.
    """
    check_engine(conf.engine, conf.options)
    if documents is None:
        return "tokens and cost are known once the stage that writes documents has run"
    return f"{conf.engine}: {choose_documents(documents, clients, conf).estimate}"


def write_texts(
    documents: DataFrame,
    clients: DataFrame | None,
    conf: TextsConf,
    *,
    ray: RayEngine,
    folder: Path,
    seed: int,
    set_aside: Callable[[DataFrame], Any] = lambda _: None,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> Texts:
    """Lets the pool work through the documents.

    Args:
        documents: the `documents` table.
        clients: the `clients` table, when only those of split `train` are wanted.
        conf: writer and pool.
        ray: started when the documents are staged.
        folder: working folder, which all workers reach; what is finished in it is not done again.
        seed: of the texts.
        set_aside: given the refused texts before it is judged whether enough were kept: then they can be looked at.
        progress: what the user sees.
        failpoint: called between the steps.

    Raises:
        ConfigError: as `choose_documents`.
        DataError: when there is no document, rows were lost, or too few texts were kept.
        EngineError: when no engine can be built, or workers keep dying over a shard.
    """
    chosen, progress = choose_documents(documents, clients, conf), progress or Progress()
    expected = chosen.estimate
    progress.say(f"    {conf.engine}: {expected}")
    shards = _staged(chosen, conf, folder)
    failpoint("after_staging")
    ray.start()
    with progress.task("Writing texts", total=expected.documents) as task:

        def finished(shard: ShardStats) -> None:
            task.advance(shard.documents)
            failpoint("after_shard")

        stats = Pool(conf.pool, conf, seed).run(shards, finished)
    failpoint("after_pool")
    facts = _facts(stats, shards, expected) | {"max_events": conf.max_events}
    made = facts["kept"] + sum(facts["refused"].values())
    if made != expected.rewrites:
        raise DataError(
            f"{expected.rewrites} texts were to be made, but {made} were: {facts['shards']} shards lost rows"
        )
    staged = chosen.documents.sparkSession.read.option("pathGlobFilter", "shard-*.parquet")
    texts = Texts(
        rows=staged.parquet(url_of(folder / "out")), sources=chosen.documents, expected=expected.rewrites, facts=facts
    )
    set_aside(texts.refused)
    texts.check(conf.min_kept)
    return texts


def _staged(chosen: ChosenDocuments, conf: TextsConf, folder: Path) -> list[Shard]:
    """Writes the documents as one Parquet file a shard, or finds them written by an earlier attempt."""
    source, target, manifest = (folder / name for name in ("in", "out", "manifest.json"))
    shards = chosen.estimate.shards
    content = json.dumps({"conf": conf.model_dump(mode="json"), "shards": shards})
    if not manifest.exists() or manifest.read_text() != content:
        remove(folder)
        target.mkdir(parents=True)
        sharded(chosen.documents, shards).write.partitionBy("shard").parquet(url_of(source))
        bring(source)
        write_aside(manifest, content)
        push(manifest)
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
