"""The same rows over Spark Connect and in a catalog: no JVM in the process, no path in the lake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable

from tests.e2e.conftest import STAGES, Tiny, write_tiny

_BY_WHAT = {
    "documents": ["client_id", "as_of", "text", "input_hash"],
    "features": ["client_id", "as_of", "features"],
    "embeddings": ["client_id", "as_of", "parts"],
    "scores": ["client_id", "task", "as_of", "probabilities", "decile"],
}


def rows(table: Path, columns: list[str]) -> dict[str, dict[str, float]]:
    """What is not a number -> the numbers beside it, by place."""
    found = DeltaTable(str(table)).to_pyarrow_table(columns=columns).to_pylist()
    return dict(_apart(row) for row in found)


def _apart(row: dict[str, Any]) -> tuple[str, dict[str, float]]:
    named: list[str] = []
    numbers: dict[str, float] = {}

    def walk(value: object, place: str) -> None:
        if isinstance(value, float):
            numbers[place] = value
        elif isinstance(value, list):
            # Arrow gives a map as its entries, in an order of no meaning.
            for at, one in enumerate(value):
                pair = isinstance(one, tuple)
                walk(one[1] if pair else one, f"{place}/{one[0] if pair else at}")
        else:
            named.append(f"{place}={value}")

    for column, value in row.items():
        walk(value, column)
    return " ".join(named), numbers


def test_connect_and_a_catalog_give_the_same_rows(finished: Tiny, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    backbone = json.loads((finished.out / "report.json").read_text())["details"]["finetune"]["backbone"]
    content = yaml.safe_load(tiny.file.read_text())
    chosen = {name: STAGES[name] for name in ("ingest", "serialize", "aggregate", "fit", "score")}
    content["stages"] = {
        "ingest": chosen["ingest"],
        "serialize": chosen["serialize"],
        "aggregate": chosen["aggregate"],
        "embed": STAGES["embed"] | {"backbone": backbone},
        "fit": chosen["fit"],
        "score": {},
    }
    content |= {"engine": "connect", "lake": "spark_catalog.bank"}
    content["spark"] = {"spark.sql.warehouse.dir": str(tmp_path / "warehouse")}
    tiny.file.write_text(yaml.safe_dump(content, sort_keys=False))
    done = tiny.command("run", str(tiny.file))
    assert "Traceback" not in done.stderr
    for table, columns in _BY_WHAT.items():
        found, wanted = (
            rows(folder / table, columns) for folder in (tmp_path / "warehouse" / "bank.db", finished.out / "lake")
        )
        assert found.keys() == wanted.keys() and len(found) > 1
        for key, numbers in found.items():
            assert numbers == pytest.approx(wanted[key], rel=1e-5, abs=1e-6), (table, key)
