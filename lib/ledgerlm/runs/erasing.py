"""A person is removed: from every table, from what readers see, and from what later deliveries bring.

What stands in old versions of tables goes when upkeep removes their files; what was learnt stays as it is until a stage
learns again, and is named.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.engines.frames import small_frame
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.erased import QUARANTINE, empty_payloads, named_aside, patterns_of
from ledgerlm.events.identity import in_one_form
from ledgerlm.events.quality import pseudonymised
from ledgerlm.files import remove
from ledgerlm.lake.differences import CHANGE, INSERT, UPDATE
from ledgerlm.lake.erasures import (
    NEVER_SHOWN,
    counted,
    digest,
    tables_of_clients,
    take_away,
    unfinished,
)
from ledgerlm.lake.history import Author
from ledgerlm.lake.latest import show_latest
from ledgerlm.lake.publications import PUBLICATIONS, Publication, publications
from ledgerlm.lake.schemas import ERASURES
from ledgerlm.runs.keys import refuse_other_key
from ledgerlm.runs.lock import at_work

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ledgerlm.engines.frames import Keep
    from ledgerlm.events.spec import DataSetSpec
    from ledgerlm.lake.lake import Lake
    from ledgerlm.progress import Progress
    from ledgerlm.runs.pipeline import Pipeline
    from ledgerlm.runs.record import Records

MOST = 10_000
"""Clients that one call takes: what was set aside is searched for each of them."""
_LISTED = 20  # unknown ids that are named
_LEAST_LENGTH = 4  # signs of an id that is looked for in files: shorter ones mean other things more often
_TEXTS = frozenset({".csv", ".html", ".json", ".jsonl", ".log", ".md", ".tex", ".txt", ".yaml", ".yml"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """What erasing did, or would do.

    Attributes:
        rows: table -> rows taken away; tables without any are left out.
        asked: clients that were asked for.
        unknown: those of them that no table has.
        aside: rows that were set aside and name one of them; their texts are emptied.
        learnt: stages that learnt while one of them was among the training clients.
        publication: what readers see from now on; None where nothing is published.
        named: files of the pipeline's folder in which an id stands.
        done: false: this is what would be done.
    """

    rows: Mapping[str, int]
    asked: int
    unknown: Sequence[str]
    aside: int
    learnt: Sequence[str]
    publication: int | None
    named: Sequence[str]
    done: bool

    def lines(self) -> list[str]:
        """For people."""
        verb = "taken away" if self.done else "to take away"
        lines = [f"  {name}: {count:,} rows {verb}" for name, count in self.rows.items()]
        if self.aside:
            lines.append(
                f"  quarantine: {self.aside:,} rows name them, their texts are {'' if self.done else 'to be '}emptied"
            )
        if self.unknown:
            listed = ", ".join(self.unknown[:_LISTED]) + (", …" if len(self.unknown) > _LISTED else "")
            lines.append(
                f"  {len(self.unknown)} of {self.asked} clients are in no table of clients: {listed}; an id is to be "
                "given as `events` has it, before it was made a pseudonym under the same key"
            )
        if self.learnt:
            lines.append(f"  learnt from them, until it learns again (run --fresh): {', '.join(self.learnt)}")
        if self.named:
            lines.append(f"  ids stand in files: {', '.join(self.named)}; delete them, or let a run write them anew")
        if not self.done:
            return lines
        if self.publication is not None:
            lines.append(f"  readers see publication {self.publication}; those before it are read no more")
        return [*lines, "  old versions of the tables go a week from now or later, with `ledgerlm maintain`"]


def ids_of(given: Sequence[str], file: str | None) -> list[str]:
    """The ids that are asked for.

    Args:
        given: ids.
        file: text file with an id a line, as the data have them; empty lines count for nothing.

    Raises:
        ConfigError: the file cannot be read, has none or too many, or blanks around one, so that nobody knows which
            client is meant.
    """
    found = list(given)
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--clients {file}: cannot be read as text in UTF-8 ({error})") from error
        found += [line for line in text.splitlines() if line]
    odd = next((one for one in found if one != one.strip() or not one), None)
    if odd is not None:
        raise ConfigError(f"--clients: {odd!r} is no id: give each as the data have it, without blanks, one a line")
    if not found:
        raise ConfigError("nobody to erase: give --client ID, or --clients FILE with an id a line")
    if len(set(found)) > MOST:
        raise ConfigError(f"--clients: {len(set(found)):,} ids; at most {MOST:,} in one call, so split the file")
    return list(dict.fromkeys(found))


def erase(
    pipeline: Pipeline,
    records: Records,
    lake: Lake,
    ids: Sequence[str],
    *,
    keep: Keep,
    progress: Progress,
    dry_run: bool = False,
) -> Erased:
    """Takes clients out of a lake; an erasing that was killed is ended by the same call again.

    Before anything else their digests are written, so that no delivery brings them back. Then go their rows, table by
    table, and the texts of rows that were set aside and name them. What readers see is published again without them.

    Args:
        pipeline: whose lake it is.
        records: of its stages.
        lake: its tables.
        ids: as the data have them.
        keep: computes a frame once.
        progress: what the user sees.
        dry_run: say what would be done.

    Raises:
        ConfigError: a run is at work on the lake, or the key of pseudonyms is another than it was.
        DataError: readers see other rows than the newest, so that they cannot be shown the newest without these.
    """
    if pipeline.spec.client in ids:
        raise ConfigError(
            f"--clients: {pipeline.spec.client!r} is the name of the column; leave the head of the file out"
        )
    refuse_other_key(pipeline, records, lake.history)
    known = known_as(lake.spark, pipeline.spec, ids)
    clients = keep(known.select("client_id").distinct())
    if dry_run:
        seen = next((one for one in publications(lake) if one.readable), None)
        if seen is not None:
            _shown(lake, seen)
        return _found(pipeline, records, lake, known, ids)
    with at_work(pipeline, lake, "erase") as (by, lease):
        found = _found(pipeline, records, lake, known, ids)
        seen = next((one for one in publications(lake) if one.readable), None)
        shown = [] if seen is None else _shown(lake, seen)
        if not (found.rows or found.aside or unfinished(lake, clients)):
            _note(lake, clients, NEVER_SHOWN, found.learnt, by)
            return replace(found, done=True)  # what was published stays readable
        _note(lake, clients, None, found.learnt, by)
        patterns = [one for client in ids for one in patterns_of(client)]
        with progress.task("Rows of erased clients", total=len(found.rows) + 1) as bar:
            for work in [
                *(partial(take_away, lake, table, clients, by=by) for table in found.rows),
                partial(empty_payloads, lake, patterns, by=by),
            ]:
                lease.check()
                work()
                bar.advance()
        lease.check()
        number = None if seen is None else _show_again(pipeline, lake, seen, shown, by=by)
        _note(lake, clients, NEVER_SHOWN if number is None else number, found.learnt, by)
        remove(pipeline.out / "staging")
    return replace(found, publication=number, done=True)


def _found(pipeline: Pipeline, records: Records, lake: Lake, known: DataFrame, ids: Sequence[str]) -> Erased:
    """What there is of the clients."""
    clients = known.select("client_id").distinct()
    rows = counted(lake, clients)
    return Erased(
        rows=rows,
        asked=len(ids),
        unknown=_unknown(lake, known, rows),
        aside=named_aside(lake, [one for client in ids for one in patterns_of(client)]),
        learnt=_learnt(pipeline, records, lake, clients),
        publication=None,
        named=list(_named(pipeline.out, ids)),
        done=False,
    )


def known_as(spark: SparkSession, spec: DataSetSpec, ids: Sequence[str]) -> DataFrame:
    """given, and client_id: as the lake has it, in the form of ids, and a pseudonym where the spec wants that."""
    rows = small_frame(spark, [(one,) for one in ids], "given string")
    rows = rows.select("given", in_one_form(F.array("given"), 1)[0].alias("client_id"))
    return pseudonymised(rows, ["client_id"], spec.pseudonymise.key_env if spec.pseudonymise else None)


def _unknown(lake: Lake, known: DataFrame, rows: Mapping[str, int]) -> list[str]:
    left = known
    for table in rows:
        left = left.join(lake.read(table).select("client_id"), "client_id", how="left_anti")
    return sorted(row["given"] for row in left.collect())


def _learnt(pipeline: Pipeline, records: Records, lake: Lake, clients: DataFrame) -> list[str]:
    """Stages that have learnt, where one of the clients is, or was when they were erased, among those of training."""
    stages = [
        plan.stage.name
        for plan in pipeline.plans
        if plan.stage.job.learns and records.finished(plan.stage.name) is not None
    ]
    trained = any(
        not lake.read(table).where("split = 'train'").join(clients, "client_id", how="left_semi").isEmpty()
        for table in ("clients", "splits")
        if lake.exists(table)
    )
    return stages if trained else []


def _shown(lake: Lake, seen: Publication) -> list[str]:
    """The tables of clients that readers see, if their newest rows are those that readers see.

    Only then can readers be shown the newest rows without the clients.
    """
    shown = [name for name in [*tables_of_clients(lake), QUARANTINE] if name in seen.tables]
    for table in shown:
        for commit in lake.history.commits(table):
            if commit.version <= seen.tables[table]:
                break
            if not commit.neutral:
                raise DataError(
                    f"table {table} holds rows that publication {seen.number}, which readers see, does not have: a "
                    "night was begun and not published, was refused, or gone back from; publish one with `ledgerlm "
                    "rescore`, then erase; nothing was erased"
                )
    return shown


def _note(lake: Lake, clients: DataFrame, publication: int | None, learnt: Sequence[str], by: Author) -> None:
    """Writes who is erased, and by which publication readers no longer see them."""
    rows = clients.select(
        digest(F.col("client_id")).alias("digest"),
        F.lit(dt.datetime.now(dt.UTC).isoformat()).cast("timestamp").alias("erased_at"),
        F.lit(publication).cast("long").alias("publication"),
        F.array(*(F.lit(one) for one in learnt)).cast("array<string>").alias("learnt"),
        F.lit(INSERT).alias(CHANGE),
    )
    if lake.exists(ERASURES.name):
        old = lake.read(ERASURES.name).select("digest", F.struct("erased_at", "learnt").alias("_old"))
        both, there = rows.join(old, "digest", how="left"), F.col("_old").isNotNull()
        # A second call for them, as after a kill, finds fewer of their rows; what the first one found counts.
        first = {
            "erased_at": F.coalesce("_old.erased_at", "erased_at"),
            "learnt": F.when(there, F.array_union("_old.learnt", "learnt")).otherwise(F.col("learnt")),
            CHANGE: F.when(there, UPDATE).otherwise(INSERT),
        }
        new = F.lit(publication is not None) | ~there
        rows = both.where(new).withColumns(first).drop("_old")
    step = Author(attempt=f"{by.attempt}-{publication}", stage=by.stage, run_id=by.run_id, key=by.key)
    lake.apply(ERASURES.name, rows, by=step)


def _show_again(pipeline: Pipeline, lake: Lake, seen: Publication, shown: Sequence[str], *, by: Author) -> int:
    """Publishes what readers see at the versions without the clients; returns its number."""
    number = publications(lake)[0].number + 1
    versions = {name: lake.version(name) for name in shown}
    again = seen.without_erased(number, dt.datetime.now(dt.UTC), versions)
    lake.apply(PUBLICATIONS, again.row(lake.spark).withColumn(CHANGE, F.lit(INSERT)), by=by)
    if pipeline.shows_views:
        show_latest(lake, again)
    return number


def _named(folder: Path, ids: Sequence[str]) -> Iterator[str]:
    """Text files of a pipeline's folder in which an id stands as a word of its own; not those of tables."""
    sought = [re.escape(one) for one in ids if len(one) >= _LEAST_LENGTH]
    if not sought:
        return
    word = re.compile(rf"(?<![^\W_])(?:{'|'.join(sought)})(?![^\W_])")
    for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
        inside = file.relative_to(folder)
        told = file.suffix in _TEXTS and "lake" not in inside.parts and inside.parts[0] != "staging"
        if told and (word.search(str(inside)) or word.search(file.read_text(encoding="utf-8", errors="replace"))):
            yield str(inside)
