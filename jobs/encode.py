"""Trains a sequence encoder (CoLES, CPC, RTD, NSP, NPPR, IFTPP, DeTPP) without labels and encodes every history."""

from __future__ import annotations

import sys

from ledgerlm.baselines.sequence.encoding import EncodeConf, encode_clients, laid_out, learn_encoder
from ledgerlm.events.asked import asked
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


def run(ctx: Context, conf: EncodeConf) -> StageResult:
    """Learns vocabularies and an encoder on training clients, then writes a vector for each history."""
    events, clients = ctx.read("events"), ctx.read("clients")
    as_of = asked(clients, ctx.maybe("labels"), ctx.end(conf.as_of))
    ctx.ray.start()
    encoder = learn_encoder(
        events,
        clients,
        as_of,
        ctx.spec,
        conf,
        folder=ctx.staging,
        seed=ctx.seed,
        progress=ctx.progress,
        failpoint=ctx.failpoint,
    ).save(ctx.artefacts / "encoders")
    rows = laid_out(ctx.spark, ctx.staging)
    return ctx.publish(encode_clients(encoder, rows, as_of, keep=ctx.keep, progress=ctx.progress))


JOB = Job(
    name="encode",
    engine="spark + ray train",
    conf=EncodeConf,
    run=run,
    extras=("ray", "embed"),
    reads=("events", "clients", "labels?"),
    writes=lambda stage: {"embeddings": {"backbone": (stage.name,)}},
    uses=("torch",),
    rows="balance",
    learns=True,
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
