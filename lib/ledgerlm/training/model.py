"""Fitted things as models: laid-out rows in, what is said of them out; saved under the hash of their files.

The one form of heads, encoders and tuned language models. A function that fits gives a model that is not saved yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from ledgerlm.config import Conf
from ledgerlm.errors import ArtefactError
from ledgerlm.training.artefacts import NetworkFiles, check, keep_copy

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

C = TypeVar("C", bound=Conf)


class Model(ABC):
    """What is fitted once, and asked about rows of any date.

    Attributes:
        home: folder of its files once it is saved, named after their hash; None before.
    """

    home: Path | None

    @property
    def folder(self) -> Path:
        """The folder of a saved model.

        Raises:
            ArtefactError: when it has not been saved.
        """
        if self.home is None:
            raise ArtefactError(f"this {type(self).__name__} is not saved; call save(folder) first")
        return self.home

    @abstractmethod
    def save(self, folder: Path) -> Self:
        """Writes its files below `folder`, under the hash of their content; the same model again changes nothing."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, identity: str, /) -> Self:
        """Reads a model after checking that its files are those that its identity was made from.

        Args:
            folder: as it was given to `save`.
            identity: name of the model's own folder below it.

        Raises:
            ArtefactError: when it is missing or changed.
        """

    @abstractmethod
    def inputs(self, *tables: Any, **told: Any) -> DataFrame:
        """Lays out from tables the rows that it reads: client_id, as_of, and columns of its own."""

    @abstractmethod
    def transform(self, rows: DataFrame, /) -> DataFrame:
        """What it says of rows that `inputs` has laid out; it must have been saved, since workers open its files."""


class HeadModel(Model):
    """A model whose words are scores, which are kept under its id."""

    @property
    def head_id(self) -> str:
        """First hexadecimal digits of the hash of its files.

        Raises:
            ArtefactError: when it has not been saved.
        """
        return self.folder.name


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork(Model, Generic[C]):
    """A network whose weights and card its training has left in a folder.

    Attributes:
        FILES: of such a network.
        card: what it is.
        draft: what the training left; None for one that was loaded.
        home: folder of its files once it is saved.
        curve: a line for each epoch of the training; empty for one that was loaded.
    """

    FILES: ClassVar[NetworkFiles[Any]]

    card: C
    draft: Path | None = None
    home: Path | None = None
    curve: Sequence[Mapping[str, float]] = ()

    @classmethod
    def load(cls, folder: Path, identity: str, /) -> Self:
        """Reads a model after checking that its files are those that its id was made from."""
        home = folder / identity
        check(home, made_by=cls.FILES.made_by)
        return cls(card=cls.FILES.read_card(home), home=home)

    def save(self, folder: Path) -> Self:
        """Copies its files below `folder`, under their hash; a training that is killed can still go on."""
        files = self.draft or self.folder
        return replace(self, home=folder / keep_copy(files, folder))
