"""ALIMN heads on disk: safetensors and a card in JSON; the head's id is the hash of both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ledgerlm.config import parse
from ledgerlm.errors import ArtefactError
from ledgerlm.heads.alimn.network import Alimn
from ledgerlm.heads.alimn.settings import FusionCard
from ledgerlm.heads.alimn.training import WEIGHTS
from ledgerlm.heads.head import CARD
from ledgerlm.training.artefacts import aside, check, keep


def save_fusion(folder: Path, card: FusionCard, weights: Path | None) -> str:
    """Writes a head below `folder`, under its id; the same head again leaves what is there.

    Args:
        folder: the artefacts' `heads` folder.
        card: its description.
        weights: file of the network's weights; none for a late fusion.

    Returns:
        head_id, the first 16 hexadecimal digits of the SHA-256 of the head's files.
    """
    draft = aside(folder / f"alimn-{card.name}")
    content = json.dumps(card.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (draft / CARD).write_text(content, encoding="utf-8")
    if weights is not None:
        shutil.copyfile(weights, draft / WEIGHTS)
    return keep(draft, folder)


def load_fusion(folder: Path, head_id: str) -> FusionCard:
    """Reads a head's card after checking that its files are those that its id was made from.

    Raises:
        ArtefactError: when the head is missing or changed.
    """
    home = folder / head_id
    check(home, made_by="fuse")
    return parse(FusionCard, json.loads((home / CARD).read_text(encoding="utf-8")), source=str(home / CARD))


def load_network(folder: Path, head_id: str) -> tuple[FusionCard, Alimn]:
    """Reads a network, ready to score.

    Raises:
        ArtefactError: as `load_fusion`, or the head is a late fusion.
    """
    card = load_fusion(folder, head_id)
    if card.network is None or card.shape is None:
        raise ArtefactError(f"head {head_id} is a {card.kind}; a network was expected")
    network = Alimn(card.network, card.shape)
    network.load_state_dict(load_file(folder / head_id / WEIGHTS))
    return card, network.eval().requires_grad_(requires_grad=False).to(torch.float32)
