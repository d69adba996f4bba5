"""A sequence encoder as a model: histories in, vectors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledgerlm.baselines.codes import histories
from ledgerlm.baselines.sequence.histories import SeenColumns, assemble, observe
from ledgerlm.baselines.sequence.inference import encode
from ledgerlm.baselines.sequence.settings import ENCODER_FILES, EncoderCard
from ledgerlm.training.model import TrainedNetwork

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec


@dataclass(frozen=True, kw_only=True)
class SequenceEncoder(TrainedNetwork[EncoderCard]):
    """A trained encoder of CoLES, CPC, RTD, NSP, NPPR, IFTPP or DeTPP."""

    FILES = ENCODER_FILES

    @property
    def backbone_id(self) -> str:
        """Hash of its files, as it stands beside each vector.

        Raises:
            ArtefactError: when it has not been saved.
        """
        return self.folder.name

    def inputs(self, as_of: DataFrame, events: DataFrame, *, spec: DataSetSpec) -> DataFrame:
        """Histories as arrays of codes and numbers.

        Args:
            as_of: client_id, as_of: whose history, as of when.
            events: the `events` table.
            spec: the data set.

        Returns:
            One row for each history that has an event, as `histories.assemble` gives them.
        """
        seen = SeenColumns.of(self.card.fields, spec)
        return assemble(histories(observe(events, seen), as_of), self.card.fields)

    def transform(self, rows: DataFrame, /) -> DataFrame:
        """Encodes histories.

        Args:
            rows: from `inputs`.

        Returns:
            Rows of the `embeddings` table without run_id, in no stated order; `parts` has one vector, under the name
            of the method.
        """
        return encode(rows, self.folder, self.card)
