"""States on Spark: the running sums of windows through `mapInArrow`, and their fold to embeddings.

The fold is a stream: behind one shuffle by client, a client's windows and the times that are asked of it come in the
order of time, and what was added up so far is all that is held. So a client with a hundred thousand windows costs no
more memory than one with ten, and any number of times are answered in one pass. Windows are added one after the other,
in fp64, so the same states give the same bytes however the rows were spread.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.layout import NOT_FINITE, StateLayout, Sums, parts_array
from ledgerlm.backbone.spark_embed import EmbedSettings, Reader
from ledgerlm.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

NO_STATE = "no_state"
_TEXT_KEY = ("client_id", "text_hash")
_FOLDED = (
    "client_id string, as_of timestamp, parts map<string, array<float>>, token_count int, event_count int, "
    "input_hash string, reason string"
)
_FOLDED_NAMES = ("client_id", "as_of", "parts", "token_count", "event_count", "input_hash", "reason")
_ANSWER = {
    "client_id": pa.string(),
    "token_count": pa.int32(),
    "event_count": pa.int32(),
    "input_hash": pa.string(),
    "reason": pa.string(),
}
_PARTS = pa.map_(pa.string(), pa.list_(pa.float32()))
_NUMBERS_AT_ONCE = 4_000_000  # of states that are folded in one piece; 32 MB in fp64
_ASK, _WINDOW = 0, 1  # at one instant the question comes first: a window that ends at it is not before it


def state_rows(
    windows: DataFrame,
    *,
    folder: str,
    backbone_id: str,
    definition: EmbeddingDefinition,
    projection: Path | None = None,
    settings: EmbedSettings | None = None,
) -> DataFrame:
    """The states of texts under one backbone and one definition.

    Args:
        windows: client_id, bucket, text_hash, text; a row for each state that is wanted, other columns are left behind.
        folder: backbone folder, as for `embed`.
        backbone_id: id that the folder's weights must have; each worker process checks it once.
        definition: resolved definition (`resolve_definition`).
        projection: folder of the projection that the definition names.
        settings: how a worker runs.

    Returns:
        One row a row in no stated order: client_id, bucket, text_hash, backbone_id, definition_id, event_count,
        token_count, sums (null without a state), and reason: null, or why the text has no state.
    """
    reader = Reader.of(windows.sparkSession, folder, backbone_id, definition, projection, settings=settings)
    work = partial(_states_of_partition, reader=reader)
    rows = windows.select("client_id", "bucket", "text_hash", "text").mapInArrow(
        work,
        "client_id string, bucket int, text_hash string, event_count int, token_count int, sums array<float>, "
        "reason string",
    )
    return rows.select(
        "client_id",
        "bucket",
        "text_hash",
        F.lit(backbone_id).alias("backbone_id"),
        F.lit(definition.definition_id).alias("definition_id"),
        "event_count",
        "token_count",
        F.when(F.col("reason").isNull(), F.col("sums")).alias("sums"),
        "reason",
    )


def _states_of_partition(batches: Iterator[pa.RecordBatch], *, reader: Reader) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker."""
    settings = reader.settings
    with reader.open() as embedder:
        yield from embedder.state_batches(batches, buffer_rows=settings.buffer_rows, buffer_chars=settings.buffer_chars)


def fold(
    windows: DataFrame,
    states: DataFrame,
    asked: DataFrame,
    *,
    definition: EmbeddingDefinition,
    backbone_id: str,
) -> DataFrame:
    """The embedding of each client as of each time that is asked: the fold of its windows before it.

    Args:
        windows: rows of the windows table, of one format and windowing.
        states: client_id, text_hash, event_count, token_count, sums of this backbone and definition; and, where a text
            has none, reason.
        asked: client_id, as_of.
        definition: resolved, the one of the states.
        backbone_id: the backbone of the states.

    Returns:
        One row a client and time with an event before it, columns of the embeddings table without `run_id`, in no
        stated order, and reason: null, or why the row has no vector (its `parts` is null then): that of a text without
        a state, or `no_state`. `input_hash` is the SHA-256 of the windows' text hashes in order, a line break after
        each. Fails with a DataError where a time falls into a window that was not cut at it.
    """
    rows = _in_time(windows, asked).join(_with_reason(states), list(_TEXT_KEY), how="left")
    stream = rows.repartition("client_id").sortWithinPartitions("client_id", "moment", "kind", "period", "place")
    slim = stream.select(
        "client_id", "moment", "kind", "first_event_time", "text_hash", "event_count", "token_count", "sums", "reason"
    )
    folded = slim.mapInArrow(partial(_fold_partition, definition=definition.json_text), _FOLDED)
    return folded.select(
        "client_id",
        "as_of",
        F.lit(backbone_id).alias("backbone_id"),
        F.lit(definition.definition_id).alias("definition_id"),
        F.when(F.col("reason").isNull(), F.col("parts")).alias("parts"),
        "token_count",
        F.col("event_count").alias("event_count_used"),
        F.lit(0).alias("event_count_cut"),
        "input_hash",
        F.lit(definition.json_text).alias("definition"),
        "reason",
    )


def _with_reason(states: DataFrame) -> DataFrame:
    reason = F.col("reason") if "reason" in states.columns else F.lit(None).cast("string")
    return states.select(*_TEXT_KEY, "event_count", "token_count", "sums", reason.alias("reason"))


def _in_time(windows: DataFrame, asked: DataFrame) -> DataFrame:
    """Whole windows at their last event, and the times that are asked, each with the window that is cut at it."""
    times = asked.select("client_id", F.col("as_of").alias("moment")).distinct()
    newest = times.groupBy("client_id").agg(F.max("moment").alias("_newest"))
    # A window about the newest time is no part of the fold, but shows that it should have been cut there.
    whole = windows.where("cut_at IS NULL").join(newest, "client_id").where("first_event_time < _newest")
    cuts = windows.where("cut_at IS NOT NULL").select("client_id", F.col("cut_at").alias("moment"), "text_hash")
    questions = times.join(cuts, ["client_id", "moment"], how="left")
    return whole.select(
        "client_id",
        F.col("last_event_time").alias("moment"),
        F.lit(_WINDOW).alias("kind"),
        "period",
        "place",
        "first_event_time",
        "text_hash",
    ).unionByName(
        questions.select("client_id", "moment", F.lit(_ASK).alias("kind"), "text_hash"), allowMissingColumns=True
    )


def _fold_partition(batches: Iterator[pa.RecordBatch], *, definition: str) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker: the rows of whole clients, in order."""
    folding = Folding(EmbeddingDefinition.model_validate_json(definition))
    for batch in batches:
        yield from folding.add(batch)


class _Client:
    """What is known of a client so far, besides its sums."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self._events = self._tokens = self._windows = 0
        self._hash = hashlib.sha256()
        self._reason: str | None = None
        self._uncut: int | None = None  # newest time that whole windows alone have answered

    def add(self, row: dict[str, Any]) -> None:
        """Takes the next whole window."""
        if self._uncut is not None and row["first_event_time"] < self._uncut:
            time = dt.datetime.fromtimestamp(self._uncut / 1e6, dt.UTC)
            raise DataError(
                f"client {self.client_id}: a window holds events before and after {time}, and is not cut there; run "
                "serialize again with the labels that are asked"
            )
        self._windows += 1
        self._events += row["event_count"] or 0
        self._tokens += row["token_count"] or 0
        self._hash.update(_hashed(row))
        self._reason = self._reason or _missing(row)

    def answer(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """What is known as of a time, but for the vectors; None where no event is before it."""
        found, reason = self._hash.copy(), self._reason
        if row["text_hash"] is None:
            self._uncut = row["moment"]
            if not self._windows:
                return None
        else:
            found.update(_hashed(row))
            reason = reason or _missing(row)
        return {
            "client_id": self.client_id,
            "token_count": self._tokens + (row["token_count"] or 0),
            "event_count": self._events + (row["event_count"] or 0),
            "input_hash": found.hexdigest(),
            "reason": reason,
        }


def _hashed(row: dict[str, Any]) -> bytes:
    return f"{row['text_hash']}\n".encode()


def _missing(row: dict[str, Any]) -> str | None:
    """Why a window's text has no state; None where it has one."""
    reason: str | None = row["reason"]
    return reason or (NO_STATE if row["event_count"] is None else None)


class Folding:
    """The fold of a stream of rows: whole clients, each in the order of time; holds what was added up of one client.

    Args:
        definition: resolved.
    """

    def __init__(self, definition: EmbeddingDefinition) -> None:
        self._definition = definition
        self._layout: StateLayout | None = None
        self._client: _Client | None = None
        self._sums: Sums | None = None

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Takes the next rows; gives the answers to the times among them."""
        there = batch.column("sums").drop_null()
        if self._layout is None and len(there):
            self._layout = StateLayout.of_size(self._definition, len(there[0]))
        step = max(1, len(batch) if self._layout is None else _NUMBERS_AT_ONCE // self._layout.size)
        for start in range(0, len(batch), step):
            yield self._fold(batch.slice(start, step))

    def _fold(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        starts, answers, at = self._known(rows)
        columns = {name: [answer[name] for answer in answers] for name in _ANSWER}
        parts: pa.Array = pa.nulls(len(answers), _PARTS)
        if self._layout is not None:
            sums = self._added(self._layout, rows, starts)
            vectors = self._layout.parts(sums[at])
            parts = parts_array(vectors) if answers else parts
            finite = np.all([np.isfinite(one).all(axis=1) for one in vectors.values()], axis=0)
            columns["reason"] = [
                reason or (None if good else NOT_FINITE) for reason, good in zip(columns["reason"], finite, strict=True)
            ]
        arrays = {name: pa.array(column, _ANSWER[name]) for name, column in columns.items()}
        arrays |= {"as_of": rows.column("moment").take(pa.array(at)), "parts": parts}
        return pa.RecordBatch.from_pydict({name: arrays[name] for name in _FOLDED_NAMES})

    def _known(self, rows: pa.RecordBatch) -> tuple[NDArray[np.int64], list[dict[str, Any]], NDArray[np.int64]]:
        """Goes through the rows: where each client's begin, the answers but for their vectors, and their rows."""
        counted = rows.drop_columns(["sums"])
        for name in ("moment", "first_event_time"):  # microseconds
            counted = counted.set_column(
                counted.schema.get_field_index(name), name, counted.column(name).cast(pa.int64())
            )
        starts, answers, at = [], [], []
        for place, row in enumerate(counted.to_pylist()):
            if self._client is None or row["client_id"] != self._client.client_id:
                self._client, self._sums = _Client(row["client_id"]), None if place == 0 else self._sums
                starts.append(place)
            elif place == 0:
                starts.append(place)
            if row["kind"] == _WINDOW:
                self._client.add(row)
            elif (answer := self._client.answer(row)) is not None:
                answers.append(answer)
                at.append(place)
        return np.array(starts, np.int64), answers, np.array(at, np.int64)

    def _added(self, layout: StateLayout, rows: pa.RecordBatch, starts: NDArray[np.int64]) -> Sums:
        """What is added up of its client at each row: before a window, and at a time with what is cut at it.

        One step adds the next row of every client, so that each client's rows are added one after the other and all
        clients' at once.
        """
        values, there = _matrix(rows.column("sums"), layout)
        events = pc.fill_null(rows.column("event_count"), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        window = rows.column("kind").to_numpy(zero_copy_only=False) == _WINDOW
        sizes = np.diff(np.append(starts, len(rows)))
        order = np.argsort(-sizes, kind="stable")
        so_far = layout.nothing(len(starts))
        if self._sums is not None:
            so_far[0] = self._sums
        so_far, starts, sizes = so_far[order], starts[order], sizes[order]
        found = np.empty_like(values)
        for step in range(sizes[0]):
            clients = np.flatnonzero(sizes > step)
            at = starts[clients] + step
            before = so_far[clients]
            both = np.where(there[at, None], layout.together(before, values[at], events[at]), before)
            found[at] = both
            so_far[clients] = np.where(window[at, None], both, before)
        self._sums = so_far[np.argmax(order)]
        return found


def _matrix(column: pa.ListArray, layout: StateLayout) -> tuple[Sums, NDArray[np.bool_]]:
    """States as rows of numbers, zeros where there is none; and where there is one."""
    there = column.is_valid().to_numpy(zero_copy_only=False)
    values = np.zeros((len(column), layout.size))
    values[there] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, layout.size)
    return values, there
