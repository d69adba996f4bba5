"""A data set spec drafted from files: what is written, what was seen, and what is left to be chosen."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ledgerlm.errors import SpecError
from ledgerlm.events.guesses.amounts import Amount, amount_of
from ledgerlm.events.guesses.beside import Beside, beside, shared_keys
from ledgerlm.events.guesses.columns import Column, Guess
from ledgerlm.events.guesses.roles import CHOICE, Fields, Hints, Time, client_of, event_id_of, fields_of, time_of
from ledgerlm.events.guesses.tables import Here, Table
from ledgerlm.events.guesses.times import decided, moment, reading_of

_BAD = 0.04  # share of the rows without client or time above which a run must be told to bear it
_ONE = "all"  # the client where there is one alone


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is written, and why.

    Attributes:
        content: the spec; `???` stands where somebody must choose.
        guesses: what was seen, by the spec's keys.
        notes: what each field holds, for the spec's comments.
        passed: files that are not used, with the reason.
        left: columns of the events that are not used, with the reason.
        bad: share of the rows without a client or a time, or of those of labels without one.
        rows: rows of events that were looked at.
        first: day of the first event among them; None where times cannot be read yet.
    """

    content: dict[str, Any]
    guesses: tuple[Guess, ...]
    notes: Mapping[str, str]
    passed: Mapping[str, str]
    left: Mapping[str, str]
    bad: float
    rows: int
    first: dt.date | None

    @property
    def open(self) -> tuple[Guess, ...]:
        """What somebody must choose before anything runs."""
        return tuple(guess for guess in self.guesses if guess.sure == "open")

    @property
    def tasks(self) -> dict[str, str]:
        """Task -> its kind."""
        return {str(label["name"]): str(label["kind"]) for label in self.content.get("labels", ())}

    @property
    def bearable(self) -> float:
        """`max_quarantined_share` that a run needs; 0 where the default will do."""
        return min(1.0, math.ceil((self.bad + 0.05) * 20) / 20) if self.bad > _BAD else 0.0


def draft(here: Here, path: str, name: str, hints: Hints) -> Draft:
    """Drafts the spec of some files.

    Args:
        here: the files.
        path: their folder, as the spec names it.
        name: of the data set.
        hints: what somebody says beforehand.

    Raises:
        SpecError: a hint names no column, or no file holds events.
    """
    events = _events(here.tables, hints)
    others = [table for table in here.tables if table is not events]
    time = time_of(events.columns, hints.time)
    taken = set(time.columns) if time else set()
    client = client_of(events.columns, taken, shared_keys(events, others), hints.client)
    known = client.value if client.value in events.columns else ""
    taken |= {known} - {""}
    event_id = event_id_of(events.columns, taken, whole=events.whole)
    taken |= {event_id.value} - {""}
    side = beside(events, others, known, hints, taken)
    if missing := [one for one in hints.labels if one not in {label["column"] for label in side.labels}]:
        raise SpecError(
            f"--label {missing[0]}: no column of that name holds a label of clients: one value a client, in the events "
            "or in a file beside them that has the client's column"
        )
    amount = amount_of(events.columns, taken | side.taken, hints.amount)
    fields = _fields(events, side, taken | set(amount.columns) | side.taken)
    parts = _Parts(events=events, time=time, client=client, event_id=event_id, side=side, amount=amount, fields=fields)
    content = _content(parts, path, name)
    return Draft(
        content=content,
        guesses=tuple(_guesses(parts, content)),
        notes=_notes(fields, {**events.columns, **side.joined}),
        passed={**side.unused, **here.passed},
        left=fields.left,
        bad=max(side.unlabelled, _bad(events, {known, *(time.columns[:1] if time else ())} - {""})),
        rows=events.rows,
        first=min(_days(parts), default=None),
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a draft is put together from."""

    events: Table
    time: Time | None
    client: Guess
    event_id: Guess
    side: Beside
    amount: Amount
    fields: Fields


def _events(tables: Sequence[Table], hints: Hints) -> Table:
    """The table of the events: it has a time, clients come again in it, and it is large."""
    wanted = [one for one in (hints.client, hints.time, hints.amount) if one]
    able = [table for table in tables if set(wanted) <= set(table.columns)]
    if not able:
        raise SpecError(f"no file has the column {wanted[0]!r} that was named; columns: {', '.join(tables[0].names)}")
    return max(able, key=lambda table: (_events_score(table), sum(part.file.size for part in table.parts)))


def _events_score(table: Table) -> float:
    time = time_of(table.columns, None)
    taken = set(time.columns) if time else set()
    client = client_of(table.columns, taken, (), None).value
    again = client in table.columns and not table.columns[client].distinct > 0.9 * table.columns[client].filled
    return 2.0 * (time is not None) + again + bool(amount_of(table.columns, taken | {client}, None).content)


def _fields(events: Table, side: Beside, taken: Iterable[str]) -> Fields:
    """The fields, those of joins and dictionaries included; keys that a join tells better are none."""
    told = {str(join["key"]) for join in side.joins} - set(side.books)
    columns = {name: column for name, column in events.columns.items() if name not in told} | side.joined
    readings = [name for name, column in columns.items() if reading_of(column) is not None]
    found = fields_of(columns, set(taken), readings)
    found.left |= dict.fromkeys(sorted(told & set(events.columns)), "is told by the columns of its own file")
    for one in found.content:
        book = side.books.get(one.get("column", one["name"]))
        if book is not None:
            one.pop("kind", None)
            one.pop("short", None)
            one["dictionary"] = book
    return found


def _content(parts: _Parts, path: str, name: str) -> dict[str, Any]:
    """The spec."""
    files = [{**entry, **parts.amount.file} for entry in parts.events.globs]
    content: dict[str, Any] = {"name": name, "source": {"path": path, "files": files}}
    if parts.side.joins:
        content["joins"] = parts.side.joins
    if parts.client.sure == "open":
        content["client"] = CHOICE
    elif parts.client.value:
        content["client"] = parts.client.value
    else:
        taken = {one.lower() for one in parts.events.columns}
        content["client"] = "client" if "client" not in taken else "the_client"
        for file in files:
            file["constants"] = {content["client"]: _ONE}
    content["time"] = dict(parts.time.content) if parts.time else {"column": CHOICE, "format": CHOICE}
    if parts.event_id.value:
        content["event_id"] = {"columns": [parts.event_id.value]}
    if parts.amount.content:
        content["amount"] = parts.amount.content
    content["fields"] = parts.fields.content
    if parts.side.clients:
        content["clients"] = parts.side.clients
    if parts.side.labels:
        if parts.side.undated:
            days = _days(parts)
            content["as_of"] = max(days) + dt.timedelta(days=1) if days else CHOICE
        content["labels"] = parts.side.labels
    return content


def _days(parts: _Parts) -> list[dt.date]:
    """The days of the sample's events, in whatever order day and month are read."""
    if parts.time is None:
        return []
    reading = parts.time.reading
    readings = [decided(reading, order, "") for order in reading.orders] or [reading]
    counts = parts.events.columns[parts.time.columns[0]].counts
    found = (moment(text, one) for text in counts for one in readings)
    return [time.date() for time in found if time is not None and time.year < 2100]


def _guesses(parts: _Parts, content: Mapping[str, Any]) -> Iterable[Guess]:
    """What was seen, in the order of the spec."""
    for guess in parts.events.guesses:
        yield replace(guess, key=f"source.files.0.{guess.key}")
    of_file = {"decimal", "thousands", "parentheses", "trailing_minus", "marks", "currency_signs"}
    for guess in parts.amount.guesses:
        if guess.key in of_file:
            yield replace(guess, key=f"source.files.0.{guess.key}")
    yield replace(parts.client, value=parts.client.value or f"{content['client']}: {_ONE}", why=_whose(parts))
    if parts.time is None:
        why = f"no column can be read as times: {_shown(parts.events.columns.values())}"
        yield Guess(key="time", value="column and format", why=why, sure="open")
    else:
        yield from parts.time.guesses
    yield parts.event_id if parts.event_id.value else replace(parts.event_id, value="the whole row")
    yield from (guess for guess in parts.amount.guesses if guess.key not in of_file)
    yield from parts.side.guesses
    if parts.side.undated:
        value = content["as_of"]
        why = (
            "labels carry no date, so all events count as known when they were given. If they were given earlier, name "
            "that day: else the answer stands in the history"
        )
        yield Guess(key="as_of", value=str(value), why=why, sure="open" if value == CHOICE else "unsure")
    elif not parts.side.labels:
        maybe = f"; of what is known of clients, one may be: --label {' or '.join(parts.side.maybe)}"
        why = "no column or file is named as one is" + (maybe if parts.side.maybe else "; the end of the spec has one")
        yield Guess(key="labels", value="none", why=why)


def _whose(parts: _Parts) -> str:
    """Why the client is what it is; of one alone, that files may be of several."""
    names = sorted(part.file.path.rpartition("/")[2] for part in parts.events.parts)
    if parts.client.value or len(names) == 1:
        return parts.client.why
    files = ", ".join(names[:3])
    return (
        f"{parts.client.why}. There are {len(names)} files ({files}): if each is of another account, give each an "
        "entry with 'constants' of its own"
    )


def _shown(columns: Iterable[Column]) -> str:
    return "; ".join(f"{column.name}: {column.examples}" for column in list(columns)[:8])


def _notes(fields: Fields, columns: Mapping[str, Column]) -> dict[str, str]:
    """What each field holds; of texts, which may name somebody, no example."""
    notes = {}
    for one in fields.content:
        column = columns[one.get("column", one["name"])]
        examples = "" if one.get("kind") == "text" else f", such as {column.examples}"
        notes[one["name"]] = f"{column.distinct} different{examples}"
    return notes


def _bad(events: Table, names: Iterable[str]) -> float:
    """The share of rows in which one of these columns is empty."""
    rows = list(zip(*(events.columns[name].values for name in names), strict=True))
    return sum(1 for row in rows if not all(row)) / len(rows) if rows else 0.0
