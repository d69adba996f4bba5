"""The same rows over Spark Connect and in a catalog: no JVM in the process, no path in the lake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import STAGES, Tiny, write_tiny
from tests.e2e.lakes import rows

_BY_WHAT = {
    "documents": ["client_id", "as_of", "text", "input_hash"],
    "features": ["client_id", "as_of", "features"],
    "embeddings": ["client_id", "as_of", "parts"],
    "scores": ["client_id", "task", "as_of", "probabilities", "decile"],
}


@pytest.mark.slow  # a server of its own, and all stages once more
def test_connect_and_a_catalog_give_the_same_rows(finished: Tiny, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path)
    backbone = json.loads((finished.out / "report.json").read_text())["details"]["finetune"]["backbone"]
    content = yaml.safe_load(tiny.file.read_text())
    told = STAGES | {"embed": STAGES["embed"] | {"backbone": backbone}}
    content["stages"] = {name: told[name] for name in ("ingest", "serialize", "aggregate", "embed", "fit", "score")}
    content |= {"engine": "connect", "lake": "spark_catalog.bank"}
    # Interpreted, since the same rows were compiled for on the other side, and few rows do not pay for the compiler.
    interpreted = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    content["spark"] = {"spark.sql.warehouse.dir": str(tmp_path / "warehouse"), **interpreted}
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
