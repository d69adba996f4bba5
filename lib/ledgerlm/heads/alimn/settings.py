"""Settings of ALIMN's networks, their training and their cards; light to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.config import Conf
from ledgerlm.heads.calibration import Calibrator
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import Block, Source
from ledgerlm.training.settings import RankConf

Activation = Literal["relu", "tanh", "gelu", "silu", "elu", "identity"]


class NetworkConf(Conf):
    """One network. A piece that is switched off leaves its parameters out."""

    task: str | None = Field(None, description="task of `labels`; left out, the stage's")
    inputs: Literal["both", "text", "structured"] = Field("both", description="which sides the network sees")
    width: int = Field(32, ge=2, description="numbers of E, X and z, which the gate needs alike")
    fusion: Literal["gate", "mean", "concat"] = Field(
        "gate", description="gate: z = g*E + (1-g)*X; mean: (E + X) / 2, no parameters; concat: z = W [E;X] + b"
    )
    cross_attention: bool = Field(True, description="sentences look at the client's structured features")
    hierarchical_attention: bool = Field(
        True, description="sentences weighted within documents, documents within the client; else a plain mean"
    )
    adapter: int = Field(8, ge=0, description="inner width of the bottleneck adapter of each domain; 0: none")
    branches: tuple[Activation, ...] = Field(
        ("relu", "tanh", "gelu", "silu"), min_length=1, description="activation of each branch"
    )
    residual: bool = Field(True, description="adds z to each branch's output")
    auxiliary: float = Field(0.01, ge=0, description="weight of L_aux; 0: off")
    l2: float = Field(1e-4, ge=0, description="lambda of the sum of squared parameters")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of z that is dropped in training")

    @property
    def text(self) -> bool:
        """Whether the network sees texts."""
        return self.inputs != "structured"

    @property
    def structured(self) -> bool:
        """Whether z is made of structured features."""
        return self.inputs != "text"


class FusionTrainingConf(Conf):
    """How the networks are trained."""

    batch: int = Field(128, ge=2, description="clients of one step, over all ranks")
    learning_rate: float = Field(2e-3, gt=0, description="Adam's learning rate, falling by a cosine to a tenth")
    epochs: int = Field(30, ge=1, description="most passes over the training clients")
    patience: int = Field(5, ge=1, description="epochs without a better held-out loss before it ends")
    held_out: float = Field(
        0.2, gt=0, lt=0.9, description="share of the training clients for early stopping, calibration and stacking"
    )
    refit: bool = Field(
        True,
        description="once the best number of epochs is known, train anew for as long on all training clients, those "
        "held out too; calibration and stacking stay as fitted on the held-out clients before",
    )
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


class LateFusion(Conf):
    """Scores of several networks put together after the fact."""

    members: tuple[str, ...] = Field(min_length=2, description="names of networks of the same task")
    how: Literal["average", "stacking"] = Field(
        "average",
        description="average: mean probability; stacking: logistic regression on their log-odds, fitted on "
        "the held-out share of the training clients",
    )


class FusionRankConf(RankConf):
    """What each rank of a fuse stage is told."""

    rows: Path = Field(description="folder of the staged clients (Parquet)")
    networks: dict[str, NetworkConf] = Field(description="name -> network, each with its task")
    blocks: tuple[Block, ...] = Field(description="columns of the structured matrix")
    domains: tuple[str, ...] = Field(description="domain tags in order")
    training: FusionTrainingConf = Field(FusionTrainingConf(), description="the training loop")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="DeepSpeed settings")


class Shape(Conf):
    """Sizes that the data decide."""

    features: int = Field(ge=0, description="columns of the structured matrix")
    state: int = Field(ge=0, description="numbers of a sentence's state")
    domains: int = Field(ge=0, description="domain tags")


class FusionCard(Conf):
    """What `head.json` says about an ALIMN head, or a late fusion of such heads."""

    kind: Literal["alimn", "late_fusion"] = Field(description="a network, or members put together")
    name: str = Field(description="name of the network in its stage")
    task: Task = Field(description="what is predicted")
    network: NetworkConf | None = Field(None, description="settings of the network")
    shape: Shape | None = Field(None, description="sizes")
    sources: tuple[Source, ...] = Field((), description="structured vectors that it reads")
    blocks: tuple[Block, ...] = Field((), description="columns of its matrix in order")
    state_set: str = Field("", description="set of sentence states that it reads")
    domains: tuple[str, ...] = Field((), description="domain tags in order")
    parameters: int = Field(0, description="trained numbers")
    calibration: Calibrator = Field(default_factory=Calibrator, description="from log-odds to probabilities")
    members: tuple[str, ...] = Field((), description="late fusion: head ids")
    weights: tuple[float, ...] = Field((), description="stacking: weight of each member's log-odds, then the bias")
    training_rows: int = Field(0, description="labelled clients that it was trained on")

    @model_validator(mode="after")
    def _whole(self) -> FusionCard:
        if self.kind == "alimn" and (self.network is None or self.shape is None):
            raise ValueError("an alimn head needs its network and its shape")
        return self


class DistilTrainingConf(Conf):
    """What the student learns, and how long."""

    next_token: float = Field(1.0, ge=0, description="weight of the next-token cross-entropy")
    token: float = Field(0.5, ge=0, description="weight of the KL of next-token distributions; needs one tokenizer")
    representation: float = Field(1.0, ge=0, description="weight of the KL of sentence states")
    temperature: float = Field(2.0, gt=0, description="divides both sides before the softmax")
    learning_rate: float = Field(3e-3, gt=0, description="Adam's learning rate, falling by a cosine to zero")
    epochs: int = Field(20, ge=1, description="passes over the different sentences")
    batch: int = Field(64, ge=2, description="sentences of one step, over all ranks")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")

    @model_validator(mode="after")
    def _something(self) -> DistilTrainingConf:
        if not self.token and not self.representation:
            raise ValueError("token and representation are both 0: nothing is left to learn of the teacher")
        return self


class DistilRankConf(RankConf):
    """What each rank of a distillation is told."""

    rows: Path = Field(description="Parquet with `text` and `state`, the teacher's")
    teacher: Path | None = Field(None, description="teacher's folder, for the level of tokens")
    tokenizer: Path = Field(description="folder of the student's tokenizer")
    shape: LlamaShape = Field(LlamaShape(), description="shape of the student")
    context: int = Field(256, ge=8, description="most tokens of a sentence with its BOS")
    training: DistilTrainingConf = Field(DistilTrainingConf(), description="the loss and the loop")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="DeepSpeed settings")
