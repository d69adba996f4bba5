"""The jobs as functions for a notebook: frames of Spark, pandas, Polars or Arrow in, and the same out.

They ask the verbs of the library (docs/python.md), which know Spark alone, and start what these need: a Spark of this
machine where there is no session, and a Ray for LightGBM. Rows of other libraries are collected here, so they are for
data that this machine holds; of Spark's frames nothing is collected, and what comes out is as lazy as what went in.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ledgerlm.config import find_file, load_yaml, parse
from ledgerlm.engines.kinds import Kind, from_spark, kind_of, names_of, to_arrow, to_spark
from ledgerlm.engines.session import setting
from ledgerlm.errors import ConfigError, DataError, SpecError

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.engines.frames import Keep
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.heads.model import Head
    from ledgerlm.lake.made import Made

Frame = TypeVar("Frame")
"""A frame of Spark, pandas, Polars or Arrow."""
_BANK = ("events", "clients", "labels", "dictionaries")
_HOLDS = {"features": "features", "parts": "embeddings"}
_EXAMPLES = 3  # in a message


@dataclass(frozen=True, kw_only=True)
class Bank(Generic[Frame]):
    """A data set as tables; columns as in `ledgerlm.lake.schemas`.

    Attributes:
        spec: what the data are.
        events: every event: client_id, event_id, event_time, event_seq, amount, and the fields of the spec.
        clients: who has events: client_id, split, and attributes.
        labels: client_id, task, as_of, label, label_text; None where the spec names none.
        dictionaries: what codes mean; None where no field has a dictionary.
        quarantine: rows that were set aside, each with its reason; None where none was.
        facts: what was found: rows by reason, first and last event.
    """

    spec: DataSetSpec
    events: Frame
    clients: Frame
    labels: Frame | None = None
    dictionaries: Frame | None = None
    quarantine: Frame | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def example(clients: int = 40) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """A made-up shop for examples: who buys fuel comes back, who buys food does not.

    Args:
        clients: how many.

    Returns:
        Purchases (who, day, spent, item), labels (who, day, back) and the spec of both.
    """
    import pandas as pd

    first = dt.datetime(2024, 1, 1)
    bought = [
        (f"c{who:03d}", first + dt.timedelta(days=day + who % 3), 1.5 + (who * 7 + day) % 9, ("food", "fuel")[who % 2])
        for who in range(clients)
        for day in range(0, 20, 4)
    ]
    told = [(f"c{who:03d}", dt.datetime(2024, 2, 1), who % 2) for who in range(clients)]
    spec = {
        "name": "shop",
        "client": "who",
        "time": {"column": "day"},
        "amount": {"column": "spent"},
        "fields": [{"name": "item"}],
        "split": {"rule": "hash", "share": 0.2},
        "labels": [{"name": "back", "kind": "binary", "id": "who", "column": "back", "as_of": {"column": "day"}}],
    }
    purchases = pd.DataFrame(bought, columns=["who", "day", "spent", "item"])
    return purchases, pd.DataFrame(told, columns=["who", "day", "back"]), spec


def ingest(
    data: Frame, spec: str | Path | Mapping[str, Any], labels: Mapping[str, Frame] | None = None, **settings: Any
) -> Bank[Frame]:
    """Reads rows as the ingest job reads files: exactly, or with a reason why not.

    Args:
        data: the rows as they are. They are first written to a folder of this machine, so a cluster's frame is refused:
            there a spec names the Delta table that holds it.
        spec: file, or its content; `source` is not needed, nor is the `file` of labels that are given.
        labels: task -> rows with the columns that the spec names.
        **settings: of `IngestConf`.

    Returns:
        The tables, in frames like `data`.

    Raises:
        SpecError: the spec is wrong, or names a column that the rows lack.
        DataError: more rows are bad than `max_quarantined_share` allows, or a frame is a cluster's.

    Rows that were set aside are warned of, and stand in `quarantine` with their reason.

    Example:
        >>> import ledgerlm
        >>> bought, came_back, spec = ledgerlm.example()
        >>> bank = ledgerlm.ingest(bought, spec, {"back": came_back})
        >>> len(bank.events), len(bank.clients), len(bank.labels), bank.quarantine is None
        (200, 40, 40, True)
        >>> print(bank.events[["client_id", "event_time", "amount", "item"]].head(2).to_string(index=False))
        client_id                event_time amount item
             c000 2024-01-01 00:00:00+00:00 1.5000 food
             c000 2024-01-05 00:00:00+00:00 5.5000 food
    """
    from ledgerlm.events.ingesting import REMEDY, IngestConf, ingest_files

    kind, conf = kind_of(data), parse(IngestConf, settings, source="ingest")
    if labels is not None and not isinstance(labels, Mapping):
        raise DataError("labels are given by task: {'churn': frame}")
    with tempfile.TemporaryDirectory(prefix="ledgerlm-") as folder, _session(kind) as (spark, keep):
        _stage(data, Path(folder) / "rows")
        for task, rows in (labels or {}).items():
            _stage(rows, Path(folder) / f"labels-{task}")
        known = _spec(spec, Path(folder), labels or {})
        read = ingest_files(spark, known, conf, keep=keep)
        if read.refusal is not None:
            raise DataError(read.refusal.replace(REMEDY, f"{_shown(read.made)}mend the spec or the rows, or raise it"))
        frames = {name: rows.frame for name, rows in read.made.tables.items()}
        if read.made.aside is not None:
            frames["quarantine"] = read.made.aside
        if kind == "spark":
            frames = {name: _held(frame) for name, frame in frames.items()}
        given = {name: from_spark(frame, kind) for name, frame in frames.items() if name in (*_BANK, "quarantine")}
        _warn_of_set_aside(read.made)
        return Bank(spec=known, facts=read.made.facts, **given)


def serialize(bank: Bank[Frame], **settings: Any) -> Frame:
    """Tells each client's history as a text, up to each `as_of` that its labels ask for.

    Args:
        bank: the tables.
        **settings: of `SerializeConf`: `format`, `fields`, `max_events`, `windows` and more.

    Returns:
        client_id, as_of, format, text, event_count_used, event_count_cut, input_hash; or windows.

    Raises:
        ConfigError: a setting is wrong, or a field is none of the data set's.

    Example:
        >>> import ledgerlm
        >>> bought, came_back, spec = ledgerlm.example()
        >>> bank = ledgerlm.ingest(bought, spec, {"back": came_back})
        >>> documents = ledgerlm.serialize(bank, fields=["days", "item", "amount"], max_events=3)
        >>> print(documents["text"][0])
        days|item|amount
        +4d|food|10
        +4d|food|4.7
        +4d|food|8.2
    """
    from ledgerlm.text.documents import SerializeConf, tell_histories

    kind, conf = kind_of(bank.events), parse(SerializeConf, settings, source="serialize")
    with _session(kind) as (spark, keep):
        tables = _tables(spark, bank)
        made = tell_histories(
            tables["events"],
            tables["clients"],
            conf,
            spec=bank.spec,
            end=_end(bank, tables, conf.as_of),
            labels=tables.get("labels") if conf.labels else None,
            dictionaries=tables.get("dictionaries"),
        )
        return cast(Frame, _out(made, kind, keep))


def aggregate(bank: Bank[Frame], **settings: Any) -> Frame:
    """Counts, sums, means, shares of codes and days since, of each client's history: the baseline of the field.

    Args:
        bank: the tables; codes are learnt on clients whose split is `train`.
        **settings: of `AggregateConf`: `max_codes`, `recency` and more.

    Returns:
        client_id, as_of, feature_set, features (name -> value, without zeros), in no order.

    Example:
        >>> import ledgerlm
        >>> bought, came_back, spec = ledgerlm.example()
        >>> features = ledgerlm.aggregate(ledgerlm.ingest(bought, spec, {"back": came_back}))
        >>> first = features.sort_values("client_id")["features"].iloc[0]
        >>> first["count"], first["item=food:count"], "item=fuel:count" in first
        (5.0, 5.0, False)
    """
    from ledgerlm.baselines.agg import AggregateConf, aggregate_histories
    from ledgerlm.events.asked import asked

    kind, conf = kind_of(bank.events), parse(AggregateConf, settings, source="aggregate")
    with tempfile.TemporaryDirectory(prefix="ledgerlm-") as folder, _session(kind) as (spark, keep):
        tables = _tables(spark, bank)
        made = aggregate_histories(
            tables["events"],
            tables["clients"],
            asked(tables["clients"], tables.get("labels"), _end(bank, tables, conf.as_of), conf),
            conf,
            spec=bank.spec,
            folder=Path(folder) / "agg",
            keep=keep,
            dictionaries=tables.get("dictionaries"),
        )
        return cast(Frame, _out(made, kind, keep))


def embed(documents: Frame, backbone: str | Path, **settings: Any) -> Frame:
    """A vector of named parts for each text, read by a language model.

    Args:
        documents: from `serialize`.
        backbone: folder of a causal language model in Hugging Face's format, or a name on its hub.
        **settings: of `EmbedConf`: `definition`, `device` and more; `format` is that of the documents.

    Returns:
        client_id, as_of, backbone_id, definition_id, parts (name -> vector), token_count, event_count_used,
        event_count_cut, input_hash, definition. A text without a vector is missing, with a warning.

    Example:
        >>> import ledgerlm
        >>> bought, came_back, spec = ledgerlm.example()
        >>> documents = ledgerlm.serialize(ledgerlm.ingest(bought, spec, {"back": came_back}))
        >>> vectors = ledgerlm.embed(documents, backbone)  # a folder, such as a finetune stage leaves
        >>> len(vectors), sorted(vectors["parts"][0])
        (40, ['mean', 'std', 'surprise'])
    """
    from ledgerlm.backbone.embedding import EmbedConf, document_texts, embed_texts
    from ledgerlm.lake.schemas import TABLES
    from ledgerlm.progress import Progress

    kind, conf = kind_of(documents), parse(EmbedConf, {"backbone": str(backbone), **settings}, source="embed")
    if conf.source != "documents":
        raise ConfigError(f"embed: source is {conf.source}; only documents are embedded here, so leave it out")
    with tempfile.TemporaryDirectory(prefix="ledgerlm-") as folder, _session(kind) as (spark, keep):
        texts = document_texts(to_spark(spark, documents, TABLES["documents"].schema), conf.format)
        made = embed_texts(
            texts,
            conf,
            backbone=Path(backbone),
            folder=Path(folder) / "embeddings",
            standing=lambda _: None,
            keep=keep,
            progress=Progress(),
        ).made()
        return cast(Frame, _out(made, kind, keep))


def fit(
    bank: Bank[Frame], *vectors: Frame, folder: str | Path = "heads", seed: int = 42, **settings: Any
) -> dict[str, Head]:
    """Trains a head for each task on the vectors given, side by side, and calibrates it.

    Args:
        bank: for its labels, and for who is in `split = 'train'`.
        *vectors: from `aggregate` and `embed`, one or several.
        folder: where the heads are saved, each under its hash.
        seed: of folds and trees.
        **settings: of `FitConf`: `kind` (`lightgbm` trains on Ray, which is started; MLlib's `logistic_regression`,
            `random_forest`, `gbt` in Spark), `tasks`, `where`, `lightgbm` and more.

    Returns:
        Task -> its head, saved. Labels without vectors teach nothing, and are warned of.

    Raises:
        DataError: there are no labels, or a task has rows of one class only.

    Example:
        >>> import ledgerlm
        >>> bought, came_back, spec = ledgerlm.example()
        >>> bank = ledgerlm.ingest(bought, spec, {"back": came_back})
        >>> heads = ledgerlm.fit(bank, ledgerlm.aggregate(bank), kind="logistic_regression", calibration="none")
        >>> heads["back"].card.task.classes
        (0.0, 1.0)
    """
    from ledgerlm.heads.fitting import FitConf, fit_heads
    from ledgerlm.heads.tasks import declared_tasks, find_tasks

    if bank.labels is None:
        raise DataError("the bank has no labels: name them in the spec, and give their rows to ingest")
    with _session(kind_of(bank.labels)) as (spark, keep), ExitStack() as at_end:
        tables, found = _tables(spark, bank), _vectors(spark, vectors)
        sources = [source for table in found for source in _sources(table, found[table])]
        content = {"representation": "+".join(found), "sources": sources, **settings}
        conf = parse(FitConf, content, source="fit")
        _warn_of_labels(tables["labels"], found)
        if conf.kind == "lightgbm":
            _ray(at_end)
        heads = fit_heads(
            tables["labels"],
            tables["clients"],
            found,
            find_tasks(tables["labels"], conf.tasks, declared_tasks(bank.spec)),
            conf,
            facts=lambda _: {},
            folder=Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="ledgerlm-"))),
            seed=seed,
            keep=keep,
        )
        return {head.card.task.name: head.save(Path(folder).absolute()) for head in heads}


def score(heads: Head | Mapping[str, Head] | Sequence[Head], *vectors: Frame, reasons: int = 3) -> Frame:
    """Probabilities, prediction, tenth and reasons of everybody who has the vectors that a head reads.

    Args:
        heads: from `fit`, or `ledgerlm.heads.model.Head.load(folder, head_id)`.
        *vectors: those of its sources.
        reasons: features named for each client; MLlib's heads give none.

    Returns:
        client_id, as_of, task, head_id, probabilities, prediction, decile, reasons, in no order: join them by client_id
        and as_of. A vector that is not finite has no score, and is warned of.

    Raises:
        DataError: there is no vector, or none of the features that a head reads stands in any.

    Example:
        >>> import ledgerlm
        >>> bought, came_back, spec = ledgerlm.example()
        >>> bank = ledgerlm.ingest(bought, spec, {"back": came_back})
        >>> features = ledgerlm.aggregate(bank)
        >>> heads = ledgerlm.fit(bank, features, kind="logistic_regression", calibration="none")
        >>> scores = ledgerlm.score(heads, features)
        >>> both = scores.merge(bank.labels, on=["client_id", "as_of"])
        >>> int((both["prediction"] == both["label"]).sum()), len(both)
        (40, 40)
    """
    from ledgerlm.heads.model import Head
    from ledgerlm.heads.model import score as score_all

    listed = [heads] if isinstance(heads, Head) else list(heads.values() if isinstance(heads, Mapping) else heads)
    kind = kind_of(vectors[0]) if vectors else "spark"
    with _session(kind) as (spark, keep):
        found = _vectors(spark, vectors)
        if all(rows.isEmpty() for rows in found.values()):
            raise DataError("no vector is given: the frames have no row")
        for head in listed:
            _refuse_strange_features(head, found)
        made = score_all(listed, found, reasons=reasons, keep=keep)
        return cast(Frame, _out(made, kind, keep))


def _shown(made: Made) -> str:
    """Some rows that were set aside, for a message."""
    if made.aside is None:
        return ""
    rows = made.aside.select("reason", "detail").dropDuplicates(["reason"]).orderBy("reason").limit(_EXAMPLES).collect()
    return f"such as {'; '.join(f'{row.reason} ({row.detail})' for row in rows)}; " if rows else ""


def _warn_of_set_aside(made: Made) -> None:
    labels = made.facts.get("label_rows", {}).get("quarantined", 0)
    counts = {"events": made.quarantined or 0, "labels": labels}
    told = " and ".join(f"{count} rows of {what}" for what, count in counts.items() if count)
    if told:
        warnings.warn(f"{told} were set aside: see quarantine", stacklevel=3)


def _warn_of_labels(labels: DataFrame, found: Mapping[str, DataFrame]) -> None:
    key = ["client_id", "as_of"]
    asked = labels.select(*key).distinct()
    known = reduce(lambda one, other: one.union(other), (rows.select(*key) for rows in found.values()))
    without, all_of_them = asked.join(known, key, "left_anti").count(), asked.count()
    if without:
        warnings.warn(f"{without} of {all_of_them} labelled histories have no vector, and teach nothing", stacklevel=3)


def _refuse_strange_features(head: Head, found: Mapping[str, DataFrame]) -> None:
    """Refuses vectors of other data, which would all get the score of a client of whom nothing is known."""
    from pyspark.sql import functions as F

    names = [name for block in head.card.blocks if block.sparse for name in block.names]
    if not names or "features" not in found:
        return
    known = F.arrays_overlap(F.map_keys("features"), F.split(F.lit("\n".join(names)), "\n"))
    if found["features"].where(known).isEmpty():
        raise DataError(
            f"head {head.card.task.name}: no row holds any of the {len(names)} features that it reads, such as "
            f"{', '.join(names[:_EXAMPLES])}; give what aggregate gave for the same data"
        )


def _spec(spec: str | Path | Mapping[str, Any], folder: Path, labels: Mapping[str, Any]) -> DataSetSpec:
    """The spec of rows that lie staged in a folder."""
    from ledgerlm.events.spec import DataSetSpec, load_spec

    if isinstance(spec, Mapping):
        content, source = {"name": "data", **spec}, "spec"
    else:
        load_spec(spec)  # which says it by file and key, where it is wrong
        content, source = load_yaml(find_file(spec)), str(spec)
    content["source"] = {"path": str(folder), "files": [{"glob": "rows/*.parquet", "format": "parquet"}]}
    told = [dict(one) for one in content.get("labels", ())]
    strange = set(labels) - {one.get("name") for one in told}
    if strange:
        raise SpecError(f"{source}: labels of {', '.join(sorted(strange))} are given, but the spec has no such task")
    for one in told:
        if one.get("name") in labels:
            one["file"] = {"glob": f"labels-{one['name']}/*.parquet", "format": "parquet"}
    return parse(DataSetSpec, content | {"labels": told}, source=source, error=SpecError)


def _stage(frame: Any, folder: Path) -> None:
    """Writes rows as Parquet, as they are."""
    if kind_of(frame) == "spark":
        master = setting(frame.sparkSession, "spark.master", "")
        if master != "local" and not master.startswith("local["):
            raise DataError(
                f"a Spark frame of {master or 'a cluster'} would be written to each machine's own disk; write it as a "
                "Delta table, name that in a spec (files: [{glob: catalog.schema.table, format: delta}]) and let the "
                "ingest job read it"
            )
        frame.write.parquet(folder.as_uri())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    try:
        pq.write_table(to_arrow(frame), folder / "rows.parquet", coerce_timestamps="us")
    except pa.ArrowInvalid as error:
        raise DataError(f"times are finer than a microsecond: {error}; round them first") from error


@contextmanager
def _session(kind: Kind) -> Iterator[tuple[SparkSession, Keep]]:
    """A session, and what keeps frames: the one that is there, or one of this machine that stays for the next verb.

    What was kept is given back unless what comes out is lazy, and reads it.
    """
    from ledgerlm.engines.frames import Keeper
    from ledgerlm.engines.spark import open_here

    session, keeper = open_here(), Keeper()
    try:
        yield session.spark, keeper.keep
    finally:
        if kind != "spark":
            keeper.release()
        if not session.own:
            session.close()


def _ray(at_end: ExitStack) -> None:
    from ledgerlm.engines.ray import RayConf, RayEngine

    engine = RayEngine(RayConf())
    at_end.callback(engine.stop)
    engine.start()


def _tables(spark: SparkSession, bank: Bank[Any]) -> dict[str, DataFrame]:
    from ledgerlm.lake.schemas import TABLES

    given = {name: getattr(bank, name) for name in _BANK}
    return {name: to_spark(spark, one, TABLES[name].schema) for name, one in given.items() if one is not None}


def _vectors(spark: SparkSession, vectors: Sequence[Any]) -> dict[str, DataFrame]:
    """`features` and `embeddings`, told by their columns."""
    from ledgerlm.lake.schemas import TABLES

    found: dict[str, DataFrame] = {}
    for one in vectors:
        names = names_of(one)
        table = next((table for column, table in _HOLDS.items() if column in names), None)
        if table is None:
            raise DataError(f"columns {', '.join(names)} hold no vectors: give what aggregate or embed gave")
        rows = to_spark(spark, one, TABLES[table].schema)
        found[table] = found[table].unionByName(rows) if table in found else rows
    if not found:
        raise DataError("no vectors are given: give what aggregate or embed gave")
    return found


def _sources(table: str, rows: DataFrame) -> list[dict[str, Any]]:
    """One for each set of features, or for each backbone and definition with all of its parts."""
    from pyspark.sql import functions as F

    if table == "features":
        sets = rows.select("feature_set").distinct().orderBy("feature_set").collect()
        return [{"table": table, "feature_set": row[0]} for row in sets]
    kinds = rows.groupBy("backbone_id", "definition_id").agg(F.first(F.map_keys("parts")).alias("parts")).collect()
    return [{"table": table, **row.asDict()} for row in sorted(kinds)]


def _end(bank: Bank[Any], tables: Mapping[str, DataFrame], as_of: dt.datetime | None) -> dt.datetime:
    """When the histories of clients without a label end."""
    from ledgerlm.events.clock import aware
    from ledgerlm.events.ends import end_of_data

    time = bank.spec.time
    return aware(as_of or bank.spec.as_of or end_of_data(tables["events"], time).time, time.zone)


def _held(frame: DataFrame) -> DataFrame:
    """Computed now, since the files that it is read from go."""
    return frame.localCheckpoint()


def _out(made: Made, kind: Kind, keep: Keep) -> Any:
    """The main table of what was made, after its rows were counted again; a warning of what was set aside."""
    main = made.main or next(iter(made.tables))
    rows = keep(made.tables[main].frame)
    if made.tell is not None:
        made.tell({main: rows})
    aside = made.quarantined or 0
    if aside:
        warnings.warn(f"{aside} rows are not in the result: they were set aside", stacklevel=3)
    if made.rows_out is not None and (found := rows.count()) != made.rows_out:
        raise DataError(f"{made.rows_out} rows were made, but there are {found}; were the inputs changed meanwhile?")
    return from_spark(rows, kind)
