"""The states of sentences: a backbone reads each different sentence once, after a prompt.

Prompt-based conditioning (source 003, section 3.1.2): e_i = LLM([r; x_i]). The prompt stands on the first line, which
the embedding definition leaves out of the mean: it moves the sentence's states and is no part of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.spark_embed import EmbedSettings, embed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

KEY = ("client_id", "as_of")
_SENTENCES = "array<struct<document:int,domain:string,state:array<float>,text:string>>"


def state_definition(prompt: str | None, last_k: int) -> EmbeddingDefinition:
    """How a sentence becomes a state: the mean over its tokens of the mean of the last k layers."""
    return EmbeddingDefinition(parts=("mean",), last_k=last_k, header=prompt is None, norm="scaled")


def different_sentences(sentences: DataFrame, prompt: str | None) -> DataFrame:
    """Each different sentence once, in the form that `embed` reads.

    Args:
        sentences: the `sentences` table.
        prompt: first line that the backbone reads before a sentence.

    Returns:
        client_id (SHA-256 of the sentence), as_of, text (with the prompt), event_count_used, event_count_cut,
        input_hash.
    """
    distinct = sentences.select("text").distinct()
    mark = F.sha2("text", 256)
    return distinct.select(
        mark.alias("client_id"),
        F.current_timestamp().alias("as_of"),
        F.col("text") if prompt is None else F.concat(F.lit(prompt.replace("\n", " ") + "\n"), "text").alias("text"),
        F.lit(1).alias("event_count_used"),
        F.lit(0).alias("event_count_cut"),
        mark.alias("input_hash"),
    )


def read_sentences(
    asked: DataFrame, sentences: DataFrame, *, folder: str, backbone_id: str, definition: EmbeddingDefinition
) -> DataFrame:
    """Gives each different sentence its state.

    Args:
        asked: from `different_sentences`, spread over the tasks that read.
        sentences: the `sentences` table.
        folder: backbone folder, as for `embed`.
        backbone_id: id that its weights must have.
        definition: resolved, from `state_definition`.

    Returns:
        text, state array<float> (null without one), reason (why it has none, else null); key text.
    """
    settings = EmbedSettings(buffer_rows=4096)
    rows = embed(asked, folder=folder, backbone_id=backbone_id, definition=definition, settings=settings)
    read = rows.select(F.col("client_id").alias("hash"), F.col("parts")["mean"].alias("state"), "reason")
    texts = sentences.select("text", F.sha2("text", 256).alias("hash")).distinct()
    return texts.join(read, on="hash", how="inner").select("text", "state", "reason")


def states_of(sentences: DataFrame, read: DataFrame, as_of: DataFrame) -> DataFrame:
    """The sentence states of each client.

    Args:
        sentences: the `sentences` table.
        read: from `read_sentences`.
        as_of: client_id, as_of of all clients.

    Returns:
        client_id, as_of, sentences array<struct<document, domain, state, text>> in order (empty where nothing is said),
        mean array<float> of the states (null where nothing is said); key (client_id, as_of).
    """
    from pyspark.ml.functions import array_to_vector, vector_to_array
    from pyspark.ml.stat import Summarizer

    known = sentences.join(read.where("reason IS NULL"), on="text", how="inner")
    entry = F.struct("place", "document", "domain", "state", "text")
    gathered = known.groupBy(*KEY).agg(
        F.sort_array(F.collect_list(entry)).alias("placed"),
        Summarizer.mean(array_to_vector(F.col("state"))).alias("centre"),
    )
    # Before the join: the function refuses the null of a client about whom nothing is said.
    gathered = gathered.withColumn("mean", vector_to_array(F.col("centre"), "float32"))
    kept = F.transform("placed", lambda one: F.struct(one["document"], one["domain"], one["state"], one["text"]))
    empty = F.array().cast(_SENTENCES)
    return as_of.join(gathered, on=list(KEY), how="left").select(
        *KEY,
        F.coalesce(kept.cast(_SENTENCES), empty).alias("sentences"),
        "mean",
    )


def mean_features(states: DataFrame, state_set: str) -> DataFrame:
    """The mean state of each client as features `STATE_SET:PLACE`, for heads that read no sentences.

    Args:
        states: from `states_of`.
        state_set: name of the set.

    Returns:
        client_id, as_of, feature_set, features map<string, float>, empty where nothing is said.
    """
    names = F.transform("mean", lambda _, place: F.concat(F.lit(f"{state_set}:"), place.cast("string")))
    features = F.coalesce(F.map_from_arrays(names, "mean"), F.create_map().cast("map<string, float>"))
    return states.select(*KEY, F.lit(state_set).alias("feature_set"), features.alias("features"))
