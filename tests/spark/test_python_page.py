"""The page on the Python interface is run as it stands."""

from __future__ import annotations

import datetime as dt
import re
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from ledgerlm.engines import spark as engine
from ledgerlm.lake.history import Author
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.publications import PUBLICATIONS, Publication, versions
from ledgerlm.training.model import Model
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
SPEC = """
name: shop
source: {path: ., files: [{glob: shop.csv}]}
client: who
time: {column: day}
amount: {column: spent}
split: {rule: hash, share: 0.2}
fields: [{name: item}]
labels:
  - {name: good, kind: binary, file: {glob: labels.csv}, id: who, as_of: {column: day}, column: good}
"""


def publish_a_night(spark: SparkSession, folder: Path) -> None:
    """A lake with an event and a score that are published, and another score of a night that has not ended."""
    lake, by = Lake(str(folder), spark), Author(attempt="a", stage="bank/night", run_id="a")
    score = (
        "SELECT 'c1' AS client_id, 'good' AS task, TIMESTAMP '2024-01-0{0}' AS as_of, 'h' AS head_id, "
        "array(0.1, 0.9) AS probabilities, 1.0 AS prediction, 1 AS decile, "
        "CAST(array() AS array<struct<feature string, contribution float>>) AS reasons"
    )
    lake.write("scores", spark.sql(score.format(1)), by=by)
    lake.write(
        "events",
        spark.sql(
            "SELECT 'c1' AS client_id, 'e' AS event_id, TIMESTAMP '2023-12-31' AS event_time, 0L AS event_seq, "
            "1.0 AS amount, 'x.csv' AS source_file"
        ),
        by=by,
    )
    night = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    row = Publication(
        number=1, published_at=night, pipeline="bank", as_of=night, tables=versions(lake), heads=["h"]
    ).row(spark)
    lake.write(PUBLICATIONS, row, by=by)
    lake.write("scores", spark.sql(score.format(2)), by=Author(attempt="b", stage="bank/night", run_id="b"))


def test_every_block_of_the_page_runs(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"c{who},2024-01-{1 + day:02d},{1 + who % 7}.50,{'ab'[who % 2]}" for who in range(40) for day in range(4)]
    (tmp_path / "shop.csv").write_text("\n".join(["who,day,spent,item", *rows, "c1,2024-01-09,much,a"]))
    (tmp_path / "labels.csv").write_text(
        "\n".join(["who,day,good", *(f"c{who},2024-02-01,{who % 2}" for who in range(40))])
    )
    (tmp_path / "shop.yaml").write_text(SPEC)
    publish_a_night(spark, tmp_path / "bank" / "lake")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "start", lambda conf: spark)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out == "161 rows in, 160 out, 1 set aside, 0 twice\n"
    assert names["documents"].count() == names["features"].count() == 40
    scored = {row["client_id"]: row["prediction"] for row in names["scores"].collect()}
    assert len(scored) == 40
    assert [row["as_of"].day for row in names["tonight"].collect()] == [1], "what is published, and no more"
    assert names["histories"].count() == 1
    assert sum(scored[f"c{who}"] == who % 2 for who in range(40)) > 35


def test_every_verb_that_the_page_names_is_there() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|(?: (`[^|]*`) \|)?", PAGE, re.MULTILINE)
    named = re.findall(r"`([a-z_.]+\.\w+)`", " ".join(" ".join(row) for row in rows))
    assert len(named) > 24
    for name in named:
        module, _, verb = name.rpartition(".")
        assert hasattr(import_module(f"ledgerlm.{module}"), verb), name


def test_what_is_fitted_is_a_model() -> None:
    named = re.findall(r"^\| `([a-z_.]+)\.([A-Z]\w+)` \| `", PAGE, re.MULTILINE)
    assert len(named) == 5
    for module, name in named:
        kind = getattr(import_module(f"ledgerlm.{module}"), name)
        assert issubclass(kind, Model) and not isabstract(kind), name
