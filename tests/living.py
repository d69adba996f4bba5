"""A small living bank for tests: clients whose events come, come late, are corrected and go, night after night.

Clients do not meet each other, so each of them is a sequence of its own, and hundreds of sequences go through one lake
at the cost of a few nights.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HEAD = "id,who,at,nr,sum,mcc,op\n"
START, FIRST_NIGHT = dt.datetime(2024, 9, 20), dt.datetime(2025, 1, 1)
CODES = ("5411", "5812", "7011", "4111")
KINDS = ("append", "append", "late", "correct", "move", "delete", "repeat", "nothing", "instant")
SPEC: dict[str, Any] = {
    "name": "bank",
    "client": "who",
    "time": {"column": "at", "format": "yyyy-MM-dd HH:mm", "zone": "Europe/Berlin", "order": "nr"},
    "event_id": {"columns": ["id"], "conflicts": "last", "deleted": {"op": ["D"]}},
    "amount": {"column": "sum"},
    "fields": [{"name": "mcc", "dictionary": {"file": {"glob": "codes.csv"}, "code": "code", "description": "says"}}],
    "labels": [
        {
            "name": "churn",
            "kind": "binary",
            "file": {"glob": "labels.csv"},
            "id": "who",
            "column": "flag",
            "as_of": {"column": "at", "format": "yyyy-MM-dd"},
        },
    ],
    "as_of": "2025-01-01",
    "split": {"rule": "hash", "share": 0.2},
}
STAGES: dict[str, Any] = {
    "ingest": {"append": True, "max_quarantined_share": 1.0},
    "serialize": {"windows": {"period": "month", "events": 3}},
    "embed": {"source": "windows", "definition": {"parts": ["mean", "std", "recent", "surprise"], "dtype": "fp32"}},
    "aggregate": {"max_codes": 5},
    "publish": {},
}

Row = tuple[str, str, str, int, str, str]  # id, client, time, order, amount, code


@dataclass
class Client:
    """A client, and what was done to it."""

    name: str
    rng: random.Random
    rows: dict[str, Row] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    born: int = 0

    def night(self, number: int) -> list[str]:
        """What the bank sends of the client on a night, as lines."""
        if number < self.born:
            return []
        # Several things at once, far apart in time: the earliest of them decides what is to be made again.
        return [line for _ in range(self.rng.randrange(1, 4)) for line in self._something(number)]

    def _something(self, number: int) -> list[str]:
        kind = self.rng.choice(KINDS) if self.rows else "append"
        self.told.append(kind)
        lines: list[str] = getattr(self, f"_{kind}")(number)
        return lines

    def _event(self, number: int, time: dt.datetime, seat: int = 0) -> str:
        name = f"{self.name}{len(self.told)}-{number}-{seat}-{self.rng.randrange(10**6)}"
        row = (name, self.name, f"{time:%Y-%m-%d %H:%M}", self.rng.randrange(9), self._sum(), self.rng.choice(CODES))
        self.rows[name] = row
        return _line(row)

    def _sum(self) -> str:
        return str(self.rng.randrange(-9999, 9999) / 100)

    def _append(self, number: int) -> list[str]:
        day = FIRST_NIGHT + dt.timedelta(days=number - 1)
        return [self._event(number, day + self._minutes(1440), seat) for seat in range(self.rng.randrange(1, 4))]

    def _late(self, number: int) -> list[str]:
        return [self._event(number, START + self._minutes(1440 * 100))]

    def _instant(self, number: int) -> list[str]:
        other = self.rng.choice(sorted(self.rows.values()))
        return [self._event(number, dt.datetime.strptime(other[2], "%Y-%m-%d %H:%M"))]

    def _correct(self, _: int) -> list[str]:
        old = self.rng.choice(sorted(self.rows.values()))
        return [self._set((*old[:4], self._sum(), self.rng.choice(CODES)))]

    def _move(self, _: int) -> list[str]:
        old = self.rng.choice(sorted(self.rows.values()))
        moved = START + self._minutes(1440 * 100)
        return [self._set((old[0], old[1], f"{moved:%Y-%m-%d %H:%M}", *old[3:]))]

    def _delete(self, _: int) -> list[str]:
        old = self.rng.choice(sorted(self.rows.values()))
        del self.rows[old[0]]
        return [f"{old[0]},{self.name},,,,,D"]

    def _repeat(self, _: int) -> list[str]:
        return [_line(row) for row in self.rng.sample(sorted(self.rows.values()), min(2, len(self.rows)))]

    def _nothing(self, _: int) -> list[str]:
        return []

    def _set(self, row: Row) -> str:
        self.rows[row[0]] = row
        return _line(row)

    def _minutes(self, most: int) -> dt.timedelta:
        return dt.timedelta(minutes=self.rng.randrange(most))


def _line(row: Row) -> str:
    return ",".join(str(one) for one in row) + ","


class LivingBank:
    """Files of a bank, night after night, and its pipeline.

    Args:
        root: where everything lies.
        clients: how many sequences.
        seed: of all that is drawn.
    """

    def __init__(self, root: Path, clients: int, seed: int) -> None:
        self.root, self.rng = root, random.Random(seed)
        self.files = root / "files"
        self.files.mkdir(parents=True)
        self.clients = [
            Client(name=f"c{place}", rng=random.Random(f"{seed}/{place}"), born=1 if place % 7 == 3 else 0)
            for place in range(clients)
        ]
        source = {"path": str(root), "files": [{"glob": "files/*.csv"}]}
        (root / "bank.yaml").write_text(yaml.safe_dump(SPEC | {"source": source}))
        self.describe("food")
        self.label({one.name: (place % 2, "2024-12-05") for place, one in enumerate(self.clients) if place % 3})
        history = [line for one in self.clients if not one.born for line in _history(one)]
        self.deliver("0-history", history)

    def deliver(self, name: str, lines: list[str]) -> None:
        """Writes a file."""
        (self.files / f"{name}.csv").write_text(HEAD + "".join(f"{line}\n" for line in lines))

    def night(self, number: int) -> None:
        """Writes what a night brings."""
        self.deliver(f"{number}-night", [line for one in self.clients for line in one.night(number)])

    def describe(self, word: str) -> None:
        """Writes the dictionary."""
        rows = [f"{code},{word if place == 0 else f'kind {place}'}" for place, code in enumerate(CODES)]
        (self.root / "codes.csv").write_text("code,says\n" + "\n".join(rows) + "\n")

    def label(self, labels: dict[str, tuple[int, str]]) -> None:
        """Writes the labels: client -> class, day."""
        self.labels = labels
        rows = [f"{name},{flag},{day}" for name, (flag, day) in sorted(labels.items())]
        (self.root / "labels.csv").write_text("who,flag,at\n" + "\n".join(rows) + "\n")

    def pipeline(self, backbone: Path, out: str = "out", **stages: Any) -> Path:
        """Writes a pipeline file."""
        conf = {name: {**one, **stages.get(name, {})} for name, one in STAGES.items()}
        conf["embed"]["backbone"] = str(backbone)
        content = {
            "pipeline": "living",
            "out": str(self.root / out),
            "data": str(self.root / "bank.yaml"),
            "stages": conf,
        }
        file = self.root / f"{out}.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    def sequences(self) -> dict[str, list[str]]:
        """What was done to each client, to be told when something is wrong."""
        return {one.name: one.told for one in self.clients}


def _history(client: Client) -> list[str]:
    count = client.rng.randrange(1, 12)
    return [client._event(0, START + client._minutes(1440 * 100), seat) for seat in range(count)]
