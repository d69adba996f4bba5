"""The settings of a plan: who the clients are, which backbones, on what hardware, at what prices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.config import Conf, find_file, load_yaml, parse
from ledgerlm.text.windows import WindowConf

Part = Literal["ingest", "serialize", "finetune", "embed", "fold", "aggregate", "fit", "score", "publish", "scan"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Pieces of work that have a speed of their own. `embed` is the model alone, `fold` what follows it in the stage embed;
`scan` is a pass over a table's rows."""
UNITS: Mapping[Part, str] = {
    "ingest": "rows",
    "serialize": "events",
    "finetune": "FLOPs",
    "embed": "FLOPs",
    "fold": "bytes of states",
    "aggregate": "events",
    "fit": "numbers of training rows, over heads",
    "score": "rows, over heads",
    "publish": "rows, over heads",
    "scan": "rows",
}
"""What a part's speed counts, a second and core."""


KEYS = 150
"""Bytes of ids and hashes of a row of states or embeddings, which is assumed."""


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class PopulationConf(Conf):
    """Who the clients are; what is left out is measured on the sample, or assumed where that is said."""

    clients: Annotated[tuple[float, ...], BeforeValidator(_several)] = Field(
        (), description="how many clients; a list makes a table"
    )
    events: float | None = Field(None, gt=0, description="events of a client in its history")
    months: float | None = Field(None, gt=0, description="months that the history covers")
    tokens: float | None = Field(None, gt=0, description="tokens of an event, by the backbone's tokenizer")
    frame_tokens: float | None = Field(
        None, ge=0, description="tokens of a window beside its events: first line and start"
    )
    windows: float | None = Field(
        None, gt=0, description="windows of a client; left out and not measured, computed from events and months"
    )
    cuts: float | None = Field(
        None, ge=0, description="times a client, beside tonight, as of which a history is asked and cuts a window"
    )
    active: float | None = Field(None, gt=0, le=1, description="share of the clients with an event on a day")
    night_events: float | None = Field(None, ge=1, description="events of such a client on such a day")
    training_rows: float | None = Field(None, gt=0, description="labelled rows that a head learns from")
    features: float | None = Field(None, gt=0, description="aggregate features beside the embedding")
    heads: float | None = Field(None, gt=0, description="heads that score every client")

    @field_validator("clients")
    @classmethod
    def _some(cls, clients: tuple[float, ...]) -> tuple[float, ...]:
        if any(one <= 0 for one in clients):
            raise ValueError("numbers of clients must all be above 0")
        return clients


class BackboneConf(Conf):
    """The size of a backbone, as its model card or `config.json` gives it."""

    parameters: float = Field(gt=0, description="all weights, shared ones counted once")
    width: int = Field(gt=0, description="numbers in a hidden state (hidden_size)")
    layers: int = Field(gt=0, description="transformer blocks (num_hidden_layers)")
    vocabulary: int = Field(gt=0, description="tokens of the vocabulary (vocab_size)")
    tied: bool = Field(True, description="input and output embeddings are the same numbers (tie_word_embeddings)")
    number_bytes: float = Field(2, gt=0, description="bytes of a weight while it reads: 2 for bf16, 4 for fp32")

    @model_validator(mode="after")
    def _fits(self) -> BackboneConf:
        if self.embedding_parameters >= self.parameters:
            raise ValueError(
                f"{self.parameters:,.0f} parameters are no more than the {self.embedding_parameters:,} of the "
                "embeddings alone (width · vocabulary, twice where they are not tied); look at the model's config.json"
            )
        return self

    @property
    def embedding_parameters(self) -> int:
        """Weights of input and output embeddings."""
        return self.width * self.vocabulary * (1 if self.tied else 2)


class TrainingPlan(Conf):
    """How much a backbone learns from; once, not every night."""

    tokens: float | None = Field(None, ge=0, description="tokens read in training, over all epochs; 0: none")
    lora: bool = Field(False, description="adapters beside frozen weights")


class AcceleratorsConf(Conf):
    """GPUs or their like, which train and read."""

    name: str = Field("", description="what they are")
    count: int = Field(gt=0, description="how many work at once")
    peak_flops: float = Field(gt=0, description="FLOPs a second of one, dense, in the type that is used, by its maker")
    utilisation: float = Field(gt=0, le=1, description="share of the peak that reading reaches; measure it on one")
    training_utilisation: float = Field(gt=0, le=1, description="share of the peak that training reaches")
    memory: float = Field(gt=0, description="bytes of memory of one")
    hour_price: float = Field(ge=0, description="price of one for an hour")


class ExecutorsConf(Conf):
    """Machines that Spark and Ray run on."""

    name: str = Field("", description="what they are")
    count: int = Field(gt=0, description="how many work at once")
    cores: int = Field(gt=0, description="cores of one")
    hour_price: float = Field(ge=0, description="price of one for an hour")


class HardwareConf(Conf):
    """What there is, and what it costs; prices are yours to set."""

    accelerators: AcceleratorsConf | None = Field(None, description="left out, the backbone runs on the executors")
    executors: ExecutorsConf = Field(description="machines of Spark and Ray")
    storage_price: float = Field(ge=0, description="price of a gigabyte (1e9 bytes) for a month")
    currency: str = Field("", description="of all prices, for the headings")


class SpeedConf(Conf):
    """How fast one part of the work is; left out, it is measured on the sample."""

    start: float = Field(0, ge=0, description="seconds that it takes whatever the size: planning, start of workers")
    rate: float | None = Field(None, gt=0, description="units a second and core; left out, no time beside `start`")
    night: float | None = Field(
        None, ge=0, description="as `start`, of a night; left out, measured on a sample that was rescored, else `start`"
    )


class BytesConf(Conf):
    """Bytes of what lies there; left out, they are measured on the sample, or assumed where that is said."""

    event: float | None = Field(None, gt=0, description="an event in the table events")
    window_event: float | None = Field(None, gt=0, description="an event in the table windows")
    partial: float = Field(51, gt=0, description="an event in the table partials (assumed where it isn't measured)")
    features: float | None = Field(None, gt=0, description="a row of the table features")
    score: float | None = Field(None, gt=0, description="a row of the table scores")
    keys: float = Field(KEYS, gt=0, description="ids and hashes of a row of states or embeddings (assumed)")
    shuffled: float = Field(
        3, gt=0, description="bytes in a shuffle for one that lies compressed in a table of events or texts (assumed)"
    )


class PlanConf(Conf):
    """A plan file, `ledgerlm plan FILE`."""

    population: PopulationConf = Field(PopulationConf(), description="who the clients are")
    windows: WindowConf | None = Field(None, description="as in the serialize stage; left out, as in the sample's")
    definition: EmbeddingDefinition | None = Field(
        None, description="as in the embed stage; left out, as in the sample's, or else the default"
    )
    training: TrainingPlan = Field(TrainingPlan(), description="what the backbone learns from")
    backbones: dict[str, BackboneConf] = Field(min_length=1, description="name to size; several make a table")
    hardware: HardwareConf = Field(description="what there is and what it costs")
    sample_cores: float | None = Field(
        None, gt=0, description="cores that the sample ran on; left out, as its engine profile and this machine say"
    )
    speeds: dict[Part, SpeedConf] = Field(default_factory=dict, description="part of the work to its speed")
    bytes: BytesConf = Field(BytesConf(), description="sizes of rows")
    folded: float = Field(
        0.23,
        gt=0,
        lt=1,
        description="share of a first run's work in `aggregate` that folds months to features; the rest adds up months",
    )


def load_plan(name: str | Path, overrides: tuple[str, ...] = ()) -> PlanConf:
    """Reads and checks a plan file.

    Args:
        name: a path, or a file of the shipped `conf/`.
        overrides: `key.sub=value` items that win over the file.

    Raises:
        ConfigError: naming file, key and the nearest valid key.
    """
    file = find_file(name)
    return parse(PlanConf, load_yaml(file, overrides), source=str(file))
