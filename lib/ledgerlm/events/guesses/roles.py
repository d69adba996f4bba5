"""Which column of an event file is what: its time, its client, its id, and what is told of the event besides.

A name proposes, values decide. Where two columns fit as well, one is taken and marked, and where a wrong one would not
be seen, it is left open.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ledgerlm.config import nearest
from ledgerlm.errors import SpecError
from ledgerlm.events.guesses.columns import Column, Guess, Sure
from ledgerlm.events.guesses.numbers import has_decimals, has_leading_zeros, is_numeric
from ledgerlm.events.guesses.times import Reading, decided, reading_of, time_of_day
from ledgerlm.events.guesses.words import CURRENCIES, is_called, slug, words_of
from ledgerlm.events.patterns import ZONE
from ledgerlm.lake.schemas import EVENT_ORDER, EVENTS

CHOICE = "???"
"""What stands in a draft where somebody must choose: no file with it can be run."""

_FILLED = 0.5
_AGAIN = "with --client COLUMN files of labels and attributes are looked for as well"
_SHOWN = 5  # columns that are named to choose from
_WORDY = 3  # words of a text, on average
_LONG = 30  # signs of one
_VARIED = 0.2  # share of different values among texts
_MANY = 1_000
_FEW = 30  # values of whole numbers that are codes rather than sizes
_IBAN = re.compile(r"[A-Z]{2}\d{2}[A-Z0-9 ]{10,32}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.\w+")
_CARD = re.compile(r"(?:\d{4}[ -]?){3}\d{1,7}")  # and many a product's code
_MASKED = re.compile(r"\d{4,6}[*xX]{4,9}\d{4}")
_PHONE = re.compile(r"\+\d[\d ()/-]{7,}")
_NETWORK = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4}")
_TAKEN = {column.name for column in EVENTS.columns} | {"run_id", EVENT_ORDER, "client_id", "split"}


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What somebody says beforehand.

    Attributes:
        client: column of the client.
        time: column of the time.
        amount: column of the amount.
        labels: columns that are labels.
    """

    client: str | None = None
    time: str | None = None
    amount: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Time:
    """When events happened.

    Attributes:
        content: the `time` of a spec.
        reading: how the first column is read.
        columns: those that it uses.
        guesses: what was seen.
    """

    content: dict[str, Any]
    reading: Reading
    columns: tuple[str, ...]
    guesses: tuple[Guess, ...]


@dataclass(kw_only=True)
class Fields:
    """What is told of an event besides.

    Attributes:
        content: the `fields` of a spec.
        left: column -> why it is none.
        guesses: what was seen.
    """

    content: list[dict[str, Any]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    guesses: list[Guess] = field(default_factory=list)


def named(hint: str, columns: Collection[str], what: str) -> str:
    """The column that a hint means.

    Raises:
        SpecError: there is none.
    """
    if hint not in columns:
        raise SpecError(f"--{what} {hint}: no such column: {nearest(hint, columns)}")
    return hint


def readings_of(columns: Mapping[str, Column]) -> dict[str, Reading]:
    """The columns that can be read as times; one whose order is open takes that of another that is written alike."""
    found = {name: one for name, one in ((name, reading_of(column)) for name, column in columns.items()) if one}
    clear = {one.orders[0]: name for name, one in found.items() if len(one.orders) == 1 and not one.plain}
    for name, one in found.items():
        orders = [order for order in one.orders if order in clear]
        if one.others and len(orders) == 1:
            why = f"in the order of column '{clear[orders[0]]}', which can be read in one order alone"
            found[name] = decided(one, orders[0], why)
    return found


def time_of(columns: Mapping[str, Column], hint: str | None) -> Time | None:
    """The time of the events; None where no column can be one."""
    readings = readings_of(columns)
    if hint is not None and named(hint, columns, "time") not in readings:
        raise SpecError(f"--time {hint}: its values, such as {columns[hint].examples}, are no times that can be read")
    scores = {name: _time_score(columns[name], one) for name, one in readings.items()}
    if hint is not None:
        scores = {hint: 0.0}
    clear = {name: score for name, score in scores.items() if hint or not readings[name].plain or score >= 3}
    # Numbers that may be times, in the only column that is named as one: `created_at`.
    named_so = {name: score for name, score in scores.items() if is_called(name, "time", "booking", "late")}
    doubted = not clear and len(named_so) == 1
    scores = named_so if doubted else clear
    if not scores:
        return None
    best = max(scores, key=lambda name: scores[name])
    close = [name for name, score in scores.items() if name != best and scores[best] - score < 1]
    why = f"values such as {columns[best].examples}"
    why += f"; {', '.join(close)} would do as well" if close else ""
    doubtful = bool(close) or readings[best].unknown or doubted
    guesses = [Guess(key="time.column", value=best, why=why, sure="unsure" if doubtful else "sure")]
    return _with_clock(columns, best, readings[best], guesses)


def _time_score(column: Column, reading: Reading) -> float:
    score = 3.0 * is_called(column.name, "time") + 2 * is_called(column.name, "booking")
    score += -4 * is_called(column.name, "late") + reading.clock + (0 if reading.plain else 2)
    return score - (6 if column.filled < _FILLED * len(column.values) else 0)


def _with_clock(columns: Mapping[str, Column], name: str, reading: Reading, guesses: list[Guess]) -> Time:
    """The time with the time of day and the zone that other columns hold."""
    used: tuple[str, ...] = (name,)
    suffix = ""
    content: dict[str, Any] = {"column": name}
    if not reading.clock and reading.origin is None:
        clocks = {one: form for one, column in columns.items() if one != name and (form := time_of_day(column))}
        clock = next((one for one in clocks if is_called(one, "clock")), next(iter(clocks), None))
        hour = next((one for one in columns if is_called(one, "hour") and _is_hour(columns[one])), None)
        if clock:
            used, suffix = (name, clock), f" {clocks[clock]}"
            content = {"columns": list(used)}
            why = f"the time of day stands in a column of its own: {columns[clock].examples}"
            guesses = [
                replace(guesses[0], key="time.columns", value=f"{name}, {clock}", why=f"{guesses[0].why}; {why}")
            ]
        elif hour:
            used, content = (name, hour), content | {"hour": hour}
            guesses.append(Guess(key="time.hour", value=hour, why=f"whole hours such as {columns[hour].examples}"))
    forms = [f"{_plain_form(form) if suffix else form}{suffix}" for form in (reading.format, *reading.others)]
    guesses.append(_format_guess(forms, reading))
    if forms[0] != "timestamp" or reading.others:
        content["format"] = CHOICE if reading.others else forms[0]
    if reading.origin is not None:
        content |= {"origin": reading.origin}
    if reading.unknown:
        content |= {"calendar": False}
    return _with_zone(columns, content, reading, used, guesses, clock=bool(reading.clock or suffix or len(used) > 1))


def _plain_form(form: str) -> str:
    return "yyyy-MM-dd" if form == "timestamp" else form


def _format_guess(forms: Sequence[str], reading: Reading) -> Guess:
    if len(forms) > 1:
        return Guess(key="time.format", value=" or ".join(forms), why=reading.why, sure="open")
    return Guess(
        key="time.format", value=forms[0], why=reading.why, sure="unsure" if reading.origin is not None else "sure"
    )


def _with_zone(
    columns: Mapping[str, Column],
    content: dict[str, Any],
    reading: Reading,
    used: tuple[str, ...],
    guesses: list[Guess],
    *,
    clock: bool,
) -> Time:
    zones = [name for name, column in columns.items() if name not in used and _is_zone(column)]
    if zones:
        content["zone_column"] = zones[0]
        guesses.append(Guess(key="time.zone_column", value=zones[0], why=f"zones such as {columns[zones[0]].examples}"))
    elif clock:
        content["zone"] = "UTC"
        why = (
            "times are instants; hours and days are told on this clock: name that of the clients, such as Europe/Berlin"
            if reading.zoned
            else "nothing in the data says which clock the times are of; name it, such as Europe/Berlin"
        )
        guesses.append(Guess(key="time.zone", value="UTC", why=why, sure="unsure"))
    return Time(content=content, reading=reading, columns=(*used, *zones[:1]), guesses=tuple(guesses))


def _is_hour(column: Column) -> bool:
    return bool(column.filled) and all(re.fullmatch(r"\d{1,2}", one) and int(one) < 24 for one in column.counts)


def _is_zone(column: Column) -> bool:
    named_so = "zone" in words_of(column.name) or words_of(column.name) in ("tz", "utc offset")
    return named_so and bool(column.filled) and all(re.match(ZONE, one) for one in column.counts)


def client_of(
    columns: Mapping[str, Column], taken: Collection[str], shared: Collection[str], hint: str | None
) -> Guess:
    """The column of the client, or what is to be chosen.

    Args:
        columns: of the events.
        taken: those that are something else.
        shared: those that files beside the events have, too, where they name each row.
        hint: what somebody says.

    Returns:
        A guess of key `client`; its value is empty where all rows are of one client, for all that the columns tell.
    """
    if hint is not None:
        return Guess(key="client", value=named(hint, columns, "client"), why="as was said")
    able = [column for name, column in columns.items() if name not in taken and _can_be_id(column)]
    scores = {one.name: _client_score(one, shared) for one in able}
    good = {name: score for name, score in scores.items() if score >= 2}
    if good:
        best = max(good, key=lambda name: good[name])
        close = [name for name, score in good.items() if name != best and score == good[best]]
        column = columns[best]
        why = f"{column.distinct} different in {column.filled} rows"
        if close:
            choices = " or ".join([best, *close])
            return Guess(key="client", value=choices, why=f"{why}; {_AGAIN}", sure="open", ids=column.examples)
        sure: Sure = "unsure" if column.unique else "sure"
        return Guess(key="client", value=best, why=why, sure=sure, ids=column.examples)
    maybe = sorted((one for one in able if _may_be_id(one)), key=lambda one: -one.distinct)[:_SHOWN]
    if maybe:
        told = "; ".join(f"{one.name}: {one.distinct} different in {one.filled}" for one in maybe)
        why = f"no column is named as a client is. Those that repeat: {told}; {_AGAIN}"
        shown = "; ".join(f"{one.name}: {one.examples}" for one in maybe)
        return Guess(key="client", value=" or ".join(one.name for one in maybe), why=why, sure="open", ids=shown)
    why = "no column tells clients apart, as in the export of one account: all rows are of one client"
    return Guess(key="client", value="", why=why, sure="unsure")


def _can_be_id(column: Column) -> bool:
    reading = reading_of(column)
    return (
        column.kind not in ("time", "bool", "nested")
        and (reading is None or reading.plain)
        and column.filled >= _FILLED * len(column.values)
        and (is_called(column.name, "client", "account") or not has_decimals(column))
        and not is_called(column.name, "other", "person")
    )


def _client_score(column: Column, shared: Collection[str]) -> float:
    score = 3.0 * is_called(column.name, "client") or 2.0 * is_called(column.name, "account")
    if score:
        score += 0.5 * is_called(column.name, "key") - 2 * is_called(column.name, "trait")
    score += 2 * (column.name in shared)
    return score - (0.5 if column.unique and len(column.values) > 1 else 0)


def _may_be_id(column: Column) -> bool:
    """Whether values could name clients: codes with digits, many of them, that come again."""
    other = is_called(column.name, "code", "mcc", "quantity", "not_amount", "amount", "text", "maybe_label")
    digits = sum(1 for value in column.counts if any(sign.isdigit() for sign in value))
    return not other and not column.unique and _is_code(column) and digits > _FILLED * column.distinct


def _is_code(column: Column) -> bool:
    """Whether values are short and hold no blank, as ids do."""
    return all(len(value) <= 40 and " " not in value for value in column.counts) and column.distinct >= 2


def event_id_of(columns: Mapping[str, Column], taken: Collection[str], *, whole: bool) -> Guess:
    """The column that identifies an event; empty where rows have no id."""
    for name, column in columns.items():
        good = column.unique and len(column.values) > 1 and column.kind in ("text", "number")
        other = is_called(name, "other", "account") or all(_IBAN.fullmatch(value) for value in column.counts)
        if good and name not in taken and is_called(name, "event") and not has_decimals(column) and not other:
            seen = f"{column.filled} rows, {column.distinct} different values, such as {column.examples}"
            sure = "" if whole else "; not all rows were looked at"
            return Guess(key="event_id.columns", value=name, why=seen + sure, sure="sure" if whole else "unsure")
    why = "no column holds a value of its own in each row: an event is known by its whole row"
    return Guess(key="event_id", value="", why=why)


def fields_of(columns: Mapping[str, Column], taken: Collection[str], readings: Collection[str]) -> Fields:
    """What is told of an event: categories, numbers and texts, and which columns are none of these.

    Args:
        columns: of the events, joined ones included.
        taken: those that are something else.
        readings: those that hold times.
    """
    found, names = Fields(), set(_TAKEN)
    for name, column in columns.items():
        if name in taken:
            continue
        why = _no_field(column, name in readings)
        if why:
            found.left[name] = why
            continue
        one = _field(column, names)
        names.add(one["name"])
        found.content.append(one)
    if not found.content:
        # A text tells something besides time and amount, if only what never changes.
        name = next((one for one in found.left if columns[one].filled), next(iter(columns)))
        found.left.pop(name, None)
        found.content.append(_field(columns[name], names))
    _give_prefixes(found.content)
    return found


def _no_field(column: Column, is_time: bool) -> str:
    """Why a column is no field; empty of one that is."""
    alone = column.distinct == 1 and column.filled == len(column.values) > 1
    own = len(column.values) > _FEW and column.unique and _is_code(column) and not has_decimals(column)
    event = words_of(column.name).startswith(("is fraud", "isfraud", "fraud"))
    reasons = (
        (column.kind == "nested", "holds lists or objects"),
        (not column.filled, "is empty"),
        (alone, f"is {next(iter(column.counts), '')!r} in each row"),
        (column.kind == "time" or (is_time and not is_numeric(column)), "is another time"),
        (own, "has a value of its own in each row"),
        (_is_many(column), "has a value of its own in nearly each row"),
        (all(_IBAN.fullmatch(value) for value in column.counts), "holds account numbers of others, which tell little"),
        (names_somebody(column), "names somebody: e-mail, card, phone or network addresses"),
        (event, "is a label of single events, which would tell what is not known yet"),
    )
    return next((why for found, why in reasons if found), "")


def names_somebody(column: Column) -> bool:
    """Whether all values name a person or a device, and would stand unmasked in a category."""
    cards = (_CARD,) if is_called(column.name, "account") else ()
    return bool(column.filled) and any(
        all(one.fullmatch(value) for value in column.counts) for one in (_EMAIL, _MASKED, _PHONE, _NETWORK, *cards)
    )


def _is_many(column: Column) -> bool:
    """Whether ids are so many that none of them tells anything."""
    named_so = is_called(column.name, "event", "client", "account", "other", "person") and _is_code(column)
    return named_so and not has_decimals(column) and column.distinct > max(_MANY, _VARIED * column.filled)


def _field(column: Column, names: Collection[str]) -> dict[str, Any]:
    base = slug(column.name)
    name = next(
        one for one in (base, f"{base}_value", *(f"{base}_{place}" for place in range(2, 1000))) if one not in names
    )
    found: dict[str, Any] = {"name": name}
    if name != column.name:
        found["column"] = column.name
        if name.replace("_", " ") != column.name.lower():
            found["title"] = " ".join(column.name.replace("|", " ").split())
    kind = _kind_of(column)
    if kind != "categorical":
        found["kind"] = kind
    if column.absent:
        found["nulls"] = list(column.absent)
    return found


def _kind_of(column: Column) -> str:
    if is_numeric(column):
        return "categorical" if _is_number_of_a_code(column) else "numeric"
    if column.kind == "bool" or has_leading_zeros(column):
        return "categorical"
    if is_called(column.name, "person"):
        return "text"  # which is masked, since it may name somebody
    values = list(column.counts)
    wordy = sum(len(value.split()) for value in values) >= _WORDY * len(values)
    long = sum(map(len, values)) > _LONG * len(values)
    varied = column.distinct > max(_FEW, _VARIED * column.filled)
    by_name = is_called(column.name, "text", "other")
    # What is called a text is one even in a handful of rows: it may name somebody, and texts are masked.
    named = is_called(column.name, "text") and (wordy or column.distinct > _VARIED * column.filled)
    return "text" if named or (varied and (wordy or long or by_name)) else "categorical"


def _is_number_of_a_code(column: Column) -> bool:
    """Whether whole numbers are codes: by their name, or because there are few of them."""
    if has_decimals(column):
        return False
    if is_called(column.name, "client", "account", "event"):
        return True
    size = column.kind == "float" or is_called(column.name, "quantity", "amount", "price", "not_amount")
    return is_called(column.name, "code") or (column.distinct <= _FEW and not size)


def _give_prefixes(fields: Sequence[dict[str, Any]]) -> None:
    """Letters before numbers, so that equal numbers of different fields are different words of a text."""
    used: defaultdict[str, int] = defaultdict(int)
    for one in fields:
        if one.get("kind") == "numeric":
            letter = re.sub(r"[^a-z]", "", one["name"])[:1] or "n"
            used[letter] += 1
            one["short"] = letter if used[letter] == 1 else f"{letter}{used[letter]}"


def is_currency(column: Column) -> bool:
    """Whether values are codes of currencies."""
    return bool(column.filled) and all(value.upper() in CURRENCIES for value in column.counts)
