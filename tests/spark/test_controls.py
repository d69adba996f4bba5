"""Controls for the leaderboard: the bag of tokens and an untrained backbone, without Ray."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from transformers import AutoModelForCausalLM

from ledgerlm.backbone.model import backbone_id, read_card
from ledgerlm.backbone.preparing import FinetuneConf, gather_texts
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Runner
from ledgerlm.text.tokenizer import load_tokenizer
from tests.small_lake import BEFORE

AS_OF = datetime(2018, 1, 1, tzinfo=UTC)
SHAPE = {"width": 16, "layers": 1, "heads": 2, "ffn": 16}


def document(client: int) -> str:
    lines = [f"+{n % 3}d|SHOP {(n + client) % 5}|{n % 4}0" for n in range(3 + client)]
    return "\n".join(["days|shop|amount", *lines])


def fill(spark: SparkSession, root: Path, prefix: str) -> None:
    """Documents of ten clients, the last a test client, and three rewrites of each."""
    tables = Lake(str(root), spark)
    rows = [(f"{prefix}{n}", AS_OF, "compact", document(n), f"h{n}") for n in range(10)]
    frame = spark.createDataFrame(
        rows, "client_id string, as_of timestamp, format string, text string, input_hash string"
    )
    known = {"event_count_used": 2, "event_count_cut": 0, "token_estimate": 20, "serializer": "compact/1"}
    variant = F.explode(F.sequence(F.lit(0), F.lit(2)))
    rewritten = frame.withColumn("variant", variant).select(
        "client_id",
        "as_of",
        "variant",
        F.element_at(F.array(F.lit("html"), F.lit("json"), F.lit("yaml")), F.col("variant") + 1).alias("format"),
        F.lit("enrich").alias("stage"),
        F.lit("template").alias("engine"),
        F.lit("p").alias("prompt_id"),
        F.lit(1).cast("long").alias("seed"),
        F.concat(F.lit("rewrite "), F.col("variant").cast("string")).alias("text"),
        "input_hash",
    )
    splits = [(f"{prefix}{n}", "test" if n == 9 else "train") for n in range(10)]
    for name, content in {
        "documents": frame.select("*", *(F.lit(value).alias(key) for key, value in known.items())),
        "clients": spark.createDataFrame(splits, "client_id string, split string"),
        "enriched_documents": rewritten,
    }.items():
        tables.write(name, content, by=BEFORE)


@pytest.fixture(scope="module")
def lakes(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two pipelines with a lake each."""
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    fill(spark, one / "lake", "a")
    fill(spark, other / "lake", "b")
    return one, other


def runner(folder: Path, stages: dict[str, dict[str, object]]) -> Runner:
    content = {"pipeline": "small", "out": str(folder), "data": "datasets/complete_journey.yaml", "stages": stages}
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(content))
    return Runner(load_pipeline(file), Progress())


UNTRAINED: dict[str, object] = {"job": "finetune", "train": False, "shape": SHAPE, "vocabulary": 300, "context": 64}


def test_untrained_backbone_and_bag_of_tokens(spark: SparkSession, lakes: tuple[Path, Path]) -> None:
    one, _ = lakes
    stages: dict[str, dict[str, object]] = {
        "first": UNTRAINED,
        "again": {**UNTRAINED, "base": "first"},
        "narrow": {**UNTRAINED, "vocabulary": 262},
        "wider": {**UNTRAINED, "base": "narrow", "value_tokens": 5},
        # Its tokenizer knows every value: nothing is added, and no token moves.
        "full": {**UNTRAINED, "base": "first", "value_tokens": 5},
        "count": {"backbone": "first"},
    }
    first, again, narrow, wider, full, count = (stage.record for stage in runner(one, stages).run().stages)
    folder = Path(first.facts["backbone"])
    card = read_card(folder)
    assert (card.tokens_trained, card.held_out_loss) == (0, None)
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 16
    # What is fine-tuned from a stage of this pipeline starts at that stage's weights.
    assert Path(again.facts["backbone"]).name == backbone_id(folder)
    assert Path(full.facts["backbone"]).name == backbone_id(folder)
    plain, grown = (Path(one.facts["backbone"]) for one in (narrow, wider))
    assert read_card(grown).vocabulary == len(load_tokenizer(grown)) == read_card(plain).vocabulary + 5

    rows = Lake(str(one / "lake"), spark).read("features").where("feature_set = 'bag_of_tokens'").collect()
    assert len(rows) == count.rows_out == 10
    features = {row["client_id"]: row["features"] for row in rows}
    short, long = features["a0"], features["a9"]
    assert long["tokens"] > short["tokens"]
    counts = {name: round(np.expm1(value)) for name, value in short.items()}
    assert counts.pop("tokens") == sum(counts.values())
    tokenizer = load_tokenizer(folder)
    expected = Counter(tokenizer.convert_ids_to_tokens(tokenizer(document(0), add_special_tokens=False)["input_ids"]))
    assert counts == {f"token:{token}": number for token, number in expected.items()}


def test_the_choice_of_texts(spark: SparkSession, lakes: tuple[Path, Path]) -> None:
    one, other = lakes

    def chosen(**conf: object) -> list[tuple[str, str]]:
        settings = FinetuneConf.model_validate(conf)
        roots = [str(one / "lake"), *settings.more_lakes]
        texts = gather_texts([Lake(root, spark).read for root in roots], settings)
        return sorted((row["client_id"], row["text"].split("\n")[0]) for row in texts.collect())

    raw = chosen(formats={"compact": 1.0})
    assert len(raw) == 9 and {client for client, _ in raw} == {f"a{n}" for n in range(9)}
    mixed = chosen(formats={"enriched": 1.0})
    assert len(mixed) == 27
    assert {text for _, text in chosen(formats={"enriched": 1.0}, variants=1)} == {"rewrite 0"}
    assert {text for _, text in chosen(formats={"enriched": 1.0}, enriched_formats=["yaml", "json"])} == {
        "rewrite 1",
        "rewrite 2",
    }
    assert len(chosen(formats={"compact": 1.0, "enriched": 1.0})) == 36
    both = chosen(formats={"compact": 1.0}, more=[str(other)])
    assert len(both) == 18 and ("b0", "days|shop|amount") in both
    assert not [client for client, _ in both if client.endswith("9")], "test clients of the other lake must not be seen"
    assert both == chosen(formats={"compact": 1.0}, more=[str(other / "lake")])


def test_missing_models_and_documents_are_told(spark: SparkSession, lakes: tuple[Path, Path]) -> None:
    one, _ = lakes
    with pytest.raises(ArtefactError, match=r"Qwen3-0.6B-Base.*conf/backbones/qwen3-0.6b.yaml"):
        runner(one, {"finetune": {"backbone": "qwen3-0.6b"}}).run()
    with pytest.raises(DataError, match="format 'prose'"):
        runner(one, {"first": UNTRAINED, "count": {"format": "prose"}}).run()
