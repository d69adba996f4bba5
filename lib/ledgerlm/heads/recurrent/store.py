"""Heads that read events, on disk: safetensors and a JSON card; the id is the hash of the files."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from ledgerlm.errors import ArtefactError
from ledgerlm.heads.head import content_hash
from ledgerlm.heads.recurrent.model import Network
from ledgerlm.heads.recurrent.settings import RecurrentCard

WEIGHTS, CARD = "network.safetensors", "head.json"


def save_recurrent(folder: Path, network: Network, card: RecurrentCard) -> None:
    """Writes weights and card aside, then renames: a reader never sees half of a head."""
    aside = folder.with_name(folder.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, aside / WEIGHTS
    )
    (aside / CARD).write_text(card.model_dump_json(indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def keep_recurrent(trained: Path, heads: Path) -> str:
    """Copies a trained head below `heads` under its id.

    Returns:
        head_id, the first 16 hexadecimal digits of the SHA-256 of its files.
    """
    head_id = content_hash(trained)
    shutil.copytree(trained, heads / head_id, dirs_exist_ok=True)
    return head_id


def read_recurrent_card(folder: Path) -> RecurrentCard:
    """The card of a head.

    Raises:
        ArtefactError: when there is none or it cannot be read.
    """
    try:
        return RecurrentCard.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtefactError(f"{folder / CARD}: {error}; run the learn stage again") from error


def load_recurrent(folder: Path) -> tuple[Network, RecurrentCard]:
    """Opens a head whose folder bears its id.

    Raises:
        ArtefactError: when files are missing or were changed.
    """
    card = read_recurrent_card(folder)
    if (found := content_hash(folder)) != folder.name:
        raise ArtefactError(f"{folder}: its files hash to {found}; copy the head again, or run the learn stage again")
    network = Network(card.shape, card.network, card.task.outputs)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval(), card
