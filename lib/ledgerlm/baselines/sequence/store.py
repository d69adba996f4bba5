"""Encoders on disk: safetensors and a JSON card with vocabularies and settings; building losses and encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ledgerlm.baselines.sequence.coles import Coles
from ledgerlm.baselines.sequence.cpc import Cpc
from ledgerlm.baselines.sequence.detpp import Detpp
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.iftpp import NextEvent
from ledgerlm.baselines.sequence.nppr import Nppr
from ledgerlm.baselines.sequence.nsp import Nsp
from ledgerlm.baselines.sequence.objective import Objective
from ledgerlm.baselines.sequence.rtd import Rtd
from ledgerlm.baselines.sequence.settings import EncoderCard, Method, ObjectiveConf
from ledgerlm.training.artefacts import check, read_card, save_network

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
WEIGHTS, CARD = "encoder.safetensors", "encoder.json"


def new_objective(encoder: Encoder, conf: ObjectiveConf) -> Objective:
    """The loss of a method around an encoder."""
    return _KINDS[conf.method](encoder, conf)


def save_encoder(folder: Path, encoder: Encoder, card: EncoderCard) -> None:
    """Writes weights and card; a reader never sees half of an encoder."""
    save_network(folder, encoder, card, weights=WEIGHTS, described=CARD)


def read_encoder_card(folder: Path) -> EncoderCard:
    """The card of an encoder.

    Raises:
        ArtefactError: when there is none or it cannot be read.
    """
    return read_card(EncoderCard, folder / CARD, made_by="encode")


def load_encoder(folder: Path) -> Encoder:
    """Opens an encoder for reading histories; its folder bears its id.

    Raises:
        ArtefactError: when files are missing or were changed.
    """
    check(folder, made_by="encode")
    card = read_encoder_card(folder)
    encoder = Encoder(card.fields, card.encoder)
    encoder.load_state_dict(load_file(folder / WEIGHTS))
    return encoder.eval()
