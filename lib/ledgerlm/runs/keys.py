"""The key under which clients have pseudonyms, known by what it makes of a constant, so that another key is noticed.

Under another key everybody would be a new client without a history, and those who were erased would come back.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

from ledgerlm.errors import ConfigError

if TYPE_CHECKING:
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.lake.history import History
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.plan import StagePlan
    from ledgerlm.runs.record import Records

KEY = "pseudonyms"
"""Fact of a stage that reads the sources: what identifies the key."""
_CONSTANT = b"ledgerlm: the key of pseudonyms"


def key_of(spec: DataSetSpec) -> str | None:
    """What identifies the key that the environment holds, in hex; None without pseudonyms, or where it holds none."""
    secret = os.environ.get(spec.pseudonymise.key_env, "") if spec.pseudonymise else ""
    return hmac.new(secret.encode(), _CONSTANT, "sha256").hexdigest()[:32] if secret else None


def key_fact(plan: StagePlan, spec: DataSetSpec) -> dict[str, str]:
    """The fact of a stage as it starts; empty for one that makes no pseudonyms."""
    key = key_of(spec) if plan.stage.job.sources else None
    return {} if key is None else {KEY: key}


def other_key(pipeline: Pipeline, records: Records, history: History) -> list[str]:
    """A line where the ids in the lake were made with another key than the environment's, or where none is asked for.

    Args:
        pipeline: with the name of the variable.
        records: of its stages.
        history: of its lake, whose commits are asked where records are lost.
    """
    key, terms = key_of(pipeline.spec), pipeline.spec.pseudonymise
    if key is None and terms is not None:
        return []  # that it is not set is told elsewhere
    finished = {plan.stage.name: records.finished(plan.stage.name) for plan in pipeline.plans}
    known = {name: record.facts[KEY] for name, record in finished.items() if record is not None and KEY in record.facts}
    if not known and (terms is not None or pipeline.home.folder is not None):
        newest = next((one for one in history.commits("clients") if not one.neutral), None)
        known = {newest.stage.rpartition("/")[2]: newest.key} if newest is not None and newest.key else {}
    said = (
        "pseudonymise: the spec has no key, and there is"
        if terms is None
        else f"pseudonymise.key_env: {terms.key_env} holds another key than"
    )
    return [
        f"{said} the one under which stage {name} made the "
        f"client ids of {pipeline.home.root}, so everybody would be a new client, and who was erased would come back; "
        "put that key back, or begin a lake of its own with another `out`"
        for name, made in known.items()
        if made != key
    ]


def refuse_other_key(pipeline: Pipeline, records: Records, history: History) -> None:
    """Lets nothing be read or erased under another key.

    Raises:
        ConfigError: the environment holds another one.
    """
    for line in other_key(pipeline, records, history):
        raise ConfigError(line)
