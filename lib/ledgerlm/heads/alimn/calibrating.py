"""From trained networks to heads: calibrated on held-out clients, with late fusions beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from ledgerlm.heads.alimn.head import FusedHead, HeldOut
from ledgerlm.heads.alimn.late import fit_stacking, late_logit
from ledgerlm.heads.alimn.settings import FusionCard, FusionRankConf, LateFusion, Shape
from ledgerlm.heads.alimn.training import WEIGHTS, read_held_out
from ledgerlm.heads.calibration import Calibrator, fit_calibrator
from ledgerlm.heads.tasks import Floats, Task
from ledgerlm.heads.vectors import Source
from ledgerlm.training.settings import FACTS


def fused_heads(
    worker: FusionRankConf,
    *,
    tasks: Mapping[str, Task],
    sources: tuple[Source, ...],
    state_set: str,
    late: Mapping[str, LateFusion],
) -> dict[str, FusedHead]:
    """All heads of a training, the members of a late fusion before it; none is saved yet.

    Args:
        worker: what the ranks were told; its folder holds the networks.
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
        held_out = HeldOut(raw=raw, p=_p(card, raw), y=y)
        found[name] = FusedHead(card=card, weights=worker.folder / name / WEIGHTS, held_out=held_out, training=facts)
    return found | {name: _late(name, one, [found[member] for member in one.members]) for name, one in late.items()}


def _late(name: str, late: LateFusion, members: Sequence[FusedHead]) -> FusedHead:
    held = [one.held_out for one in members if one.held_out is not None]
    raw = np.stack([one.raw for one in held], axis=1)
    y, task = held[0].y, members[0].card.task
    weights = fit_stacking(raw, y) if late.how == "stacking" else ()
    fused = late_logit(np.stack([one.p for one in held], axis=1), raw, weights)
    card = FusionCard(
        kind="late_fusion",
        name=name,
        task=task,
        # A logistic regression is calibrated on the clients that it was fitted on.
        calibration=Calibrator() if weights else fit_calibrator("sigmoid", fused[:, None], y, task),
        weights=weights,
        training_rows=members[0].card.training_rows,
    )
    return FusedHead(card=card, members=tuple(members), held_out=HeldOut(raw=fused, p=_p(card, fused), y=y))


def _p(card: FusionCard, raw: Floats) -> Floats:
    return np.asarray(card.calibration.apply(raw[:, None], card.task)[:, 1])
