"""Which clients are test clients."""

from __future__ import annotations

import random
from collections.abc import Iterable

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ledgerlm.errors import DataError
from ledgerlm.events.spec import SplitSpec

_HASH_DIGITS = 12  # hexadecimal digits of the SHA-256 that the hash rule looks at: 48 bits


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
        `clients` and split, `train` or `test`; a client without a label is a training client.

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
        chosen = clients.sparkSession.createDataFrame(test, "client_id string")
    else:
        digits = F.substring(F.sha2(F.concat(F.lit(f"{conf.seed}:"), "client_id"), 256), 1, _HASH_DIGITS)
        place = F.conv(digits, 16, 10).cast("double") / 16.0**_HASH_DIGITS
        chosen = labelled.select("client_id").where(place < conf.share)
    marked = clients.join(chosen.withColumn("_test", F.lit(True)), "client_id", how="left")
    split = F.when(F.col("_test"), "test").otherwise("train")
    return marked.withColumn("split", split).drop("_test")
