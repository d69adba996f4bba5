"""An ALIMN network, or a late fusion of some, as a model: vectors and sentence states in, scores with reasons out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.errors import ArtefactError
from ledgerlm.heads.alimn.settings import FusionCard
from ledgerlm.heads.tasks import Floats
from ledgerlm.heads.vectors import KEY, Source, join_sources
from ledgerlm.training.model import HeadModel

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a head says of the clients that were held out of its training.

    Attributes:
        raw: log-odds.
        p: calibrated probabilities.
        y: labels.
    """

    raw: Floats
    p: Floats
    y: Floats


@dataclass(frozen=True, kw_only=True)
class FusedHead(HeadModel):
    """A trained network with its calibration, or a late fusion of such heads.

    Attributes:
        card: what it is.
        weights: file of the network's weights; None for a late fusion.
        members: of a late fusion.
        held_out: what it says of held-out clients; None for one that was loaded.
        training: what the training left behind; empty for a late fusion, and for one that was loaded.
        home: folder of its files once it is saved.
    """

    card: FusionCard
    weights: Path | None = None
    members: tuple[FusedHead, ...] = ()
    held_out: HeldOut | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    home: Path | None = None

    @classmethod
    def load(cls, folder: Path, head_id: str, /) -> FusedHead:
        """Reads a head, and the members of a late fusion, after checking that nothing of them was changed."""
        from ledgerlm.heads.alimn.store import load_fusion  # it imports torch, which takes seconds
        from ledgerlm.heads.alimn.training import WEIGHTS

        card, home = load_fusion(folder, head_id), folder / head_id
        return cls(
            card=card,
            weights=home / WEIGHTS if card.kind == "alimn" else None,
            members=tuple(cls.load(folder, one) for one in card.members),
            home=home,
        )

    def save(self, folder: Path) -> FusedHead:
        """Writes it below `folder`, and its members with it; the same head again leaves what is there."""
        from ledgerlm.heads.alimn.store import save_fusion

        members = tuple(one.save(folder) for one in self.members)
        card = self.card.model_copy(update={"members": tuple(one.head_id for one in members)})
        return replace(self, card=card, members=members, home=folder / save_fusion(folder, card, self.weights))

    def inputs(
        self, tables: Mapping[str, DataFrame], states: DataFrame, *, domains: Sequence[str] | None = None
    ) -> DataFrame:
        """Structured vectors and sentence states of clients that have both.

        Args:
            tables: `features` and `embeddings`, as far as its sources name them.
            states: the `text_states` table.
            domains: tags of the sentences that are read; left out, all. One that its training has not seen is refused.
        """
        read = self.members[0].card if self.members else self.card
        return join_texts(read.sources, tables, states, state_set=read.state_set, domains=domains)

    def transform(self, rows: DataFrame, /, *, reasons: int = 3) -> DataFrame:
        """Scores clients.

        Args:
            rows: from `inputs`.
            reasons: features and sentences named for each client; a late fusion names none.

        Returns:
            As `scoring.SCORED`: client_id, as_of, margin, probabilities, prediction, reasons.
        """
        said = score_together([*self.members, self], rows, reasons=reasons)
        return said.where(said["head_id"] == self.head_id).drop("head_id")

    def described(self) -> dict[str, Any]:
        """What later stages and the report know of it, as JSON values."""
        card = self.card
        facts: dict[str, Any] = {
            "head_id": self.head_id,
            "name": card.name,
            "kind": card.kind,
            "task": card.task.name,
            "classes": list(card.task.class_names),
            "training_rows": card.training_rows,
        }
        if self.training:
            curve = self.training["curve"]
            best = min(curve, key=lambda line: line["held_out_loss"])
            facts |= {"parameters": card.parameters, "alpha": self.training["alpha"], "curve": curve}
            facts |= {"best_epoch": int(best["epoch"]), "held_out_loss": best["held_out_loss"]}
            facts["seconds"] = round(curve[-1]["seconds"], 1)
        return facts


def score_together(heads: Sequence[FusedHead], rows: DataFrame, *, reasons: int = 3) -> DataFrame:
    """Scores clients with several saved heads in one pass; the members of a late fusion stand before it.

    Args:
        heads: that read the same rows.
        rows: from `FusedHead.inputs`.
        reasons: features and sentences named for each client.

    Returns:
        head_id, and as `FusedHead.transform`.

    Raises:
        ArtefactError: they do not lie in one folder.
    """
    from ledgerlm.heads.alimn.scoring import score_fusion

    folders = {head.folder.parent for head in heads}
    if len(folders) != 1:
        raise ArtefactError(f"heads to be scored together lie in {len(folders)} folders; save them in one")
    return score_fusion(rows, folders.pop(), [head.head_id for head in heads], reasons=reasons)


def join_texts(
    sources: Sequence[Source],
    tables: Mapping[str, DataFrame],
    states: DataFrame,
    *,
    state_set: str,
    domains: Sequence[str] | None = None,
) -> DataFrame:
    """client_id, as_of, the sources' columns and `sentences`, of clients that have all of them."""
    from pyspark.sql import functions as F

    own = states.where(F.col("state_set") == state_set)
    if domains is not None:
        wanted = F.array(*(F.lit(domain) for domain in domains))
        own = own.withColumn("sentences", F.filter("sentences", lambda one: F.array_contains(wanted, one.domain)))
    return join_sources(sources, tables).join(own.select(*KEY, "sentences"), on=list(KEY), how="inner")
