"""Settings and card of the heads that read events; free of torch, so that a command line starts quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ledgerlm.baselines.sequence.settings import Fields
from ledgerlm.config import Conf, FileName
from ledgerlm.events.condition import Condition
from ledgerlm.heads.calibration import Calibrator, Method
from ledgerlm.heads.tasks import Task
from ledgerlm.training.artefacts import NetworkFiles
from ledgerlm.training.settings import RankConf

# Rows that are learnt from, those that choose the epoch, and those that calibrate; no client is in two.
PARTS = ("train", "stop", "calibrate")


class HolidaysConf(Conf):
    """Public holidays, by the `holidays` library."""

    countries: tuple[str, ...] = Field(min_length=1, description="ISO codes of the countries whose calendars are made")
    event_country: str | None = Field(
        None, description="SQL expression over event columns: ISO code of the country of an event; default the home"
    )
    home: str = Field(
        description="SQL expression over client columns: ISO code of a client's country, such as \"'GB'\""
    )
    ahead_days: int = Field(30, ge=1, description="days from as_of on whose holidays are counted")


class SeriesConf(Conf):
    """Promotions, prices, rates: a table with a row a day."""

    path: FileName = Field(
        description="CSV (with a header) or Parquet file or folder, found as configuration files are"
    )
    format: Literal["csv", "parquet"] = Field("csv", description="of the file")
    date: str = Field("date", description="column of the day")
    columns: tuple[str, ...] = Field(min_length=1, description="columns of numbers")
    lag_days: int = Field(1, ge=1, description="days until a day's numbers are known; nothing younger is seen")


class InputsConf(Conf):
    """What the head sees of a client: events as vectors, metadata, external factors."""

    categorical: tuple[str, ...] | None = Field(None, description="event columns of codes; default the spec's")
    numeric: tuple[str, ...] | None = Field(
        None, description="event columns of numbers but the amount; default the spec's"
    )
    only: Condition | None = Field(None, description="SQL condition on columns of the events; others are not read")
    max_codes: int = Field(200, ge=1, description="most frequent codes of a column that are told apart")
    max_events: int = Field(200, ge=1, description="newest events of a history that are read")
    metadata: tuple[str, ...] = Field(
        (), description="client attributes that were known at as_of and that no task predicts, as codes"
    )
    metadata_numbers: tuple[str, ...] = Field((), description="the same, as numbers")
    holidays: HolidaysConf | None = Field(None, description="holiday calendar")
    series: SeriesConf | None = Field(None, description="promotions and economic series")


class NetworkConf(Conf):
    """Shape of the network."""

    kind: Literal["lstm", "gru", "cnn"] = Field("lstm", description="lstm, gru, or cnn (1-D convolutions)")
    width: int = Field(64, ge=2, description="numbers of a state, or channels")
    layers: int = Field(1, ge=1, description="recurrent or convolutional layers")
    kernel: int = Field(5, ge=1, description="cnn: events that a filter sees")
    dropout: float = Field(0.2, ge=0, lt=1, description="between layers and before the dense layer")
    pooling: Literal["last", "mean", "both"] = Field(
        "both", description="recurrent: last state, mean of all, or both side by side; cnn takes mean and maximum"
    )
    dense: int = Field(64, ge=2, description="numbers of the hidden dense layer that joins metadata to the history")


class LearningConf(Conf):
    """How the network is trained."""

    epochs: int = Field(30, ge=1, description="most passes over the training rows")
    patience: int = Field(4, ge=1, description="epochs without a better held-out loss before it stops")
    batch: int = Field(64, ge=2, description="rows of a step, over all ranks")
    learning_rate: float = Field(0.003, gt=0, description="of AdamW, falling to a tenth by a cosine")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    clip: float = Field(1.0, gt=0, description="longest gradient")
    held_out: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="share of training clients that is not trained on: half of them choose the epoch, half calibrate",
    )
    class_weights: Literal["none", "balanced", "root"] = Field(
        "none", description="weight of a class in the loss: 1, 1/frequency, or its square root"
    )
    calibration: Method = Field("temperature", description="none, sigmoid, isotonic or temperature")
    event_dropout: float = Field(0.1, ge=0, lt=1, description="share of events hidden from a row in training")


class ContextFields(Conf):
    """Client metadata and what is known at as_of, as training rows showed them."""

    codes: dict[str, tuple[str, ...]] = Field(description="attribute -> codes, most frequent first; the first is row 2")
    numbers: tuple[str, ...] = Field(description="numbers in order")
    mean: tuple[float, ...] = Field(description="mean of each over training rows")
    std: tuple[float, ...] = Field(description="standard deviation of each, at least 0.001")


class RowsShape(Conf):
    """Everything that was fitted on training clients to make the arrays."""

    fields: Fields
    context: ContextFields


class HeadRankConf(RankConf):
    """What each rank of a head's training is told."""

    rows: Path = Field(description="folder with a Parquet folder `part=...` for each of `PARTS`")
    inputs: InputsConf
    shape: RowsShape
    network: NetworkConf
    learning: LearningConf
    task: Task
    as_of: str
    base: Path | None = Field(None, description="head whose weights the training starts from; of the same shape")


class RecurrentCard(Conf):
    """What a head is; stands beside its weights."""

    task: Task = Field(description="what is predicted")
    inputs: InputsConf
    shape: RowsShape
    network: NetworkConf
    learning: LearningConf
    calibration: Calibrator = Field(description="from raw scores to probabilities")
    seed: int
    parameters: int = Field(description="weights")
    training_rows: int = Field(description="labelled rows that it was trained on, without those held out")
    held_out_rows: int = Field(description="labelled rows that chose the epoch")
    calibration_rows: int = Field(description="labelled rows that fitted the calibration; they chose nothing")
    as_of: str = Field(description="latest as_of of the training rows, ISO 8601")


HEAD_FILES = NetworkFiles(kind=RecurrentCard, weights="network.safetensors", card="head.json", made_by="learn")
