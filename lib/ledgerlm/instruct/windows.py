"""Training windows of an instruction tuning: prompt and answer, of which only the answer is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.instruct.tokens import PromptTokens, encode_bodies, plain_tokenizer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

KIND = "answers"
WINDOWS = T.StructType(
    [
        T.StructField("kind", T.StringType(), False),
        T.StructField("split", T.StringType(), False),
        T.StructField("client", T.LongType(), False),
        T.StructField("input_ids", T.ArrayType(T.IntegerType(), False), False),
        T.StructField("targets", T.IntegerType(), False),
    ]
)
_ARROW = pa.schema(
    [
        ("kind", pa.string()),
        ("split", pa.string()),
        ("client", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("targets", pa.int32()),
    ]
)


def cut_examples(examples: DataFrame, tokens: PromptTokens) -> DataFrame:
    """Tokenises examples on the executors.

    Args:
        examples: `client_id`, `split` (`train` or `heldout`), `body` and `answer` (place of the class, int).
        tokens: the prompt but for its body.

    Returns:
        `WINDOWS`: one row an example; `targets` is the number of its last tokens that are learnt,
        `client` a hash of the client_id.
    """
    work = partial(example_batches, tokens=tokens)
    rows = examples.select("split", F.xxhash64("client_id").alias("client"), "body", "answer")
    return rows.mapInArrow(work, WINDOWS)


def example_batches(batches: Iterator[pa.RecordBatch], *, tokens: PromptTokens) -> Iterator[pa.RecordBatch]:
    """The work of `cut_examples` on one executor."""
    backend = plain_tokenizer(tokens.tokenizer)
    for batch in batches:
        bodies = encode_bodies(batch.column("body").to_pylist(), backend, tokens)
        answers = [tokens.answers[place] for place in batch.column("answer").to_pylist()]
        rows = [[*tokens.head, *body, *tokens.tail, *answer] for body, answer in zip(bodies, answers, strict=True)]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        values = np.fromiter((token for row in rows for token in row), np.int32, int(offsets[-1]))
        columns = [
            pa.array([KIND] * len(rows), pa.string()),
            batch.column("split"),
            batch.column("client"),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
            pa.array([len(answer) for answer in answers], pa.int32()),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=_ARROW)
