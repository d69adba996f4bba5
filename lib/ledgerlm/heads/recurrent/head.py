"""A head that reads histories event by event, as a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ledgerlm.heads.recurrent.inputs import chosen_columns, head_rows, observed_events, sources_of
from ledgerlm.heads.recurrent.scoring import score_recurrent
from ledgerlm.heads.recurrent.settings import HEAD_FILES, RecurrentCard
from ledgerlm.lake.made import Made
from ledgerlm.training.model import HeadModel, TrainedNetwork

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec


@dataclass(frozen=True, kw_only=True)
class RecurrentHead(TrainedNetwork[RecurrentCard], HeadModel):
    """A trained LSTM, GRU or 1-D CNN.

    Attributes:
        labelled: labels that it was to learn from.
    """

    FILES = HEAD_FILES

    labelled: int = 0

    def inputs(
        self,
        as_of: DataFrame,
        events: DataFrame,
        clients: DataFrame,
        *,
        spec: DataSetSpec,
        dictionaries: DataFrame | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> DataFrame:
        """Histories as the head reads them: codes, numbers, metadata and context.

        Args:
            as_of: client_id, as_of: whose history, as of when.
            events: the `events` table.
            clients: the `clients` table.
            spec: the data set.
            dictionaries: the `dictionaries` table, if there is one.
            files: name in the head's configuration -> path; has the series, where the head sees one.

        Returns:
            One row for each history that has an event.
        """
        sources = sources_of(events, clients, dictionaries, self.card.inputs, files or {})
        observed = observed_events(sources, chosen_columns(spec, self.card.inputs), self.card.inputs)
        return head_rows(as_of, observed, sources, self.card.shape, self.card.inputs)

    def transform(self, rows: DataFrame, /) -> DataFrame:
        """Scores histories.

        Args:
            rows: from `inputs`.

        Returns:
            As `scoring.SCORED`: client_id, as_of, margin, probabilities, prediction, reasons (none).
        """
        home = self.folder
        return score_recurrent(rows, home.parent.resolve(), home.name)

    def made(self) -> Made:
        """For the record: a head writes no table."""
        card = self.card
        used = card.training_rows + card.held_out_rows + card.calibration_rows
        return Made(
            rows_in=used,
            rows_out=used,
            artefacts=[self.folder],
            facts={
                "heads": [{"head_id": self.head_id, "task": card.task.name, "name": card.network.kind}],
                "classes": list(card.task.class_names),
                "parameters": card.parameters,
                "training_rows": card.training_rows,
                "held_out_rows": card.held_out_rows,
                "calibration_rows": card.calibration_rows,
                "without_events": self.labelled - used,
                "temperature": card.calibration.temperature,
                "curve": list(self.curve),
            },
        )
