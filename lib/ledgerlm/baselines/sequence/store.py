"""Encoders on disk: safetensors, and a JSON card with vocabularies and settings; building losses and encoders."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file, save_file

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
from ledgerlm.errors import ArtefactError

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


def encoder_id(folder: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 over weights and card.

    Raises:
        ArtefactError: when one of them is missing.
    """
    total = hashlib.sha256()
    for name in (CARD, WEIGHTS):
        if not (folder / name).exists():
            raise ArtefactError(f"{folder}: no {name}; run the encode stage again")
        total.update(f"{name}:{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def save_encoder(folder: Path, encoder: Encoder, card: EncoderCard) -> None:
    """Writes weights and card aside, then renames: a reader never sees half of an encoder."""
    aside = folder.with_name(folder.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}, aside / WEIGHTS
    )
    (aside / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def read_card(folder: Path) -> EncoderCard:
    """Reads the card of an encoder.

    Raises:
        ArtefactError: when there is none or it cannot be read.
    """
    try:
        return EncoderCard.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtefactError(f"{folder}/{CARD}: {error}; run the encode stage again") from error


def load_encoder(folder: Path, expected: str | None = None) -> Encoder:
    """Opens an encoder for reading histories.

    Args:
        folder: from `save_encoder`.
        expected: id that the files must have.

    Raises:
        ArtefactError: when files are missing or others than expected.
    """
    if expected is not None and (found := encoder_id(folder)) != expected:
        raise ArtefactError(f"{folder}: the files hash to {found}, not {expected}; copy the encoder to every machine")
    card = read_card(folder)
    encoder = Encoder(card.fields, card.encoder)
    encoder.load_state_dict(load_file(folder / WEIGHTS))
    return encoder.eval()
