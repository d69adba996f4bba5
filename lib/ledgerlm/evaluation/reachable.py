"""The bound that can be reached on a simulated bank: the true probabilities as far as events and attributes tell them.

`bayes` knows the hidden traits, which finitely many events show with noise, so nobody who sees events gets there. What
can be reached is the mean of the true probability over all clients with the same events. It is fitted on many other
clients of the same bank, to their true probabilities, from what the generator's own model calls informative.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from pyspark.sql import functions as F

from ledgerlm.config import Conf, nearest
from ledgerlm.errors import ConfigError
from ledgerlm.evaluation.report.reach import reach_section
from ledgerlm.events.simulator import (
    SimulatorConf,
    World,
    known_attributes,
    load_world,
    simulate_clients,
    simulate_events,
    task_classes,
    true_probabilities,
)
from ledgerlm.events.simulator.statistics import client_sums, features_of, sum_names
from ledgerlm.heads.soft import SoftHead, cross_entropy, fit_soft
from ledgerlm.heads.tasks import Floats
from ledgerlm.heads.vectors import Block, read_matrix, readable, to_matrix
from ledgerlm.lake.made import Made, Rows
from ledgerlm.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

SHARES = (0.25, 0.5, 1.0)  # of the clients to learn from, which show how the fit converges
_TENTH = 10  # a tenth of the other clients chooses, and another one judges
_SAID = "client_id string, task string, as_of timestamp, probabilities array<double>"


class ReachConf(Conf):
    """Settings of the reach job."""

    clients: int = Field(
        20_000,
        ge=200,
        description="other clients that are simulated of each bank: eight tenths teach, one chooses penalties and the "
        "number of trees, one judges",
    )
    tasks: tuple[str, ...] | None = Field(None, description="tasks; default all that the simulator knows the truth of")


def reach(
    events: DataFrame,
    clients: DataFrame,
    banks: Sequence[SimulatorConf],
    conf: ReachConf,
    *,
    progress: Progress | None = None,
) -> Made:
    """Fits other clients of each bank, and says what can be reached of its own.

    Args:
        events: the `events` table, as `simulate` wrote it.
        clients: the `clients` table, for the known attributes.
        banks: as they were simulated.
        conf: settings.
        progress: what the user sees.

    Returns:
        `reachable` (client_id, task, as_of, probabilities), a row a client and task; a section of the report; the fact
        `fits`: for each bank and task the log loss, expected over labels drawn with the true probabilities, of other
        clients that nothing was fitted on: of the class shares (`prior`), of each fit and of `bayes` itself.

    Raises:
        ConfigError: an unknown task, or more clients than the driver can read.
    """
    bars = progress or Progress()
    told, fits = [], []
    for bank in banks:
        world = load_world(bank.world)
        tasks = _tasks(world, conf)
        _refuse_too_many(events.sparkSession, world, conf)
        heads = {}
        with bars.task(f"Fitting what can be reached at bank {bank.bank}", total=len(tasks)) as bar:
            x, truth = _other_clients(events.sparkSession, bank, conf, tasks)
            for task in tasks:
                heads[task], told_of_it = _fit(x, truth[task], seed=bank.seed)
                fits.append({"bank": bank.bank, "task": task, **told_of_it})
                bar.advance()
        own = events.where(F.col("source_file") == f"simulator:{bank.bank}")
        sums = client_sums(own, clients.where(F.col("bank") == bank.bank), bank)
        work = partial(_say, heads=heads, world=world, bank=bank)
        told.append(sums.mapInArrow(work, _SAID))
    return Made(
        tables={"reachable": Rows(frame=reduce(lambda one, other: one.unionByName(other), told))},
        facts={"fits": fits},
        report=[reach_section(fits)],
    )


def _tasks(world: World, conf: ReachConf) -> tuple[str, ...]:
    known = tuple(task_classes(world))
    for name in conf.tasks or ():
        if name not in known:
            raise ConfigError(f"reach: tasks: the simulator knows no task '{name}': {nearest(name, known)}")
    return conf.tasks or known


def _refuse_too_many(spark: SparkSession, world: World, conf: ReachConf) -> None:
    most = readable(spark) // len(sum_names(world))
    if conf.clients > most:
        raise ConfigError(
            f"reach: clients: the sums of {conf.clients:,} clients do not fit into the driver, {most:,} do; ask for "
            "fewer, or give it more (spark.driver.memory, spark.driver.maxResultSize)"
        )


def _block(world: World) -> Block:
    return Block(column="sums", group="sums", sparse=True, names=sum_names(world))


def _other_clients(
    spark: SparkSession, bank: SimulatorConf, conf: ReachConf, tasks: Sequence[str]
) -> tuple[Floats, Mapping[str, Floats]]:
    """Features of clients that the bank does not have, and of each task their true probabilities, in one order."""
    other = bank.model_copy(update={"clients": conf.clients, "seed": bank.seed + 1, "future_months": 0})
    people = simulate_clients(spark, other)
    world = load_world(bank.world)
    sums = client_sums(simulate_events(people, other), known_attributes(people), other)
    x = features_of(read_matrix(sums, [_block(world)]).x.toarray().astype(np.float64), world, other)
    truth = true_probabilities(people, other).where(F.col("task").isin(list(tasks))).toArrow().to_pandas()
    ordered = truth.sort_values("client_id", kind="stable")
    return x, {
        str(task): np.stack(rows["probabilities"].tolist()).astype(np.float64) for task, rows in ordered.groupby("task")
    }


def _fit(x: Floats, p: Floats, *, seed: int) -> tuple[SoftHead, Mapping[str, Any]]:
    """The head that all clients taught, and what is told of it and of those that fewer taught."""
    started = time.process_time()
    tenth = len(x) // _TENTH
    teach = len(x) - 2 * tenth
    choosing = (x[teach:-tenth], p[teach:-tenth])
    judged_x, judged = x[-tenth:], p[-tenth:]
    found = []
    for share in SHARES:
        count = int(share * teach)
        head = fit_soft(x[:count], p[:count], choosing, seed=seed)
        found.append({"clients": count, "log_loss": cross_entropy(judged, head.probabilities(judged_x))})
    prior = np.tile(p[:teach].mean(axis=0), (tenth, 1))
    facts = {
        "judged_clients": tenth,
        "prior": cross_entropy(judged, prior),
        "fits": found,
        "bayes": cross_entropy(judged, judged),
        "seconds": time.process_time() - started,
    }
    return head, facts


def _say(
    batches: Iterable[pa.RecordBatch], heads: Mapping[str, SoftHead], world: World, bank: SimulatorConf
) -> Iterator[pa.RecordBatch]:
    """For `mapInArrow`: what each task's head says of the clients of `client_sums`."""
    import pyarrow as pa

    for batch in batches:
        x = features_of(to_matrix(batch, [_block(world)]).toarray().astype(np.float64), world, bank)
        for task, head in heads.items():
            yield pa.RecordBatch.from_arrays(
                [
                    batch.column("client_id"),
                    pa.array([task] * len(x), pa.string()),
                    batch.column("as_of"),
                    pa.array(list(head.probabilities(x)), pa.list_(pa.float64())),
                ],
                names=["client_id", "task", "as_of", "probabilities"],
            )
