"""A pipeline over windows, from files to scores: each stage as a user would run it, the backbone untrained."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedding import EmbedConf
from ledgerlm.backbone.finetune import training_texts
from ledgerlm.backbone.layout import StateLayout
from ledgerlm.backbone.preparing import FinetuneConf, windows_to_learn
from ledgerlm.backbone.projection import Projection
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.jobs.cli import main
from ledgerlm.lake.lake import Lake
from ledgerlm.planning.conf import PlanConf
from ledgerlm.planning.measured import backbone_of, sample_of
from ledgerlm.planning.plans import plans_of
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.record import Records, StageRecord
from ledgerlm.runs.runner import Runner

CLIENTS, EVENTS = 24, 40
SPEC = """
name: small
source: {path: data, files: [{glob: events.csv}]}
client: client
time: {column: time, far_future: 2030-01-01}
amount: {column: amount}
event_id: {columns: [id]}
as_of: 2024-11-01
fields: [{name: kind}]
labels:
  - name: churn
    kind: binary
    file: {glob: labels.csv}
    id: client
    column: flag
    as_of: {column: at}
split: {rule: shuffle, share: 0.25}
"""
DEFINITION = {"dtype": "fp32", "parts": ["mean", "std", "recent", "surprise"]}
STAGES: dict[str, Any] = {
    "ingest": {},
    "serialize": {"windows": {"period": "month", "events": 8}, "everyone": True},
    "finetune": {
        "formats": {"windows": 1.0},
        "train": False,
        "shape": {"width": 32, "layers": 2, "heads": 2, "ffn": 64},
        "context": 128,
        "vocabulary": 300,
    },
    "embed": {"source": "windows", "partitions": 2, "definition": DEFINITION},
    "aggregate": {"max_codes": 5, "everyone": True},
    "fit": {
        "representation": "llm4es+agg",
        "sources": [{"table": "embeddings", "parts": ["mean", "surprise"]}, {"table": "features"}],
        "kind": "logistic_regression",
        "mllib": {"max_iter": 5},
    },
    "score": {},
}


def write_data(folder: Path) -> None:
    """Clients with an event a week, of which two thirds have labels as of May and August."""
    start = dt.datetime(2024, 1, 3, 9)
    lines = ["id,client,time,amount,kind"]
    for client in range(CLIENTS):
        for place in range(EVENTS):
            time = start + dt.timedelta(days=7 * place, hours=client)
            lines.append(
                f"{client}-{place},c{client:02d},{time:%Y-%m-%d %H:%M},{place % 9},{'abc'[(client + place) % 3]}"
            )
    labels = [
        f"c{client:02d},{client % 2},{at}" for client in range(0, CLIENTS, 3) for at in ("2024-05-15", "2024-08-15")
    ]
    labels += [f"c{client:02d},{client % 2},2024-08-15" for client in range(1, CLIENTS, 3)]
    (folder / "data").mkdir()
    (folder / "data" / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "data" / "labels.csv").write_text("\n".join(["client,flag,at", *labels]) + "\n")
    (folder / "spec.yaml").write_text(SPEC)


def pipeline(folder: Path, **changes: Any) -> Runner:
    stages = {name: {**conf, **changes.pop(name, {})} for name, conf in STAGES.items()} | changes
    content = {"pipeline": "small", "out": str(folder / "out"), "data": str(folder / "spec.yaml"), "stages": stages}
    (folder / "run.yaml").write_text(json.dumps(content))
    return Runner(load_pipeline(folder / "run.yaml"), Progress())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def records(spark: SparkSession, folder: Path) -> dict[str, StageRecord]:
    return {stage.record.name: stage.record for stage in pipeline(folder).run().stages}


@pytest.fixture(scope="module")
def lake(spark: SparkSession, records: dict[str, StageRecord], folder: Path) -> Lake:
    return Lake(str(folder / "out" / "lake"), spark)


def test_every_event_is_in_one_window_and_every_time_has_its_vector(
    lake: Lake, records: dict[str, StageRecord]
) -> None:
    told = records["serialize"].facts
    assert (told["events"], told["clients_with_events"], told["windowing"]) == (CLIENTS * EVENTS, CLIENTS, "month:8")
    windows = lake.read("windows")
    whole = windows.where("cut_at IS NULL")
    assert told["windows"] == whole.count() == records["serialize"].rows_out - told["cut_windows"]
    assert whole.agg(F.sum("event_count")).collect()[0][0] == CLIENTS * EVENTS
    assert told["cut_windows"] == 8 * 2 + 8
    assert told["example"]["text"].startswith("days|weekday|hour|kind|amount\n")
    # Everyone as of the end, and the labels' times.
    events, labels = lake.read("events"), lake.read("labels").select("client_id", "as_of").distinct()
    end = lake.read("clients").select("client_id", F.lit("2024-11-01").cast("timestamp").alias("as_of"))
    asked = labels.unionByName(end)
    counted = events.join(asked, "client_id").where("event_time < as_of").groupBy("client_id", "as_of").count()
    expected = {tuple(row) for row in counted.collect()}
    vectors = lake.read("embeddings")
    found = {tuple(row) for row in vectors.select("client_id", "as_of", "event_count_used").collect()}
    assert found == expected
    assert len(found) == 8 * 3 + 8 * 2 + 8
    embedded = records["embed"]
    assert (embedded.rows_in, embedded.rows_out, embedded.quarantined) == (len(found), len(found), 0)
    assert embedded.facts["definition"]["text_format"] == "compact@month:8"
    assert embedded.facts["definition"]["fields"] == ["days", "weekday", "hour", "kind", "amount"]
    scores = {tuple(row) for row in lake.read("scores").select("client_id", "as_of").collect()}
    assert scores == {key[:2] for key in found}


def test_a_text_is_read_once_whatever_is_asked_of_it(lake: Lake, records: dict[str, StageRecord]) -> None:
    states, windows = lake.read("states"), lake.read("windows")
    texts = windows.select("client_id", "text_hash").distinct().count()
    facts = records["embed"].facts
    assert facts["embedded"] == states.count() == texts
    assert facts["reused"] == 0
    tokens = states.agg(F.sum("token_count")).collect()[0][0]
    assert facts["tokens"] == tokens


# Before a stage is run again, whose record then tells of less work.
def test_a_plan_measures_a_pipeline_that_ran(lake: Lake, records: dict[str, StageRecord], folder: Path) -> None:
    runner = pipeline(folder)
    found = sample_of(runner.pipeline, runner.records, lake)
    assert found.events == CLIENTS * EVENTS
    assert (found.windowing.windowing, found.definition.parts) == ("month:8", tuple(DEFINITION["parts"]))
    people = found.population
    assert (people["clients"], people["events"]) == (CLIENTS, EVENTS)
    # An event a week for nine months.
    assert people["months"] == pytest.approx(39 * 7 / 30.44, rel=0.01)
    assert people["windows"] == records["serialize"].facts["windows"] / CLIENTS
    assert people["cuts"] == (8 * 2 + 8) / CLIENTS
    # An event on the newest day of the data, and 7, 14, 21 and 28 days before it.
    assert people["active"] == pytest.approx(5 / 30)
    assert people["night_events"] == 1
    states = lake.read("states").agg(F.sum("token_count"), F.sum("event_count"), F.count("*")).collect()[0]
    frame = people["frame_tokens"] - 1
    assert frame >= len(["days", "weekday", "hour", "kind", "amount"])
    assert people["tokens"] * states[1] + frame * states[2] == pytest.approx(states[0])
    heads = records["fit"].facts["heads"]
    assert (people["heads"], people["training_rows"]) == (1, heads[0]["training_rows"])
    layout = StateLayout(found.definition, 32)
    assert found.parts["fold"].units == states[2] * (layout.size * 4 + 150)
    assert found.parts["ingest"].units == CLIENTS * EVENTS
    assert found.parts["score"].units == lake.read("scores").count()
    took = {name: record.seconds for name, record in records.items()}
    assert found.parts["aggregate"].seconds == took["aggregate"]
    assert found.parts["embed"].seconds + found.parts["fold"].seconds <= took["embed"] + 0.01
    assert found.bytes["event"] > 0 and found.bytes["score"] > 0


def test_a_plan_of_a_sample_needs_no_number_but_clients_backbone_and_hardware(
    lake: Lake, records: dict[str, StageRecord], folder: Path
) -> None:
    runner = pipeline(folder)
    sample = sample_of(runner.pipeline, runner.records, lake, 2)
    conf = PlanConf.model_validate(
        {
            "population": {"clients": CLIENTS},
            "training": {"tokens": 0},
            "backbones": {"own": backbone_of(Path(records["embed"].facts["backbone"])).model_dump()},
            "hardware": {"executors": {"count": 1, "cores": 2, "hour_price": 0}, "storage_price": 0},
            "speeds": {"finetune": {}, "publish": {}},
        }
    )
    inputs, (plan,) = plans_of(conf, [sample])
    assert {one.origin for one in inputs.told if one.key.startswith("population.")} == {"measured"}
    planned = {one.stage: one for one in plan.first.stages}
    # The sample planned again: what its stages took and read; its head reads two parts of four, and all are planned.
    assert planned["fit"].wall_seconds.value >= records["fit"].seconds
    for name in ("ingest", "serialize", "aggregate", "score"):
        assert planned[name].wall_seconds.value == pytest.approx(records[name].seconds, rel=0.02), name
    # Texts that stand twice in a client are read once, which only a sample of such clients would show.
    texts = lake.read("windows").join(lake.read("states"), ["client_id", "text_hash"])
    tokens = texts.agg(F.sum("token_count") + F.count("*")).collect()[0][0]
    assert planned["embed"].tokens.value == pytest.approx(tokens, rel=0.1)
    model, fold = sample.parts["embed"], sample.parts["fold"]
    folded = texts.count() / lake.read("states").count() * fold.seconds
    read = planned["embed"].flops.value / model.units * model.seconds
    assert planned["embed"].wall_seconds.value == pytest.approx(read + folded, rel=0.01)


def test_the_command_plans_from_a_pipeline_that_ran(
    lake: Lake, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.yaml"
    content = {
        "population": {"clients": [1_000_000], "events": 300},
        "training": {"tokens": 0},
        "backbones": {"one": {"parameters": 1.2e9, "width": 2048, "layers": 16, "vocabulary": 128_256}},
        "hardware": {"executors": {"count": 4, "cores": 8, "hour_price": 1}, "storage_price": 0.1},
        "speeds": {"finetune": {}, "publish": {}},
    }
    file.write_text(json.dumps(content))
    assert main(["plan", str(file), "--pipeline", f"{folder / 'run.yaml'},seed=42", "--form", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = {one["key"]: one for one in found["inputs"]}
    assert (told["population.events"]["value"], told["population.events"]["origin"]) == (300, "given")
    assert told["population.windows"]["origin"] == "measured"
    assert told["speeds.serialize.rate"]["how"].startswith("events a second and core; of one sample")
    assert told["population.windows"]["how"] == f"small ({CLIENTS} clients, {CLIENTS * EVENTS} events)"
    assert found["plans"][0]["first"]["bottleneck"]["stage"] == "embed", "a billion weights on 32 cores"


def test_states_are_used_again_and_give_the_same_bytes(
    lake: Lake, records: dict[str, StageRecord], folder: Path
) -> None:
    def rows(table: str) -> list[dict[str, Any]]:
        found = [row.asDict() | {"run_id": ""} for row in lake.read(table).collect()]
        return sorted(found, key=lambda row: (row["client_id"], str(row.get("as_of", row.get("text_hash")))))

    before = {table: rows(table) for table in ("states", "embeddings")}
    runner = pipeline(folder)
    again = runner.run(only="embed", fresh=True).stages[0].record
    assert (again.facts["reused"], again.facts["embedded"]) == (records["embed"].facts["embedded"], 0)
    assert {table: rows(table) for table in before} == before


def test_the_backbone_learns_from_no_event_at_or_after_the_newest_time_asked(lake: Lake) -> None:
    windows, clients = lake.read("windows"), lake.read("clients").withColumn("split", F.lit("train"))
    labels = lake.read("labels").select("client_id", "as_of")
    asked = clients.join(labels, "client_id", how="left").select(
        "client_id", F.coalesce("as_of", F.lit("2024-11-01").cast("timestamp")).alias("as_of")
    )
    learnt = windows_to_learn(windows, asked)
    texts = training_texts(clients, None, None, learnt, formats=["windows"])
    assert {row.kind for row in texts.select("kind").distinct().collect()} == {"windows"}
    lines = F.size(F.split("text", "\n")) - 1
    found = {row.client_id: row.lines for row in texts.groupBy("client_id").agg(F.sum(lines).alias("lines")).collect()}
    newest = asked.groupBy("client_id").agg(F.max("as_of").alias("as_of"))
    before = lake.read("events").join(newest, "client_id").where("event_time < as_of").groupBy("client_id").count()
    assert found == {row.client_id: row["count"] for row in before.collect()}
    assert found["c00"] < EVENTS == found["c02"], "one has labels as of August, the other none"


def test_a_plan_refuses_a_pipeline_that_has_not_run(lake: Lake, folder: Path, tmp_path: Path) -> None:
    runner = pipeline(folder)
    with pytest.raises(DataError, match="serialize and embed has not finished; ledgerlm run it on a sample first"):
        sample_of(runner.pipeline, Records(tmp_path), lake)


def test_stages_that_do_not_fit_are_refused(folder: Path, lake: Lake) -> None:
    with pytest.raises(ConfigError, match="stage serialize wrote documents, and windows are to be read"):
        pipeline(folder, serialize={"windows": None}).run()
    for stage, change, message in (
        ("serialize", {"format": "json"}, "does not tell each event in one line"),
        ("serialize", {"max_tokens": 99}, "max_tokens cut documents"),
        ("embed", {"definition": {"max_tokens": 99}}, "windows are read whole"),
        ("embed", {"source": "documents", "serialize": "serialize"}, "serialize names whose windows are read"),
        ("finetune", {"more": ["elsewhere"]}, "not their windows"),
        ("finetune", {"formats": {"compact": 1}, "serialize": "serialize"}, "formats .* read none"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline(folder, **{stage: change})


def test_plans_say_which_tables_a_stage_reads_and_writes(folder: Path) -> None:
    plans = {plan.stage.name: plan for plan in pipeline(folder).pipeline.plans}
    reads = {name: {read.table for read in plan.reads} for name, plan in plans.items()}
    writes = {name: {write.table for write in plan.writes} for name, plan in plans.items()}
    assert writes["serialize"] == {"windows"}
    assert reads["finetune"] == {"clients", "windows", "labels"}
    assert reads["embed"] == {"windows", "clients", "labels", "changes"}
    assert writes["embed"] == {"states", "embeddings"}
    assert EmbedConf(definition=EmbeddingDefinition()).reads == ("documents",)
    assert FinetuneConf().reads == ("clients", "documents")


def test_states_on_fewer_axes_fold_to_the_projected_vectors(
    records: dict[str, StageRecord], lake: Lake, folder: Path
) -> None:
    """Axes of training clients' windows; last in this file, since it adds vectors and states to those of others."""
    embed = STAGES["embed"] | {"job": "embed", "projection": "project"}
    stages = {"project": {"source": "windows", "size": 6, "definition": DEFINITION}, "embed_small": embed}
    done = {one.record.name: one.record for one in pipeline(folder, **stages).run().stages}
    project, small = done["project"].facts, done["embed_small"].facts
    training = lake.read("clients").where("split = 'train'").select("client_id")
    learnt = lake.read("windows").where("cut_at IS NULL").join(training, "client_id", how="left_semi")
    assert 0 < project["texts"] <= learnt.select("text_hash").distinct().count()
    assert (project["width"], project["size"]) == (32, 6)
    assert small["definition"]["projection"] == project["projection_id"]
    assert small["widths"] == {"mean": 6, "std": 6, "recent": 6, "surprise": 20}
    size = F.size("sums").alias("size")
    sizes = {row.size for row in lake.read("states").select(size).distinct().collect()}
    assert max(sizes) - min(sizes) == 3 * (32 - 6)

    def means(embed: StageRecord) -> dict[Any, Any]:
        own = lake.read("embeddings").where(F.col("definition_id") == embed.facts["definition_id"])
        rows = own.select("client_id", "as_of", "parts.mean").collect()
        return {(row[0], row[1]): np.array(row[2]) for row in rows}

    axes, wide = Projection.load(Path(project["projection"])), means(done["embed"])
    for key, mean in means(done["embed_small"]).items():
        expected = (wide[key] - axes.center) @ axes.axes.T
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-5 * np.abs(wide[key]).max())
    other = embed | {"definition": DEFINITION | {"norm": "pre"}}
    with pytest.raises(ConfigError, match="its axes are of other states: norm hf, not pre"):
        pipeline(folder, **stages | {"embed_small": other}).run()
    with pytest.raises(ConfigError, match="size 33, but a token's state has 32 numbers"):
        pipeline(folder, **stages | {"project": {"source": "windows", "size": 33}}).run()
