"""The applications as stages: each keeps what it published at other dates, and what other stages made of one head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records, StageRecord
from ledgerlm.runs.runner import Run, Runner
from tests.small_lake import EVENTS, LABELS, fill, write_pipeline

DATES = [datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)]
JANUARY, FEBRUARY = "2025-01-01", "2025-02-01"
CLIENTS = 24
SCORES = (
    "client_id string, task string, as_of timestamp, head_id string, probabilities array<float>, prediction double, "
    "decile int, reasons array<struct<feature string, contribution float>>"
)
RULES = [{"name": "travel", "fields": {"category": ["hotel"]}}, {"name": "home", "fields": {"category": ["tools"]}}]
COMMON = {"scores": "forecast:goals", "task": "goal", "evidence": {"rules": RULES, "days": 60}}
FORECAST = {"job": "score", "stages": []}
CARD = {"name": "card", "goal": "travel", "acceptance": 0.5, "value": 20, "cost": 1}
LOAN = {"name": "loan", "goal": "home", "acceptance": 0.5, "value": 20, "cost": 1}
HELD = {"events": {"name": "tools", "fields": {"category": ["tools"]}}, "days": 60}


@pytest.fixture(scope="module")
def folder(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clients who buy hotels or tools each month, scored at three dates by a head for goals and one for answers."""
    folder = tmp_path_factory.mktemp("applications")
    events, people, labels = [], [], []
    scores: list[tuple[object, ...]] = []
    for n in range(CLIENTS):
        client, travels = f"c{n:02d}", n % 2 == 0
        people.append((client, "test" if n % 4 < 2 else "train", "north" if n < 12 else "south"))
        for month in range(8):
            at = datetime(2024, 8, 5, tzinfo=UTC) + timedelta(days=30 * month + n)
            events.append((client, f"{client}-{month}", at, 0, Decimal(-10), "hotel" if travels else "tools"))
        for date in DATES:
            labels.append((client, "goal", date, float(not travels), "travel" if travels else "home"))
            labels.append((client, "answer", date, float(n % 3 == 0), "yes" if n % 3 == 0 else "no"))
            p, yes = (0.95 if travels else 0.05), 0.9 - n / 40
            scores.append((client, "goal", date, "g", [p, 1 - p], 0.0, 1, []))
            scores.append((client, "answer", date, "a", [1 - yes, yes], 1.0, 1, [("age", 0.5)]))
    fill(
        spark,
        folder,
        {
            "events": spark.createDataFrame(events, EVENTS),
            "clients": spark.createDataFrame(people, "client_id string, split string, region string"),
            "labels": spark.createDataFrame(labels, LABELS),
            "scores": spark.createDataFrame(scores, SCORES),
        },
    )
    heads = {"heads": [{"name": "goals", "head_id": "g"}, {"name": "answers", "head_id": "a"}]}
    record = StageRecord(
        name="forecast", job="score", engine="spark", definition="", attempt="f", done=True, facts=heads
    )
    Records(folder).save(record)
    return folder


def work(folder: Path, stages: Mapping[str, Any], job: str) -> Run:
    file = write_pipeline(folder, {"forecast": FORECAST, **stages})
    return Runner(load_pipeline(file), Progress()).run(only=job)


def published(spark: SparkSession, folder: Path, table: str, *columns: str) -> set[tuple[str, ...]]:
    """The different values of some columns, and the day of `as_of`."""
    rows = Lake(str(folder / "lake"), spark).read(table).selectExpr(*columns, "date(as_of) AS day").distinct().collect()
    return {tuple(str(value) for value in row) for row in rows}


def test_offers_of_other_dates_and_of_other_catalogues_stay(spark: SparkSession, folder: Path) -> None:
    def both(as_of: str) -> dict[str, Any]:
        one = {**COMMON, "as_of": as_of, "policy": {"per_client": 2}, "offers": [CARD]}
        return {"recommend": one, "recommend_loans": {**one, "job": "recommend", "offers": [LOAN]}}

    first = work(folder, both(JANUARY), "recommend")
    cards, loans = (stage.record for stage in first.stages)
    assert (cards.rows_in, cards.rows_out, loans.rows_out) == (CLIENTS, CLIENTS // 2, CLIENTS // 2)
    assert cards.facts["blocked"] == {"no_value": CLIENTS // 2}
    assert cards.facts["backtest"]["scores"]["hits"] == 6
    assert [block["heading"] for block in cards.facts["report"][0]["blocks"]] == [
        "Offers",
        "Examples",
        "Not chosen",
        "Backtest",
    ]
    assert all(stage.skipped for stage in work(folder, both(JANUARY), "recommend").stages)
    work(folder, {"recommend": both(FEBRUARY)["recommend"]}, "recommend")
    assert published(spark, folder, "recommendations", "stage", "offer", "head_id") == {
        ("recommend", "card", "g", JANUARY),
        ("recommend", "card", "g", FEBRUARY),
        ("recommend_loans", "loan", "g", JANUARY),
    }
    # The same date again replaces itself.
    work(folder, {"recommend": {**both(JANUARY)["recommend"], "offers": [LOAN]}}, "recommend")
    assert ("recommend", "card", "g", JANUARY) not in published(
        spark, folder, "recommendations", "stage", "offer", "head_id"
    )
    assert Lake(str(folder / "lake"), spark).read("recommendations").count() == 3 * CLIENTS // 2


@pytest.mark.slow
def test_lists_and_products_are_published_by_date_too(spark: SparkSession, folder: Path) -> None:
    target = {**COMMON, "campaigns": [{**CARD, "budget": 5}]}
    cross_sell = {**COMMON, "products": [{**CARD, "held": HELD}, {**LOAN, "kind": "up_sell", "held": HELD}]}
    for as_of in (JANUARY, FEBRUARY):
        [listed] = work(folder, {"target": {**target, "as_of": as_of}}, "target").stages
        [sold] = work(folder, {"cross_sell": {**cross_sell, "as_of": as_of}}, "cross_sell").stages
    assert (listed.record.rows_in, listed.record.rows_out) == (CLIENTS, 5)
    assert listed.record.facts["blocked"] == {"no_value": 12, "quota": 7}
    # Who buys tools holds both products.
    assert sold.record.facts["blocked"]["held"] == CLIENTS
    assert (sold.record.rows_in, sold.record.rows_out) == (2 * CLIENTS, 12)
    days = {("g", JANUARY), ("g", FEBRUARY)}
    assert published(spark, folder, "campaign_lists", "head_id") == days
    assert published(spark, folder, "cross_sell", "head_id") == days


@pytest.mark.slow
def test_stock_forecasts_of_other_dates_stay(spark: SparkSession, folder: Path) -> None:
    stock = {"region": "region", "category": "category", "horizon": 30, "window": 60}
    for as_of in (JANUARY, FEBRUARY):
        conf = {"scores": "forecast:goals", "task": "goal", "as_of": as_of, "stock": stock}
        [stage] = work(folder, {"stock": conf}, "stock").stages
    assert (stage.record.rows_in, stage.record.rows_out) == (CLIENTS, 4)
    assert published(spark, folder, "stock_forecasts", "head_id") == {("g", JANUARY), ("g", FEBRUARY)}
    with pytest.raises(DataError, match="no scores 30 days or more before"):
        work(folder, {"stock": {**conf, "as_of": "2024-12-01"}}, "stock")
    with pytest.raises(DataError, match=r"no scores of goal as of 2025-03-01.*newest are of 2025-02-01"):
        work(folder, {"stock": {**conf, "as_of": "2025-03-01"}}, "stock")


def test_stock_learns_on_clients_that_the_head_did_not_see(folder: Path) -> None:
    stock = {"region": "region", "category": "category", "horizon": 30, "window": 60, "learn": "split = 'nobody'"}
    conf = {"scores": "forecast:goals", "task": "goal", "as_of": FEBRUARY, "stock": stock}
    with pytest.raises(DataError, match="no client with earlier scores meets split = 'nobody'"):
        work(folder, {"stock": conf}, "stock")


def test_contacts_of_other_dates_and_campaigns_stay(spark: SparkSession, folder: Path) -> None:
    conf = {
        "campaign": "spring",
        "task": "answer",
        "head": "forecast:answers",
        "economy": {"cost": 1, "value": 2},
        "policy": {"budget": 3},
        "fairness": ["region"],
        "bootstrap": 100,
    }
    work(folder, {"contact": {**conf, "as_of": JANUARY}}, "contact")
    work(folder, {"contact": {**conf, "as_of": FEBRUARY}}, "contact")
    [stage] = work(folder, {"contact": {**conf, "campaign": "all_dates"}}, "contact").stages
    assert (stage.record.rows_in, stage.record.rows_out) == (3 * CLIENTS, 3 * CLIENTS)
    assert published(spark, folder, "contacts", "campaign") == {
        ("spring", JANUARY),
        ("spring", FEBRUARY),
        ("all_dates", "2024-12-01"),
        ("all_dates", JANUARY),
        ("all_dates", FEBRUARY),
    }
    spring = Lake(str(folder / "lake"), spark).read("contacts").where("campaign = 'spring' AND contact")
    assert spring.count() == 2 * 3
    assert [section["title"] for section in stage.record.facts["report"]] == [
        "Campaign",
        "Fairness by group",
        "Contacts",
    ]
    twice = {"contact": conf, "contact_again": {**conf, "job": "contact"}}
    with pytest.raises(ConfigError, match=r"contact and stages\.contact_again write the same rows of table contacts"):
        load_pipeline(write_pipeline(folder, {"forecast": FORECAST, **twice}))
    assert json.loads((folder / "runs" / "stages" / "contact.json").read_text())["done"]
