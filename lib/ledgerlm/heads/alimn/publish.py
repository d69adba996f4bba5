"""From trained networks to heads: calibrated on held-out clients, late fusions beside them, written under their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ledgerlm.heads.alimn.late import fit_stacking, late_logit
from ledgerlm.heads.alimn.settings import FusionCard, FusionRankConf, LateFusion, Shape
from ledgerlm.heads.alimn.store import save_fusion
from ledgerlm.heads.alimn.training import WEIGHTS, read_held_out
from ledgerlm.heads.calibration import Calibrator, fit_calibrator
from ledgerlm.heads.tasks import Floats, Task
from ledgerlm.heads.vectors import Source
from ledgerlm.training.settings import FACTS


@dataclass(frozen=True, kw_only=True)
class FusedHead:
    """A head with what it says of the held-out clients.

    Attributes:
        head_id: hash of its files.
        card: its description.
        raw: log-odds of the held-out clients.
        p: their calibrated probabilities.
        y: their labels.
        training: what the training left behind; empty for a late fusion.
    """

    head_id: str
    card: FusionCard
    raw: Floats
    p: Floats
    y: Floats
    training: Mapping[str, Any]


def publish(
    worker: FusionRankConf,
    folder: Path,
    *,
    tasks: Mapping[str, Task],
    sources: tuple[Source, ...],
    state_set: str,
    late: Mapping[str, LateFusion],
) -> dict[str, FusedHead]:
    """Writes all heads of a stage, the members of a late fusion before it.

    Args:
        worker: what the ranks were told; its folder holds the networks.
        folder: the artefacts' `heads` folder.
        tasks: by name.
        sources: structured vectors that the networks read.
        state_set: sentence states that they read.
        late: name to late fusion.

    Returns:
        Name to head, in the order in which they can be scored.
    """
    found: dict[str, FusedHead] = {}
    for name, network in worker.networks.items():
        held = read_held_out(worker.folder / name)
        facts = json.loads((worker.folder / name / FACTS).read_text())
        raw, y, task = held.column("raw").to_numpy(), held.column("y").to_numpy(), tasks[str(network.task)]
        card = FusionCard(
            kind="alimn",
            name=name,
            task=task,
            network=network,
            shape=Shape.model_validate(facts["shape"]),
            sources=sources,
            blocks=worker.blocks,
            state_set=state_set,
            domains=worker.domains,
            parameters=facts["parameters"],
            calibration=fit_calibrator("sigmoid", raw[:, None], y, task),
            training_rows=facts["training_rows"],
        )
        head_id = save_fusion(folder, card, worker.folder / name / WEIGHTS)
        found[name] = FusedHead(head_id=head_id, card=card, raw=raw, p=_p(card, raw), y=y, training=facts)
    return found | {
        name: _late(name, one, [found[member] for member in one.members], folder) for name, one in late.items()
    }


def _late(name: str, late: LateFusion, members: list[FusedHead], folder: Path) -> FusedHead:
    raw = np.stack([member.raw for member in members], axis=1)
    y, task = members[0].y, members[0].card.task
    weights = fit_stacking(raw, y) if late.how == "stacking" else ()
    fused = late_logit(np.stack([member.p for member in members], axis=1), raw, weights)
    card = FusionCard(
        kind="late_fusion",
        name=name,
        task=task,
        # A logistic regression is calibrated on the clients that it was fitted on.
        calibration=Calibrator() if weights else fit_calibrator("sigmoid", fused[:, None], y, task),
        members=tuple(member.head_id for member in members),
        weights=weights,
        training_rows=members[0].card.training_rows,
    )
    head_id = save_fusion(folder, card, None)
    return FusedHead(head_id=head_id, card=card, raw=fused, p=_p(card, fused), y=y, training={})


def _p(card: FusionCard, raw: Floats) -> Floats:
    return np.asarray(card.calibration.apply(raw[:, None], card.task)[:, 1])


def facts_of(head: FusedHead) -> dict[str, Any]:
    """What later stages and the report know of a head, as JSON values."""
    facts: dict[str, Any] = {
        "head_id": head.head_id,
        "name": head.card.name,
        "kind": head.card.kind,
        "task": head.card.task.name,
        "classes": list(head.card.task.class_names),
        "training_rows": head.card.training_rows,
    }
    if head.training:
        curve = head.training["curve"]
        best = min(curve, key=lambda line: line["held_out_loss"])
        facts |= {"parameters": head.card.parameters, "alpha": head.training["alpha"], "curve": curve}
        facts |= {"best_epoch": int(best["epoch"]), "held_out_loss": best["held_out_loss"]}
        facts["seconds"] = round(curve[-1]["seconds"], 1)
    return facts
