"""Finetune by Ray Train and DeepSpeed: full and LoRA, each ZeRO stage, through deaths and on other numbers of ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from transformers import AutoModelForCausalLM

from ledgerlm.backbone.finetune import finetune, window_batches
from ledgerlm.backbone.lora import LoraConf, merge
from ledgerlm.backbone.model import load_backbone, new_llama, read_card
from ledgerlm.backbone.settings import BackboneRankConf, LlamaShape, TrainingConf
from ledgerlm.config import load_yaml, shipped
from ledgerlm.engines.ray import RayEngine
from ledgerlm.errors import ConfigError, EngineError
from ledgerlm.lake.lake import Lake
from ledgerlm.progress import Progress
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.runner import Run, Runner
from ledgerlm.text.tokenizer import load_tokenizer, train_tokenizer, window_start
from ledgerlm.training.log import read_metrics
from ledgerlm.training.settings import WorkersConf
from tests.small_lake import BEFORE

SHAPE = LlamaShape(width=32, layers=2, heads=2, ffn=64)
TRAINING = TrainingConf(
    batch_tokens=512, learning_rate=1e-2, epochs=4, max_tokens=40_000, precision="fp32", evaluations=2
)


def document(client: int) -> str:
    """Events in a fixed rhythm, so that a small model can learn them."""
    draw = np.random.default_rng(client)
    first, events = draw.integers(7), draw.integers(10, 40)
    lines = [f"+1d|D{(first + n) % 7}|SHOP {n % 5}|{(1 + n % 3) * 10}" for n in range(events)]
    return "\n".join(["days|weekday|shop|amount", *lines])


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and windows as the job stages them: two files to train on, two held out."""
    folder = tmp_path_factory.mktemp("staged")
    texts = [document(client) for client in range(120)]
    train_tokenizer(texts, vocabulary_size=400).save_pretrained(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for split, part in (("train", texts[:100]), ("heldout", texts[100:])):
        (folder / "windows" / f"split={split}").mkdir(parents=True)
        for number in range(2):
            rows = part[number::2]
            batch = pa.record_batch(
                {
                    "kind": ["compact"] * len(rows),
                    "split": [split] * len(rows),
                    "client": [*range(len(rows))],
                    "text": rows,
                }
            )
            content = tokenizer.backend_tokenizer.to_str()
            cut = list(window_batches(iter([batch]), content, window_start(tokenizer), 96))
            file = folder / "windows" / f"split={split}" / f"part-{number}.parquet"
            pq.write_table(pa.Table.from_batches(cut), file)
    return folder


def worker(staged: Path, folder: Path, stage: int, **training: object) -> BackboneRankConf:
    return BackboneRankConf(
        windows=staged / "windows",
        tokenizer=staged / "tokenizer",
        folder=folder,
        shape=SHAPE,
        context=96,
        passes={"compact": 1.0},
        training=TRAINING.model_copy(update=training),
        deepspeed={"zero_optimization": {"stage": stage}},
        seed=11,
    )


def losses(folder: Path) -> dict[float, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}


@pytest.fixture
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """These trainings take two seconds: whoever kills one must see its lines at once."""
    monkeypatch.setattr("ledgerlm.training.launch._POLL_SECONDS", 0.02)


def kill_a_rank() -> None:
    """Ends one training process of this test's own Ray, as a lost machine would."""
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.kill()
            return
    raise AssertionError("no training process found")


@pytest.fixture(scope="module")
def base(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to fine-tune: the shape of the other tests, with the staged tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = load_tokenizer(staged / "tokenizer")
    new_llama(SHAPE, tokenizer, context=96, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_adapters_train_on_two_ranks_and_the_best_is_merged(
    ray_engine: RayEngine, staged: Path, base: Path, tmp_path: Path
) -> None:
    conf = worker(staged, tmp_path, 2, max_tokens=24_000, patience=2, evaluations=3)
    conf = conf.model_copy(update={"base": base, "lora": LoraConf(rank=4), "recompute": True})
    found = finetune(conf, WorkersConf(), on_progress=lambda line: None)
    curve = [line["held_out_loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "held_out_loss" in line]
    assert found["held_out"]["compact"] == min(curve) and curve[-1] < curve[0]
    assert found["ranks"] == 2 and not found["stopped_early"]

    before, after = load_backbone(base), AutoModelForCausalLM.from_pretrained(conf.result)
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]) == ("_proj" not in name), name
    again = merge(before, conf.result / "adapter")
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, after.state_dict()[name], msg=name)
    assert not [path for path in conf.result.rglob("*") if path.suffix in (".bin", ".pt")]


def test_ranks_on_a_machine_that_sees_no_folder_of_the_driver(
    ray_engine: RayEngine, staged: Path, place: Path, tmp_path: Path
) -> None:
    """They fetch windows and tokenizer; checkpoints, result and facts come back by the URL."""
    mine = place / "staging" / "finetune"
    shutil.copytree(staged, mine)
    conf = worker(mine, mine / "train", 1, max_tokens=10_000, checkpoint_minutes=1e-6)
    found = finetune(conf, WorkersConf(ranks=1), on_progress=lambda line: None)
    assert found["tokens_trained"] >= 10_000
    assert load_backbone(conf.result).config.hidden_size == SHAPE.width
    assert max(losses(conf.folder)) == found["steps"]
    there = tmp_path / "bucket" / "out" / "staging" / "finetune" / "train"
    assert [one.name for one in (there / "checkpoints").iterdir() if one.is_dir()]
    assert not (conf.folder / "checkpoints").exists()  # of no use to the driver
    assert not (conf.folder / "tokens").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("looked_at_often")
@pytest.mark.parametrize("stage", [1, 3])
def test_fewer_ranks_go_on_where_more_were_killed(
    ray_engine: RayEngine, staged: Path, tmp_path: Path, stage: int
) -> None:
    # On one rank packs are fuller, so it takes fewer steps: the resumed training is measured by one of its own kind.
    alone = WorkersConf(ranks=1)
    whole = finetune(worker(staged, tmp_path / "whole", stage), alone, on_progress=lambda line: None)
    killed: list[float] = []

    def kill(line: Mapping[str, float]) -> None:
        if line["step"] >= 40 and not killed:
            killed.append(line["step"])
            kill_a_rank()

    often = worker(staged, tmp_path / "cut", stage, checkpoint_minutes=1e-6)
    with pytest.raises(EngineError):
        finetune(often, WorkersConf(retries=0), on_progress=kill)
    reached = max(losses(tmp_path / "cut"))
    assert killed and reached >= 40
    resumed = finetune(often, alone, on_progress=lambda line: None)
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert resumed["ranks"] == 1 and resumed["tokens_trained"] == pytest.approx(whole["tokens_trained"], rel=0.05)
    assert next(iter(found)) == 20 and max(found) > reached
    # The optimizer's moments came along: the first loss after the change goes on from where it was.
    following = min(step for step in found if step > reached)
    assert found[following] < 1.2 * expected[reached]
    assert resumed["held_out"]["compact"] == pytest.approx(whole["held_out"]["compact"], rel=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("looked_at_often")
def test_a_killed_rank_changes_nothing(ray_engine: RayEngine, staged: Path, tmp_path: Path) -> None:
    whole = finetune(worker(staged, tmp_path / "whole", 1), WorkersConf(), on_progress=lambda line: None)
    killed: list[float] = []

    def kill(line: Mapping[str, float]) -> None:
        if line["step"] >= 40 and not killed:
            killed.append(line["step"])
            kill_a_rank()

    # ZeRO-2 shards gradients too, which must not change a number either.
    often = worker(staged, tmp_path / "cut", 2, checkpoint_minutes=1e-6)
    resumed = finetune(often, WorkersConf(), on_progress=kill)
    assert killed
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    assert expected[20] > 2 * min(expected.values())
    assert resumed["held_out"]["compact"] == pytest.approx(whole["held_out"]["compact"], rel=1e-4)
    left, right = (load_backbone(tmp_path / name / "result").state_dict() for name in ("whole", "cut"))
    for name, weight in left.items():
        torch.testing.assert_close(weight, right[name], atol=1e-4, rtol=1e-3)
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) <= 2


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Path:
    """Documents and rewrites of 80 training clients, documents of 10 test clients."""
    tables = Lake(str(tmp_path / "lake"), spark)
    as_of = datetime(2018, 1, 1, tzinfo=UTC)
    rows = [(f"c{n}", as_of, "compact", document(n) if n < 80 else "TEST|ONLY\n+1d|SECRET", f"h{n}") for n in range(90)]
    frame = spark.createDataFrame(
        rows, "client_id string, as_of timestamp, format string, text string, input_hash string"
    )
    known = {"event_count_used": 2, "event_count_cut": 0, "token_estimate": 20, "serializer": "compact/1"}
    splits = [(f"c{n}", "train" if n < 80 else "test") for n in range(90)]
    rewritten = frame.where("text NOT LIKE 'TEST%'").select(
        "client_id",
        "as_of",
        F.lit(0).alias("variant"),
        F.lit("prose").alias("format"),
        F.lit("enrich").alias("stage"),
        F.lit("template").alias("engine"),
        F.lit("p").alias("prompt_id"),
        F.lit(1).cast("long").alias("seed"),
        F.lit("The client went shopping.\nTwice.").alias("text"),
        "input_hash",
    )
    for name, content in {
        "documents": frame.select("*", *(F.lit(value).alias(key) for key, value in known.items())),
        "clients": spark.createDataFrame(splits, "client_id string, split string"),
        "enriched_documents": rewritten,
    }.items():
        tables.write(name, content, by=BEFORE)
    return tmp_path


def run_stage(folder: Path, **conf: object) -> Run:
    settings = {
        "formats": {"compact": 1.0, "enriched": 0.5},
        "context": 96,
        "vocabulary": 400,
        "held_out": 0.2,
        "shape": SHAPE.model_dump(),
        **TRAINING.model_dump(include={"batch_tokens", "learning_rate", "max_tokens", "evaluations"}),
        **conf,
    }
    content = {
        "pipeline": "small",
        "out": str(folder),
        "data": "datasets/complete_journey.yaml",
        "stages": {"finetune": settings},
    }
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(content))
    return Runner(load_pipeline(file), Progress()).run(only="finetune")


@pytest.mark.slow
def test_the_stage_leaves_a_backbone_that_learnt(spark: SparkSession, ray_engine: RayEngine, lake: Path) -> None:
    [stage] = run_stage(lake, max_tokens=15_000).stages
    facts = stage.record.facts
    folder = Path(facts["backbone"])
    assert stage.record.rows_in == 160 and stage.record.rows_out > 160
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))
    assert read_card(folder).backbone_id == facts["backbone_id"] == folder.name

    model = AutoModelForCausalLM.from_pretrained(folder)  # plain transformers, plain attention
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([[window_start(tokenizer), *tokenizer(document(500))["input_ids"]]])[:, :96]
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 0.7 * math.log(len(tokenizer))
    assert loss == pytest.approx(facts["held_out_loss_compact"], abs=0.6)
    assert 1 < facts["perplexity_enriched"] < len(tokenizer)
    assert "SECRET" not in json.dumps(tokenizer.get_vocab()), "test clients must not be seen"
    assert facts["curve"]["loss"][0] > facts["curve"]["loss"][-1]
    assert len(facts["curve"]["held_out_loss"]) == 2
    assert facts["tokens_trained"] >= 15_000 and facts["ranks"] == 2 and facts["precision"] in ("fp32", "bf16")
    assert run_stage(lake, max_tokens=15_000).stages[0].skipped


@pytest.mark.slow
def test_sharded_and_offloaded_weights_learn_the_same(ray_engine: RayEngine, staged: Path, tmp_path: Path) -> None:
    """Every shipped DeepSpeed file against ZeRO-0, in bf16 as large models are trained."""
    ends = {}
    files = sorted(shipped("deepspeed").glob("*.json"))
    assert len(files) == 7
    for file in files:
        conf = worker(staged, tmp_path / file.stem, 0, max_tokens=12_000, precision="bf16")
        conf = conf.model_copy(update={"deepspeed": load_yaml(file)})
        ends[file.stem] = finetune(conf, WorkersConf(), on_progress=lambda line: None)["held_out"]["compact"]
    assert ends == {name: pytest.approx(ends["zero0"], rel=0.05) for name in ends}
    model = load_backbone(tmp_path / "zero3" / "result")
    assert model.get_input_embeddings().weight.shape == (len(load_tokenizer(staged / "tokenizer")), SHAPE.width)


@pytest.mark.slow
def test_a_worker_tells_what_the_user_can_mend(ray_engine: RayEngine, staged: Path, tmp_path: Path) -> None:
    wrong = worker(staged, tmp_path / "wrong", 1).model_copy(update={"deepspeed": {"train_batch_size": 4}})
    with pytest.raises(ConfigError, match="train_batch_size"):
        finetune(wrong, WorkersConf(retries=0), on_progress=lambda line: None)
