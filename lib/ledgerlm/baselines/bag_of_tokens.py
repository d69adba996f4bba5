"""Bag of tokens: how often each token stands in a client's document; a control that knows words, not their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.config import Conf, ModelRef
from ledgerlm.errors import DataError
from ledgerlm.lake.made import Made, Rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

BAG = T.StructType(
    [
        T.StructField("client_id", T.StringType(), False),
        T.StructField("as_of", T.TimestampType(), False),
        T.StructField("features", T.MapType(T.StringType(), T.FloatType(), False), False),
    ]
)
_TOKENISED_AT_ONCE = 64  # documents


class CountConf(Conf):
    """Settings of the count job."""

    format: str = Field("compact", description="format of the documents")
    backbone: ModelRef | None = Field(
        None, description="finetune stage or backbone folder whose tokenizer is used; left out, the latest such stage"
    )
    feature_set: str = Field("bag_of_tokens", description="name of the features written")


def count_tokens(documents: DataFrame, tokenizer: Path, conf: CountConf) -> Made:
    """The bags of the documents of one format as a feature set.

    Args:
        documents: the `documents` table.
        tokenizer: folder of the tokenizer.
        conf: format, and the name of the set.

    Returns:
        `features`, a row for each document. Facts: `feature_sets`, `tokenizer`.

    Raises:
        DataError: no document of the format.
    """
    chosen = documents.where(F.col("format") == conf.format)
    rows = chosen.count()
    if not rows:
        raise DataError(f"no documents of format '{conf.format}'; add a serialize stage with that format")
    features = bag_of_tokens(chosen, tokenizer).withColumn("feature_set", F.lit(conf.feature_set))
    return Made(
        rows_in=rows,
        tables={"features": Rows(frame=features, slice={"feature_set": (conf.feature_set,)})},
        facts={"feature_sets": [conf.feature_set], "tokenizer": tokenizer.name},
    )


def bag_of_tokens(documents: DataFrame, tokenizer: Path) -> DataFrame:
    """Counts the tokens of each document, on the executors.

    Args:
        documents: client_id, as_of, text.
        tokenizer: folder of the tokenizer; it travels with the task.

    Returns:
        client_id, as_of, features map<string, float>: ln(1 + count) of each token that occurs, by the token's text, and
        `tokens`, that of all together; key (client_id, as_of).
    """
    from ledgerlm.text.tokenizer import load_tokenizer

    content = load_tokenizer(tokenizer).backend_tokenizer.to_str()

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from ledgerlm.baselines.bag_of_tokens import count_batches

        return count_batches(batches, content)

    chosen = documents.select("client_id", "as_of", "text").mapInArrow(count, BAG)
    return chosen.select("client_id", F.col("as_of"), "features")


def count_batches(batches: Iterator[pa.RecordBatch], tokenizer: str) -> Iterator[pa.RecordBatch]:
    """The work of `bag_of_tokens` on one executor."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer)
    backend.encode_special_tokens = True  # text never makes special tokens; the setting is not part of the JSON
    backend.no_truncation()
    backend.no_padding()
    names = np.array([f"token:{backend.id_to_token(number)}" for number in range(backend.get_vocab_size())], object)
    for batch in batches:
        for start in range(0, batch.num_rows, _TOKENISED_AT_ONCE):
            yield _counted(batch.slice(start, _TOKENISED_AT_ONCE), backend, names)


def _counted(batch: pa.RecordBatch, backend: Any, names: np.ndarray[Any, np.dtype[np.object_]]) -> pa.RecordBatch:
    keys, values, lengths = [], [], []
    for code in backend.encode_batch(batch.column("text").to_pylist(), add_special_tokens=False):
        ids, counts = np.unique(np.array(code.ids, np.int64), return_counts=True)
        keys += ["tokens", *names[ids]]
        values.append(np.log1p(np.concatenate(([counts.sum()], counts))))
        lengths.append(len(ids) + 1)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    items = pa.array(np.concatenate(values) if values else np.zeros(0), pa.float32())
    features = pa.MapArray.from_arrays(offsets, pa.array(keys, pa.string()), items)
    return pa.RecordBatch.from_arrays(
        [batch.column("client_id"), batch.column("as_of"), features], names=["client_id", "as_of", "features"]
    )
