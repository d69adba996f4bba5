"""Schemas, keys and constraints of every table; `docs/architecture.md` says what the columns mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pyspark.sql import types as T

STRING = T.StringType()
DOUBLE = T.DoubleType()
AMOUNT = T.DecimalType(18, 4)
FINEST = 18
"""Most decimal places that an amount may have."""
EVENT_ORDER = "event_order"
"""Column that events of a data set with a column of their order have: what stood there, decimal(38,9)."""
BUCKETS = 64
"""Into how many buckets clients are hashed: `pmod(xxhash64(client_id), 64)`, by which large tables are clustered."""
# Containers may hold nulls by their type, since Spark refuses to cast the other way; no row of ours has any.
VECTOR = T.ArrayType(T.FloatType())


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One Delta table.

    Attributes:
        name: folder under the lake root.
        columns: fixed columns in order, without `run_id`, which every table has.
        key: columns that identify a row.
        checks: name to SQL condition, enforced by Delta as CHECK constraints.
        open: whether the data set spec adds columns of its own.
    """

    name: str
    columns: tuple[T.StructField, ...]
    key: tuple[str, ...] = ()
    checks: dict[str, str] = field(default_factory=dict)
    open: bool = False

    @property
    def schema(self) -> T.StructType:
        """The fixed columns and `run_id`."""
        return T.StructType([*self.columns, T.StructField("run_id", STRING, nullable=False)])


def amount_type(scale: int) -> T.DecimalType:
    """The type of amounts of so many decimal places: up to four the usual one."""
    return AMOUNT if scale <= AMOUNT.scale else T.DecimalType(38, scale)


def stored_type(column: T.StructField, given: T.DataType) -> T.DataType:
    """The type in which a column is stored: that of the schema, but for amounts of more decimal places."""
    finer = column.name == "amount" and isinstance(given, T.DecimalType) and given.scale > AMOUNT.scale
    return given if finer else column.dataType


def _required(name: str, kind: T.DataType) -> T.StructField:
    return T.StructField(name, kind, nullable=False)


def _optional(name: str, kind: T.DataType) -> T.StructField:
    return T.StructField(name, kind, nullable=True)


CLIENT = _required("client_id", STRING)
AS_OF = _required("as_of", T.TimestampType())
REASON = T.StructType([_optional("feature", STRING), _optional("contribution", T.FloatType())])

EVENTS = Table(
    name="events",
    columns=(
        CLIENT,
        _required("event_id", STRING),
        _required("event_time", T.TimestampType()),
        _required("event_seq", T.LongType()),
        _optional("amount", AMOUNT),
        _optional("currency", STRING),
        _optional("source_file", STRING),
    ),
    key=("client_id", "event_id"),
    checks={"client_not_empty": "length(client_id) > 0"},
    open=True,
)
DICTIONARIES = Table(
    name="dictionaries",
    columns=(_required("field", STRING), _required("code", STRING), _required("description", STRING)),
    key=("field", "code"),
)
CLIENTS = Table(
    name="clients",
    columns=(CLIENT, _required("split", STRING)),
    key=("client_id",),
    checks={"split_known": "split IN ('train', 'test')"},
    open=True,
)
SPLITS = Table(
    name="splits",
    columns=(_required("stage", STRING), CLIENT, _required("split", STRING)),
    key=("stage", "client_id"),
    checks={"split_known": "split IN ('train', 'test')"},
)
LABELS = Table(
    name="labels",
    columns=(CLIENT, _required("task", STRING), AS_OF, _required("label", DOUBLE), _optional("label_text", STRING)),
    key=("client_id", "task", "as_of"),
)
BATCHES = Table(
    name="batches",
    columns=(
        _required("batch", T.LongType()),
        _required("file", STRING),
        _required("size", T.LongType()),
        _required("content", STRING),
        _required("taken", STRING),
        _required("entry", STRING),
        _required("columns", T.ArrayType(STRING)),
        _required("currencies", T.ArrayType(STRING)),
        _required("events", T.LongType()),
        _required("batch_counts", T.MapType(STRING, T.LongType())),
        _required("taken_at", T.TimestampType()),
        _optional("since", T.LongType()),
        _optional("version", T.LongType()),
        _optional("way", STRING),
    ),
    key=("batch", "file"),
    checks={"taken_known": "taken IN ('read', 'renamed', 'joined')"},
)
CHANGES = Table(
    name="changes",
    columns=(
        CLIENT,
        _required("batch", T.LongType()),
        _required("earliest", T.TimestampType()),
        _required("appended", T.LongType()),
        _required("corrected", T.LongType()),
        _required("deleted", T.LongType()),
    ),
    key=("client_id", "batch"),
)
DELETIONS = Table(
    name="deletions",
    columns=(CLIENT, _required("event_id", STRING), _required(EVENT_ORDER, T.DecimalType(38, 9))),
    key=("client_id", "event_id"),
)
PUBLICATIONS = Table(
    name="publications",
    columns=(
        _required("publication", T.LongType()),
        _required("published_at", T.TimestampType()),
        _required("pipeline", STRING),
        AS_OF,
        _required("tables", T.MapType(STRING, T.LongType())),
        _required("heads", T.ArrayType(STRING)),
        _required("gates", STRING),
        _required("status", STRING),
    ),
    key=("publication",),
    checks={"status_known": "status IN ('published', 'refused', 'rolled_back')"},
)
ERASURES = Table(
    name="erasures",
    columns=(
        _required("digest", STRING),
        _required("erased_at", T.TimestampType()),
        _optional("publication", T.LongType()),
        _required("learnt", T.ArrayType(STRING)),
    ),
    key=("digest",),
)
CHAMPIONS = Table(
    name="champions",
    columns=(
        _required("promotion", T.LongType()),
        _required("task", STRING),
        _required("head_id", STRING),
        _optional("replaced", STRING),
        _required("reason", STRING),
        _required("promoted_by", STRING),
        _required("promoted_at", T.TimestampType()),
        _required("publication", T.LongType()),
    ),
    key=("promotion",),
)
QUARANTINE = Table(
    name="quarantine",
    columns=(
        _required("stage", STRING),
        _required("reason", STRING),
        _optional("detail", STRING),
        _optional("source_file", STRING),
        _optional("payload", STRING),
        _required("quarantined_at", T.TimestampType()),
    ),
)
DOCUMENTS = Table(
    name="documents",
    columns=(
        CLIENT,
        AS_OF,
        _required("format", STRING),
        _required("text", STRING),
        _required("event_count_used", T.IntegerType()),
        _required("event_count_cut", T.IntegerType()),
        _optional("first_event_time", T.TimestampType()),
        _optional("last_event_time", T.TimestampType()),
        _required("token_estimate", T.IntegerType()),
        _required("input_hash", STRING),
        _required("serializer", STRING),
    ),
    key=("client_id", "as_of", "format"),
    checks={"no_future": "last_event_time IS NULL OR last_event_time < as_of", "cut_known": "event_count_cut >= 0"},
)
ENRICHED_DOCUMENTS = Table(
    name="enriched_documents",
    columns=(
        CLIENT,
        AS_OF,
        _required("stage", STRING),
        _required("variant", T.IntegerType()),
        _required("format", STRING),
        _required("engine", STRING),
        _required("prompt_id", STRING),
        _required("seed", T.LongType()),
        _required("text", STRING),
        _required("input_hash", STRING),
    ),
    key=("client_id", "as_of", "stage", "variant"),
)
WINDOWS = Table(
    name="windows",
    columns=(
        CLIENT,
        _required("format", STRING),
        _required("windowing", STRING),
        _required("bucket", T.IntegerType()),
        _required("period", T.DateType()),
        _required("place", T.IntegerType()),
        _optional("cut_at", T.TimestampType()),
        _required("first_event_time", T.TimestampType()),
        _required("last_event_time", T.TimestampType()),
        _required("event_count", T.IntegerType()),
        _required("token_estimate", T.IntegerType()),
        _required("text", STRING),
        _required("text_hash", STRING),
        _required("serializer", STRING),
    ),
    key=("client_id", "format", "windowing", "period", "place", "cut_at"),
    checks={
        "ends_before_its_cut": "cut_at IS NULL OR last_event_time < cut_at",
        "in_order": "first_event_time <= last_event_time AND place >= 0 AND event_count > 0",
        "bucket_range": f"bucket BETWEEN 0 AND {BUCKETS - 1}",
    },
)
STATES = Table(
    name="states",
    columns=(
        CLIENT,
        _required("bucket", T.IntegerType()),
        _required("text_hash", STRING),
        _required("backbone_id", STRING),
        _required("definition_id", STRING),
        _required("event_count", T.IntegerType()),
        _required("token_count", T.IntegerType()),
        _required("sums", VECTOR),
    ),
    key=("client_id", "text_hash", "backbone_id", "definition_id"),
    checks={"bucket_range": f"bucket BETWEEN 0 AND {BUCKETS - 1}"},
)
EMBEDDINGS = Table(
    name="embeddings",
    columns=(
        CLIENT,
        AS_OF,
        _required("backbone_id", STRING),
        _required("definition_id", STRING),
        _required("parts", T.MapType(STRING, VECTOR)),
        _required("token_count", T.IntegerType()),
        _required("event_count_used", T.IntegerType()),
        _required("event_count_cut", T.IntegerType()),
        _required("input_hash", STRING),
        _required("definition", STRING),
    ),
    key=("client_id", "as_of", "backbone_id", "definition_id"),
)
FEATURES = Table(
    name="features",
    columns=(
        CLIENT,
        AS_OF,
        _required("feature_set", STRING),
        _required("features", T.MapType(STRING, T.FloatType())),
    ),
    key=("client_id", "as_of", "feature_set"),
)


def _struct(*columns: tuple[str, T.DataType]) -> T.StructType:
    return T.StructType([_optional(name, kind) for name, kind in columns])


_LONG = T.LongType()
STEP_SUMS = T.ArrayType(_struct(("events", _LONG), ("sum", _LONG), ("high", _LONG), ("low", _LONG)))
"""Numbers that are whole numbers of steps: how many, their sum, and those of the high and low bits of their squares."""
DOUBLE_SUMS = T.ArrayType(_struct(("events", _LONG), ("sum", DOUBLE), ("mean", DOUBLE), ("spread", DOUBLE)))
"""Other numbers: how many, sum, mean, squared distances from the mean."""
# Logarithms of amounts over days: how many, both means, squared distances of days, products of both distances.
_TREND = _struct(("events", _LONG), ("time", DOUBLE), ("value", DOUBLE), ("spread", DOUBLE), ("joint", DOUBLE))
PARTIALS = Table(
    name="partials",
    columns=(
        CLIENT,
        _required("feature_set", STRING),
        _required("bucket", T.IntegerType()),
        _required("month", T.DateType()),
        _optional("event_before", T.TimestampType()),
        _required("first_event_time", T.TimestampType()),
        _required("last_event_time", T.TimestampType()),
        _required("event_count", _LONG),
        _required(
            "totals",
            T.ArrayType(
                _struct(
                    ("currency", STRING),
                    ("events", _LONG),
                    ("steps", STEP_SUMS),
                    ("doubles", DOUBLE_SUMS),
                    ("trend", _TREND),
                    ("times", T.ArrayType(T.TimestampType())),
                    ("amounts", T.ArrayType(DOUBLE)),
                )
            ),
        ),
        _required(
            "groups",
            T.ArrayType(
                _struct(
                    ("field", STRING),
                    ("code", STRING),
                    ("currency", STRING),
                    ("events", _LONG),
                    ("steps", STEP_SUMS),
                    ("doubles", DOUBLE_SUMS),
                )
            ),
        ),
    ),
    key=("client_id", "feature_set", "month"),
    checks={
        "in_order": "first_event_time <= last_event_time AND event_count > 0",
        "bucket_range": f"bucket BETWEEN 0 AND {BUCKETS - 1}",
    },
)
SCORES = Table(
    name="scores",
    columns=(
        CLIENT,
        _required("task", STRING),
        AS_OF,
        _required("head_id", STRING),
        _required("probabilities", VECTOR),
        _required("prediction", DOUBLE),
        _required("decile", T.IntegerType()),
        _required("reasons", T.ArrayType(REASON)),
    ),
    key=("client_id", "task", "as_of", "head_id"),
    checks={"decile_range": "decile BETWEEN 1 AND 10"},
)
BAYES = Table(
    name="bayes",
    columns=(
        CLIENT,
        _required("task", STRING),
        AS_OF,
        _required("probabilities", T.ArrayType(DOUBLE)),
    ),
    key=("client_id", "task", "as_of"),
)
REACHABLE = replace(BAYES, name="reachable")
LEADERBOARD = Table(
    name="leaderboard",
    columns=(
        _required("stage", STRING),
        _required("task", STRING),
        _required("method", STRING),
        _required("metric", STRING),
        _required("split", STRING),
        _required("mean", DOUBLE),
        _required("std", DOUBLE),
        _required("folds", T.IntegerType()),
        _required("seeds", T.IntegerType()),
        _optional("low", DOUBLE),
        _optional("high", DOUBLE),
        _optional("baseline", STRING),
        _optional("delta", DOUBLE),
        _optional("delta_low", DOUBLE),
        _optional("delta_high", DOUBLE),
    ),
    key=("stage", "task", "method", "metric", "split"),
)

LOW_DATA = Table(
    name="low_data",
    columns=(
        _required("stage", STRING),
        _required("task", STRING),
        _required("method", STRING),
        _required("metric", STRING),
        _required("labelled", T.IntegerType()),
        _required("mean", DOUBLE),
        _required("std", DOUBLE),
        _required("draws", T.IntegerType()),
        _optional("baseline", STRING),
        _optional("delta", DOUBLE),
        _optional("delta_std", DOUBLE),
    ),
    key=("stage", "task", "method", "metric", "labelled"),
)
SENTENCES = Table(
    name="sentences",
    columns=(
        CLIENT,
        AS_OF,
        _required("document", T.IntegerType()),
        _required("place", T.IntegerType()),
        _required("domain", STRING),
        _required("text", STRING),
    ),
    key=("client_id", "as_of", "place"),
)
TEXT_STATES = Table(
    name="text_states",
    columns=(
        CLIENT,
        AS_OF,
        _required("state_set", STRING),
        _required("backbone_id", STRING),
        _required(
            "sentences",
            T.ArrayType(
                T.StructType(
                    [
                        _optional("document", T.IntegerType()),
                        _optional("domain", STRING),
                        _optional("state", VECTOR),
                        _optional("text", STRING),
                    ]
                )
            ),
        ),
    ),
    key=("client_id", "as_of", "state_set"),
)
CONTACTS = Table(
    name="contacts",
    columns=(
        CLIENT,
        AS_OF,
        _required("campaign", STRING),
        _required("head_id", STRING),
        _required("probability", DOUBLE),
        _optional("uplift", DOUBLE),
        _optional("uplift_transformed", DOUBLE),
        _required("expected_profit", DOUBLE),
        _required("contact", T.BooleanType()),
        _optional("blocked", STRING),
        _required("reasons", T.ArrayType(REASON)),
    ),
    key=("client_id", "as_of", "campaign"),
)
RECOMMENDATIONS = Table(
    name="recommendations",
    columns=(
        CLIENT,
        AS_OF,
        _required("stage", STRING),
        _required("offer", STRING),
        _required("head_id", STRING),
        _required("rank", T.IntegerType()),
        _required("goal", STRING),
        _required("probability", DOUBLE),
        _required("expected_value", DOUBLE),
        _required("reason", STRING),
    ),
    key=("client_id", "as_of", "stage", "offer"),
    checks={"worth_making": "expected_value > 0"},
)
CAMPAIGN_LISTS = Table(
    name="campaign_lists",
    columns=(
        CLIENT,
        AS_OF,
        _required("stage", STRING),
        _required("campaign", STRING),
        _required("head_id", STRING),
        _required("rank", T.IntegerType()),
        _required("goal", STRING),
        _required("probability", DOUBLE),
        _required("expected_response", DOUBLE),
        _required("expected_value", DOUBLE),
        _required("cost", DOUBLE),
        _required("reason", STRING),
    ),
    key=("client_id", "as_of", "stage", "campaign"),
    checks={"worth_making": "expected_value > 0"},
)
CROSS_SELL = Table(
    name="cross_sell",
    columns=(
        CLIENT,
        AS_OF,
        _required("stage", STRING),
        _required("product", STRING),
        _required("head_id", STRING),
        _required("kind", STRING),
        _required("rank", T.IntegerType()),
        _required("goal", STRING),
        _required("probability", DOUBLE),
        _required("expected_value", DOUBLE),
        _required("reason", STRING),
    ),
    key=("client_id", "as_of", "stage", "product"),
    checks={"kind_known": "kind IN ('cross_sell', 'up_sell')"},
)
STOCK_FORECASTS = Table(
    name="stock_forecasts",
    columns=(
        AS_OF,
        _required("stage", STRING),
        _required("region", STRING),
        _required("category", STRING),
        _required("head_id", STRING),
        _required("horizon_days", T.IntegerType()),
        _required("expected", DOUBLE),
        _required("low", DOUBLE),
        _required("high", DOUBLE),
        _required("before", DOUBLE),
        _optional("observed", DOUBLE),
        _required("reason", STRING),
    ),
    key=("as_of", "stage", "region", "category"),
    checks={"interval_holds_it": "low <= expected AND expected <= high"},
)

LEASES = Table(
    name="leases",
    columns=(
        _required("lease", STRING),
        _required("pipeline", STRING),
        _required("host", STRING),
        _required("process", T.LongType()),
        _required("folder", STRING),
        _required("since", T.TimestampType()),
        _required("until", T.TimestampType()),
    ),
    key=("lease",),
)
"""Who is at work on the lake: no data, so it is none of TABLES, and no publication names it."""

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        EVENTS,
        BATCHES,
        CHANGES,
        DELETIONS,
        PUBLICATIONS,
        ERASURES,
        CHAMPIONS,
        DICTIONARIES,
        CLIENTS,
        SPLITS,
        LABELS,
        QUARANTINE,
        DOCUMENTS,
        ENRICHED_DOCUMENTS,
        WINDOWS,
        STATES,
        EMBEDDINGS,
        PARTIALS,
        FEATURES,
        SCORES,
        BAYES,
        REACHABLE,
        LEADERBOARD,
        RECOMMENDATIONS,
        CAMPAIGN_LISTS,
        CROSS_SELL,
        STOCK_FORECASTS,
        LOW_DATA,
        SENTENCES,
        TEXT_STATES,
        CONTACTS,
    )
}
