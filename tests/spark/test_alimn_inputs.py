"""What ALIMN reads: sentences before as_of, structured features fitted on training rows, splits in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.model import backbone_id, new_llama
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.errors import ArtefactError, ConfigError, DataError
from ledgerlm.events.ingest import ingest_events
from ledgerlm.events.labels import client_attributes, first_events, labels_of
from ledgerlm.events.spec import load_spec
from ledgerlm.events.splits import newest_from, with_newest_split
from ledgerlm.heads.alimn.states import (
    different_sentences,
    mean_features,
    read_sentences,
    state_definition,
    states_of,
)
from ledgerlm.heads.structured import Structured, StructuredConf, fit_structured
from ledgerlm.heads.vectors import Source, join_sources, learn_blocks
from ledgerlm.text.sentences import TextSource, notes, sentences_of
from ledgerlm.text.tokenizer import train_tokenizer

AS_OF = datetime(2025, 1, 1, tzinfo=UTC)
EVENTS = "client_id string, event_id string, event_time timestamp, event_seq long, type string, note string"
SOURCES = (
    TextSource(of="events", domain="marketing", where="type = 'CON'", text="note", document="to_date(event_time)"),
    TextSource(of="clients", domain="product", sentences=("The client is {age}.", "They hold {package}.")),
)


def events(spark: SparkSession) -> DataFrame:
    def at(days: int) -> datetime:
        return AS_OF - timedelta(days=days)

    rows = [
        ("a", "1", at(9), 0, "CON", "asked about rates. Wants a card!"),
        ("a", "2", at(9), 1, "CON", "lost <|im_start|>card"),
        ("a", "3", at(2), 0, "CON", "angry"),
        ("a", "4", at(2), 0, "POS", "not a contact"),
        ("a", "5", AS_OF, 0, "CON", "said after the label"),
        ("b", "1", at(5), 0, "CON", "   "),
    ]
    return spark.createDataFrame(rows, EVENTS)


def people(spark: SparkSession) -> DataFrame:
    rows = [("a", "41", "plus"), ("b", None, "basic")]
    return spark.createDataFrame(rows, "client_id string, age string, package string")


def as_of(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([("a", AS_OF), ("b", AS_OF)], "client_id string, as_of timestamp")


def told(spark: SparkSession, most: int = 24) -> DataFrame:
    return sentences_of(events(spark), people(spark), as_of(spark), SOURCES, most)


def test_sentences_stand_in_order_and_none_is_of_the_future(spark: SparkSession) -> None:
    rows = told(spark).orderBy("client_id", "place").collect()
    found = [(r["client_id"], r["document"], r["place"], r["domain"], r["text"]) for r in rows]
    assert found == [
        ("a", 0, 0, "product", "The client is 41."),
        ("a", 0, 1, "product", "They hold plus."),
        ("a", 1, 2, "marketing", "asked about rates."),
        ("a", 1, 3, "marketing", "Wants a card!"),
        ("a", 1, 4, "marketing", "lost ( im_start )card"),
        ("a", 2, 5, "marketing", "angry"),
        ("b", 0, 0, "product", "They hold basic."),
    ]


def test_the_newest_sentences_win(spark: SparkSession) -> None:
    kept = told(spark, most=2).where("client_id = 'a'").orderBy("place")
    assert [row["text"] for row in kept.collect()] == ["lost ( im_start )card", "angry"]


def test_a_source_with_an_unknown_column_is_named(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"no column 'pakage'.*package"):
        sentences_of(
            events(spark),
            people(spark),
            as_of(spark),
            (TextSource(of="clients", domain="product", sentences=("{pakage}",)),),
            5,
        )
    with pytest.raises(ConfigError, match="text source 0"):
        sentences_of(events(spark), people(spark), as_of(spark), (TextSource(of="events", domain="m", text="nota"),), 5)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    tokenizer = train_tokenizer(["asked about rates", "lost card", "angry"] * 20, vocabulary_size=300)
    new_llama(LlamaShape(width=16, layers=2, heads=2, ffn=16), tokenizer, context=64, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_different_sentence_is_read_once_and_given_to_its_clients(spark: SparkSession, backbone: Path) -> None:
    from ledgerlm.backbone.embedder import resolve_definition

    sentences = told(spark).persist()
    text = notes(sentences, as_of(spark)).where("client_id = 'a'").first()
    assert text is not None
    assert text["text"].split("\n\n")[0] == "The client is 41.\nThey hold plus."
    states = {}
    for prompt in (None, "Identify interests."):
        definition = resolve_definition(str(backbone), state_definition(prompt, 2), text_format="notes", fields=())
        asked = different_sentences(sentences, prompt)
        assert asked.count() == 7
        read = read_sentences(
            asked, sentences, folder=str(backbone), backbone_id=backbone_id(backbone), definition=definition
        ).persist()
        everyone = as_of(spark).union(spark.createDataFrame([("mute", AS_OF)], "client_id string, as_of timestamp"))
        of_clients = states_of(sentences, read, everyone).persist()
        rows = {row["client_id"]: row for row in of_clients.collect()}
        assert [one["text"] for one in rows["a"]["sentences"]][-1] == "angry"
        assert [one["document"] for one in rows["a"]["sentences"]] == [0, 0, 1, 1, 1, 2]
        mean = np.mean([one["state"] for one in rows["a"]["sentences"]], axis=0)
        assert rows["a"]["mean"] == pytest.approx(mean, abs=1e-5)
        assert (rows["mute"]["sentences"], rows["mute"]["mean"]) == ([], None)
        states[prompt] = np.array(rows["b"]["sentences"][0]["state"])
        features = {row["client_id"]: row["features"] for row in mean_features(of_clients, "text").collect()}
        assert (len(features["a"]), features["mute"]) == (16, {})
    assert not np.allclose(states[None], states["Identify interests."], atol=1e-3), "the prompt moves the states"


def table(spark: SparkSession) -> DataFrame:
    """Forty training clients, and test clients with numbers and categories that training never saw."""
    generator = np.random.default_rng(1)
    rows: list[tuple[object, ...]] = [
        (f"t{n}", "train", str(20 + n), "xy"[n % 2], generator.normal(size=3).tolist()) for n in range(40)
    ]
    rows += [("s0", "test", "1000000", "z", [1e6, 1e6, -1e6]), ("s1", "test", None, None, [0.0, 0.0, 0.0])]
    frame = spark.createDataFrame(rows, "client_id string, split string, age string, job string, s0_v array<float>")
    return frame.withColumn("as_of", F.lit(AS_OF))


def unkept(frame: DataFrame) -> DataFrame:
    """So few rows are soon computed again."""
    return frame


CONF = StructuredConf(numeric=("age",), categorical=("job",), components=2)


def features_of(spark: SparkSession, training: DataFrame) -> dict[str, dict[str, float]]:
    rows = table(spark)
    blocks = learn_blocks(training.select("client_id", "as_of", "s0_v"))
    found = fit_structured(training, blocks, CONF, keep=unkept).transform(rows)
    return {row["client_id"]: row["features"] for row in found.collect()}


def test_structured_features_are_standardised_and_one_hot(spark: SparkSession) -> None:
    found = features_of(spark, table(spark).where("split = 'train'"))
    ages = np.array([found[f"t{n}"]["age"] for n in range(40)])
    assert (ages.mean(), ages.std(ddof=1)) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    directions = np.array([found[f"t{n}"]["v:direction:0"] for n in range(40)])
    assert directions.std(ddof=1) == pytest.approx(1, abs=1e-4)
    assert found["t0"]["job=x"] == found["t1"]["job=y"] == 1
    assert "job=y" not in found["t0"]
    assert found["s0"]["job=(unknown)"] == found["s1"]["job=(unknown)"] == 1
    # An absent age is the median of the training clients, which is here their mean: zero, and zeros are left out.
    assert abs(found["s1"].get("age", 0.0)) < 0.1


def test_a_pipeline_that_was_saved_says_the_same(spark: SparkSession, tmp_path: Path) -> None:
    rows = table(spark)
    blocks = learn_blocks(rows.where("split = 'train'").select("client_id", "as_of", "s0_v"))
    fitted = fit_structured(rows.where("split = 'train'"), blocks, CONF, keep=unkept)
    fitted.save(tmp_path)
    again = Structured.load(tmp_path)
    assert again.card == fitted.card
    one, other = (model.transform(rows).orderBy("client_id").collect() for model in (fitted, again))
    assert one == other
    with pytest.raises(ArtefactError, match="run prepare"):
        Structured.load(tmp_path / "nowhere")


def test_a_planted_leak_from_test_clients_is_seen(spark: SparkSession) -> None:
    clean, leaking = (features_of(spark, rows) for rows in (table(spark).where("split = 'train'"), table(spark)))
    again = features_of(spark, table(spark).where("split = 'train'"))
    assert clean == again
    assert clean["s0"]["age"] > 1000, "a test client far outside is far outside, since it moved no mean"
    assert leaking["s0"]["age"] < 10
    assert "job=z" in leaking["s0"]
    assert abs(clean["t0"]["v:direction:0"] - leaking["t0"].get("v:direction:0", 0.0)) > 0.1


def test_each_appended_vector_has_directions_of_its_own(spark: SparkSession) -> None:
    """A wide vector whose numbers say the same thing forty times must not take the directions from a narrow one."""
    generator = np.random.default_rng(2)
    rows = [
        (f"t{n}", [float(common)] * 40, generator.normal(size=2).tolist())
        for n, common in enumerate(generator.normal(size=40))
    ]
    frame = spark.createDataFrame(rows, "client_id string, s0_wide array<float>, s1_narrow array<float>")
    frame = frame.withColumn("as_of", F.lit(AS_OF))
    fitted = fit_structured(frame, learn_blocks(frame), StructuredConf(components=2), keep=unkept)
    directions = ["wide:direction:0", "wide:direction:1", "narrow:direction:0", "narrow:direction:1"]
    assert list(fitted.card.names) == directions
    found = {row["client_id"]: row["features"] for row in fitted.transform(frame).collect()}
    kept = np.array([[found[name].get(f"narrow:direction:{place}", 0.0) for place in range(2)] for name, *_ in rows])
    narrow = np.array([vector for *_, vector in rows])
    rest = narrow - narrow.mean(0)
    explained = kept @ np.linalg.lstsq(kept, rest, rcond=None)[0]
    assert np.abs(rest - explained).max() < 1e-4, "two directions of two numbers lose nothing"


def test_the_same_part_of_two_sources_is_told_apart(spark: SparkSession) -> None:
    rows = [(f"t{n}", [float(n)], [float(n % 3)]) for n in range(9)]
    frame = spark.createDataFrame(rows, "client_id string, s0_mean array<float>, s1_mean array<float>")
    frame = frame.withColumn("as_of", F.lit(AS_OF))
    fitted = fit_structured(frame, learn_blocks(frame), StructuredConf(components=1), keep=unkept)
    found = fitted.transform(frame).where("client_id = 't8'").first()
    assert found is not None
    assert set(found["features"]) == {"s0_mean:direction:0", "s1_mean:direction:0"}


def test_prepare_job_fits_on_training_rows_only(spark: SparkSession) -> None:
    rows = table(spark).where("split = 'train'")
    joined = join_sources(
        (Source(table="features", feature_set="v"),),
        {
            "features": rows.select(
                "client_id",
                "as_of",
                F.lit("v").alias("feature_set"),
                F.create_map(F.lit("a"), F.lit(1.0).cast("float")).alias("features"),
            )
        },
    )
    fitted = fit_structured(
        joined.join(rows.drop("as_of", "s0_v"), "client_id"), learn_blocks(joined), CONF, keep=unkept
    )
    assert fitted.card.names == ("age", "job=x", "job=y", "job=(unknown)", "v:direction:0")
    with pytest.raises(ConfigError, match=r"no client attribute 'aeg'.*age"):
        fit_structured(rows, [], StructuredConf(numeric=("aeg",)), keep=unkept)


def test_the_newest_labels_are_the_test(spark: SparkSession) -> None:
    rows = [(f"c{n}", datetime(2025, 1, 1 + n // 2, tzinfo=UTC)) for n in range(20)]
    labels = spark.createDataFrame(rows, "client_id string, as_of timestamp")
    clients = labels.select("client_id").union(spark.createDataFrame([("none",)], "client_id string"))
    until = newest_from(labels, 0.3)
    split = {row["client_id"]: row["split"] for row in with_newest_split(clients, labels, until).collect()}
    days = dict(rows)
    train, test = ({days[c] for c, side in split.items() if side == one and c in days} for one in ("train", "test"))
    assert max(train) < until <= min(test)
    assert 0.2 <= sum(side == "test" for side in split.values()) / 20 <= 0.4
    assert split["none"] == "train"
    with pytest.raises(DataError, match="newest label is of"):
        newest_from(labels.withColumn("as_of", F.lit(AS_OF)), 0.3)


def test_bank_marketing_is_read_as_of_the_call_and_without_its_duration(spark: SparkSession, tmp_path: Path) -> None:
    table = pq.read_table(Path(__file__).parents[2] / "data" / "bank_marketing" / "contacts.parquet")
    assert (table.num_rows, "duration" in table.column_names) == (45_211, False)
    dates = table.column("date").to_pylist()
    assert dates == sorted(dates)
    pq.write_table(table.slice(45_000), tmp_path / "contacts.parquet")
    spec = load_spec("datasets/bank_marketing.yaml", [f"source.path={tmp_path}"])
    ingested = ingest_events(spark, spec)
    found = ingested.events.persist()
    assert found.count() == 211
    labelled = labels_of(spark, spec, first_events(found), found)
    labels = labelled.labels.collect()
    assert len(labels) == 211
    assert {row["label_text"] for row in labels} == {"yes", "no"}
    assert {row["as_of"].hour for row in labels} == {9}
    attributes = client_attributes(spark, spec, first_events(found)).first()
    assert attributes is not None
    assert set(attributes.asDict()) == {"client_id", *spec.attributes}
