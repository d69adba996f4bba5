"""Builds the losses of encoders, and opens trained encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledgerlm.baselines.sequence.coles import Coles
from ledgerlm.baselines.sequence.cpc import Cpc
from ledgerlm.baselines.sequence.detpp import Detpp
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.iftpp import NextEvent
from ledgerlm.baselines.sequence.nppr import Nppr
from ledgerlm.baselines.sequence.nsp import Nsp
from ledgerlm.baselines.sequence.objective import Objective
from ledgerlm.baselines.sequence.rtd import Rtd
from ledgerlm.baselines.sequence.settings import ENCODER_FILES, Method, ObjectiveConf

_KINDS: dict[Method, Callable[[Encoder, Any], Objective]] = {
    "coles": Coles,
    "cpc": Cpc,
    "rtd": Rtd,
    "nsp": Nsp,
    "iftpp": NextEvent,
    "iftpp_t": NextEvent,
    "nppr": Nppr,
    "detpp": Detpp,
}


def new_objective(encoder: Encoder, conf: ObjectiveConf) -> Objective:
    """The loss of a method around an encoder."""
    return _KINDS[conf.method](encoder, conf)


def load_encoder(folder: Path) -> Encoder:
    """Opens an encoder for reading histories; its folder bears its id.

    Raises:
        ArtefactError: when files are missing or were changed.
    """
    card, weights = ENCODER_FILES.read(folder)
    encoder = Encoder(card.fields, card.encoder)
    encoder.load_state_dict(weights)
    return encoder.eval()
