"""The simulated world and its settings, without Spark."""

from __future__ import annotations

import datetime as dt

import pytest
from pydantic import ValidationError

from ledgerlm.config import parse
from ledgerlm.errors import ConfigError
from ledgerlm.events.simulator import ATTRIBUTES, FIELDS, SimulatorConf, benchmark_conf, load_world, task_classes
from ledgerlm.events.simulator.bank import SimulateConf
from ledgerlm.events.simulator.calendar import calendar_of
from ledgerlm.events.spec import load_spec


def test_both_banks_name_the_same_things_by_different_codes() -> None:
    world = load_world()
    coded = [*world.categories, *(item.category for item in world.items if item.category)]
    assert not {one.codes["A"] for one in coded} & {one.codes["B"] for one in coded}
    assert not {kind.A for kind in world.types.values()} & {kind.B for kind in world.types.values()}
    assert all(len(category.merchants[bank]) == 6 for category in world.categories for bank in world.banks)


def test_one_code_has_one_description() -> None:
    world = load_world()
    coded = [*world.categories, *(item.category for item in world.items if item.category)]
    pairs = {(one.codes["A"], one.description) for one in coded}
    assert len({code for code, _ in pairs}) == len(pairs)


def test_shares_of_the_campaign_signal_sum_to_one() -> None:
    assert sum(part.share for part in load_world().tasks.campaign.parts.values()) == pytest.approx(1.0)


def test_an_unknown_category_in_a_goal_is_named() -> None:
    content = load_world().model_dump(by_alias=True)
    content["tasks"]["next_goal"]["classes"]["car"]["categories"] = ("fuel", "feul")
    with pytest.raises(ConfigError, match="feul"):
        parse(type(load_world()), content, source="world.yaml")


def test_shipped_spec_describes_what_is_made() -> None:
    spec = load_spec("datasets/simulated_bank.yaml")
    assert {field.name for field in spec.fields} == set(FIELDS)
    assert set(spec.attributes) == set(ATTRIBUTES)
    assert {task.name: task.class_names for task in spec.labels} == task_classes(load_world())


def test_calendar_spans_past_and_future_and_knows_paydays() -> None:
    calendar = calendar_of(SimulatorConf(months=12, future_months=2, as_of=dt.date(2025, 1, 1)), "GB")
    assert calendar.days[0] == dt.date(2024, 1, 1)
    assert calendar.days[calendar.past] == dt.date(2025, 1, 1)
    assert calendar.days[-1] == dt.date(2025, 2, 28)
    assert calendar.days[calendar.first_of_month[1]] == dt.date(2024, 2, 1)


def test_benchmark_conf_scales_with_events() -> None:
    small, large = benchmark_conf(500_000), benchmark_conf(5_000_000)
    assert small.expected_events == pytest.approx(500_000, rel=0.01)
    assert large.clients == pytest.approx(10 * small.clients, rel=0.01)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="day 1 to 28"):
        SimulatorConf(as_of=dt.date(2025, 1, 31))
    with pytest.raises(ValidationError, match="each bank once"):
        SimulateConf(banks=(SimulatorConf(), SimulatorConf(clients=5)))
