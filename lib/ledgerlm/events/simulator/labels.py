"""Labels drawn from probabilities that the simulator knows, and these probabilities: the best that anyone can reach.

Events before as_of are drawn from the traits, never from a label, so given the traits they say nothing more about it.
The probability given the traits is therefore an upper bound for every score that sees such events and attributes only.
It is not reached: finitely many events show the traits with noise.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ledgerlm.events.simulator.clients import SimulatorConf, goal_scores
from ledgerlm.events.simulator.draws import cumulated, lookup, pick, sigmoid, softmax, trait, uniform, weighted
from ledgerlm.events.simulator.world import Binary, Campaign, Stages, World, load_world

YES_NO = ("no", "yes")


def task_classes(world: World) -> dict[str, tuple[str, ...]]:
    """Task to the names of its classes, in the order of labels and probabilities.

    `campaign_response` is asked of treated clients and `organic_response` of the control group; the difference of their
    probabilities is the true uplift.
    """
    tasks = world.tasks
    return {
        "churn": YES_NO,
        "default": YES_NO,
        "age_group": tuple(tasks.age_group.classes),
        "life_stage": tuple(tasks.life_stage.classes),
        "campaign_response": YES_NO,
        "organic_response": YES_NO,
        "next_goal": tuple(tasks.next_goal.classes),
    }


def true_probabilities(clients: DataFrame, conf: SimulatorConf) -> DataFrame:
    """The probabilities that the labels are drawn from: the table `bayes`.

    Returns:
        One row a client and task: `client_id`, `task`, `as_of`, `probabilities` (one for each class, in order of the
        labels; sum 1). Both campaign tasks stand for every client, whatever the group.
    """
    return _long(clients, conf).select("client_id", "task", "as_of", "probabilities")


def simulate_labels(clients: DataFrame, conf: SimulatorConf) -> DataFrame:
    """Draws a label for each client and task.

    Returns:
        One row a client and task: `client_id`, `task`, `as_of`, `label` (place of the class), `label_text` (its name).
        `campaign_response` is there for treated clients only, `organic_response` for the control group only.
    """
    classes = task_classes(load_world(conf.world))
    name = reduce(
        lambda rest, task: F.when(F.col("task") == task, lookup(classes[task], F.col("drawn"))).otherwise(rest),
        classes,
        F.lit(None).cast("string"),
    )
    asked = (
        F.when(F.col("task") == "campaign_response", F.col("campaign_group") == "treated")
        .when(F.col("task") == "organic_response", F.col("campaign_group") == "control")
        .otherwise(F.lit(True))
    )
    drawn = _long(clients, conf).filter(asked)
    return drawn.select(
        "client_id", "task", "as_of", F.col("drawn").cast("double").alias("label"), name.alias("label_text")
    )


def with_outcomes(clients: DataFrame, conf: SimulatorConf) -> DataFrame:
    """Adds the drawn labels `will_churn` and `will_goal` (int), which the events after as_of follow."""
    formulas = _formulas(load_world(conf.world))
    return clients.withColumns(
        {
            "will_churn": _draw("churn", formulas["churn"], 2),
            "will_goal": _draw("next_goal", formulas["next_goal"], len(load_world(conf.world).tasks.next_goal.classes)),
        }
    )


def as_of_time(conf: SimulatorConf) -> Column:
    """UTC midnight of `as_of`, a timestamp."""
    midnight = dt.datetime.combine(conf.as_of, dt.time(), tzinfo=dt.UTC)
    return F.timestamp_seconds(F.lit(int(midnight.timestamp())))


def _long(clients: DataFrame, conf: SimulatorConf) -> DataFrame:
    world = load_world(conf.world)
    classes = task_classes(world)
    rows = [
        F.struct(
            F.lit(task).alias("task"),
            probabilities.alias("probabilities"),
            _draw(task, probabilities, len(classes[task])).alias("drawn"),
        )
        for task, probabilities in _formulas(world).items()
    ]
    tall = clients.select("client_id", "campaign_group", F.explode(F.array(*rows)).alias("row"))
    return tall.select("client_id", "campaign_group", as_of_time(conf).alias("as_of"), "row.*")


def _draw(task: str, probabilities: Column, classes: int) -> Column:
    return pick(uniform(F.col("key"), f"label/{task}"), cumulated(probabilities), classes)


def _formulas(world: World) -> Mapping[str, Column]:
    tasks = world.tasks
    contacted, left_alone = (_campaign(tasks.campaign, treated=treated) for treated in (1.0, 0.0))
    return {
        "churn": _yes_no(_binary(tasks.churn)),
        "default": _yes_no(_binary(tasks.default)),
        "age_group": softmax(_stages(tasks.age_group)),
        "life_stage": softmax(_stages(tasks.life_stage)),
        "campaign_response": _yes_no(contacted),
        "organic_response": _yes_no(left_alone),
        "next_goal": softmax(goal_scores(world)),
    }


def _yes_no(logit: Column) -> Column:
    yes = sigmoid(logit)
    return F.array(F.lit(1.0) - yes, yes)


def _standard(loadings: Mapping[str, float]) -> Column:
    """The loadings' sum with deviation 1 (traits with a normal draw of their own are independent)."""
    return weighted(loadings) / F.lit(math.sqrt(sum(weight**2 for weight in loadings.values())))


def _binary(task: Binary) -> Column:
    return F.lit(task.bias) + F.lit(task.slope) * _standard({str(name): w for name, w in task.loadings.items()})


def _campaign(task: Campaign, *, treated: float) -> Column:
    signal = reduce(
        Column.__add__,
        [
            F.lit(math.sqrt(part.share)) * _standard({str(n): w for n, w in part.loadings.items()})
            for part in task.parts.values()
        ],
    )
    lift = F.lit(treated) * (F.lit(task.effect) + F.lit(task.effect_plan) * trait("plan"))
    return F.lit(task.bias) + F.lit(task.slope) * signal + lift


def _stages(task: Stages) -> Sequence[Column]:
    return [
        F.lit(-0.5) * F.pow((F.col("age") - F.lit(stage.centre)) / F.lit(task.width), F.lit(2.0))
        + F.lit(stage.kids) * trait("kids")
        for stage in task.classes.values()
    ]
