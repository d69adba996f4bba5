"""Which clients are test clients."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.config import Conf
from ledgerlm.engines.frames import small_frame
from ledgerlm.errors import DataError
from ledgerlm.events.clock import fixed_instant
from ledgerlm.events.spec import SplitSpec
from ledgerlm.lake.made import Made, Rows

_HASH_DIGITS = 12  # hexadecimal digits of the SHA-256 that the hash rule looks at: 48 bits


class SplitConf(Conf):
    """Settings of the split job."""

    rule: Literal["hash", "time"] = Field(
        "hash", description="hash: a share of the labelled clients by a hash of their id; time: those labelled last"
    )
    share: float = Field(0.3, gt=0, lt=1, description="share of labelled clients that are test clients")
    seed: int = Field(42, description="of the hash")


def split_anew(clients: DataFrame, labels: DataFrame, conf: SplitConf, *, name: str) -> Made:
    """A split of another rule than the data set's, which stands beside it under its name.

    Args:
        clients: the `clients` table; its own split is not looked at.
        labels: the `labels` table.
        conf: the rule.
        name: of the split.

    Returns:
        `splits` (stage, client_id, split) of every client. Facts: `rule`, the clients of each split, and of the rule
        `time` the instant `until` which what learns may read: nobody is tested before.

    Raises:
        DataError: for the rule `time`, when the newest labels of all clients are of one instant.
    """
    plain, until = clients.select("client_id"), None
    if conf.rule == "time":
        until = newest_from(labels, conf.share)
        marked = with_newest_split(plain, labels, until)
    else:
        rule = SplitSpec(rule="hash", share=conf.share, seed=conf.seed)
        marked = with_split(plain, labels.select("client_id").distinct(), rule)
    return Made(
        rows_in=clients.count(),
        tables={
            "splits": Rows(
                frame=marked.select(F.lit(name).alias("stage"), "client_id", "split"), slice={"stage": (name,)}
            )
        },
        facts={"rule": conf.rule, **({"until": until.isoformat()} if until else {})},
        tell=lambda own: {row["split"]: row["count"] for row in own["splits"].groupBy("split").count().collect()},
    )


def shuffled_test_ids(ids: Iterable[str], share: float, seed: int = 42) -> list[str]:
    """Test ids by the published rule of pytorch-lifestream: ids sorted as strings, shuffled, the last share of them.

    Args:
        ids: labelled client ids.
        share: share of them, rounded down to whole clients.
        seed: of Python's `random.Random`.
    """
    order = sorted(ids)
    random.Random(seed).shuffle(order)
    return order[len(order) - int(len(order) * share) :]


def with_split(clients: DataFrame, labelled: DataFrame, conf: SplitSpec) -> DataFrame:
    """Adds the column `split`.

    Args:
        clients: client_id, one row a client, and further columns.
        labelled: client_id of labelled clients, distinct.
        conf: the rule.

    Returns:
        `clients` and split, `train` or `test`; a client without a label is a training client, unless `unseen` holds.

    Raises:
        DataError: when the shuffle rule is asked for above its limit.
    """
    rule = conf.rule
    ids: list[str] = []
    if rule != "hash":
        # At most limit + 1 ids reach the driver: the published rule needs them in one sorted list.
        ids = [str(row["client_id"]) for row in labelled.limit(conf.limit + 1).collect()]
        if len(ids) > conf.limit and rule == "shuffle":
            raise DataError(
                f"split.rule: shuffle takes at most {conf.limit} labelled clients (split.limit); use the rule hash"
            )
    if rule == "shuffle" or (rule == "auto" and len(ids) <= conf.limit):
        test = [(one,) for one in shuffled_test_ids(ids, conf.share, conf.seed)]
        chosen = small_frame(clients.sparkSession, test, "client_id string")
    else:
        digits = F.substring(F.sha2(F.concat(F.lit(f"{conf.seed}:"), "client_id"), 256), 1, _HASH_DIGITS)
        place = F.conv(digits, 16, 10).cast("double") / 16.0**_HASH_DIGITS
        chosen = labelled.select("client_id").where(place < conf.share)
    marked = clients.join(chosen.withColumn("_test", F.lit(True)), "client_id", how="left")
    kept_away = F.expr(conf.unseen) if conf.unseen else F.lit(False)
    split = F.when(F.col("_test") | F.coalesce(kept_away, F.lit(False)), "test").otherwise("train")
    return marked.withColumn("split", split).drop("_test")


def newest_from(labels: DataFrame, share: float) -> dt.datetime:
    """The instant, in UTC, from which about a share of the clients are labelled last.

    Args:
        labels: client_id, as_of.
        share: share of labelled clients in the test split, about: one instant never lies on both sides.

    Raises:
        DataError: when the newest labels of all clients are of one instant.
    """
    last = labels.groupBy("client_id").agg(F.max("as_of").alias("_last"))
    cut = F.percentile_approx("_last", 1 - share, 10_000)
    row = last.agg(cut.cast("string").alias("cut"), F.min("_last").cast("string").alias("first")).first()
    if row is None or row["cut"] is None or row["cut"] == row["first"]:
        raise DataError(
            f"split.rule: time sets apart the clients who were labelled last, but everyone's newest label is of "
            f"{row['first'] if row else None}, as on a full grid of as_of; use the rule hash"
        )
    return dt.datetime.fromisoformat(row["cut"]).replace(tzinfo=dt.UTC)


def with_newest_split(clients: DataFrame, labels: DataFrame, until: dt.datetime) -> DataFrame:
    """Adds the column `split` by time: who was labelled last is tested on, so training never looks ahead.

    Args:
        clients: client_id, one row a client, and further columns.
        labels: client_id, as_of.
        until: from `newest_from`.

    Returns:
        `clients` and split; a client without a label is a training client.
    """
    last = labels.groupBy("client_id").agg(F.max("as_of").alias("_last"))
    marked = clients.join(last, "client_id", how="left")
    newest = F.coalesce(F.col("_last") >= fixed_instant(until, "UTC"), F.lit(False))
    return marked.withColumn("split", F.when(newest, "test").otherwise("train")).drop("_last")
