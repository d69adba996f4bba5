"""Simple baselines for any task of classes: frequency, a client's own frequency, Markov of order 1 to 3 with back-off.

They read a history as a sequence of symbols (goals or categories, by rules), and are counted by Spark on training rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field
from pyspark.sql import Window
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.frames import Keep, settled
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.events.condition import Condition
from ledgerlm.events.goals import GoalRule, with_goal
from ledgerlm.heads.publish import scored
from ledgerlm.heads.scoring import scored_rows, sum_of
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_KEY = ("client_id", "as_of")
_ORDER = ("event_time", "event_seq", "event_id")
LONGEST = 3


class GuessingConf(Conf):
    """How histories are read and counts are smoothed."""

    symbols: tuple[GoalRule, ...] = Field(
        (),
        description="what an event counts as; left out, as the label stage has it (every category, or the goals); "
        "own_frequency takes those named as classes of the task",
    )
    orders: tuple[int, ...] = Field((1, 2, 3), description="orders of the Markov heads, 1 to 3; none for no such head")
    weight: float = Field(
        5.0, gt=0, description="events (or rows) that the shorter memory counts as, where the longer one is smoothed"
    )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the heads."""
        return ("frequency", "own_frequency", *(f"markov{order}" for order in self.orders))


class GuessConf(GuessingConf):
    """Settings of the guess job."""

    task: str = Field(description="binary or multiclass task in labels")
    where: Condition = Field(
        Condition("split = 'train'"),
        description="SQL condition over columns of clients and labels: the rows that are counted",
    )


def guess(
    task: Task,
    name: str,
    *,
    events: DataFrame,
    clients: DataFrame,
    labels: DataFrame,
    dictionaries: DataFrame | None,
    conf: GuessConf,
    keep: Keep,
    progress: Progress | None = None,
) -> Made:
    """Scores all labelled rows of a task with each baseline, counted on some of them.

    Args:
        task: binary or multiclass.
        name: of the stage; the heads are called `NAME/METHOD`.
        events: the `events` table.
        clients: the `clients` table.
        labels: the `labels` table.
        dictionaries: the `dictionaries` table, if there is one.
        conf: the rows that are counted, symbols (they must be given here), orders and smoothing.
        keep: computes a frame once.
        progress: what the user sees.

    Returns:
        See `publish.scored`. rows_in: the labelled rows of known clients, once for each method. Facts: `counted`
        (rows), `symbols`, `heads`.

    Raises:
        ConfigError: no symbol is given.
        DataError: the condition leaves no row to count.
    """
    if not conf.symbols:
        raise ConfigError("symbols: is empty; say what an event counts as")
    own = labels.where(F.col("task") == task.name).drop("run_id")
    known = own.join(clients.drop("run_id"), on="client_id", how="inner")
    counted = conf.where.rows(known).select("client_id", "as_of", "label")
    read = settled(symbol_rows(events, known, conf, dictionaries), keep)
    rows, training = read.count(), counted.count()
    if not training:
        raise DataError(f"task {task.name}: no label where {conf.where}")
    said = {f"{name}/{method}": frame for method, frame in guesses(read, counted, task, conf).items()}
    heads = [{"head_id": one, "name": one.removeprefix(f"{name}/"), "task": task.name} for one in said]
    made = scored(said, heads, keep=keep, progress=progress, text="Guessing")
    facts = {"counted": training, "symbols": len(conf.symbols), **made.facts}
    return replace(made, rows_in=rows * len(heads), facts=facts)


def symbol_rows(events: DataFrame, rows: DataFrame, conf: GuessingConf, dictionaries: DataFrame | None) -> DataFrame:
    """What each history consists of before as_of.

    Args:
        events: the `events` table.
        rows: client_id, as_of.
        conf: the symbols.
        dictionaries: the `dictionaries` table, if there is one.

    Returns:
        client_id, as_of, `recent` array<string> (up to three newest symbols, newest first), `counts` map<string,
        bigint>; one row for each of `rows`, empty where nothing was found.
    """
    names = F.array(*(F.lit(rule.name) for rule in conf.symbols))
    told = with_goal(events, conf.symbols, dictionaries).where("goal IS NOT NULL")
    told = told.select("client_id", *_ORDER, F.get(names, F.col("goal")).alias("symbol"))
    asked = rows.select(*_KEY).distinct()
    seen = told.join(asked, on="client_id", how="inner").where(F.col("event_time") < F.col("as_of"))
    newest = Window.partitionBy(*_KEY).orderBy(*(F.desc(name) for name in _ORDER))
    placed = seen.withColumn("age", F.row_number().over(newest))
    recent = F.collect_list(F.when(F.col("age") <= LONGEST, F.struct("age", "symbol")))
    each = placed.groupBy(*_KEY, "symbol").agg(F.count(F.lit(1)).alias("count"), recent.alias("recent"))
    gathered = each.groupBy(*_KEY).agg(
        F.map_from_entries(F.collect_list(F.struct("symbol", "count"))).alias("counts"),
        F.sort_array(F.flatten(F.collect_list("recent"))).alias("recent"),
    )
    joined = asked.join(gathered, on=list(_KEY), how="left")
    return joined.select(
        *_KEY,
        F.coalesce(F.col("recent.symbol"), F.array().cast("array<string>")).alias("recent"),
        F.coalesce("counts", F.create_map().cast("map<string, bigint>")).alias("counts"),
    )


def guesses(read: DataFrame, labels: DataFrame, task: Task, conf: GuessingConf) -> dict[str, DataFrame]:
    """Probabilities of every row by each head.

    Order m is smoothed by order m - 1: (n(label, last m symbols) + w p(label | last m - 1)) / (n(last m symbols) + w),
    and order 0 is the frequency of the labels. A client's own frequency is smoothed by the symbols' share among all.

    Args:
        read: from `symbol_rows`.
        labels: client_id, as_of, label of the training rows.
        task: what is predicted.
        conf: smoothing and orders.

    Returns:
        Head name -> rows as other heads score them (`scoring.SCORED`), one for each of `read`.
    """
    counted = [F.count_if(F.col("_class") == place).alias(f"n{place}") for place in range(task.outputs)]
    training = read.join(labels.withColumn("_class", class_index(task)), on=list(_KEY), how="inner")
    training = training.withColumns({f"_last{order}": _last(order) for order in range(1, LONGEST + 1)})
    total = training.agg(*counted).select(
        _smoothed(F.array(*_names(task)), F.lit(1.0 / task.outputs), 1.0).alias("_p0")
    )
    rows = read.withColumns({f"_last{order}": _last(order) for order in range(1, LONGEST + 1)})
    rows = rows.crossJoin(F.broadcast(total))
    for order in range(1, max(conf.orders, default=0) + 1):
        memory = f"_last{order}"
        table = training.where(F.col(memory).isNotNull()).groupBy(memory).agg(*counted)
        known = table.select(memory, F.array(*_names(task)).alias("_n"))
        found = F.when(F.col("_n").isNull(), F.col(f"_p{order - 1}")).otherwise(
            _blended("_n", f"_p{order - 1}", conf.weight)
        )
        rows = rows.join(known, on=memory, how="left").withColumn(f"_p{order}", found).drop("_n")
    rows = rows.crossJoin(F.broadcast(_shares(training, task)))
    own = F.array(
        *(F.coalesce(F.try_element_at("counts", F.lit(name)), F.lit(0)).cast("double") for name in task.class_names)
    )
    rows = rows.withColumn("_own", own).withColumn("_own", _blended("_own", "_share", conf.weight))
    columns = {"frequency": "_p0", "own_frequency": "_own"} | {f"markov{order}": f"_p{order}" for order in conf.orders}
    return {name: scored_rows(rows, column, task) for name, column in columns.items()}


def _names(task: Task) -> list[Column]:
    return [F.col(f"n{place}").cast("double") for place in range(task.outputs)]


def _last(order: int) -> Column:
    """The newest `order` symbols as one text; null where there are fewer."""
    return F.when(F.size("recent") >= order, F.concat_ws("\u001f", F.slice("recent", 1, order)))


def _smoothed(counts: Column, share: Column, weight: float) -> Column:
    of_all = sum_of(counts)
    return F.transform(counts, lambda count: (count + weight * share) / (of_all + weight))


def _blended(counts: str, prior: str, weight: float) -> Column:
    of_all = sum_of(F.col(counts))
    return F.zip_with(counts, prior, lambda count, p: (count + weight * p) / (of_all + weight))


def _shares(training: DataFrame, task: Task) -> DataFrame:
    """`_share`: how often each class stands among the symbols of training rows, smoothed by one of each."""
    sums = [F.coalesce(F.sum(F.try_element_at("counts", F.lit(name))), F.lit(0)) for name in task.class_names]
    added = training.agg(*(one.cast("double").alias(f"s{place}") for place, one in enumerate(sums)))
    counts = F.array(*(F.col(f"s{place}") for place in range(task.outputs)))
    return added.select(_smoothed(counts, F.lit(1.0 / task.outputs), float(task.outputs)).alias("_share"))
