"""A tuned language model as a model: prompts in, calibrated probabilities of a closed set of answers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.engines.gpus import WorkerDevice
from ledgerlm.engines.session import setting
from ledgerlm.instruct.head import (
    ADAPTER,
    MODEL,
    InstructCard,
    load_instructed,
    model_folder,
    save_instructed,
    tokens_of,
)
from ledgerlm.instruct.predict import Reading, score_prompts
from ledgerlm.instruct.prompts import body, tell
from ledgerlm.instruct.sweep import Length
from ledgerlm.lake.made import Made
from ledgerlm.training.model import HeadModel

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.events.spec import DataSetSpec


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a tuned model came to be.

    Attributes:
        examples: labelled rows, those held out among them.
        judged: figures on held-out examples, at each length.
        chosen: the one that is kept.
        trained: what the ranks found, with `examples`, speed and curve; empty for a model as it is.
        example: a prompt with its answer.
    """

    examples: int
    judged: Sequence[Length]
    chosen: Length
    trained: Mapping[str, Any]
    example: str

    def made(self, head: InstructedHead, name: str, report: Sequence[Mapping[str, Any]] = ()) -> Made:
        """For the record: the head's folder and figures.

        Args:
            head: the saved head.
            name: of the head.
            report: sections that tell of it.
        """
        task = head.card.task
        return Made(
            rows_in=self.examples,
            rows_out=self.examples,
            artefacts=[head.folder],
            facts={
                "heads": [
                    {"head_id": head.head_id, "name": name, "task": task.name, "classes": list(task.class_names)}
                ],
                "length": self.chosen.events,
                "lengths": [one.row() for one in self.judged],
                **self.trained,
            },
            report=report,
        )


@dataclass(frozen=True, kw_only=True)
class InstructedHead(HeadModel):
    """A tuned and calibrated language model. For one client at a time there is `instruct.head.Predictor`.

    Attributes:
        card: what it answers, and the model beside which it stands.
        adapter: folder of the adapter whose weights are added, if it has one.
        model: folder of a model of its own, if it has one.
        home: folder of its files once it is saved.
    """

    card: InstructCard
    adapter: Path | None = None
    model: Path | None = None
    home: Path | None = None

    @classmethod
    def load(cls, folder: Path, head_id: str, /) -> InstructedHead:
        """Reads a head after checking that nothing of it, or of the model beside which it stands, was changed."""
        folder = folder.absolute()
        card, home = load_instructed(folder, head_id), folder / head_id
        return cls(
            card=card.model_copy(update={"base": str(model_folder(home, card)) if card.base else ""}),
            adapter=home / ADAPTER if card.adapter else None,
            model=None if card.base else home / MODEL,
            home=home,
        )

    def save(self, folder: Path) -> InstructedHead:
        """Writes it below `folder`, under the hash of its content; the same head again leaves what is there."""
        folder = folder.absolute()
        head_id = save_instructed(folder, self.card, adapter=self.adapter, model=self.model)
        return replace(self, home=folder / head_id)

    def inputs(
        self,
        as_of: DataFrame,
        events: DataFrame,
        clients: DataFrame,
        *,
        spec: DataSetSpec,
        dictionaries: DataFrame | None = None,
        length: int | None = None,
    ) -> DataFrame:
        """Prompts.

        Args:
            as_of: client_id, as_of: who is asked about, as of when.
            events: the `events` table.
            clients: the `clients` table.
            spec: the data set.
            dictionaries: the `dictionaries` table, if there is one.
            length: events told; left out, what the training found best.

        Returns:
            client_id, as_of, body.
        """
        most = length or self.card.length
        told = tell(events, clients, as_of, spec, self.card.prompt, most=most, dictionaries=dictionaries)
        return told.select("client_id", "as_of", body(most).alias("body"))

    def transform(self, rows: DataFrame, /, *, device: str = "cpu", batch_tokens: int = 8192) -> DataFrame:
        """Answers.

        Args:
            rows: from `inputs`.
            device: cpu, or cuda: the GPU that Spark gave the task.
            batch_tokens: most tokens of a forward pass.

        Returns:
            As `scoring.SCORED`: client_id, as_of, margin, probabilities, prediction, reasons (none).

        Raises:
            ConfigError: Spark's workers would share a GPU.
        """
        card, home = self.card, self.folder
        reading = Reading(
            model=str(model_folder(home, card)),
            adapter=str(home / ADAPTER) if card.adapter else None,
            tokens=tokens_of(home, card),
            device=WorkerDevice.of(rows.sparkSession, device),
            threads=int(setting(rows.sparkSession, "spark.task.cpus", "1")),
            batch_tokens=batch_tokens,
        )
        return score_prompts(rows, reading, card)
