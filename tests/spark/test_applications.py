"""Applications on clients whose wishes are known: worth, reasons, holders, lists, and what a backtest must see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.applications import stock
from ledgerlm.applications.backtest import backtest
from ledgerlm.applications.cross_sell import Holding, Product, holders, without_holders
from ledgerlm.applications.offers import EvidenceConf, Offer, candidates, goal_counts
from ledgerlm.applications.policy import PolicyConf
from ledgerlm.applications.pricing import Known, Priced
from ledgerlm.applications.recommend import ranked_offers
from ledgerlm.applications.scored import Scored
from ledgerlm.applications.target import Campaign, TargetConf, target
from ledgerlm.engines.frames import Keeper
from ledgerlm.errors import ConfigError
from ledgerlm.events.clock import local
from ledgerlm.events.condition import Condition
from ledgerlm.events.goals import GoalRule
from ledgerlm.events.spec_times import TimeSpec
from ledgerlm.heads.tasks import Task

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
KEEP = Keeper().keep
TASK = Task(name="goal", kind="multiclass", classes=(0.0, 1.0), class_names=("travel", "home"))
EVIDENCE = EvidenceConf(
    rules=(GoalRule(name="travel", fields={"mcc": ("7011",)}), GoalRule(name="home", fields={"mcc": ("5200",)})),
    days=30,
)
OFFERS = (
    Offer(name="card", goal="travel", acceptance=0.5, value=20, cost=1, text="card for trips"),
    Offer(name="loan", goal="home", acceptance=0.1, value=100, cost=1, eligible="package = 'plus'"),
)
EVENTS = "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), mcc string"


def event(client: str, days: float, mcc: str) -> tuple[object, ...]:
    return (client, f"{client}{days}{mcc}", AS_OF + timedelta(days=days), 0, Decimal(-10), mcc)


def scores(spark: SparkSession, p: dict[str, float]) -> DataFrame:
    return spark.createDataFrame(
        [(client, AS_OF, [one, 1 - one]) for client, one in p.items()],
        "client_id string, as_of timestamp, probabilities array<float>",
    )


def priced_of(said: DataFrame, people: DataFrame, priced: DataFrame) -> Priced:
    """A catalogue that was priced; nobody's outcome is known."""
    return Priced(
        scored=Scored(task=TASK, head_id="h", as_of=AS_OF, rows=said),
        clients=people,
        contacts=None,
        outcomes=said.select("client_id", "as_of", F.lit("").alias("label_text")).limit(0),
        candidates=priced,
    )


def test_offers_are_priced_explained_and_limited(spark: SparkSession) -> None:
    said = scores(spark, {"a": 0.95, "b": 0.5, "c": 0.05})
    events = spark.createDataFrame(
        [event("a", -2, "7011"), event("a", -3, "7011"), event("a", -40, "5200"), event("b", 1, "7011"),
         event("c", -1, "5200")], EVENTS,
    )  # fmt: skip
    people = spark.createDataFrame([("a", "plus"), ("b", "basic"), ("c", "plus")], "client_id string, package string")
    counts = goal_counts(events, said, EVIDENCE, None)
    # What came after as_of or long before it is no evidence.
    assert {row["client_id"]: row["counts"] for row in counts.collect()} == {
        "a": {"travel": 2},
        "b": {},
        "c": {"home": 1},
    }
    priced = candidates(said, TASK, OFFERS, counts, EVIDENCE)
    worth = {(row["client_id"], row["offer"]): row for row in priced.collect()}
    a = worth["a", "card"]
    assert a["value"] == pytest.approx(0.95 * 10 - 1, abs=1e-5)
    assert a["lift"] == pytest.approx(0.95 / np.mean([0.95, 0.5, 0.05]), rel=1e-5)
    assert a["frequency_value"] == pytest.approx((2 + 5 * 2 / 3) / (2 + 5) * 10 - 1, rel=1e-5)
    chosen = ranked_offers(priced_of(said, people, priced), OFFERS, PolicyConf(per_client=1), days=30, keep=KEEP)
    told = {(row["client_id"], row["offer"]): row for row in chosen.collect()}
    assert {key: row["blocked"] for key, row in told.items()} == {
        ("a", "card"): None, ("a", "loan"): "no_value", ("b", "card"): None, ("b", "loan"): "not_eligible",
        ("c", "card"): "no_value", ("c", "loan"): None,
    }  # fmt: skip
    assert told["a", "card"]["reason"] == (
        "Next goal travel: 95 %, 1.9 times the mean of all clients; 2 events of it in the last 30 days; "
        "expected worth 8.50: card for trips"
    )
    with pytest.raises(ConfigError, match="no class 'trip' of goal"):
        candidates(said, TASK, [Offer(name="x", goal="trip", value=1)], counts, EVIDENCE)


def test_campaigns_keep_their_budgets_and_take_the_best(spark: SparkSession) -> None:
    random = np.random.default_rng(0)
    p = {f"c{n:03d}": float(random.uniform()) for n in range(200)}
    said = scores(spark, p)
    people = said.select("client_id")
    events = spark.createDataFrame([event("c000", -1, "7011")], EVENTS)
    campaigns = (
        Campaign(name="trips", goal="travel", acceptance=0.5, value=20, cost=2, budget=60),
        Campaign(name="homes", goal="home", acceptance=0.5, value=20, cost=2, budget=41),
    )
    labels = spark.createDataFrame(
        [], "client_id string, task string, as_of timestamp, label double, label_text string, run_id string"
    )
    known = Known(events=events, clients=people.withColumn("run_id", F.lit("")), labels=labels)
    conf = TargetConf(
        task="goal", campaigns=campaigns, evidence=EVIDENCE, policy=PolicyConf(per_client=1), backtest="true"
    )
    found = target(Scored(task=TASK, head_id="h", as_of=AS_OF, rows=said), known, conf, seed=1, keep=KEEP)
    totals = {row["campaign"]: row for row in found.totals}
    assert (totals["trips"]["clients"], totals["trips"]["cost"]) == (30, 60)
    assert (totals["homes"]["clients"], totals["homes"]["cost"]) == (20, 40)
    assert found.count == 50
    assert found.count + sum(found.blocked.values()) == 2 * len(p)
    chosen = found.rows
    rows = chosen.where("campaign = 'trips'").orderBy("rank").collect()
    assert [row["rank"] for row in rows] == list(range(1, 31))
    best = sorted(p.values(), reverse=True)[:30]
    np.testing.assert_allclose([row["probability"] for row in rows], best, rtol=1e-5)
    assert totals["trips"]["expected_responses"] == pytest.approx(sum(best) / 2, rel=1e-5)
    assert chosen.select("client_id").distinct().count() == 50


def test_holders_are_no_candidates(spark: SparkSession) -> None:
    said = scores(spark, {"a": 0.9, "b": 0.9, "c": 0.9})
    people = spark.createDataFrame([("a", "plus"), ("b", "basic"), ("c", "basic")], "client_id string, package string")
    events = spark.createDataFrame([event("b", -5, "SAVE"), event("c", 5, "SAVE"), event("c", -90, "SAVE")], EVENTS)
    held = Holding(clients="package = 'plus'", events=GoalRule(name="saves", fields={"mcc": ("SAVE",)}), days=60)
    products = [Product(name="account", goal="travel", value=10, held=held)]
    priced = candidates(said, TASK, products, goal_counts(events, said, EVIDENCE, None), EVIDENCE)
    left = without_holders(priced, holders(events, people, priced, products, None))
    assert [row["client_id"] for row in left.collect()] == ["c"]


def test_backtest_tells_knowledge_from_frequency_and_chance(spark: SparkSession) -> None:
    random = np.random.default_rng(1)
    wants = random.uniform(size=600) < 0.3
    known = np.where(wants, 0.8, 0.1) + random.uniform(-0.1, 0.1, 600)
    rows = [
        # The frequency rule sees as much of the wish as noise lets it.
        (f"c{n:03d}", AS_OF, "card", "travel", float(p), float(0.2 * want + random.uniform()), 10.0, 1.0)
        for n, (want, p) in enumerate(zip(wants, known, strict=True))
    ]
    priced = spark.createDataFrame(
        [(*row[:4], row[4] * 10 - 1, row[5], *row[6:]) for row in rows],
        "client_id string, as_of timestamp, offer string, goal string, value double, frequency_value double, "
        "payoff double, cost double",
    )
    came = spark.createDataFrame(
        [(row[0], AS_OF, "travel" if want else "home") for row, want in zip(rows, wants, strict=True)],
        "client_id string, as_of timestamp, label_text string",
    )
    people = came.select("client_id")
    found = backtest(priced, came, people, PolicyConf(quotas={"card": 100}), seed=1, keep=KEEP)
    assert found["clients"] == 600
    assert all(found[method]["contacts"] == 100 for method in ("scores", "frequency", "random"))
    assert found["scores"]["hits"] > 95
    assert found["scores"]["value"] == pytest.approx(found["scores"]["hits"] * 10 - 100)
    assert found["random"]["hit_rate"] == pytest.approx(0.3, abs=0.12)
    assert found["random"]["gain_low"] > 0
    assert found["frequency"]["gain_low"] > 0
    assert found["frequency"]["gain"] < found["random"]["gain"]
    # A head that knows nothing gains nothing over chance.
    blind = priced.withColumn("value", F.pmod(F.xxhash64("client_id", F.lit(7)), F.lit(1000)) / 1000 + 0.001)
    lost = backtest(blind, came, people, PolicyConf(quotas={"card": 100}), seed=1, keep=KEEP)
    assert lost["random"]["gain_low"] < 0 < lost["random"]["gain_high"]


CONF = stock.StockConf(region="region", where="amount < 0", horizon=30, window=60)


def test_stock_follows_the_goals_and_sees_no_future(spark: SparkSession) -> None:
    """Clients with goal travel buy hotels, the others tools; regions differ in whom they are home to."""
    random = np.random.default_rng(2)
    dates = [AS_OF - timedelta(days=60), AS_OF]
    events, goals, people = [], [], []
    for n in range(300):
        client, south = f"c{n:03d}", n % 2 == 0
        people.append((client, "south" if south else "north"))
        for month in range(-4, 1):
            events += [event(client, 30 * (month + random.uniform()), "5999") for _ in range(4)]
        for month in (-4, -2, 0):
            travels = random.uniform() < (0.2 if south == (month == 0) else 0.8)
            events += [event(client, 30 * (month + random.uniform()), "7011" if travels else "5200") for _ in range(4)]
            sure = 0.9 if travels else 0.1
            as_of = AS_OF + timedelta(days=30 * month)
            goals += [(client, as_of, "travel", sure), (client, as_of, "home", 1 - sure)]
    said = spark.createDataFrame(goals, "client_id string, as_of timestamp, goal string, weight double")
    past, now = (said.where(F.col("as_of") == F.lit(date)) for date in dates)
    bought = stock.purchases(spark.createDataFrame(events, EVENTS), CONF, "mcc").persist()
    regions = spark.createDataFrame(people, "client_id string, region string")
    came = stock.outcomes(bought, past, CONF)
    shares = stock.learn_shares(past, stock.activity(bought, past, CONF), came).persist()
    place = ["as_of", "region", "category"]
    learnt = stock.cells(past, stock.activity(bought, past, CONF), shares, regions)
    strays = stock.dispersion(learnt.join(stock.observed(came, regions), on=place, how="left").fillna(0))
    paces = stock.activity(bought, now, CONF)
    later = stock.observed(stock.outcomes(bought, now, CONF), regions)
    forecast = stock.with_interval(stock.cells(now, paces, shares, regions), strays, 1)
    whole = stock.with_rivals(forecast, bought, now, regions, CONF).join(later, on=place, how="left").fillna(0)
    cells = {(row["region"], row["category"]): row for row in whole.collect()}
    assert cells["north", "7011"]["expected"] > 1.5 * cells["south", "7011"]["expected"]
    assert all(row["low"] <= row["expected"] <= row["high"] for row in cells.values())
    found = stock.backtest(whole)
    # South and north change places at the newest date, which those who only look back cannot know.
    assert found["gain"]["frequency"] > 0.2
    assert found["gain"]["random"] > 0.1
    # Forecast and interval are the same without the days to come.
    blind = bought.where(F.col("event_time") < F.lit(AS_OF)).persist()
    again = stock.cells(now, stock.activity(blind, now, CONF), shares, regions)
    both = again.join(forecast.select(*place, F.col("expected").alias("other")), on=place)
    assert both.where(F.abs(F.col("expected") - F.col("other")) > 1e-9).count() == 0


def test_stock_counts_days_of_the_zone_and_learns_on_test_clients(spark: SparkSession) -> None:
    """In New York midnight is at 5:00 UTC; training clients, scored too surely, would teach that travel is tools."""
    zone = TimeSpec(column="t", zone="America/New_York")
    now = datetime(2024, 3, 1, 5, tzinfo=UTC)
    past = now - timedelta(days=60)
    shops = {"test": "7011", "train": "5200"}
    bought = [event(f"{split}{n}", 0, code) for split, code in shops.items() for n in range(3)]
    at = [past - timedelta(days=3), past + timedelta(days=5), now - timedelta(days=1)]
    rows = [
        (row[0], f"{row[0]}{place}", when, 0, Decimal(-1), row[5]) for row in bought for place, when in enumerate(at)
    ]
    # Half an hour before midnight of 31 March is within 30 days of 1 March there, an hour later is not.
    last = datetime(2024, 3, 31, 3, 30, tzinfo=UTC)
    rows += [
        ("test0", "x", last, 0, Decimal(-1), "5999"),
        ("test0", "y", last + timedelta(hours=1), 0, Decimal(-1), "5111"),
    ]
    rows += [("test0", "z", datetime(2024, 4, 5, tzinfo=UTC), 0, Decimal(-1), "5999")]
    events = spark.createDataFrame(rows, EVENTS)
    clients = spark.createDataFrame(
        [(f"{split}{n}", split, "all") for split in shops for n in range(3)],
        "client_id string, split string, region string",
    )
    scores = [(f"{split}{n}", when, [0.5, 0.5]) for split in shops for n in range(3) for when in (past, now)]
    scored = Scored(
        task=Task(name="goal", kind="binary", classes=(0.0, 1.0), class_names=("travel", "home")),
        head_id="h",
        as_of=now,
        rows=spark.createDataFrame(scores, "client_id string, as_of timestamp, probabilities array<double>"),
    )
    made = stock.forecast_stock(scored, events, clients, None, CONF, time=zone, keep=KEEP)
    found = {row.category: row for row in made.rows.collect()}
    assert {row.as_of.replace(tzinfo=UTC) for row in found.values()} == {now}
    assert set(found) == {"7011"}, "what training clients bought teaches nothing"
    assert found["7011"].observed == 0.0, "the data end on 5 April, so the days are over"
    everyone = CONF.model_copy(update={"learn": Condition("true")})
    made = stock.forecast_stock(scored, events, clients, None, everyone, time=zone, keep=KEEP)
    assert {row.category for row in made.rows.collect()} == {"7011", "5200"}
    shown = events.withColumn("event_time", local(F.col("event_time"), zone.zone))
    came = stock.outcomes(
        stock.purchases(shown, CONF, "mcc"),
        scored.rows.where(F.col("as_of") == scored.instant).withColumn("as_of", local(F.col("as_of"), zone.zone)),
        CONF,
    )
    assert {row.category for row in came.collect()} == {"5999"}


def test_stock_intervals_know_that_months_differ(spark: SparkSession) -> None:
    """In every second month all buy twice as much: shares fitted to both months would hide it from the interval."""
    events, people, goals = [], [], []
    random = np.random.default_rng(3)
    for n in range(60):
        client = f"c{n:03d}"
        people.append((client, "all"))
        for month in range(-6, 1):
            count = 8 if month % 2 else 4
            events += [event(client, 30 * (month + random.uniform()), "5999") for _ in range(count)]
            goals.append((client, AS_OF + timedelta(days=30 * month), "home", 1.0))
    said = spark.createDataFrame(goals, "client_id string, as_of timestamp, goal string, weight double")
    past = said.where(F.col("as_of").isin([AS_OF - timedelta(days=days) for days in (90, 60)]))
    bought = stock.purchases(spark.createDataFrame(events, EVENTS), CONF, "mcc").persist()
    regions = spark.createDataFrame(people, "client_id string, region string")
    paces, came = stock.activity(bought, past, CONF), stock.outcomes(bought, past, CONF)

    def strays(cells: DataFrame) -> float:
        both = cells.join(stock.observed(came, regions), on=["as_of", "region", "category"], how="left").fillna(0)
        row = stock.dispersion(both).first()
        assert row is not None
        return float(row["phi"])

    fitted = strays(stock.cells(past, paces, stock.learn_shares(past, paces, came), regions))
    dates = stock.learning_dates(past)
    assert len(dates) == 2
    held_out = strays(stock.held_out_cells(stock.Said(past, past, past), paces, came, regions, dates))
    assert held_out > 2 * fitted > 2


def test_stock_takes_the_season_from_the_same_month_of_an_earlier_year(spark: SparkSession) -> None:
    """Umbrellas sold half as often as expected a year ago; bread as expected; of pearls too few were sold to say."""
    before, other = AS_OF - timedelta(days=365), AS_OF - timedelta(days=90)
    kinds = {"umbrella": (1000.0, 500.0), "bread": (1000.0, 1000.0), "pearl": (2.0, 0.0)}
    cells = [(before, name, *numbers) for name, numbers in kinds.items()] + [(other, "umbrella", 1000.0, 1500.0)]
    learnt = spark.createDataFrame(cells, "as_of timestamp, category string, expected double, observed double")
    now = spark.createDataFrame(
        [(AS_OF, name, 100.0) for name in kinds], "as_of timestamp, category string, expected double"
    )
    told = now.withColumn("before", F.lit(80.0))
    rows = {
        row["category"]: row
        for row in stock.with_season(told, learnt, F.lit(AS_OF))
        .withColumn("reason", stock.reason_in_words(CONF))
        .collect()
    }
    assert rows["umbrella"]["expected"] == pytest.approx(100 * 520 / 1020)
    assert rows["bread"]["expected"] == pytest.approx(100)
    assert rows["pearl"]["expected"] == pytest.approx(100 * 20 / 22)
    assert "+25 % by the goals" in rows["umbrella"]["reason"]
    assert rows["umbrella"]["reason"].endswith("; -49 % by the season, as in this month of earlier years")
    assert "season" not in rows["bread"]["reason"]
    unseen = stock.with_season(told, learnt.where(F.col("as_of") == F.lit(other)), F.lit(AS_OF))
    assert [row["expected"] for row in unseen.collect()] == [100.0] * 3
    # A date of the same month and year, as weekly forecasts have, is no earlier year.
    week = stock.with_season(told, learnt.where(F.col("as_of") == F.lit(before)), F.lit(before + timedelta(days=14)))
    assert [row["expected"] for row in week.collect()] == [100.0] * 3


def test_stock_intervals_are_wider_where_few_months_were_seen(spark: SparkSession) -> None:
    cell = spark.createDataFrame([("5999", 100.0)], "category string, expected double")
    strays = spark.createDataFrame([("5999", 4.0)], "category string, phi double")
    reach = {}
    for dates in (1, 2, 12):
        row = stock.with_interval(cell, strays, dates).first()
        assert row is not None
        reach[dates] = (row["high"] - 100) / 20
    # Quantiles of Student's distribution at 95 %, from its tables.
    assert reach == pytest.approx({1: 6.314, 2: 2.920, 12: 1.782}, abs=1e-3)
