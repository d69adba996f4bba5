"""Turns scores into a contact list: profit, uplift, policy, reasons, and what held-out clients say of its worth."""

from __future__ import annotations

import sys

from ledgerlm.applications.campaign import CampaignConf, CampaignHeads, CampaignTables, contact_list
from ledgerlm.evaluation.contacts import JudgingConf, judge_contacts
from ledgerlm.evaluation.report.campaign import campaign_sections
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult


class ContactConf(CampaignConf, JudgingConf):
    """Settings of the contact job."""


def run(ctx: Context, conf: ContactConf) -> StageResult:
    """Writes the contact list, and judges it on held-out clients."""
    heads = CampaignHeads(
        own=ctx.head(conf.head),
        control=ctx.head(conf.control.head) if conf.control else None,
        beside={name: ctx.head(head) for name, head in conf.beside.items()},
    )
    sources = tuple(source.pinned(ctx.facts) for source in conf.control.transformed) if conf.control else ()
    tables = CampaignTables(
        scores=ctx.read("scores"),
        clients=ctx.read("clients"),
        labels=ctx.read("labels"),
        bayes=ctx.maybe("bayes") if conf.control else None,
        vectors={source.table: ctx.read(source.table) for source in sources},
        sources=sources,
    )
    listed = contact_list(tables, heads, conf, seed=ctx.seed, keep=ctx.keep)
    judged = judge_contacts(listed.rows, tables, heads, conf, conf, seed=ctx.seed)
    return ctx.publish(listed.made(judged.facts, campaign_sections(judged, listed, conf.economy)))


JOB = Job(
    name="contact",
    engine="spark",
    conf=ContactConf,
    run=run,
    finds=True,
    reads=("scores", "labels", "clients", "features?", "embeddings?", "bayes?"),
    writes=lambda stage: {"contacts": {"campaign": (stage.conf.campaign,)}},
    rows="balance",
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
