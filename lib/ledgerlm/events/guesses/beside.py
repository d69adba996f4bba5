"""Files beside the events: labels and attributes of clients, and what codes mean."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledgerlm.config import shipped
from ledgerlm.events.file_heads import folded
from ledgerlm.events.guesses.columns import Column, Guess, Sure
from ledgerlm.events.guesses.numbers import has_decimals, is_numeric
from ledgerlm.events.guesses.roles import CHOICE, Hints, names_somebody
from ledgerlm.events.guesses.tables import Table
from ledgerlm.events.guesses.times import Reading, reading_of
from ledgerlm.events.guesses.words import NEGATIVE, POSITIVE, is_called, slug

_KNOWN = 0.3  # of the ids of the smaller side stand on the other: they are of the same clients
_FOUND = 0.5  # of the rows of events find their code in a dictionary
_ONCE = 0.98  # of the rows of a file have a client of their own
_CLASSES = 12  # of a task at most
_GROUPS = 2_000  # different values that a joined category may have
_WITH_UNKNOWN = {"-1", "0", "1"}
_SEVERAL = "its files are written in several ways: put each into the spec by hand"
_MCC = "datasets/mcc.csv"


@dataclass(kw_only=True)
class Beside:
    """What files beside the events say.

    Attributes:
        labels: the `labels` of a spec.
        clients: its `clients`.
        joins: its `joins`.
        books: column of the events -> dictionary of its codes.
        joined: columns that joins add.
        taken: columns of the events that are labels.
        unused: tables that say nothing, with the reason.
        maybe: columns of clients that could be labels.
        undated: whether a label has no instant of its own.
        unlabelled: the share of the rows of a label's file that hold none.
        guesses: what was seen.
    """

    labels: list[dict[str, Any]] = field(default_factory=list)
    clients: list[dict[str, Any]] = field(default_factory=list)
    joins: list[dict[str, Any]] = field(default_factory=list)
    books: dict[str, dict[str, Any]] = field(default_factory=dict)
    joined: dict[str, Column] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    unused: dict[str, str] = field(default_factory=dict)
    maybe: list[str] = field(default_factory=list)
    undated: bool = False
    unlabelled: float = 0.0
    guesses: list[Guess] = field(default_factory=list)


def shared_keys(events: Table, others: Iterable[Table]) -> set[str]:
    """Columns of the events that name each row of another file, of the same name there and with the same values.

    Ids of clients do so, and so do those of products and shops: it helps a name, and decides nothing.
    """
    found = set()
    for table in others:
        for name, column in events.columns.items():
            other = _same(name, table)
            if other is not None and _once(other) and _overlap(column, other) >= _KNOWN:
                found.add(name)
    return found


def beside(events: Table, others: Sequence[Table], client: str, hints: Hints, taken: Collection[str]) -> Beside:
    """Reads what each file beside the events is for.

    Args:
        events: the table of events.
        others: all others.
        client: column of the client in the events; empty where there is none.
        hints: what somebody says.
        taken: columns of the events that are no codes.
    """
    found = Beside()
    for table in others:
        key = _client_key(events.columns[client], table) if client else None
        if key is not None:
            _of_clients(found, table, key, hints)
            continue
        _of_codes(found, events, table, {*taken, client})
        if client and table.name in found.unused:
            found.unused[table.name] = _other_zeros(events.columns[client], table) or found.unused[table.name]
    if client:
        _on_events(found, events, client, hints, taken)
    _merchant_codes(found, events, taken)
    return found


def _same(name: str, table: Table) -> Column | None:
    return next((column for one, column in table.columns.items() if folded(one) == folded(name)), None)


def _once(column: Column) -> bool:
    return bool(column.filled) and column.distinct >= _ONCE * column.filled


def _overlap(one: Column, other: Column) -> float:
    few, many = sorted((one.counts, other.counts), key=len)
    return sum(1 for value in few if value in many) / len(few) if few else 0.0


def _client_key(client: Column, table: Table) -> Column | None:
    """The column of a file that holds clients of the events."""
    same = _same(client.name, table)
    named = [same] if same is not None else []
    named += [one for one in table.columns.values() if one is not same and is_called(one.name, "client", "account")]
    return next((one for one in named if _overlap(client, one) >= _KNOWN), None)


def _other_zeros(client: Column, table: Table) -> str:
    """Why clients are not found again, where it is for the zeros before their ids; else empty."""
    other = _same(client.name, table)
    if other is None or not other.filled:
        return ""
    bare = [Column(name=one.name, values=[value.lstrip("0") for value in one.counts]) for one in (client, other)]
    if _overlap(*bare) < _KNOWN:
        return ""
    return f"its '{other.name}' has other zeros in front ({other.examples}) than that of the events ({client.examples})"


def _of_clients(found: Beside, table: Table, key: Column, hints: Hints) -> None:
    """Labels and attributes of clients."""
    if len(table.globs) > 1:
        found.unused[table.name] = _SEVERAL
        return
    columns = {name: column for name, column in table.columns.items() if column is not key and column.filled}
    readings = {name: one for name, column in columns.items() if (one := reading_of(column))}
    dates = {name: one for name, one in readings.items() if not one.plain or is_called(name, "time")}
    values = [one for one in columns.values() if one.name not in dates]
    ids = [one for one in values if is_called(one.name, "client", "account") and _is_id(one)]
    if ids:
        _of_others(found, table, key, ids)
        values = [one for one in values if one not in ids]
    tasks = [one for one in values if _is_label(one, len(values), dates, table, hints)]
    once = _once(key)
    if tasks and (once or dates):
        for column in tasks:
            when = next((name for name in dates if _dates_all(columns[name], column)), None)
            dated = (when, dates[when]) if when else None
            _label(found, table.globs[0], key.name, column, when=dated, hints=hints)
            if dates and when is None:
                _half_dated(found, columns[next(iter(dates))])
    elif once and dates:
        found.unused[f"{table.name}: {', '.join(dates)}"] = "dates are no attributes of clients"
    rest = [one for one in values if one not in tasks and one.kind != "nested"]
    if hidden := [one.name for one in rest if names_somebody(one) or is_called(one.name, "person")]:
        why = f"{', '.join(hidden)} of {table.name} would name somebody in each text: left out"
        found.guesses.append(Guess(key="clients", value=f"without {', '.join(hidden)}", why=why))
        rest = [one for one in rest if one.name not in hidden]
    if once and rest:
        names: dict[str, str] = {}
        for column in rest:
            name = slug(column.name)
            names[f"{name}_value" if name in ("client_id", "split", "run_id") else name] = column.name
        absent = sorted({word for column in rest for word in column.absent})
        file = {"file": table.globs[0], "id": key.name, "attributes": names} | ({"nulls": absent} if absent else {})
        found.clients.append(file)
        key_of, why = f"clients.{len(found.clients) - 1}", f"one row a client by '{key.name}'"
        found.guesses.append(Guess(key=key_of, value=", ".join(names), why=why, ids=key.examples))
        found.maybe += [column.name for column in rest if 2 <= column.distinct <= _CLASSES]
    if not once and not (tasks and dates):
        found.unused[table.name] = f"has several rows of a client by '{key.name}', and no label with a date"
        if dates:
            _more_events(found, table)


def _dates_all(dates: Column, label: Column) -> bool:
    """Whether nearly each label has a date."""
    both = sum(1 for date, value in zip(dates.values, label.values, strict=True) if date and value)
    return both >= _ONCE * label.filled


def _half_dated(found: Beside, dates: Column) -> None:
    """A date that only some labels have: often that of what is to be predicted."""
    why = (
        f"{dates.filled} of {len(dates.values)} rows have a '{dates.name}': a date that only some have is often that "
        "of what is to be predicted, and histories up to it would tell the answer"
    )
    key = f"labels.{len(found.labels) - 1}.as_of"
    found.guesses.append(Guess(key=key, value=f"none, and not {dates.name}", why=why, sure="unsure"))


def _more_events(found: Beside, table: Table) -> None:
    """A file that looks like events with other columns: left out, half of the histories may be missing."""
    why = (
        f"{table.name} has times and several rows of a client, but other columns or another dialect than the file that "
        "was chosen: if it holds events as well, give it an entry of its own, and 'optional: true' to fields that not "
        "all files have"
    )
    found.guesses.append(Guess(key="source.files", value="some are not read", why=why, sure="unsure"))


def _is_id(column: Column) -> bool:
    return column.distinct > _CLASSES and not has_decimals(column)


def _of_others(found: Beside, table: Table, key: Column, ids: Sequence[Column]) -> None:
    """A file that says whose a card or an account is: events would have to be joined with it."""
    named = ", ".join(one.name for one in ids)
    why = (
        f"{table.name} names '{named}' for each '{key.name}': if that is whom labels and scores are about, join it to "
        f"the events ('joins' with key {key.name}) and make it the client"
    )
    found.guesses.append(Guess(key="client", value=key.name, why=why, sure="unsure", ids=ids[0].examples))


def _is_label(column: Column, others: int, dates: Collection[str], table: Table, hints: Hints) -> bool:
    """Whether a column beside a client's id is what is to be predicted; a name such as status needs a date as well."""
    if hints.labels:
        return column.name in hints.labels
    able = 2 <= column.distinct <= _CLASSES or (is_numeric(column) and column.distinct > 1)
    alone = others == 1 or (others == 2 and any(is_called(str(one["glob"]), "label") for one in table.globs))
    return able and (
        is_called(column.name, "label") or alone or (bool(dates) and is_called(column.name, "maybe_label"))
    )


def _label(
    found: Beside,
    file: Mapping[str, Any],
    client: str,
    column: Column,
    *,
    when: tuple[str, Reading] | None,
    hints: Hints,
) -> None:
    """One task with its classes and the instant of its labels."""
    name = slug(column.name)
    task: dict[str, Any] = {"name": name}
    kind, told = _classes(task, column)
    task |= {"file": dict(file), "id": client, "column": column.name}
    place = len(found.labels)
    said = "beside the clients alone"
    if hints.labels:
        said = "as was said"
    elif is_called(column.name, "label"):
        said = "by its name"
    elif is_called(column.name, "maybe_label"):
        said = "may be one by its name, and a date stands beside it"
    sure: Sure = "sure" if hints.labels or is_called(column.name, "label") else "unsure"
    why = f"column '{column.name}' {said}; {told}"
    if set(column.counts) == _WITH_UNKNOWN:
        sure, why = "unsure", f"{why}; if -1 means that it is not known, leave it out by 'values' and 'only'"
    found.guesses.append(Guess(key=f"labels.{place}", value=f"{name} ({kind})", why=why, sure=sure))
    if when is not None:
        date, reading = when
        task["as_of"] = {"column": date}
        if reading.format != "timestamp":
            task["as_of"]["format"] = CHOICE if reading.others else reading.format
        forms = " or ".join((reading.format, *reading.others))
        known: Sure = "open" if reading.others else "sure"
        key = f"labels.{place}.as_of.format" if reading.others else f"labels.{place}.as_of"
        found.guesses.append(Guess(key=key, value=f"{date}: {forms}", why=reading.why, sure=known))
    found.undated = found.undated or when is None
    found.unlabelled = max(found.unlabelled, 1 - column.filled / len(column.values))
    found.labels.append({"name": name, "kind": kind, **{key: value for key, value in task.items() if key != "name"}})


def _classes(task: dict[str, Any], column: Column) -> tuple[str, str]:
    """Kind of a task, and what its values are; adds classes and values where they are words."""
    shown = ", ".join(f"{value} ({count})" for value, count in column.counts.most_common(_CLASSES))
    if column.distinct > _CLASSES or (is_numeric(column) and has_decimals(column) and column.distinct > 2):
        return "regression", f"numbers such as {column.examples}"
    order = sorted(column.counts, key=_rank)
    if column.distinct == 2:
        plain = order == ["0", "1"]
        if not plain:
            task |= {"classes": order, "values": {value: place for place, value in enumerate(order)}}
        return "binary", f"values {shown}" + ("" if plain else f"; '{order[1]}' is what is scored")
    task |= {"classes": order, "values": {value: place for place, value in enumerate(order)}}
    return "multiclass", f"values {shown}"


def _rank(value: str) -> tuple[int, float, str]:
    """The class that is asked for comes last; numbers, and spans such as 15-24K, stand in their order."""
    small = value.lower()
    first = re.search(r"\d+(\.\d+)?", small)
    number = float(first.group()) if first else 0.0
    if first and re.search(r"-$|under|below|less|bis|<", small[: first.start()]):
        number = -number if small.startswith("-") else number - 0.5
    return (small in POSITIVE) - (small in NEGATIVE), number, value


def _on_events(found: Beside, events: Table, client: str, hints: Hints, taken: Collection[str]) -> None:
    """Labels that stand on each event of a client."""
    ids = events.columns[client].values
    for name, column in events.columns.items():
        wanted = name in hints.labels
        if name in (client, *taken) or not (wanted or (not hints.labels and is_called(name, "label"))):
            continue
        if not 2 <= column.distinct <= _CLASSES and not wanted:
            continue
        seen: dict[str, str] = {}
        same = all(
            not value or seen.setdefault(one, value) == value for one, value in zip(ids, column.values, strict=True)
        )
        if same and len(seen) < len(ids) and len(events.globs) == 1:
            by_client = Column(name=name, values=[*seen.values()], kind=column.kind)
            _label(found, events.globs[0], client, by_client, when=None, hints=hints)
            found.taken.add(name)


def _of_codes(found: Beside, events: Table, table: Table, taken: Collection[str]) -> None:
    """A dictionary of codes, or attributes of what events name, such as products."""
    if len(table.globs) > 1:
        found.unused[table.name] = _SEVERAL
        return
    best: tuple[float, str, Column] | None = None
    for name, column in events.columns.items():
        if name in taken or name in found.books or has_decimals(column) or column.kind == "nested":
            continue
        for other in table.columns.values():
            if not _once(other) or (folded(other.name) != folded(name) and not _alike(name, other)):
                continue
            rows = sum(count for value, count in column.counts.items() if value in other.counts)
            share = rows / column.filled if column.filled else 0.0
            if share >= _FOUND and column.distinct > 1 and (best is None or share > best[0]):
                best = share, name, other
    if best is None:
        found.unused[table.name] = "shares no column with the events that names its rows"
        return
    share, name, key = best
    rest = [one for one in table.columns.values() if one is not key and one.filled and one.kind != "nested"]
    told = next((one for one in rest if is_called(one.name, "description")), rest[0] if len(rest) == 1 else None)
    seen = f"{share:.0%} of the events find their '{name}' in its column '{key.name}', such as {key.examples}"
    if told is not None and not is_numeric(told):
        found.books[name] = {"file": table.globs[0], "code": key.name, "description": told.name}
        found.guesses.append(Guess(key=f"fields.{name}", value=f"dictionary {table.name}", why=seen))
        rest = [one for one in rest if one is not told]
    groups = [
        one for one in rest if 2 <= one.distinct <= _GROUPS and not has_decimals(one) and one.name not in events.columns
    ]
    if groups:
        names = [one.name for one in groups]
        file = dict(table.globs[0]) | ({} if key.name == name else {"rename": {name: key.name}})
        found.joins.append({"file": file, "key": name, "columns": names})
        places = {value: place for place, value in enumerate(key.values)}
        for one in groups:
            at = [places.get(value) for value in events.columns[name].values]
            values = ["" if place is None else one.values[place] for place in at]
            found.joined[one.name] = Column(name=one.name, values=values, kind=one.kind)
        found.guesses.append(Guess(key=f"joins.{len(found.joins) - 1}", value=", ".join(names), why=seen))
    if not groups and name not in found.books:
        found.unused[table.name] = "holds nothing beside its key that can be told"


def _alike(name: str, other: Column) -> bool:
    """Whether a column of another name may hold the same codes."""
    return is_called(other.name, "code", "mcc") and is_called(name, "code", "mcc")


def _merchant_codes(found: Beside, events: Table, taken: Collection[str]) -> None:
    """The shipped names of merchant category codes."""
    for name, column in events.columns.items():
        if name in (*found.books, *taken) or not is_called(name, "mcc"):
            continue
        known = {line.partition(",")[0] for line in Path(shipped(_MCC)).read_text(encoding="utf-8").splitlines()[1:]}
        rows = sum(count for value, count in column.counts.items() if value in known)
        if column.filled and rows >= _FOUND * column.filled:
            found.books[name] = {"file": {"glob": _MCC}, "code": "mcc", "description": "description"}
            why = f"{rows} of {column.filled} codes, such as {column.examples}, are in the shipped list of merchants"
            found.guesses.append(Guess(key=f"fields.{name}", value="dictionary mcc.csv", why=why))
