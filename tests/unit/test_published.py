"""Reference rows and the exported leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ledgerlm.config import shipped
from ledgerlm.evaluation.exports import leaderboard_table, write_leaderboard
from ledgerlm.evaluation.published import published
from ledgerlm.events.spec import load_spec
from ledgerlm.heads.metrics import METRICS

NAMES = sorted(path.stem for path in shipped("published").glob("*.yaml"))


def row(method: str, mean: float, **more: Any) -> dict[str, Any]:
    shown = {"split": "test", "std": 0.01, "low": mean - 0.1, "high": mean + 0.1, "folds": 5, "seeds": 1}
    compared = {"baseline": None, "delta": None, "delta_low": None, "delta_high": None}
    return {"task": "churn", "method": method, "metric": "roc_auc", "mean": mean, **shown, **compared, **more}


@pytest.mark.parametrize("name", NAMES)
def test_reference_rows_name_tasks_and_metrics_of_the_data_set(name: str) -> None:
    spec = load_spec(shipped(f"datasets/{name}.yaml"))
    found = published(name)
    assert found is not None and found.caveats
    assert set(found.tasks) <= {label.name for label in spec.labels}
    kinds = {label.name: label.kind for label in spec.labels}
    for row in found.rows():
        assert any(m.name == row["metric"] and kinds[row["task"]] in m.kinds for m in METRICS), row


def test_the_age_figures_are_named_for_what_they_are() -> None:
    age = published("age")
    assert age is not None
    assert {row["metric"] for row in age.rows()} == {"accuracy"}
    assert any("accuracy" in caveat for caveat in age.caveats)
    assert published("no_such_data") is None


def test_ours_and_theirs_stand_in_one_table_and_stay_told_apart(tmp_path: Path) -> None:
    compared = {"baseline": "agg", "delta": 0.0123456789, "delta_low": -0.01, "delta_high": 0.03}
    rosbank = published("rosbank")
    assert rosbank is not None
    table = leaderboard_table([row("agg", 0.8), row("a|b_%", 0.8123456789, **compared)], rosbank.rows())
    assert table["origin"].tolist() == ["ours"] * 2 + ["published"] * len(rosbank.rows())
    files = {path.suffix: path for path in write_leaderboard(table, tmp_path)}
    again = pd.read_csv(files[".csv"])
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    records = json.loads(files[".json"].read_text())
    assert records[1]["delta"] == 0.0123456789 and records[0]["delta"] is None
    markdown = files[".md"].read_text().splitlines()
    assert len(markdown) == len(table) + 2
    assert "| a\\|b_% | 0.812 ± 0.010 | [0.712, 0.912] | +0.012 [-0.010, 0.030] | ours |" in markdown[3]
    assert r"a|b\_\%" in files[".tex"].read_text()


def test_figures_of_tasks_that_were_not_evaluated_are_left_out() -> None:
    rosbank = published("rosbank")
    assert rosbank is not None
    assert leaderboard_table([], rosbank.rows()).empty
    assert len(leaderboard_table([row("agg", 0.8, metric="accuracy")], rosbank.rows())) == 1
