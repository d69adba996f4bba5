"""A pipeline file: which jobs run in which order, on what data, where to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from ledgerlm.config import SCHEME, Conf, find_file, load_yaml, nearest, parse, shipped
from ledgerlm.engines.ray import RayConf
from ledgerlm.engines.settings import SparkConf
from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.tracking import MlflowConf
from ledgerlm.events.clock import in_zone
from ledgerlm.events.spec import DataSetSpec, load_spec
from ledgerlm.files import place_of, unreadable, working_copy
from ledgerlm.lake.home import Home
from ledgerlm.runs.plan import Stage, StagePlan, plan
from ledgerlm.runs.registry import SHIPPED, Registry

_PROTOCOL = "protocol.yaml"


class EngineProfile(Conf):
    """`conf/engines/NAME.yaml`: where Spark and Ray run and how they are tuned."""

    spark: SparkConf = Field(default_factory=SparkConf, description="Spark session")  # type: ignore[arg-type]
    ray: RayConf = Field(default_factory=RayConf, description="Ray connection")  # type: ignore[arg-type]


class PipelineConf(Conf):
    """A pipeline file, `ledgerlm run FILE`."""

    pipeline: str = Field(description="name; also the folder below build/ when `out` is left out")
    title: str = Field("", description="heading of the report")
    out: str | None = Field(
        None,
        description="lake, artefacts, records and report: a folder, or a URL that fsspec and Spark reach (s3a://, "
        "abfss://, gs://, hdfs://); default build/NAME",
    )
    lake: str | None = Field(
        None,
        description="where the tables lie: a folder of any file system that Spark knows, by its URL, or a catalog's "
        "schema, as catalog.schema; without a scheme a folder of this machine; default the folder lake of `out`",
    )
    lease_minutes: float = Field(
        10.0,
        gt=0,
        description="of a pipeline that publishes: for how long a run that dies on another machine keeps the next one "
        "out of the lake; the clocks of the machines must agree to within half of it",
    )
    seed: int = Field(42, description="seed of everything that is drawn")
    engine: str = Field("laptop", description="engine profile: a name in conf/engines/ or a YAML file")
    spark: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Spark settings that win over the engine profile's"
    )
    mlflow: MlflowConf | None = Field(
        None, description="the experiment of MLflow that whole runs are told to, with settings, figures and report"
    )
    data: str = Field(description="data set spec: a YAML file")
    source: dict[str, Any] = Field(default_factory=dict, description="values that win over the spec's `source`")
    stages: dict[str, dict[str, Any] | None] = Field(description="stage name to its job's configuration, in order")

    @field_validator("pipeline")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value.replace("_", "").replace("-", "").isalnum():
            raise ValueError("a name of letters, digits, '-' and '_' is needed, since it becomes a folder")
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A checked pipeline: nothing in it can still be misspelt, and no stage undoes another.

    Attributes:
        conf: the file as it was understood.
        file: the file.
        spec: the data set.
        out: folder of artefacts, records and report; the working copy where they lie at a URL.
        engine: where Spark and Ray run.
        plans: the stages in order, with what each reads and writes.
    """

    conf: PipelineConf
    file: Path
    spec: DataSetSpec
    out: Path
    engine: EngineProfile
    plans: tuple[StagePlan, ...]

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.conf.pipeline

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        return tuple(one.stage for one in self.plans)

    @property
    def publishes(self) -> bool:
        """Whether readers are shown what it makes, so that one run at a time may work on its lake."""
        return any(stage.job.name == "publish" for stage in self.stages)

    @property
    def shows_views(self) -> bool:
        """Whether views of a catalog's schema are to show what is published."""
        return all(getattr(stage.conf, "views", True) for stage in self.stages if stage.job.name == "publish")

    @property
    def place(self) -> str:
        """Where artefacts, records and report lie, as the user knows it: a folder or a URL."""
        found = place_of(self.out)
        return str(self.out) if found is None else found.url

    @property
    def home(self) -> Home:
        """Where the tables lie."""
        return Home.parse(self.conf.lake or f"{self.place}/lake")

    def resolved(self) -> dict[str, Any]:
        """Everything as it was understood, defaults included, as JSON values."""
        stages = {
            stage.name: {"job": stage.job.name, **stage.conf.model_dump(mode="json", by_alias=True)}
            for stage in self.stages
        }
        engine = self.engine.model_dump(mode="json")
        return {**self.conf.model_dump(mode="json"), "out": self.place, "engine_profile": engine, "stages": stages}


def load_pipeline(name: str | Path, overrides: Sequence[str] = (), *, jobs: Registry = SHIPPED) -> Pipeline:
    """Reads and checks a pipeline file with all that it names, before anything starts.

    Args:
        name: pipeline file: a path, or a file of the shipped `conf/`. A data set spec stands for the pipeline of
            `conf/protocol.yaml` on that data set, with the settings under `protocol` of the spec.
        overrides: `key.sub=value` items that win over the file.
        jobs: the verbs that it may name.

    Raises:
        ConfigError: naming file, key and the nearest valid key.
    """
    file = find_file(name)
    content = load_yaml(file, overrides)
    if "fields" in content and "pipeline" not in content:
        content = load_yaml(shipped(_PROTOCOL), overrides, _of_spec(file))
    conf = parse(PipelineConf, content, source=str(file))
    profile = conf.engine if conf.engine.endswith((".yaml", ".yml")) else f"engines/{conf.engine}.yaml"
    engine_file = find_file(profile, beside=file.parent)
    engine = parse(EngineProfile, load_yaml(engine_file), source=str(engine_file))
    if conf.spark:
        spark = engine.spark.model_copy(update={"conf": {**engine.spark.conf, **conf.spark}})
        engine = engine.model_copy(update={"spark": spark})
    data_file = find_file(conf.data, beside=file.parent)
    spec = load_spec(data_file, overrides=_flat("source", conf.source))
    _check_protocol(spec, conf, data_file)
    stages = [
        _in_zone(_stage(stage, _with_protocol(stage, settings or {}, spec), file, jobs), spec.time.zone)
        for stage, settings in conf.stages.items()
    ]
    return Pipeline(
        conf=conf,
        file=file,
        spec=spec,
        out=_out(conf, file),
        engine=engine,
        plans=plan(stages, spec, file),
    )


def _out(conf: PipelineConf, file: Path) -> Path:
    out = conf.out or f"build/{conf.pipeline}"
    if not SCHEME.match(out) or out.startswith("file:"):
        return Path(out.removeprefix("file://").removeprefix("file:")).expanduser().absolute()
    if (why := unreadable(out)) is not None:
        raise ConfigError(f"{file}: out: {out}: {why}; install it in this environment, or give a folder")
    return working_copy(out).folder


def _flat(prefix: str, values: dict[str, Any]) -> list[str]:
    """Nested values as `key.sub=value` items."""
    items: list[str] = []
    for key, value in values.items():
        items += _flat(f"{prefix}.{key}", value) if isinstance(value, dict) else [f"{prefix}.{key}={value}"]
    return items


def _of_spec(file: Path) -> dict[str, Any]:
    """What a data set spec changes in the default pipeline."""
    spec = load_spec(file)
    return {"pipeline": spec.name, "title": spec.title, "data": str(file), "stages": spec.protocol}


def _with_protocol(name: str, settings: dict[str, Any], spec: DataSetSpec) -> dict[str, Any]:
    """What the data set says of a stage of this name, where the pipeline says nothing of the same key."""
    own_job = str(settings.get("job", name)) == str(spec.protocol.get(name, {}).get("job", name))
    return {**spec.protocol.get(name, {}), **settings} if own_job else settings


def _check_protocol(spec: DataSetSpec, conf: PipelineConf, file: Path) -> None:
    """Refuses settings under `protocol` of the spec that no stage could ever have."""
    known = {*conf.stages, *load_yaml(shipped(_PROTOCOL))["stages"]} if spec.protocol else set()
    for name, settings in spec.protocol.items():
        if name not in known and "job" not in settings:
            raise ConfigError(f"{file}: protocol: no stage '{name}': {nearest(name, known)}")


def _stage(name: str, settings: dict[str, Any], file: Path, jobs: Registry) -> Stage:
    where = f"{file}: stages.{name}"
    try:
        job = jobs.job(str(settings.get("job", name)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    values = {key: value for key, value in settings.items() if key != "job"}
    return Stage(name=name, job=job, conf=parse(job.conf, values, source=where))


def _in_zone(stage: Stage, zone: str) -> Stage:
    """Every `as_of` of a stage's settings that has no zone is in the data set's."""
    return replace(stage, conf=in_zone(stage.conf, zone))
