"""One shard of documents, from its staged Parquet files to a Parquet file of rewrites: resumable, bounded in memory.

A shard is finished when its statistics file stands beside its output. Both are written aside and renamed, so a killed
worker leaves nothing that looks finished; since row seeds hang on client and variant alone, doing a shard again gives
the same rows.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerlm.enrich.engine import Generation
from ledgerlm.enrich.rewrite import Document, Rewrite, Task, Writer, judge
from ledgerlm.files import push

STAGED = pa.schema(
    [
        pa.field("client_id", pa.string(), nullable=False),
        pa.field("as_of", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("input_hash", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("payload", pa.string()),
    ]
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A row during which a worker died this often while it was alone is given up.
_DEATHS_OF_A_ROW = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A piece of work.

    Attributes:
        number: position among the shards of a stage.
        source: folder of the staged documents.
        target: Parquet file of the rewrites.
    """

    number: int
    source: Path
    target: Path

    @property
    def record(self) -> Path:
        """Statistics file; it stands when the shard is finished."""
        return self.target.with_suffix(".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStats:
    """What became of a shard.

    Attributes:
        documents: documents read.
        kept: rewrites that passed the check.
        refused: reason to number of rewrites that did not.
        formats: format to numbers of rewrites kept and refused.
        again: attempts beyond the first.
        characters: of the kept rewrites.
        input_tokens, output_tokens: as the engine counts them; 0 where it does not.
        seconds: work time.
        resumed: whether this was found finished from an earlier attempt.
    """

    shard: int
    documents: int
    kept: int
    refused: dict[str, int]
    characters: int
    input_tokens: int
    output_tokens: int
    seconds: float
    engine_id: str
    prompt_id: str
    formats: dict[str, tuple[int, int]]
    again: int
    resumed: bool = field(default=False)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Statistics of a finished shard; None when it is not finished."""
        return cls(**{**json.loads(path.read_text()), "resumed": True}) if path.exists() else None


class Journal:
    """What a worker is doing with a shard, so that the worker after a crash knows which rows to suspect.

    A crash during a batch makes its rows suspects, which are then done one by one. A row that is alone during
    `_DEATHS_OF_A_ROW` crashes is given up. Only crashes of the same session count, so that a user who kills a run and
    starts it again does not condemn a row.
    """

    def __init__(self, path: Path, session: str) -> None:
        self._path = path
        self._session = session
        state = json.loads(path.read_text()) if path.exists() else {}
        working: list[int] = state.get("working", [])
        self._suspects = {*state.get("suspects", []), *working}
        self._deaths: Counter[int] = Counter({int(row): count for row, count in state.get("deaths", {}).items()})
        if len(working) == 1 and state["session"] == session:
            self._deaths[working[0]] += 1

    def batches(self, rows: range) -> Iterator[tuple[range, bool]]:
        """Rows as they are to be done, with whether they are given up; each is noted before it is handed out."""
        if not self._suspects.intersection(rows):
            self._note(rows)
            yield rows, False
            return
        for row in rows:
            condemned = self._deaths[row] >= _DEATHS_OF_A_ROW
            self._note(range(row, row if condemned else row + 1))
            yield range(row, row + 1), condemned

    def _note(self, rows: range) -> None:
        state = {
            "session": self._session,
            "working": list(rows),
            "suspects": sorted(self._suspects),
            "deaths": dict(self._deaths),
        }
        write_aside(self._path, json.dumps(state))

    def close(self) -> None:
        """Forgets everything: the shard is finished."""
        self._path.unlink(missing_ok=True)


def enrich_shard(writer: Writer, shard: Shard, *, batch_size: int, session: str) -> ShardStats:
    """Makes the rewrites of a shard and writes them, or finds them finished.

    Args:
        writer: engine, prompts and check.
        shard: what to do.
        batch_size: rewrites in memory at once.
        session: names the pool that is at work; see `Journal`.
    """
    finished = ShardStats.load(shard.record)
    if finished is not None:
        return finished
    began = time.monotonic()
    journal = Journal(shard.target.with_suffix(".journal"), session)
    tally = Tally()
    aside = _aside(shard.target)
    aside.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(aside, STAGED) as file:
        for documents in _documents(shard.source, max(1, batch_size // writer.texts)):
            rewrites = _rewrite(writer, documents, journal, tally.rewrites)
            tally.add(documents, rewrites)
            file.write_table(_table(writer, rewrites))
    push(aside.replace(shard.target))
    stats = tally.stats(shard.number, writer, time.monotonic() - began)
    write_aside(shard.record, json.dumps(asdict(stats)))
    push(shard.record)
    journal.close()
    return stats


def _documents(folder: Path, count: int) -> Iterator[list[Document]]:
    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=count):
                yield [_document(**row) for row in batch.to_pylist()]


def _document(client_id: str, as_of_us: int, text: str, input_hash: str) -> Document:
    as_of = _EPOCH + timedelta(microseconds=as_of_us)
    return Document(client_id=client_id, as_of=as_of, text=text, input_hash=input_hash)


def _rewrite(writer: Writer, documents: Sequence[Document], journal: Journal, first: int) -> list[Rewrite]:
    tasks = writer.plan(documents)
    rewrites: list[Rewrite] = []
    for rows, condemned in journal.batches(range(first, first + len(tasks))):
        batch = tasks[rows.start - first : rows.stop - first]
        rewrites += [_given_up(task) for task in batch] if condemned else writer.make(batch)
    return rewrites


def _given_up(task: Task) -> Rewrite:
    detail = f"the worker process died {_DEATHS_OF_A_ROW} times over this row alone"
    return judge(task, Generation(text="", finish_reason="error", detail=detail))


def _table(writer: Writer, rewrites: Sequence[Rewrite]) -> pa.Table:
    return pa.Table.from_pylist([_row(writer, rewrite) for rewrite in rewrites], schema=STAGED)


def _row(writer: Writer, rewrite: Rewrite) -> dict[str, Any]:
    task, document = rewrite.task, rewrite.task.document
    return {
        "client_id": document.client_id,
        "as_of": document.as_of,
        "variant": task.variant,
        "format": task.format,
        "engine": writer.engine_id,
        "prompt_id": writer.prompt_id,
        "seed": task.seed,
        "text": rewrite.generation.text,
        "input_hash": document.input_hash,
        "reason": rewrite.reason,
        "detail": rewrite.detail,
        "payload": rewrite.payload if rewrite.reason else None,
    }


class Tally:
    """Running sums over a shard."""

    def __init__(self) -> None:
        self.rewrites = 0
        self._documents = 0
        self._kept = 0
        self._refused: Counter[str] = Counter()
        self._formats: dict[str, list[int]] = {}
        self._again = 0
        self._characters = 0
        self._tokens = [0, 0]

    def add(self, documents: Sequence[Document], rewrites: Sequence[Rewrite]) -> None:
        """Counts a batch."""
        kept = [rewrite for rewrite in rewrites if rewrite.reason is None]
        self.rewrites += len(rewrites)
        self._documents += len(documents)
        self._kept += len(kept)
        self._refused.update(rewrite.reason for rewrite in rewrites if rewrite.reason is not None)
        for rewrite in rewrites:
            self._formats.setdefault(rewrite.task.format, [0, 0])[rewrite.reason is not None] += 1
        self._again += sum(rewrite.task.attempt for rewrite in rewrites)
        self._characters += sum(len(rewrite.generation.text) for rewrite in kept)
        self._tokens[0] += sum(rewrite.generation.input_tokens for rewrite in rewrites)
        self._tokens[1] += sum(rewrite.generation.output_tokens for rewrite in rewrites)

    def stats(self, shard: int, writer: Writer, seconds: float) -> ShardStats:
        """The sums as a shard's statistics."""
        return ShardStats(
            shard=shard,
            documents=self._documents,
            kept=self._kept,
            refused=dict(self._refused),
            characters=self._characters,
            input_tokens=self._tokens[0],
            output_tokens=self._tokens[1],
            seconds=round(seconds, 3),
            engine_id=writer.engine_id,
            prompt_id=writer.prompt_id,
            formats={name: (kept, refused) for name, (kept, refused) in self._formats.items()},
            again=self._again,
        )


def write_aside(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    aside = _aside(path)
    aside.write_text(text)
    aside.replace(path)


def _aside(path: Path) -> Path:
    # A name of its own: a worker of a killed run may live on for a moment beside the one that does its shard again.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")
