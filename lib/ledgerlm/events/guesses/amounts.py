"""Which column is the amount, which way money goes, in what currency, and how the numbers of a file are written.

Reported of other readers: `Amount Debit` taken for a signed amount, so that debits became credits and credits vanished
(elizaOS/eliza #22263); `0` in the column of the other side (cantino/reckon #42); codes of direction in another case
(securo-finance/securo #665).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ledgerlm.events.guesses.columns import Column, Guess, Sure
from ledgerlm.events.guesses.numbers import Evidence, evidence_of, has_decimals, is_numeric, value_of, written
from ledgerlm.events.guesses.roles import CHOICE, is_currency, named
from ledgerlm.events.guesses.words import CURRENCIES, DIRECTIONS, PAIRS, SHARED_SIGNS, SIGNS, is_called, words_of
from ledgerlm.lake.schemas import AMOUNT, FINEST

_ALONE = 0.95  # of the rows have one of two columns filled
_DAMAGED = 0.6  # of the values of a column that is named so are numbers at least
_CODES = 6  # different codes of direction at most
_CURRENCIES = 60  # different currencies at most
_MINORITY = 0.3  # of the amounts carry a minus: it may mean something else than money going out
_NOISE = 9  # decimal places of doubles that are meant
_SIDE = "side"  # column of an amount's side, where each has a column of its own
_MONEY = "amount"


@dataclass(kw_only=True)
class Amount:
    """What events are worth.

    Attributes:
        content: the `amount` of a spec; empty for none.
        file: what each file says of its numbers: decimal, thousands, ..., unpivot.
        columns: those that it uses.
        guesses: what was seen.
    """

    content: dict[str, Any] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)

    def says(self, key: str, value: str, why: str, sure: Sure = "sure") -> None:
        """Keeps a guess."""
        self.guesses.append(Guess(key=key, value=value, why=why, sure=sure))


def amount_of(columns: Mapping[str, Column], taken: Collection[str], hint: str | None) -> Amount:
    """The amount of the events.

    Args:
        columns: of the events.
        taken: those that are something else.
        hint: what somebody says.
    """
    free = {name: one for name, one in columns.items() if name not in taken}
    numeric = {name: one for name, one in free.items() if is_numeric(one, _DAMAGED if _is_money(name) else _ALONE)}
    found = Amount()
    sides = _sides(numeric) if hint is None else None
    chosen = [*sides] if sides else _one(numeric if hint is None else free, hint, found)
    evidence = _numbers(found, [columns[name] for name in chosen], list(numeric.values()))
    if not chosen:
        found.says("amount", "none", "no column of numbers is named as an amount is", "unsure")
        return found
    decimal = str(found.file.get("decimal", "."))
    if sides:
        _two_sides(found, columns, sides, decimal)
    else:
        found.content["column"] = chosen[0]
        found.content |= {"nulls": list(columns[chosen[0]].absent)} if columns[chosen[0]].absent else {}
        found.columns.append(chosen[0])
        _times(found, columns[chosen[0]], numeric)
        _direction(found, columns[chosen[0]], free, evidence)
    _places(found, [columns[name] for name in chosen], decimal)
    _currency(found, [columns[name] for name in chosen], free, evidence)
    return found


def _is_money(name: str) -> bool:
    return is_called(name, "amount", "debit", "credit") and not is_called(name, "not_amount")


def _sides(numeric: Mapping[str, Column]) -> tuple[str, str] | None:
    """The columns of money going out and coming in, where each row fills one of them."""
    outs = [name for name in numeric if is_called(name, "debit") and not is_called(name, "credit")]
    ins = [name for name in numeric if is_called(name, "credit") and not is_called(name, "debit")]
    for out in outs:
        for into in ins:
            rows = list(zip(numeric[out].values, numeric[into].values, strict=True))
            alone = sum(1 for one, other in rows if _holds(one) != _holds(other))
            both = {place for one, other in rows for place, value in enumerate((one, other)) if _holds(value)}
            if alone >= _ALONE * len(rows) and len(both) == 2:
                return out, into
    return None


def _holds(value: str) -> bool:
    """Whether a cell holds another number than zero."""
    return bool(re.search("[1-9]", value))


def _one(numeric: Mapping[str, Column], hint: str | None, found: Amount) -> list[str]:
    """The one column of the amount, in a list; none where none is like it."""
    if hint is not None:
        found.says("amount.column", named(hint, numeric, "amount"), "as was said")
        return [hint]
    scores = {name: _score(column) for name, column in numeric.items()}
    good = {name: score for name, score in scores.items() if score >= 2}
    decimals = [
        name for name in numeric if has_decimals(numeric[name]) and scores[name] >= 0 and not is_called(name, "code")
    ]
    if not good and len(decimals) == 1:
        column = numeric[decimals[0]]
        why = f"the only column of numbers with decimals, such as {column.examples}"
        found.says("amount.column", column.name, why, "unsure")
        return decimals
    if not good:
        return []
    best = max(good, key=lambda name: good[name])
    close = [name for name, score in good.items() if name != best and score == good[best]]
    why = f"numbers such as {numeric[best].examples}" + (f"; {', '.join(close)} would do as well" if close else "")
    found.says("amount.column", best, why, "unsure" if close or not is_called(best, "amount") else "sure")
    return [best]


def _score(column: Column) -> float:
    name = column.name
    score = 3.0 * is_called(name, "amount") or 2.0 * is_called(name, "price")
    score -= 4 * is_called(name, "not_amount") + 4 * is_called(name, "quantity")
    return score + has_decimals(column) + any(value.startswith(("-", "(")) for value in column.counts)


def _numbers(found: Amount, chosen: list[Column], numeric: list[Column]) -> Evidence:
    """How the file writes numbers: what the amount says counts, what it leaves open the others may say."""
    evidence = evidence_of(chosen)
    pooled = evidence if evidence.decimal or evidence.groups else evidence_of(numeric)
    marks = {sign: count for sign, count in pooled.decimal.items() if sign in ".,"}
    groups = {sign for sign in pooled.groups if sign != max(marks, key=lambda one: marks[one], default="")}
    if len(marks) == 2:
        _two_marks(found, pooled, marks)
    elif marks or "," in groups or "." in groups:
        [decimal] = marks or ["," if "." in groups else "."]
        found.file["decimal"] = decimal
        role = ("decimal", decimal) if marks else ("groups", "." if decimal == "," else ",")
        if decimal != "." or groups or pooled.either:
            found.says("decimal", decimal, f"'{pooled.examples[role]}' can be read in no other way")
    elif pooled.either:
        sign = next(iter(pooled.either))
        found.file["decimal"] = CHOICE
        shown, other = pooled.examples["either", sign].lstrip("-+"), "," if sign == "." else "."
        why = (
            f"all numbers with a sign inside are like '{shown}': write '{sign}' where that is a little more than "
            f"{shown.split(sign)[0]}, or '{other}' and 'thousands: \"{sign}\"' where it is thousands"
        )
        found.says("decimal", ". or ,", why, "open")
    _groups(found, pooled, evidence_of(numeric))
    for sign, key in (("(", "parentheses"), ("-", "trailing_minus")):
        if evidence.forms[sign]:
            found.file[key] = True
            found.says(
                key, "true", f"{evidence.forms[sign]} numbers such as '{evidence.examples['form', sign]}' are negative"
            )
    return evidence


def _two_marks(found: Amount, pooled: Evidence, marks: Mapping[str, int]) -> None:
    decimal, other = sorted(marks, key=lambda sign: -marks[sign])
    found.file["decimal"] = decimal
    why = (
        f"{marks[decimal]} numbers like '{pooled.examples[('decimal', decimal)]}', and {marks[other]} like "
        f"'{pooled.examples[('decimal', other)]}', which will be set aside"
    )
    found.says("decimal", decimal, why, "unsure")


def _groups(found: Amount, pooled: Evidence, everywhere: Evidence) -> None:
    """The sign between groups of digits, once the decimal mark is known."""
    decimal = found.file.get("decimal", ".")
    if decimal == CHOICE:
        return
    for evidence in (pooled, everywhere):
        for role in ("groups", "either"):
            for sign in getattr(evidence, role):
                if sign != decimal and "thousands" not in found.file:
                    found.file["thousands"] = sign
                    found.says("thousands", sign, f"as in '{evidence.examples[(role, sign)]}'")
    if decimal == ".":
        found.file.pop("decimal", None)  # the default


def _two_sides(found: Amount, columns: Mapping[str, Column], sides: tuple[str, str], decimal: str) -> None:
    """Debit and credit in columns of their own: a row for each that holds something."""
    out, into = sides
    values = [value for value in (value_of(text, decimal) for text in columns[out].counts) if value is not None]
    signed = any(value < 0 for value in values)
    zeros = sorted({value for name in sides for value in columns[name].counts if not _holds(value)})
    rows = {"out": {_MONEY: out}, "in": {_MONEY: into}}
    found.file["unpivot"] = {"name": _SIDE, "rows": rows, **({"nulls": zeros} if zeros else {})}
    found.content["column"] = _MONEY
    if not signed:
        found.content["sign"] = {"column": _SIDE, "negative": ["out"], "positive": ["in"]}
    found.columns += sides
    note = f"; {', '.join(map(repr, zeros))} on the other side is none" if zeros else ""
    minus = "is negative there" if signed else "becomes negative"
    why = f"each row fills one of the columns '{out}' (money going out, which {minus}) and '{into}'{note}"
    found.says("amount", f"{out} / {into}", why)


def _times(found: Amount, column: Column, numeric: Mapping[str, Column]) -> None:
    """A quantity beside a price of one."""
    if not is_called(column.name, "price") or is_called(column.name, "amount"):
        return
    quantity = next((name for name in numeric if is_called(name, "quantity")), None)
    if quantity is not None:
        found.content["times"] = quantity
        why = f"'{column.name}' looks like the price of one, so that the amount is it times '{quantity}'"
        found.says("amount.times", quantity, why, "unsure")


def _direction(found: Amount, column: Column, free: Mapping[str, Column], evidence: Evidence) -> None:
    """Which way money goes: by a minus, by a column of codes, or nothing says it."""
    numbers = {text: written(text) for text in column.counts}
    minus = sum(column.counts[text] for text, number in numbers.items() if number is not None and number.minus)
    marks = [pair for pair in PAIRS if any(word in evidence.forms for word in pair)]
    if marks and _one_side(found, column, marks, evidence):
        return
    if marks:
        found.file["marks"] = {word: sign for pair in marks for word, sign in zip(pair, "+-", strict=True)}
        seen = [word for pair in marks for word in pair if word in evidence.forms]
        why = f"as in '{evidence.examples['form', seen[0]]}'"
        told = ", ".join(f"{word} is {sign}" for word, sign in found.file["marks"].items())
        found.says("marks", told, why, "sure" if len(seen) == 2 * len(marks) else "unsure")
        return
    codes = {
        name: one
        for name, one in free.items()
        if name != column.name and 2 <= one.distinct <= _CODES and not is_called(name, "no_direction")
    }
    ways = {name: {value: _sign_of(value) for value in one.counts} for name, one in codes.items()}
    both = [name for name, signs in ways.items() if set(signs.values()) == {"+", "-"}]
    both.sort(key=lambda name: not is_called(name, "direction"))
    if both and not (minus and _agree(column, numbers, codes[both[0]], ways[both[0]])):
        _by_codes(found, codes[both[0]], ways[both[0]], minus, column.filled)
        return
    if minus:
        _by_minus(found, column, minus)
        return
    half = next((name for name, one in codes.items() if any(map(_sign_of, one.counts))), None)
    hint = f"; column '{half}' ({codes[half].examples}) may tell it: see amount.sign" if half else ""
    why = f"no amount carries a minus and no column says which way money goes: all stay above zero{hint}"
    found.says("amount.sign", "as_is", why, "unsure")


def _one_side(found: Amount, column: Column, pairs: list[tuple[str, str]], evidence: Evidence) -> bool:
    """Amounts of which money coming in alone is marked, as on statements of cards: all others go out."""
    [into, out] = zip(*pairs, strict=True)
    marked = sum(evidence.forms[word] for word in into)
    if any(word in evidence.forms for word in out) or marked == column.filled:
        return False
    seen = [word for word in into if word in evidence.forms]
    found.file["marks"] = dict.fromkeys(seen, "-")
    found.content["sign"] = "negative"
    why = (
        f"{marked} of {column.filled} amounts are marked as in '{evidence.examples['form', seen[0]]}', and none as "
        "money going out: what has no mark is taken for that"
    )
    found.says("amount.sign", f"negative, but {', '.join(seen)}", why, "unsure")
    return True


def _agree(column: Column, numbers: Mapping[str, Any], codes: Column, signs: Mapping[str, str | None]) -> bool:
    """Whether the minuses of the amounts say nearly always what a column of codes says."""
    rows = [
        (number.minus, signs[code] == "-")
        for text, code in zip(column.values, codes.values, strict=True)
        if code in signs and (number := numbers.get(text)) is not None
    ]
    return sum(1 for minus, out in rows if minus == out) >= _ALONE * len(rows)


def _by_codes(found: Amount, codes: Column, signs: Mapping[str, str | None], minus: int, filled: int) -> None:
    """A column says which way money goes; a minus beside it turns that over, as of what was reversed."""
    out = sorted(value for value, sign in signs.items() if sign == "-")
    into = sorted(value for value, sign in signs.items() if sign == "+")
    found.content["sign"] = {"column": codes.name, "negative": out, "positive": into}
    why = f"no amount carries a minus, and column '{codes.name}' holds {codes.examples}"
    if minus:
        found.content["sign"]["signed"] = "both"
        why = (
            f"column '{codes.name}' holds {codes.examples}, and {minus} of {filled} amounts carry a minus, which turns "
            "over what the column says (signed: both), as of payments that were reversed"
        )
    told = f"{codes.name}: {', '.join(out)} negative; {', '.join(into)} positive"
    exact = all(value.lower() in DIRECTIONS for value in codes.counts) and is_called(codes.name, "direction")
    found.says("amount.sign", told, why, "sure" if exact and not minus else "unsure")
    if len(signs) == 2:
        found.columns.append(codes.name)  # the sign tells all that it does


def _by_minus(found: Amount, column: Column, minus: int) -> None:
    why = f"{minus} of {column.filled} amounts carry a minus"
    seldom = minus < _MINORITY * column.filled
    if seldom:
        why += "; if those without one are what was spent, as on statements of cards, say 'sign: negative'"
    found.says("amount.sign", "as_is", why, "unsure" if seldom else "sure")


def _may_be_currencies(column: Column) -> bool:
    """Whether a column that is named so holds currencies: signs, codes or numbers of ISO 4217, whichever they are."""
    return column.distinct <= _CURRENCIES and all(
        one in SIGNS or re.fullmatch(r"[A-Za-z]{3,4}|\d{3}", one) for one in column.counts
    )


def _sign_of(code: str) -> str | None:
    """Which way a code says that money goes; of several words the first is taken."""
    words = code.lower().split()
    return DIRECTIONS.get(" ".join(words)) or (DIRECTIONS.get(words[0]) if len(words[0]) > 3 else None)


def _places(found: Amount, columns: list[Column], decimal: str) -> None:
    """Decimal places beyond those that amounts have by default."""
    many: dict[str, int] = {}
    for column in columns:
        for text in column.counts:
            value = value_of(text, decimal if column.kind == "text" else ".")
            if value is None:
                continue
            exact = (
                round(value, _NOISE) if column.kind == "float" and abs(value - round(value, _NOISE)) < 1e-12 else value
            )
            exponent = exact.normalize().as_tuple().exponent
            if isinstance(exponent, int) and -exponent > AMOUNT.scale:
                many[text] = -exponent
    if not many:
        return
    most, rows = max(many.values()), sum(one.counts[text] for one in columns for text in many)
    shown = max(many, key=lambda text: many[text])
    if most <= FINEST and columns[0].kind != "float":
        found.content["scale"] = most
        found.says("amount.scale", str(most), f"amounts have up to {most} decimal places, such as '{shown}'")
    else:
        found.content["round"] = True
        why = f"{rows} amounts have more than {AMOUNT.scale} decimal places, such as '{shown}'"
        found.says("amount.round", "true", why, "unsure")


def _currency(found: Amount, columns: list[Column], free: Mapping[str, Column], evidence: Evidence) -> None:
    """The currency: in a column, at the numbers, or in the name of the column."""
    signs = {
        word: SIGNS.get(word, word.upper()) for word in evidence.forms if word in SIGNS or word.upper() in CURRENCIES
    }
    by_name = [name for name, one in free.items() if is_currency(one)]
    by_name.sort(key=lambda name: not is_called(name, "currency"))
    held = [name for name, one in free.items() if is_called(name, "currency") and _may_be_currencies(one)]
    if signs:
        found.file["currency_signs"] = signs
        shared = sorted(SHARED_SIGNS & set(signs))
        told = ", ".join(f"{sign} is {currency}" for sign, currency in signs.items())
        why = "stands at the numbers" + (f"; {', '.join(shared)} may be another currency" if shared else "")
        found.says("currency_signs", told, why, "unsure" if shared else "sure")
    elif by_name or any(free[name].filled for name in held):
        name = [*by_name, *held][0]
        found.content["currency_column"] = name
        found.columns.append(name)
        strange = [one for one in free[name].counts if one not in SIGNS and one.upper() not in CURRENCIES]
        if found_signs := {sign: SIGNS[sign] for sign in free[name].counts if sign in SIGNS}:
            found.file["currency_signs"] = found_signs
        sure: Sure = "sure" if is_called(name, "currency") and not strange else "unsure"
        why = f"currencies such as {free[name].examples}"
        if strange:
            why += f"; {', '.join(strange[:_CODES])} are no codes of currencies, and each counts as one of its own"
        found.says("amount.currency_column", name, why, sure)
    else:
        words = {word for column in columns for word in re.split(r"[^A-Za-z€$£]+", column.name) if word}
        one = next((SIGNS.get(word, word) for word in words if word in CURRENCIES or word in SIGNS), None)
        if one is None and any("rub" in words_of(column.name).split() for column in columns):
            one = "RUB"
        if one is not None:
            found.content["currency"] = one
            found.says("amount.currency", one, f"the column is named '{columns[0].name}'")
