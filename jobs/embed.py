"""Embeds texts with a backbone: one vector of named parts for each client and `as_of`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from ledgerlm.backbone.embedding import EmbedConf, document_texts, embed_texts, rewrite_texts
from ledgerlm.backbone.embedding_windows import Since, embed_windows
from ledgerlm.backbone.projection import Projected
from ledgerlm.events.asked import labelled
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.windows import ToldWindows


def run(ctx: Context, conf: EmbedConf) -> StageResult:
    """Reads the texts that have not been read yet, writes their vectors, and sets aside what can have none."""
    projected = Projected.of(ctx.facts(conf.projection)) if conf.projection else None
    if conf.source == "windows":
        stage = conf.serialize or "serialize"
        told = ToldWindows.of(ctx.facts(stage), stage)
        dirty, labels = ctx.dirty(), ctx.maybe("labels")
        wanted = told.asked(ctx.read("clients"), labels)
        made = embed_windows(
            ctx.read("windows"),
            labelled(wanted, labels) if conf.labelled else wanted,
            told,
            conf,
            backbone=ctx.backbone(conf.backbone),
            folder=ctx.artefacts / "embeddings",
            standing=partial(ctx.standing, "states"),
            since=None if dirty is None else Since(before=ctx.before_slice, dirty=dirty, night=ctx.night),
            keep=ctx.keep,
            progress=ctx.progress,
            projected=projected,
        )
        return ctx.publish(made)
    if conf.source == "enriched":
        facts = ctx.facts(conf.enrich or "enrich")
        texts = rewrite_texts(ctx.read("enriched_documents"), ctx.read("documents"), conf, facts)
    else:
        texts = document_texts(ctx.read("documents"), conf.format)
    if conf.labelled:
        texts = replace(texts, rows=labelled(texts.rows, ctx.read("labels")))
    embedded = embed_texts(
        texts,
        conf,
        backbone=ctx.backbone(conf.backbone),
        folder=ctx.artefacts / "embeddings",
        standing=partial(ctx.standing, "embeddings"),
        keep=ctx.keep,
        progress=ctx.progress,
        projected=projected,
    )
    return ctx.publish(embedded.made())


JOB = Job(
    name="embed",
    engine="spark",
    conf=EmbedConf,
    run=run,
    extras=("embed",),
    reads=lambda stage: stage.conf.reads,
    needs=("finetune",),
    # Backbone and definition have their ids only when the stage runs: the settings that decide them stand for them.
    writes=lambda stage: dict.fromkeys(stage.conf.written, stage.conf.part),
    uses=("torch", "transformers"),
    rows="balance",
    follows=("windows", "clients", "labels", "changes"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
