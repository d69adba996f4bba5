"""Heads that read events, on disk: safetensors and a JSON card; the id is the hash of the files."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from ledgerlm.heads.recurrent.model import Network
from ledgerlm.heads.recurrent.settings import RecurrentCard
from ledgerlm.training.artefacts import check, read_card, save_network

WEIGHTS, CARD = "network.safetensors", "head.json"


def save_recurrent(folder: Path, network: Network, card: RecurrentCard) -> None:
    """Writes weights and card; a reader never sees half of a head."""
    save_network(folder, network, card, weights=WEIGHTS, described=CARD)


def read_recurrent_card(folder: Path) -> RecurrentCard:
    """The card of a head.

    Raises:
        ArtefactError: when there is none or it cannot be read.
    """
    return read_card(RecurrentCard, folder / CARD, made_by="learn")


def load_recurrent(folder: Path) -> tuple[Network, RecurrentCard]:
    """Opens a head whose folder bears its id.

    Raises:
        ArtefactError: when files are missing or were changed.
    """
    check(folder, made_by="learn")
    card = read_recurrent_card(folder)
    network = Network(card.shape, card.network, card.task.outputs)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval(), card
