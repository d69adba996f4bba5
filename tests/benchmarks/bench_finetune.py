"""Finetune through Ray Train and DeepSpeed against a bare torch loop: same model, same packs, as many threads.

The bare loop takes its turn before and after, so that a machine that grows busier does not decide.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.sql import SparkSession

from ledgerlm.backbone.causal import parameter_groups
from ledgerlm.backbone.finetune import finetune, window_batches
from ledgerlm.backbone.loss import CausalLoss, loss_inputs
from ledgerlm.backbone.model import new_llama
from ledgerlm.backbone.settings import BackboneRankConf, TrainingConf
from ledgerlm.backbone.store import Reader, WindowStore
from ledgerlm.engines.ray import RayConf, RayEngine
from ledgerlm.text.tokenizer import load_tokenizer, train_tokenizer, window_start
from ledgerlm.training.cpu import bound_kernel_caches, faster_precision, keep_freed_memory
from ledgerlm.training.log import read_metrics
from ledgerlm.training.loop import Place
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.settings import METRICS, WorkersConf

HEADER = "days|weekday|hour|category|store|amount"
CONTEXT = 768
SETTINGS = WorkersConf(ranks=2, threads=1)
WARM_UP_LINES = 2  # each of twenty steps
STEPS = 200


def run(spark: SparkSession, workdir: Path) -> list[dict[str, Any]]:
    """Measures; returns one row of what, against, ratio, target, better and detail."""
    del spark  # no table is involved
    conf = stage(workdir)
    before = bare_tokens_per_second(conf)
    engine = RayEngine(RayConf(cpus=SETTINGS.ranks * SETTINGS.threads, object_store_gb=0.3))
    engine.start()
    try:
        started = time.perf_counter()
        facts = finetune(conf, SETTINGS, on_progress=lambda line: None)
        seconds = time.perf_counter() - started
    finally:
        engine.stop()
    through_ray = median(line["per_second"] for line in read_metrics(conf.folder / METRICS)[WARM_UP_LINES:])
    bare = median([before, bare_tokens_per_second(conf)])
    detail = (
        f"{through_ray:,.0f} against {bare:,.0f} tokens/s, {facts['precision']}, {facts['steps']} steps; "
        f"{seconds - facts['training_seconds']:.0f} s of the run are not training"
    )
    return [
        {
            "what": "finetune through Ray Train and DeepSpeed, tokens/s after warm-up",
            "against": "a bare torch loop, same model, packs and threads",
            "ratio": through_ray / bare,
            "target": 0.85,
            "better": "higher",
            "detail": detail,
        }
    ]


def stage(workdir: Path) -> BackboneRankConf:
    """Tokenizer and windows of histories with a long tail of lengths, and what each rank is told."""
    draw = np.random.default_rng(0)
    sizes = np.clip(np.exp(draw.normal(math.log(12), 1.1, 900)).astype(int), 1, 300)
    texts = [history(draw, int(size)) for size in sizes]
    train_tokenizer(texts, vocabulary_size=4096).save_pretrained(workdir / "tokenizer")
    tokenizer = load_tokenizer(workdir / "tokenizer")
    content, start = tokenizer.backend_tokenizer.to_str(), window_start(tokenizer)
    for split in ("train", "heldout"):
        folder = workdir / "windows" / f"split={split}"
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(SETTINGS.ranks):
            part = texts[rank :: SETTINGS.ranks] if split == "train" else texts[rank : rank + 1]
            rows = pa.record_batch(
                {
                    "kind": ["compact"] * len(part),
                    "split": [split] * len(part),
                    "client": [*range(len(part))],
                    "text": part,
                }
            )
            batches = list(window_batches(iter([rows]), content, start, CONTEXT))
            pq.write_table(pa.Table.from_batches(batches), folder / f"part-{rank}.parquet")
    precision, _ = faster_precision("cpu")
    training = TrainingConf(max_tokens=STEPS * 2048, epochs=100, precision=precision, evaluations=1)
    return BackboneRankConf(
        windows=workdir / "windows",
        tokenizer=workdir / "tokenizer",
        folder=workdir / "train",
        context=CONTEXT,
        passes={"compact": 1.0},
        training=training,
        deepspeed={"zero_optimization": {"stage": 1}},
    )


def history(draw: np.random.Generator, events: int) -> str:
    """A compact document of so many events."""
    columns = (
        [f"+{days}d" for days in draw.geometric(0.2, events) - 1],
        draw.choice(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], events),
        [f"{hour}h" for hour in draw.integers(6, 23, events)],
        [f"CATEGORY {kind}" for kind in draw.zipf(1.4, events) % 300],
        [f"s{store}" for store in draw.zipf(1.6, events) % 500],
        draw.choice(["1.2", "2.2", "3.9", "6.8", "12", "22"], events),
    )
    return "\n".join([HEADER, *("|".join(values) for values in zip(*columns, strict=True))])


def bare_tokens_per_second(conf: BackboneRankConf) -> float:
    """Plain torch in this process, as many threads as all ranks have: forward, backward, clip, AdamW."""
    torch.set_num_threads(SETTINGS.ranks * SETTINGS.threads)
    keep_freed_memory()
    bound_kernel_caches()
    files = sorted((conf.windows / "split=train").glob("*.parquet"))
    store = WindowStore.build(files, list(conf.passes), conf.folder / "bare")
    pack_tokens, packs = conf.training.packing(SETTINGS.ranks)
    reader = Reader(store, conf.passes, pack_tokens, packs * SETTINGS.ranks, conf.seed, Ranks())
    model = new_llama(conf.shape, load_tokenizer(conf.tokenizer), context=conf.context, seed=conf.seed)
    loss = CausalLoss(model.to(torch.bfloat16 if conf.training.precision == "bf16" else torch.float32))
    optimizer = torch.optim.AdamW(parameter_groups(loss, 0.01), lr=1e-3, fused=True)
    rates, tokens, start = [], 0, time.perf_counter()
    for number, step in enumerate(reader.steps(Place())):
        for row in step.batches:
            (loss(*loss_inputs(row)) * step.weight / len(step.batches)).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), conf.training.clip)
        optimizer.step()
        optimizer.zero_grad()
        tokens += step.size
        if (number + 1) % 20 == 0:
            rates.append(tokens / (time.perf_counter() - start))
            tokens, start = 0, time.perf_counter()
        if number + 1 >= STEPS // 2:
            break
    return median(rates[WARM_UP_LINES:])
