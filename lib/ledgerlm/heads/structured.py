"""Structured features by an MLlib pipeline: imputed, standardised, one-hot; further vectors appended and projected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.engines.frames import Keep, settled, with_columns
from ledgerlm.errors import ArtefactError, ConfigError, DataError
from ledgerlm.files import bring, url_of
from ledgerlm.heads.mllib import dense_rows
from ledgerlm.heads.vectors import KEY, Block, Source, component_names, join_sources, learn_blocks
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from pyspark.ml import PipelineModel

# Spark's PCA holds a matrix of columns x columns on the driver.
_MOST_APPENDED = 4000
_VECTOR = "vector"
_PIPELINE = "pipeline"  # folder of MLlib's files


class StructuredConf(Conf):
    """What becomes of client attributes and appended vectors."""

    numeric: tuple[str, ...] = Field((), description="client attributes that are numbers")
    categorical: tuple[str, ...] = Field((), description="client attributes that are categories")
    log: tuple[str, ...] = Field((), description="of the numeric ones, those taken as sign(x) ln(1 + |x|)")
    components: int = Field(16, ge=1, description="directions that each appended vector is projected on")


class PrepareConf(StructuredConf):
    """Settings of the prepare job."""

    feature_set: str = Field("structured", pattern=r"^[A-Za-z0-9_]+$", description="name of the features written")
    append: tuple[Source, ...] = Field((), description="vectors appended to the attributes: features or embeddings")

    @model_validator(mode="after")
    def _something(self) -> PrepareConf:
        if not (self.numeric or self.categorical or self.append):
            raise ValueError("name client attributes under numeric or categorical, or vectors under append")
        return self


class StructuredCard(Conf):
    """What a fitted pipeline is, beside MLlib's own files."""

    conf: StructuredConf = Field(description="its settings")
    names: tuple[str, ...] = Field(description="features in order")
    blocks: tuple[Block, ...] = Field(description="columns of the appended vectors; none when nothing is appended")


@dataclass(frozen=True, kw_only=True)
class Structured:
    """A fitted pipeline.

    Attributes:
        model: MLlib's pipeline model.
        card: what it is.
    """

    model: PipelineModel
    card: StructuredCard

    def transform(self, rows: DataFrame) -> DataFrame:
        """The features of rows.

        Args:
            rows: as the training rows, of any clients. A category unseen in training becomes `NAME=(unknown)`.

        Returns:
            client_id, as_of, features map<string, float> without zeros; key (client_id, as_of).
        """
        from pyspark.ml.functions import vector_to_array

        made = self.model.transform(_typed(rows, self.card.blocks, self.card.conf))
        names = F.array(*(F.lit(name) for name in self.card.names))
        values = vector_to_array(F.col("structured"), "float32")
        return made.select(
            *KEY, F.map_filter(F.map_from_arrays(names, values), lambda _, value: value != 0).alias("features")
        )

    def save(self, folder: Path) -> None:
        """Writes MLlib's files below `pipeline`, and `structured.json`."""
        self.model.write().overwrite().save(url_of(folder / _PIPELINE))
        bring(folder / _PIPELINE)
        (folder / "structured.json").write_text(self.card.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Structured:
        """Reads what `save` wrote; a Spark session must be there.

        Raises:
            ArtefactError: the folder holds no such pipeline.
        """
        try:
            card = StructuredCard.model_validate_json((folder / "structured.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ArtefactError(f"{folder}: no structured features that can be read: {error}; run prepare") from error
        from pyspark.ml import PipelineModel

        return cls(model=PipelineModel.load(url_of(folder / _PIPELINE)), card=card)


def prepare_features(
    clients: DataFrame,
    keys: DataFrame,
    conf: PrepareConf,
    *,
    tables: Mapping[str, DataFrame],
    facts: Callable[[str], Mapping[str, Any]],
    folder: Path,
    keep: Keep,
) -> Made:
    """Fits the pipeline on training clients and gives everyone's features.

    Args:
        clients: the `clients` table.
        keys: client_id, as_of of the rows wanted; distinct. One without an appended vector is left out.
        conf: attributes and vectors.
        tables: the `features` and `embeddings` tables, as far as `append` names them.
        facts: gives the facts of a finished stage by its name, or by its job's.
        folder: where the fitted pipeline goes.
        keep: rows are read by each stage of the fit, then once more by all clients.

    Returns:
        `features`, a row for each key. Facts: `feature_set`, `features` (how many), `appended` (columns),
        `training_rows`.

    Raises:
        ConfigError: an attribute that the clients lack.
        DataError: too wide vectors, or vectors of different length.
    """
    sources = tuple(source.pinned(facts) for source in conf.append)
    rows = keys.join(clients.drop("run_id"), on="client_id", how="inner")
    if sources:
        rows = rows.join(join_sources(sources, tables), on=list(KEY), how="inner")
    rows = settled(rows, keep)
    counted = {row["split"]: row["count"] for row in rows.groupBy("split").count().collect()}
    training = rows.where("split = 'train'")
    appended = training.drop(*(name for name in clients.columns if name != "client_id"))
    blocks = learn_blocks(appended, named=component_names(conf.append, facts)) if sources else []
    fitted = fit_structured(training, blocks, conf, keep=keep)
    fitted.save(folder)
    found = fitted.transform(rows).withColumn("feature_set", F.lit(conf.feature_set))
    return Made(
        rows_in=sum(counted.values()),
        tables={"features": Rows(frame=found, slice={"feature_set": (conf.feature_set,)})},
        artefacts=(folder,),
        facts={
            "feature_set": conf.feature_set,
            "features": len(fitted.card.names),
            "appended": sum(len(block.features) for block in blocks),
            "training_rows": counted.get("train", 0),
        },
    )


def fit_structured(training: DataFrame, blocks: Sequence[Block], conf: StructuredConf, *, keep: Keep) -> Structured:
    """Fits Imputer, StandardScaler, StringIndexer, OneHotEncoder and PCA; nothing of them sees other rows.

    Args:
        training: rows of training clients alone: client_id, as_of, the attributes as strings, and the columns of the
            blocks.
        blocks: vectors to append; the pipeline standardises each, projects it by a PCA of its own (one over all would
            give the directions to the widest), and standardises the result.
        conf: the attributes.
        keep: the rows are read by each step.

    Raises:
        ConfigError: an attribute that the rows lack.
        DataError: too wide vectors.
    """
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import StringIndexerModel

    unknown = [name for name in (*conf.numeric, *conf.categorical) if name not in training.columns]
    if unknown:
        raise ConfigError(f"no client attribute '{unknown[0]}': {nearest(unknown[0], training.columns)}")
    width = sum(len(block.features) for block in blocks)
    if width > _MOST_APPENDED:
        raise DataError(f"{width} appended features, {_MOST_APPENDED} are the most; take fewer sources or codes")
    model = Pipeline(stages=_stages(conf, blocks)).fit(keep(_typed(training, blocks, conf)))
    names = [*conf.numeric]
    for stage in model.stages:
        if isinstance(stage, StringIndexerModel):
            pairs = zip(conf.categorical, stage.labelsArray, strict=True)
            names += [f"{name}={label}" for name, labels in pairs for label in (*labels, "(unknown)")]
    groups = Counter(block.group for block in blocks)
    for block in blocks:
        # The same part of two sources, say of two layers, is told apart by its column.
        title = block.group if groups[block.group] == 1 else block.column
        names += [f"{title}:direction:{place}" for place in range(_directions(block, conf))]
    settings = StructuredConf.model_validate({name: getattr(conf, name) for name in StructuredConf.model_fields})
    return Structured(model=model, card=StructuredCard(conf=settings, names=tuple(names), blocks=tuple(blocks)))


def _typed(rows: DataFrame, blocks: Sequence[Block], conf: StructuredConf) -> DataFrame:
    """Attributes as doubles or strings, and the appended vectors as one column."""
    attributes = [*conf.numeric, *conf.categorical]
    wide = dense_rows(rows, blocks, keep=attributes) if blocks else rows.select(*KEY, *attributes)
    numbers = {}
    for name in conf.numeric:
        number = F.col(name).try_cast("double")
        numbers[name] = F.signum(number) * F.log1p(F.abs(number)) if name in conf.log else number
    return with_columns(wide, numbers)


def _directions(block: Block, conf: StructuredConf) -> int:
    return min(conf.components, len(block.features))


def _stages(conf: StructuredConf, blocks: Sequence[Block]) -> list[Any]:
    from pyspark.ml.feature import (
        PCA,
        Imputer,
        OneHotEncoder,
        StandardScaler,
        StringIndexer,
        VectorAssembler,
        VectorSlicer,
    )

    stages: list[Any] = []
    parts: list[str] = []
    if conf.numeric:
        filled = [f"{name}_filled" for name in conf.numeric]
        stages += [
            Imputer(inputCols=list(conf.numeric), outputCols=filled, strategy="median"),
            VectorAssembler(inputCols=filled, outputCol="numbers"),
            StandardScaler(inputCol="numbers", outputCol="scaled", withMean=True, withStd=True),
        ]
        parts.append("scaled")
    if conf.categorical:
        indexed = [f"{name}_index" for name in conf.categorical]
        encoded = [f"{name}_hot" for name in conf.categorical]
        stages += [
            StringIndexer(
                inputCols=list(conf.categorical),
                outputCols=indexed,
                handleInvalid="keep",
                stringOrderType="alphabetAsc",
            ),
            OneHotEncoder(inputCols=indexed, outputCols=encoded, dropLast=False),
        ]
        parts += encoded
    start = 0
    for block in blocks:
        end = start + len(block.features)
        sliced, scaled, projected, directions = (f"{block.column}_{step}" for step in range(4))
        stages += [
            VectorSlicer(inputCol=_VECTOR, outputCol=sliced, indices=list(range(start, end))),
            StandardScaler(inputCol=sliced, outputCol=scaled, withMean=True, withStd=True),
            PCA(k=_directions(block, conf), inputCol=scaled, outputCol=projected),
            StandardScaler(inputCol=projected, outputCol=directions, withMean=True, withStd=True),
        ]
        parts.append(directions)
        start = end
    return [*stages, VectorAssembler(inputCols=parts, outputCol="structured")]
