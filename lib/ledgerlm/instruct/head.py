"""A tuned model as a head: its card, its adapter or merged weights, and one client's prediction in milliseconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ledgerlm.config import Conf, parse
from ledgerlm.errors import ArtefactError
from ledgerlm.files import pull
from ledgerlm.heads.calibration import Calibrator
from ledgerlm.heads.tasks import Floats, Task
from ledgerlm.instruct.prompts import PromptConf, compose
from ledgerlm.instruct.tokens import PromptTokens, prompt_tokens
from ledgerlm.training.artefacts import aside, check, keep

if TYPE_CHECKING:
    from ledgerlm.instruct.scorer import Scorer

CARD, ADAPTER, MODEL = "instruct.json", "adapter", "model"


class InstructCard(Conf):
    """What a tuned model answers, and how its likelihoods become probabilities."""

    task: Task = Field(description="what is asked; the names of its classes are the answers")
    prompt: PromptConf = Field(description="how it is asked")
    length: int = Field(ge=1, description="events told")
    context: int = Field(description="most tokens of a prompt with its answer")
    base: str = Field(
        description="folder of the model, relative where both are artefacts; empty: the merged one beside this card"
    )
    base_id: str = Field(description="hash of that model's files")
    adapter: bool = Field(description="whether the folder `adapter` is added to its weights")
    closed: bool = Field(False, description="whether the answers alone compete, as they did in training")
    length_normalised: bool = Field(False, description="divide an answer's log-likelihood by its tokens")
    calibration: Calibrator = Field(Calibrator(), description="from log-likelihoods to probabilities")
    trained: dict[str, Any] = Field(default_factory=dict, description="settings and outcome of the training")

    def raw(self, likelihoods: Floats, tokens: PromptTokens) -> Floats:
        """Raw scores for the calibration, from log-likelihoods [rows, answers]."""
        if self.length_normalised:
            likelihoods = likelihoods / np.array([len(answer) for answer in tokens.answers])
        return likelihoods if self.task.kind == "multiclass" else likelihoods[:, 1:] - likelihoods[:, :1]


def save_instructed(folder: Path, card: InstructCard, *, adapter: Path | None, model: Path | None) -> str:
    """Writes a head below `folder`, under the hash of its content; the same head again leaves what is there.

    Args:
        folder: the artefacts' `instruct` folder.
        card: its description.
        adapter: folder in PEFT's format that is copied, if it has one.
        model: merged model that is copied, if it is to stand alone.

    Returns:
        head_id.
    """
    draft = aside(folder / card.task.name)
    if card.base and Path(card.base).is_relative_to(folder.resolve().parent):
        # Artefacts stay beside each other wherever they are moved.
        card = card.model_copy(update={"base": os.path.relpath(card.base, folder.resolve() / "head")})
    content = json.dumps(card.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    (draft / CARD).write_text(content + "\n", encoding="utf-8")
    if adapter is not None:
        shutil.copytree(adapter, draft / ADAPTER)
    if model is not None:
        shutil.copytree(model, draft / MODEL, ignore=shutil.ignore_patterns(ADAPTER))
    return keep(draft, folder)


def load_instructed(folder: Path, head_id: str) -> InstructCard:
    """Reads a head's card after checking that nothing of it was changed.

    Raises:
        ArtefactError: the head or its base model is missing or changed.
    """
    from ledgerlm.backbone.model import backbone_id

    home = folder / head_id
    check(home, made_by="instruct")
    content: Mapping[str, Any] = json.loads((home / CARD).read_text(encoding="utf-8"))
    card = parse(InstructCard, content, source=str(home / CARD))
    if (found := backbone_id(model_folder(home, card))) != card.base_id:
        raise ArtefactError(f"{model_folder(home, card)} hashes to {found}; the head {head_id} needs {card.base_id}")
    return card


def model_folder(home: Path, card: InstructCard) -> Path:
    """Where the head's model lies."""
    return pull((home / card.base).resolve()) if card.base else home / MODEL


def tokens_of(home: Path, card: InstructCard) -> PromptTokens:
    """The prompt's tokens, from the model's tokenizer."""
    from ledgerlm.text.tokenizer import load_tokenizer

    return prompt_tokens(
        load_tokenizer(model_folder(home, card)),
        card.prompt,
        card.task.class_names,
        context=card.context,
        closed=card.closed,
    )


class Predictor:
    """Answers for one client at a time, with the model kept open."""

    def __init__(self, folder: Path, head_id: str, *, device: str = "cpu") -> None:
        """Opens a head.

        Args:
            folder: the artefacts' `instruct` folder.
            head_id: the head.
            device: where the model is put.
        """
        from ledgerlm.instruct.scorer import Scorer

        home = folder / head_id
        self.card = load_instructed(folder, head_id)
        self._tokens = tokens_of(home, self.card)
        adapter = str(home / ADAPTER) if self.card.adapter else None
        self._scorer: Scorer = Scorer.open(str(model_folder(home, self.card)), adapter, self._tokens, device=device)

    def predict(self, attributes: Mapping[str, str | None], document: str) -> dict[str, float]:
        """Probability of each class for one client.

        Args:
            attributes: of the client, by name.
            document: the client's events in compact, lines or table format, as the head's prompt has them.
        """
        told = compose(self.card.prompt, attributes, document, self.card.length)
        raw = self.card.raw(self._scorer.log_likelihoods([told]), self._tokens)
        p = self.card.calibration.apply(raw, self.card.task)[0]
        return dict(zip(self.card.task.class_names, map(float, p), strict=True))
