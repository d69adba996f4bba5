"""The bound that can be reached: it sees what a bank sees, and lies between the class shares and the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.reachable import ReachConf, reach
from ledgerlm.events.simulator import (
    SimulatorConf,
    known_attributes,
    load_world,
    simulate_clients,
    simulate_events,
    true_probabilities,
)
from ledgerlm.events.simulator.statistics import client_sums, features_of, prefix_length, sum_names
from ledgerlm.heads.soft import cross_entropy
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner

BANK = SimulatorConf(clients=240, purchases=60, months=6)
TASKS = ("age_group", "churn")


def sums_of(frame: DataFrame) -> pd.DataFrame:
    """The sums as a table, a row a client in order."""
    rows = frame.toPandas().set_index("client_id").sort_index()
    names = sum_names(load_world())
    found = pd.DataFrame(rows["sums"].tolist(), index=rows.index)
    assert set(found.columns) <= set(names)
    return found.reindex(columns=list(names)).fillna(0.0)


@pytest.fixture(scope="module")
def people(spark: SparkSession) -> DataFrame:
    return simulate_clients(spark, BANK)


@pytest.fixture(scope="module")
def sums(people: DataFrame) -> pd.DataFrame:
    return sums_of(client_sums(simulate_events(people, BANK), known_attributes(people), BANK))


def test_sums_are_of_events_before_as_of_and_of_what_a_bank_sees(people: DataFrame, sums: pd.DataFrame) -> None:
    longer = BANK.model_copy(update={"future_months": 1})
    seen = simulate_events(people, longer).drop("event_id", "source_file")
    attributes = known_attributes(people).select("client_id", "tenure_years", "package")
    pd.testing.assert_frame_equal(sums_of(client_sums(seen, attributes, longer)), sums)


def test_each_trait_shows_in_its_sums(people: DataFrame, sums: pd.DataFrame) -> None:
    traits = people.toPandas().set_index("client_id").sort_index()
    trips = sums[[f"trips:{at}" for at in range(10)]]
    price = sums["price"] / sums["purchases"]
    tier = sums[[f"tier:{at}" for at in range(22)]].sum(axis=1) / sums["purchases"]
    asked, complained = (sums[f"{key}:early"] + sums[f"{key}:late"] for key in ("question", "complaint"))
    shown = {
        "plan": (sums["forward"] - sums["backward"]) / (sums["forward"] + sums["backward"] + 2),
        "decline": -trips[["trips:7", "trips:8", "trips:9"]].sum(axis=1) / trips.sum(axis=1),
        "wealth": price,
        "price": -tier,
        "digital": sums["online"] / sums["unsure"],
        "age": -sums["hour"] / trips.sum(axis=1) - sums["student_grant:early"] + sums["pension:early"],
        "kids": sums["child_benefit:early"],
        "save": sums["savings:early"],
        "risk": sums["overdraft_fee:early"] + sums["collections:early"] + sums["short_loan:early"],
        "stress": sums["overdraft_fee:late"] + sums["collections:late"] + sums["short_loan:late"],
        "interest": asked,
        "leave": complained + sums["other_bank:late"],
        "regular": -(sums["gap_square"] / sums["gap"] / (sums["gap"] / sums["gaps"])),
        "tenure": sums["tenure_years"],
        "package": sums["package"],
    }
    found = {name: shown[name].corr(traits[f"trait_{name}"], method="spearman") for name in shown}
    least = {"plan": 0.9, "decline": 0.9, "wealth": 0.7, "price": 0.8, "digital": 0.8, "age": 0.75, "kids": 0.6}
    least |= {"save": 0.65, "risk": 0.45, "stress": 0.45, "interest": 0.7, "leave": 0.6, "regular": 0.3}
    least |= {"tenure": 0.95, "package": 0.9}
    assert {name: round(value, 2) for name, value in found.items() if value < least[name]} == {}


def test_features_are_finite_for_who_has_no_event_too(sums: pd.DataFrame) -> None:
    x = features_of(np.vstack([sums.to_numpy(), np.zeros((1, sums.shape[1]))]), load_world(), BANK)
    assert np.isfinite(x).all()


def test_names_of_merchants_differ_early_enough_for_a_terminal() -> None:
    assert {bank: prefix_length(load_world(), bank) for bank in ("A", "B")} == {"A": 4, "B": 4}


@pytest.mark.slow
def test_what_can_be_reached_lies_between_the_class_shares_and_the_truth(
    people: DataFrame, spark: SparkSession
) -> None:
    events = simulate_events(people, BANK)
    conf = ReachConf(clients=400, tasks=TASKS)
    made, again = (reach(events, known_attributes(people), [BANK], conf) for _ in range(2))
    for fit in made.facts["fits"]:
        losses = [one["log_loss"] for one in fit["fits"]]
        assert [one["clients"] for one in fit["fits"]] == [80, 160, 320]
        assert fit["bayes"] < losses[-1] < losses[0] < fit["prior"]
    rows, same = (one.tables["reachable"].frame.toPandas().sort_values(["task", "client_id"]) for one in (made, again))
    assert rows.to_json() == same.to_json()
    assert rows.groupby("task").size().to_dict() == dict.fromkeys(TASKS, BANK.clients)
    truth = true_probabilities(people, BANK).where("task IN ('age_group', 'churn')").toPandas()
    both = rows.merge(truth, on=["client_id", "task", "as_of"], suffixes=("", "_true"))
    assert len(both) == len(rows)
    for _, own in both.groupby("task"):
        said, p = (np.stack(own[name].tolist()) for name in ("probabilities", "probabilities_true"))
        assert np.allclose(said.sum(axis=1), 1.0)
        known = np.tile(p.mean(axis=0), (len(p), 1))
        assert cross_entropy(p, p) < cross_entropy(p, said) < cross_entropy(p, known) - 0.03
    [table] = made.report[0]["blocks"]
    assert [row[:2] for row in table["rows"]] == [["A", "age_group"], ["A", "churn"]]


def test_mistakes_are_told(people: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    events, attributes = simulate_events(people, BANK), known_attributes(people)
    with pytest.raises(ConfigError, match=r"knows no task 'chrun'.*churn"):
        reach(events, attributes, [BANK], ReachConf(tasks=("chrun",)))
    monkeypatch.setattr("ledgerlm.evaluation.reachable.readable", lambda _: 1_000_000)
    with pytest.raises(ConfigError, match=r"20,000 clients do not fit into the driver, 4,\d\d\d do"):
        reach(events, attributes, [BANK], ReachConf())


@pytest.mark.slow
def test_the_job_says_it_of_two_banks_and_needs_a_simulated_one(spark: SparkSession, tmp_path: Path) -> None:
    banks = [{"bank": "A", "clients": 12, "purchases": 10, "months": 3}]
    banks.append({"bank": "B", "clients": 8, "purchases": 10, "months": 3})
    content = {
        "pipeline": "bank",
        "out": str(tmp_path / "out"),
        "data": "datasets/simulated_bank.yaml",
        "stages": {"simulate": {"banks": banks}, "reach": {"clients": 200, "tasks": ["churn"]}},
    }
    file = tmp_path / "bank.yaml"
    file.write_text(json.dumps(content))
    record = Runner(load_pipeline(file), Progress()).run().stages[-1].record
    assert [(one["bank"], one["task"]) for one in record.facts["fits"]] == [("A", "churn"), ("B", "churn")]
    assert Lake(str(tmp_path / "out" / "lake"), spark).read("reachable").count() == record.rows_out == 20
    file.write_text(json.dumps({**content, "stages": {"reach": {"clients": 200}}}))
    with pytest.raises(ConfigError, match="no stage before it is of job simulate; put one there"):
        Runner(load_pipeline(file), Progress()).run()
