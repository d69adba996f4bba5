"""Goals from events: the cut is respected, the first event counts, and what is not known gets no label."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from pyspark.sql import SparkSession

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.goals import CutsConf, GoalRule, GoalsConf, goal_labels, with_goal
from ledgerlm.events.labelling import LabelConf, label_events
from ledgerlm.events.next_category import NextCategoryConf
from ledgerlm.events.spec_times import TimeSpec

CUT = datetime(2024, 6, 1, tzinfo=UTC)
EVENTS = "client_id string, event_id string, event_time timestamp, event_seq long, amount decimal(18,4), mcc string"
RULES = (
    GoalRule(name="travel", fields={"mcc": ("Hotels",)}, amount="out"),
    GoalRule(name="bills", when="mcc = '4900'"),
)
CONF = GoalsConf(
    rules=RULES, horizons=(30, 60), cuts=CutsConf(dates=(date(2024, 6, 1), date(2024, 8, 15))), min_events=2
)


def event(client: str, days: float, mcc: str, amount: int = -10) -> tuple[object, ...]:
    return (client, f"{client}{days}{mcc}", CUT + timedelta(days=days), 0, Decimal(amount), mcc)


def found(spark: SparkSession, rows: list[tuple[object, ...]], conf: GoalsConf = CONF) -> dict[tuple[str, str], str]:
    clients = spark.createDataFrame([(c, "train") for c in "abcdef"], "client_id string, split string")
    dictionaries = spark.createDataFrame(
        [("mcc", "7011", "Hotels"), ("mcc", "R2", "Hotels")], "field string, code string, description string"
    )
    labels = goal_labels(spark.createDataFrame(rows, EVENTS), clients, conf, dictionaries).collect()
    assert all(conf.classes[int(row["label"])] == row["label_text"] for row in labels)
    assert {row["as_of"].replace(tzinfo=UTC) for row in labels} <= {CUT}
    return {(row["client_id"], row["task"]): row["label_text"] for row in labels}


def test_first_goal_after_the_cut_within_the_horizon(spark: SparkSession) -> None:
    rows = [event(client, -day, "5411") for client in "abcde" for day in (3, 4)]
    rows += [
        # a: the hotel before the cut is history; the one at the very cut is what comes first.
        event("a", -1, "4900"), event("a", 0, "7011"), event("a", 1, "4900"),
        # b: money back from a hotel is no travel; another bank's code is.
        event("b", 2, "7011", amount=50), event("b", 40, "R2"),
        event("c", 29.9, "4900"), event("c", 31, "7011"),
        event("d", 30, "7011"),
        # f has one event of history only; a stranger is no client.
        event("f", -1, "5411"), event("f", 1, "7011"), event("stranger", -2, "5411"), event("stranger", 1, "7011"),
        event("e", 60, "5411"),
    ]  # fmt: skip
    labels = found(spark, rows)
    assert labels == {
        ("a", "next_goal_30d"): "travel", ("a", "next_goal_60d"): "travel",
        ("b", "next_goal_30d"): "none", ("b", "next_goal_60d"): "travel",
        ("c", "next_goal_30d"): "bills", ("c", "next_goal_60d"): "bills",
        ("d", "next_goal_30d"): "none", ("d", "next_goal_60d"): "travel",
        ("e", "next_goal_30d"): "none", ("e", "next_goal_60d"): "none",
    }  # fmt: skip


def test_rules_may_be_as_many_as_a_dictionary_has_codes(spark: SparkSession) -> None:
    rules = [
        GoalRule(name="early", when="mcc = '17'"),
        *(GoalRule(name=f"c{n}", fields={"mcc": (str(n),)}) for n in range(3000)),
    ]
    rules += [GoalRule(name="again", fields={"mcc": ("5",)}), GoalRule(name="other", when="mcc = 'x'")]
    rows = [event("a", -1, code) for code in ("17", "5", "2999", "x", "y")]
    told = with_goal(spark.createDataFrame(rows, EVENTS), rules).select("mcc", "goal").collect()
    names = {row["mcc"]: None if row["goal"] is None else rules[row["goal"]].name for row in told}
    assert names == {"17": "early", "5": "c5", "2999": "c2999", "x": "other", "y": None}


def test_labels_of_all_rules_with_their_counts(spark: SparkSession) -> None:
    rows = [event(client, -day, code) for client in "ab" for day, code in ((5, "5411"), (4, "7011"), (3, "5411"))]
    rows += [event("a", 1, "7011")]
    clients = spark.createDataFrame([("a", "train"), ("b", "test")], "client_id string, split string")
    categories = NextCategoryConf(categories={"shop": ("5411",), "hotel": ("7011",)}, min_history=1)
    conf = LabelConf(next_category={"next": categories}, goals=CONF.model_copy(update={"horizons": (30,)}))
    events = spark.createDataFrame([*rows, event("b", 40, "0")], EVENTS)
    made = label_events(events, clients, conf, seed=1, keep=lambda frame: frame)
    tasks = made.facts["tasks"]
    assert tasks["next"] == {
        "classes": {"hotel": ["7011"], "shop": ["5411"]},
        "candidates": 7,
        "kept": 5,
        "clients": 2,
        "dropped": {"short history": 2},
        "labels": {"hotel": {"train": 2, "test": 1}, "shop": {"train": 1, "test": 1}},
    }
    # Without a dictionary a goal is told by its code, which nobody calls a hotel.
    assert tasks["next_goal_30d"]["labels"] == {"none": {"train": 1, "test": 1}}
    assert (made.rows_in, made.rows_out, made.facts["left_out"]) == (9, 7, 2)
    assert list(made.tables) == ["labels"], "nobody knows the truth"
    assert made.tables["labels"].slice == {"task": ("next", "next_goal_30d")}
    found = made.tables["labels"].frame.groupBy("task").count().collect()
    assert {row["task"]: row["count"] for row in found} == {"next": 5, "next_goal_30d": 2}
    rare = LabelConf(next_category={"next": categories.model_copy(update={"min_history": 3})})
    with pytest.raises(DataError, match="no example of shop among training clients"):
        label_events(events, clients, rare, seed=1, keep=lambda frame: frame)


def test_what_lies_beyond_the_data_is_not_called_none(spark: SparkSession) -> None:
    rows = [event("a", -3, "5411"), event("a", -2, "5411"), event("a", 35, "5411")]
    assert found(spark, rows) == {("a", "next_goal_30d"): "none"}


def test_without_none_only_who_reached_a_goal_is_labelled(spark: SparkSession) -> None:
    rows = [event(client, -day, "5411") for client in "ab" for day in (1, 2)]
    rows += [event("a", 3, "7011"), event("b", 61, "5411")]
    assert found(spark, rows, CONF.model_copy(update={"none": False, "horizons": (30,)})) == {
        ("a", "next_goal_30d"): "travel"
    }


def test_sliding_cuts_and_unknown_fields(spark: SparkSession) -> None:
    cuts = CutsConf(first=date(2024, 11, 5), last=date(2025, 3, 5), every_months=2)
    assert cuts.days() == [date(2024, 11, 5), date(2025, 1, 5), date(2025, 3, 5)]
    strange = CONF.model_copy(update={"rules": (GoalRule(name="x", fields={"colour": ("red",)}),)})
    with pytest.raises(ConfigError, match="no event field colour"):
        found(spark, [event("a", -1, "5411")], strange)


def test_cuts_are_midnights_of_the_zone(spark: SparkSession) -> None:
    clients = spark.createDataFrame([("a", "train"), ("b", "train")], "client_id string, split string")
    # Midnight of 1 June is at 22:00 UTC in Berlin; the horizon of 30 days ends at 22:00 too.
    rows = [event(client, -day, "5411") for client in "ab" for day in (3, 4)]
    rows += [event("a", -1 / 24, "4900"), event("a", 5, "7011"), event("b", 30 - 1 / 24, "4900"), event("b", 31, "0")]
    rows += [event("a", 400, "0"), event("a", 900, "0")]  # the last stands alone
    conf = CONF.model_copy(update={"horizons": (30,), "cuts": CutsConf(dates=(date(2024, 6, 1), date(2025, 9, 1)))})
    frame = spark.createDataFrame(rows, EVENTS)
    for zone, expected in (("UTC", {"a": "none", "b": "bills"}), ("Europe/Berlin", {"a": "bills", "b": "none"})):
        labels = goal_labels(frame, clients, conf, time=TimeSpec(column="t", zone=zone)).collect()
        assert {row.client_id: row.label_text for row in labels} == expected
        assert {str(row.as_of) for row in labels} == {"2024-06-01 00:00:00" if zone == "UTC" else "2024-05-31 22:00:00"}
