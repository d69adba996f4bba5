"""A head on disk: LightGBM's text or MLlib's own folder, and a card in JSON; its id is the hash of its content."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ledgerlm.config import Conf, parse
from ledgerlm.errors import ArtefactError
from ledgerlm.heads.boosting import Boosted, raw_outputs
from ledgerlm.heads.calibration import Calibrator
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import Block, Source
from ledgerlm.training.artefacts import aside, check, keep

HeadKind = Literal["lightgbm", "logistic_regression", "random_forest", "gbt"]
CARD = "head.json"
TREES = "model.txt"
MLLIB = "mllib"


class HeadCard(Conf):
    """What a head is: all that is needed to score with it, and where it comes from."""

    kind: HeadKind = Field(description="model family")
    task: Task = Field(description="what is predicted")
    representation: str = Field(description="name of the representation")
    sources: tuple[Source, ...] = Field(description="vectors that it reads, with backbone and definition")
    blocks: tuple[Block, ...] = Field(description="columns of its matrix in order")
    features_hash: str = Field(description="SHA-256 of the feature names in order")
    params: dict[str, Any] = Field(description="settings of the training")
    scale: tuple[float, ...] = Field((), description="divisor of each feature")
    calibration: Calibrator = Field(default_factory=Calibrator, description="from raw scores to probabilities")
    training_rows: int = Field(description="labelled rows that it was trained on", ge=1)
    as_of: str = Field(description="latest as_of of the training rows, ISO 8601")

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in order."""
        return tuple(name for block in self.blocks for name in block.features)


def hash_names(names: Sequence[str]) -> str:
    """SHA-256 of feature names in order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def save_head(folder: Path, card: HeadCard, model: Boosted | Path) -> str:
    """Writes a head below `folder`, under its id; the same head again leaves what is there.

    Args:
        folder: the artefacts' `heads` folder.
        card: its description.
        model: the trees, or a folder in MLlib's own format, which is copied.

    Returns:
        head_id, the first 16 hexadecimal digits of the SHA-256 of the head's files.
    """
    draft = aside(folder / f"{card.task.name}-{card.representation}")
    (draft / CARD).write_text(_json(card.model_dump(mode="json")), encoding="utf-8")
    if isinstance(model, Boosted):
        (draft / TREES).write_text(model.text, encoding="utf-8")
    else:
        shutil.copytree(model, draft / MLLIB)
    return keep(draft, folder)


def load_card(folder: Path, head_id: str) -> HeadCard:
    """Reads a head's card after checking that its files are those that its id was made from.

    Raises:
        ArtefactError: when the head is missing, changed, or its card does not fit itself.
    """
    home = folder / head_id
    check(home, made_by="fit")
    content: Mapping[str, Any] = json.loads((home / CARD).read_text(encoding="utf-8"))
    card = parse(HeadCard, content, source=str(home / CARD))
    if hash_names(card.names) != card.features_hash:
        raise ArtefactError(f"{home / CARD}: features_hash is not the hash of the feature names; fit the head again")
    return card


def load_trees(folder: Path, head_id: str) -> tuple[HeadCard, Boosted]:
    """Reads a LightGBM head.

    Raises:
        ArtefactError: as `load_card`, or when the head is of another kind.
    """
    card = load_card(folder, head_id)
    if card.kind != "lightgbm":
        raise ArtefactError(f"head {head_id} is of kind {card.kind}; LightGBM was expected")
    text = (folder / head_id / TREES).read_text(encoding="utf-8")
    return card, Boosted.from_text(text, card.scale, raw_outputs(card.task))


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
