"""Opens heads that read events."""

from __future__ import annotations

from pathlib import Path

from ledgerlm.heads.recurrent.model import Network
from ledgerlm.heads.recurrent.settings import HEAD_FILES, RecurrentCard


def load_recurrent(folder: Path) -> tuple[Network, RecurrentCard]:
    """Opens a head whose folder bears its id.

    Raises:
        ArtefactError: when files are missing or were changed.
    """
    card, weights = HEAD_FILES.read(folder)
    network = Network(card.shape, card.network, card.task.outputs)
    network.load_state_dict(weights)
    return network.eval(), card
