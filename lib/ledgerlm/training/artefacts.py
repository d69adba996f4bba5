"""Finished folders: written aside, readable by everyone, renamed into place, kept under the hash of their content."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import ValidationError

from ledgerlm.config import Conf
from ledgerlm.errors import ArtefactError

if TYPE_CHECKING:
    from torch import Tensor, nn

C = TypeVar("C", bound=Conf)
_BLOCK = 1 << 22  # bytes that are hashed at once


def content_hash(folder: Path, files: Iterable[Path] | None = None) -> str:
    """First 16 hexadecimal digits of the SHA-256 over the names and bytes of files.

    Args:
        folder: names are relative to it.
        files: of the folder; left out, all files below it.
    """
    chosen = folder.rglob("*") if files is None else files
    digest = hashlib.sha256()
    for path in sorted(path for path in chosen if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()[:16]


def aside(folder: Path) -> Path:
    """An empty folder beside `folder`, on the same disk, to write in until `finish`."""
    draft = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def finish(draft: Path, folder: Path) -> Path:
    """Puts a draft in the place of `folder` by a rename, so that a reader never sees half of it; returns `folder`."""
    open_to_all(draft)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return draft.rename(folder)


def open_to_all(folder: Path) -> None:
    """Makes a folder readable by everyone.

    safetensors writes weights for its own user alone (mode 0600), but executors of another user must open them.
    """
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def keep(draft: Path, home: Path, identity: str | None = None) -> str:
    """Moves a finished draft below `home`, under the hash of its files; the same content again changes nothing.

    Args:
        draft: on the same disk as `home`; gone afterwards.
        home: folder of artefacts of a kind.
        identity: name of the folder; left out, `content_hash(draft)`.

    Returns:
        The name.
    """
    name = identity or content_hash(draft)
    if (home / name).exists():
        shutil.rmtree(draft)
    else:
        finish(draft, home / name)
    return name


def keep_copy(folder: Path, home: Path, identity: str | None = None) -> str:
    """Like `keep`, but leaves `folder` where it is, so that a run that is killed can go on from it."""
    name = identity or content_hash(folder)
    if not (home / name).exists():
        draft = aside(home / name)
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        finish(draft, home / name)
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFiles(Generic[C]):
    """The files of a small network: weights in safetensors, and a card in JSON that says what it is.

    Attributes:
        kind: what the card says.
        weights: file name of the weights.
        card: file name of the card.
        made_by: stage that makes such folders, for messages.
    """

    kind: type[C]
    weights: str
    card: str
    made_by: str

    def write(self, folder: Path, network: nn.Module, card: C) -> None:
        """Writes a finished folder, in the place of one that is there; a reader never sees half of it."""
        from safetensors.torch import save_file

        draft = aside(folder)
        state = network.state_dict()
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, draft / self.weights)
        (draft / self.card).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        finish(draft, folder)

    def read_card(self, folder: Path) -> C:
        """The card, without a look at the weights.

        Raises:
            ArtefactError: there is none, or it cannot be read.
        """
        file = folder / self.card
        try:
            return self.kind.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ArtefactError(f"{file}: {error}; run the {self.made_by} stage again") from error

    def read(self, folder: Path) -> tuple[C, dict[str, Tensor]]:
        """Card and weights of a folder that bears its id.

        Raises:
            ArtefactError: when files are missing or were changed.
        """
        from safetensors.torch import load_file

        check(folder, made_by=self.made_by)
        return self.read_card(folder), load_file(folder / self.weights)


def check(folder: Path, *, made_by: str) -> None:
    """Checks that a folder still holds what it is named after.

    Args:
        folder: from `keep`.
        made_by: stage that makes such folders, for the message.

    Raises:
        ArtefactError: it is not there, or its files were changed.
    """
    if not folder.is_dir():
        raise ArtefactError(f"no {folder.name} in {folder.parent}; run the {made_by} stage")
    if (found := content_hash(folder)) != folder.name:
        raise ArtefactError(
            f"{folder}: its files hash to {found}; they were changed after training, so copy them again, "
            f"or run the {made_by} stage again"
        )
