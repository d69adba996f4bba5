"""Embeds documents with a backbone: one vector of named parts for each client and `as_of`."""

from __future__ import annotations

import sys

from ledgerlm.backbone.embedding import EmbedConf, document_texts, embed_texts, rewrite_texts
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: EmbedConf) -> StageResult:
    """Writes the vectors of documents or rewrites that have none yet, and sets aside what can have none."""
    documents = ctx.read("documents")
    if conf.source == "enriched":
        facts = ctx.facts(conf.enrich or "enrich")
        texts = rewrite_texts(ctx.read("enriched_documents"), documents, conf, facts)
    else:
        texts = document_texts(documents, conf.format)
    embedded = embed_texts(
        texts,
        conf,
        backbone=ctx.backbone(conf.backbone),
        folder=ctx.artefacts / "embeddings",
        standing=lambda part: ctx.standing("embeddings", part),
        keep=ctx.keep,
        progress=ctx.progress,
    )
    return ctx.publish(embedded.made())


JOB = Job(
    name="embed",
    engine="spark",
    conf=EmbedConf,
    run=run,
    reads=lambda stage: ("documents", "enriched_documents") if stage.conf.source == "enriched" else ("documents",),
    needs=("finetune",),
    # Backbone and definition have their ids only when the stage runs: here stand the settings that decide them.
    writes=lambda stage: {
        "embeddings": {
            "backbone": (stage.conf.backbone or "finetune",),
            "texts": (stage.conf.texts,),
            "definition": (stage.conf.definition.json_text,),
        }
    },
    uses=("torch", "transformers"),
    rows="balance",
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
