"""Why a client has its scores: what a publication says of one person, and everything that it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.evaluation.report.blocks import Card, Extract, Section, folded, table, texts
from ledgerlm.evaluation.report.page import page
from ledgerlm.lake.champions import champions, shown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.lake.lake import Lake
    from ledgerlm.lake.publications import Publication

_HIDDEN = ("client_id", "run_id", "bucket")


def explained(lake: Lake, seen: Publication, client_id: str, *, events: int = 20, windows: int = 3) -> dict[str, Any]:
    """Gathers what a publication says of a client.

    Args:
        lake: its tables.
        seen: the publication.
        client_id: the client.
        events: how many of its newest events.
        windows: how many of its newest windows (or documents).

    Returns:
        JSON values: `client`, `publication` (number, as_of, published_at, pipeline, status), `attributes`, `scores`,
        `embeddings` (backbone, definition, parts, texts and events read), `texts`, `events`, `tables` (name ->
        version).

    Raises:
        DataError: the publication knows no such client.
    """

    def of(name: str) -> DataFrame | None:
        if name not in seen.tables:
            return None
        return seen.read(lake, name).where(F.col("client_id") == F.lit(client_id))

    known = of("clients")
    attributes = None if known is None else known.drop(*_HIDDEN).first()
    if attributes is None:
        raise DataError(
            f"publication {seen.number}, as of {seen.as_of.isoformat(sep=' ')}, has no client {client_id!r}"
        )
    return {
        "client": client_id,
        "publication": {
            "number": seen.number,
            "as_of": seen.as_of.isoformat(),
            "published_at": seen.published_at.isoformat(),
            "pipeline": seen.pipeline,
            "status": seen.status,
        },
        "attributes": attributes.asDict(),
        "scores": _scores(of("scores"), seen, shown(champions(lake), seen.heads)),
        "embeddings": _embeddings(of("embeddings"), seen),
        "texts": _texts(of("windows"), of("documents"), seen, windows),
        "events": _events(of("events"), seen, events),
        "tables": dict(seen.tables),
    }


def _before(rows: DataFrame, column: str, seen: Publication) -> DataFrame:
    return rows.where(F.col(column) < F.lit(seen.as_of.isoformat(sep=" ")).cast("timestamp"))


def _scores(rows: DataFrame | None, seen: Publication, champions: Mapping[str, str]) -> list[dict[str, Any]]:
    """The scores of all heads; `champion` says of a task that has one whether readers get this head."""
    if rows is None:
        return []
    tonight = rows.where(F.col("as_of") == F.lit(seen.as_of.isoformat(sep=" ")).cast("timestamp"))
    found = tonight.orderBy("task", "head_id").collect()  # one row a head
    return [
        {
            "task": row["task"],
            "head_id": row["head_id"],
            "champion": row["head_id"] == champions[row["task"]] if row["task"] in champions else None,
            "prediction": row["prediction"],
            "probabilities": [round(one, 6) for one in row["probabilities"]],
            "decile": row["decile"],
            "reasons": [{"feature": one["feature"], "contribution": one["contribution"]} for one in row["reasons"]],
            "run_id": row["run_id"],
        }
        for row in found
    ]


def _embeddings(rows: DataFrame | None, seen: Publication) -> list[dict[str, Any]]:
    """The newest vector of each kind that the scores could read."""
    if rows is None:
        return []
    instant = F.lit(seen.as_of.isoformat(sep=" ")).cast("timestamp")
    known = rows.where(F.col("as_of") <= instant).withColumn(
        "parts", F.transform_values("parts", lambda _, v: F.size(v))
    )
    newest = known.groupBy("backbone_id", "definition_id").agg(F.max_by(F.struct(*known.columns), "as_of").alias("row"))
    return [
        {
            "backbone_id": row["backbone_id"],
            "definition_id": row["definition_id"],
            "definition": json.loads(row["definition"]),
            "as_of": row["as_of"].isoformat(),
            "parts": dict(row["parts"]),
            "tokens": row["token_count"],
            "events_read": row["event_count_used"],
            "events_left_out": row["event_count_cut"],
            "input_hash": row["input_hash"],
            "run_id": row["run_id"],
        }
        for row in (one["row"] for one in newest.orderBy("backbone_id", "definition_id").collect())
    ]


def _texts(
    windows: DataFrame | None, documents: DataFrame | None, seen: Publication, most: int
) -> list[dict[str, Any]]:
    if windows is not None:
        rows = _before(windows.where("cut_at IS NULL"), "last_event_time", seen).orderBy(F.desc("last_event_time"))
        return [
            {
                "name": f"{row['format']}, period {row['period']}, window {row['place']}",
                "events": row["event_count"],
                "hash": row["text_hash"],
                "text": row["text"],
            }
            for row in rows.limit(most).collect()
        ]
    if documents is None:
        return []
    rows = documents.orderBy(F.desc("as_of")).limit(1)
    return [
        {"name": row["format"], "events": row["event_count_used"], "hash": row["input_hash"], "text": row["text"]}
        for row in rows.collect()
    ]


def _events(rows: DataFrame | None, seen: Publication, most: int) -> list[dict[str, Any]]:
    if rows is None:
        return []
    newest = _before(rows, "event_time", seen).drop(*_HIDDEN).orderBy(F.desc("event_time"), F.desc("event_seq"))
    return [
        {name: value if value is None or isinstance(value, int | float) else str(value) for name, value in row.items()}
        for row in (one.asDict() for one in newest.limit(most).collect())
    ]


def as_page(found: Mapping[str, Any]) -> str:
    """The explanation as one self-contained HTML page."""
    publication = found["publication"]
    cards = [Card(value=str(one["decile"]), label=f"tenth, {one['task']}") for one in found["scores"]]
    subtitle = (
        f"Publication {publication['number']} of {publication['pipeline']}, as of {publication['as_of']}, published "
        f"{publication['published_at']}"
    )
    return page(f"Client {found['client']}", subtitle, _sections(found), cards)


def _head(score: Mapping[str, Any]) -> str:
    role = {None: "", True: ", the champion", False: ", beside the champion"}[score["champion"]]
    return f"{score['head_id']}{role}"


def _numbers(probabilities: Sequence[float]) -> str:
    return ", ".join(f"{one:.4f}" for one in probabilities)


def _sections(found: Mapping[str, Any]) -> list[Section]:
    scores = [
        [
            one["task"],
            one["prediction"],
            ", ".join(f"{p:.4f}" for p in one["probabilities"]),
            one["decile"],
            _head(one),
        ]
        for one in found["scores"]
    ]
    reasons = [
        [one["task"], reason["feature"], reason["contribution"]] for one in found["scores"] for reason in one["reasons"]
    ]
    vectors = [
        [one["backbone_id"], ", ".join(f"{k} {n}" for k, n in one["parts"].items()), one["events_read"], one["tokens"]]
        for one in found["embeddings"]
    ]
    events = found["events"]
    names = list(events[0]) if events else []
    return [
        Section(
            title="Scores",
            note="Tenth 1 is the highest of all clients of that night.",
            blocks=[
                table(["task", "prediction", "probabilities", "tenth", "head"], scores),
                table(["task", "reason", "contribution"], reasons, heading="Largest contributions"),
            ],
        ),
        Section(
            title="What was read",
            blocks=[
                table(["backbone", "parts", "events", "tokens"], vectors),
                texts(
                    [
                        Extract(text=one["text"], caption=f"{one['name']}, {one['events']} events")
                        for one in found["texts"]
                    ]
                ),
            ],
        ),
        Section(title="Newest events", blocks=[table(names, [list(one.values()) for one in events])] if events else []),
        Section(
            title="Made of",
            blocks=[
                table(["attribute", "value"], [[k, v] for k, v in found["attributes"].items()]),
                table(["table", "version"], [[k, str(v)] for k, v in found["tables"].items()]),
                folded("everything, as JSON", json.dumps(found, indent=1, default=str)),
            ],
        ),
    ]


def as_text(found: Mapping[str, Any]) -> list[str]:
    """The explanation in lines."""
    publication = found["publication"]
    lines = [f"client {found['client']}, publication {publication['number']}, as of {publication['as_of']}"]
    for one in found["scores"]:
        said = _numbers(one["probabilities"]) or f"{one['prediction']:.4f}"
        lines.append(f"{one['task']}: {said}, tenth {one['decile']}, head {_head(one)}")
        lines += [f"    {reason['contribution']:+.3f}  {reason['feature']}" for reason in one["reasons"]]
    lines += [
        f"embedding of {one['events_read']} events ({one['tokens']} tokens) as of {one['as_of']}, backbone "
        f"{one['backbone_id']}, definition {one['definition_id']}, texts {one['input_hash'][:16]}"
        for one in found["embeddings"]
    ]
    for one in found["texts"]:
        lines += [f"{one['name']}, {one['events']} events:", *(f"    {line}" for line in one["text"].splitlines())]
    versions = ", ".join(f"{name} {version}" for name, version in found["tables"].items())
    return [*lines, f"tables at versions: {versions}"]
