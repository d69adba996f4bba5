"""Settings of the sequence baselines; free of torch, so that a command line starts quickly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ledgerlm.config import Conf
from ledgerlm.training.artefacts import NetworkFiles
from ledgerlm.training.settings import RankConf

Method = Literal["coles", "cpc", "rtd", "nsp", "nppr", "iftpp", "iftpp_t", "detpp"]
# Row 0 of every embedding table is padding, row 1 any code that no training client had.
PAD, UNKNOWN, FIRST_CODE = 0, 1, 2
LOG_DAYS = "log_days"


class FieldsConf(Conf):
    """Which fields of an event an encoder sees; never the time itself, only the gap to the event before."""

    categorical: tuple[str, ...] | None = Field(None, description="columns of codes; default the spec's")
    numeric: tuple[str, ...] | None = Field(None, description="columns of numbers but the amount; default the spec's")
    calendar: bool = Field(True, description="take hour (where there is one) and weekday of an event as codes")
    max_codes: int = Field(200, ge=1, description="most frequent codes of a field that are told apart")
    codes: dict[str, int] = Field(default_factory=dict, description="the same for single fields")
    embeddings: dict[str, int] = Field(
        default_factory=dict, description="numbers of a field's embedding; default √codes, 4 to 16"
    )
    max_events: int = Field(1600, ge=1, description="newest events of a history that are read")


class Fields(Conf):
    """The fields as training clients showed them: part of an encoder.

    Attributes of one number stand in the order of `numbers`.
    """

    codes: dict[str, tuple[str, ...]] = Field(description="field -> codes, most frequent first; the first is row 2")
    embeddings: dict[str, int] = Field(description="field -> numbers of its embedding")
    numbers: tuple[str, ...] = Field(description="signed logarithms; the last is log_days, ln(1 + days since before)")
    mean: tuple[float, ...] = Field(description="mean of each number over training events")
    std: tuple[float, ...] = Field(description="standard deviation of each number, at least 0.001")
    max_events: int = Field(description="newest events of a history that are read")

    @property
    def sizes(self) -> dict[str, int]:
        """Field to rows of its embedding table."""
        return {name: len(codes) + FIRST_CODE for name, codes in self.codes.items()}


class EncoderConf(Conf):
    """Shape of a sequence encoder."""

    kind: Literal["gru", "lstm", "transformer"] = Field("gru", description="gru, lstm or (causal) transformer")
    width: int = Field(128, ge=2, description="numbers of the state, and so of the vector")
    layers: int = Field(1, ge=1, description="layers")
    heads: int = Field(4, ge=1, description="transformer: attention heads")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout between layers")
    noise: float = Field(3e-3, ge=0, description="standard deviation of noise on code embeddings while training")
    event_dropout: float = Field(0.01, ge=0, lt=1, description="share of events hidden from a slice in training")
    pooling: Literal["last", "mean"] = Field("last", description="vector of a history: last state, or mean of all")

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.kind == "transformer" and self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        return self


class SlicesConf(Conf):
    """Parts of a history that one step of training sees: runs of successive events at random places."""

    slices: int = Field(1, ge=1, description="slices of a client in a batch")
    shortest: int = Field(20, ge=2, description="fewest events of a slice (a shorter history is taken whole)")
    longest: int = Field(100, ge=2, description="most events of a slice")


class ColesConf(SlicesConf):
    """CoLES."""

    method: Literal["coles"] = "coles"
    slices: int = Field(5, ge=2, description="slices of a client in a batch")
    shortest: int = Field(10, ge=2, description="fewest events of a slice")
    longest: int = Field(60, ge=2, description="most events of a slice")
    margin: float = Field(0.5, gt=0, description="distance at which slices of two clients are far enough apart")
    negatives: int = Field(5, ge=1, description="nearest slices of other clients that each slice is pushed from")


class CpcConf(SlicesConf):
    """CPC."""

    method: Literal["cpc"] = "cpc"
    steps: int = Field(6, ge=1, description="events ahead that are predicted")
    negatives: int = Field(40, ge=1, description="events of other clients to be told from the true one")


class RtdConf(SlicesConf):
    """RTD."""

    method: Literal["rtd"] = "rtd"
    share: float = Field(0.15, gt=0, lt=1, description="share of events that are replaced")


class NspConf(SlicesConf):
    """NSP."""

    method: Literal["nsp"] = "nsp"
    slices: int = Field(5, ge=1, description="slices of a client, each cut into two parts")
    head_width: int = Field(512, ge=1, description="numbers of the hidden layer that compares the parts")
    head_dropout: float = Field(0.5, ge=0, lt=1, description="its dropout")


class NextConf(SlicesConf):
    """IFTPP by a recurrent encoder, or (`iftpp_t`) by a transformer."""

    method: Literal["iftpp", "iftpp_t"] = "iftpp"


class NpprConf(SlicesConf):
    """NPPR."""

    method: Literal["nppr"] = "nppr"
    past: int = Field(4, ge=1, description="earlier events that each state gives back")
    decay_days: float = Field(30.0, gt=0, description="days at which an earlier event counts 1/e")
    weight: float = Field(1.0, ge=0, description="weight of the past beside the next event")


class DetppConf(SlicesConf):
    """DeTPP."""

    method: Literal["detpp"] = "detpp"
    queries: int = Field(8, ge=1, description="events predicted at once; also the most that are looked for")
    horizon_days: float = Field(30.0, gt=0, description="time ahead in which events are predicted")
    positions: int = Field(8, ge=1, description="places of a slice from which the future is predicted")


ObjectiveConf = Annotated[
    ColesConf | CpcConf | RtdConf | NspConf | NextConf | NpprConf | DetppConf, Field(discriminator="method")
]


class TrainingConf(Conf):
    """How an encoder is trained."""

    epochs: int = Field(12, ge=1, description="passes over the training clients")
    batch: int = Field(32, ge=2, description="clients of a step, over all ranks")
    learning_rate: float = Field(0.002, gt=0, description="of Adam")
    weight_decay: float = Field(0.0, ge=0, description="of Adam (above zero: AdamW)")
    step_epochs: int = Field(10, ge=1, description="epochs after which the learning rate is multiplied by step_factor")
    step_factor: float = Field(0.9025, gt=0, le=1, description="1 keeps the learning rate")
    plateau_epochs: int | None = Field(
        None, ge=1, description="epochs without a better held-out loss after which the learning rate is divided by ten"
    )
    clip: float | None = Field(None, gt=0, description="longest gradient")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of training clients kept for the held-out loss")
    min_events: int = Field(25, ge=2, description="shortest history that is trained on")


class EncoderRankConf(RankConf):
    """What each rank of an encoder's training is told."""

    histories: Path = Field(description="folder of Parquet files with the training histories")
    fields: Fields
    encoder: EncoderConf
    objective: ObjectiveConf
    training: TrainingConf


class EncoderCard(Conf):
    """What an encoder is; stands beside its weights."""

    fields: Fields
    encoder: EncoderConf
    objective: ObjectiveConf
    training: TrainingConf
    seed: int
    parameters: int = Field(description="weights of the encoder alone")

    @property
    def definition(self) -> str:
        """JSON that stands beside each vector."""
        return self.model_dump_json(include={"encoder", "objective"})

    @property
    def definition_id(self) -> str:
        """First 16 hexadecimal digits of the hash of the definition."""
        return hashlib.sha256(self.definition.encode()).hexdigest()[:16]


ENCODER_FILES = NetworkFiles(kind=EncoderCard, weights="encoder.safetensors", card="encoder.json", made_by="encode")
