"""What a rank reads, and in which order, depends on the texts alone and not on how Spark had them spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.finetune import cut_windows, in_order, split_by_client, staged_by_split
from ledgerlm.backbone.store import WindowStore
from ledgerlm.text.tokenizer import train_tokenizer
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.store import files_of


def document(client: int) -> str:
    lines = [f"+1d|D{(client + n) % 7}|SHOP {n % 5}|{(1 + n % 3) * 10}" for n in range(5 + client % 30)]
    return "\n".join(["days|weekday|shop|amount", *lines])


def stores(rows: DataFrame, tokenizer: Path, folder: Path, ranks: int) -> list[WindowStore]:
    texts = split_by_client(rows, held_out=0.2, seed=3)
    spread = in_order(texts, ranks, "kind", "text")
    staged_by_split(cut_windows(spread, tokenizer, context=64), folder)
    return [
        WindowStore.build(
            files_of(folder / f"split={split}", Ranks(rank, ranks)), ["a", "b"], folder / f"flat-{split}-{rank}"
        )
        for split in ("train", "heldout")
        for rank in range(ranks)
    ]


def test_the_order_of_windows_is_that_of_the_texts(spark: SparkSession, tmp_path: Path) -> None:
    texts = [(f"c{n}", kind, document(n)) for n in range(90) for kind in "ab"]
    train_tokenizer([text for *_, text in texts], vocabulary_size=400).save_pretrained(tmp_path / "tokenizer")
    rows = spark.createDataFrame(texts, "client_id string, kind string, text string")
    other = rows.repartition(7).orderBy(F.xxhash64("text", F.lit(5))).repartition(3)
    for ranks in (1, 2):
        found = [
            stores(frame, tmp_path / "tokenizer", tmp_path / f"{name}-{ranks}", ranks)
            for name, frame in (("as_given", rows), ("mixed", other))
        ]
        for one, two in zip(*found, strict=True):
            assert len(one.kinds) > 10
            for name in ("tokens", "starts", "kinds", "clients"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        clients = [set(store.clients.tolist()) for store in found[0]]
        assert sum(map(len, clients)) == len(set.union(*clients)) == 90, "a client's windows stand on one rank"
    files = sorted((tmp_path / "mixed-1" / "split=train").glob("*.parquet"))
    assert len(files) == 1 and pq.read_schema(files[0]).names == ["kind", "client", "input_ids"]
