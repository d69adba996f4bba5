"""Times without a zone in a stage's settings are those of the data."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from ledgerlm.config import Conf
from ledgerlm.events.clock import in_zone
from ledgerlm.runs.pipeline import load_pipeline

SPEC = """
name: small
source: {path: ., files: [{glob: events.csv}]}
time: {column: time, zone: America/New_York}
as_of: 2025-01-01
fields: [{name: category}]
"""


class Inner(Conf):
    at: dt.datetime
    day: dt.date = dt.date(2024, 1, 1)


class Outer(Conf):
    many: tuple[Inner, ...]
    named: dict[str, dt.datetime]


def test_every_time_however_deep() -> None:
    conf = Outer(many=(Inner(at=dt.datetime(2024, 6, 1)),), named={"a": dt.datetime(2024, 12, 1, tzinfo=dt.UTC)})
    found = in_zone(conf, "America/New_York")
    assert found.many[0].at.isoformat() == "2024-06-01T00:00:00-04:00"
    assert found.many[0].day == dt.date(2024, 1, 1)
    assert found.named == conf.named
    assert in_zone(conf, "UTC") is conf, "so that what was made before stays as it is"


@pytest.mark.parametrize("job", ["serialize", "aggregate", "encode"])
def test_as_of_of_a_stage_is_in_the_zone_of_the_data(tmp_path: Path, job: str) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    stages = {"stage": {"job": job, "as_of": "2024-06-01"}}
    content = {"pipeline": "small", "out": str(tmp_path), "data": str(tmp_path / "spec.yaml"), "stages": stages}
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    [stage] = load_pipeline(tmp_path / "run.yaml").stages
    assert stage.conf.model_dump(mode="json")["as_of"] == "2024-06-01T00:00:00-04:00"
