"""`make gpu OUT=FILE`: what one GPU does with packs, in at most nine minutes, one JSON line a part as it ends.

The parts come in the order of their worth, since a GPU is often lent for minutes: what the card can do, whether the
product computes the same on it (`tests/gpu`), how fast it embeds and trains. Models have random weights that are made
on the card, so nothing is fetched. `--tiny` runs every part on a processor in small shapes, which shows that the script
comes to its end and nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ledgerlm.backbone.attention import register
from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import PackReader
from ledgerlm.backbone.lora import LoraConf, with_lora
from ledgerlm.backbone.loss import loss_inputs
from ledgerlm.backbone.model import parameter_count
from ledgerlm.backbone.packs import Pack, pack
from ledgerlm.backbone.pooling import DocumentSums
from ledgerlm.backbone.settings import BackboneRankConf, TrainingConf
from ledgerlm.backbone.surprise import SurpriseSums
from ledgerlm.backbone.tokens import PackTokens
from ledgerlm.backbone.worker import start_deepspeed
from ledgerlm.planning.conf import BackboneConf
from ledgerlm.planning.estimate import learn_flops, read_flops
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.ranks import Ranks

LAST_START = 480.0  # seconds after which no part begins, so that the last one ends before nine minutes
FIELDS = tuple("abcdefghij")
_ALONE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
_SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
}
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
}


@dataclass
class Card:
    """What is measured, and what it was found to be capable of.

    Attributes:
        tiny: whether a processor stands in for it.
        peak: FLOPs a second of a large bf16 product on this very card; 0 until `limits` has run.
        copied: bytes a second that a copy reads and writes.
    """

    tiny: bool
    peak: float = 0.0
    copied: float = 0.0
    device: str = field(init=False)

    def __post_init__(self) -> None:
        self.device = "cpu" if self.tiny else "cuda"

    def wait(self) -> None:
        """Until the card has done all it was told to."""
        if not self.tiny:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, turns: int = 5, warm: int = 2) -> float:
        """Seconds of one turn, after some that do not count."""
        if self.tiny:
            turns = warm = 1
        for _ in range(warm):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(turns):
            work()
        self.wait()
        return (time.perf_counter() - started) / turns

    def gigabytes(self) -> float | None:
        """Most memory that was held since the part began."""
        return None if self.tiny else round(torch.cuda.max_memory_allocated() / 1e9, 2)

    def share(self, flops: float, seconds: float) -> float | None:
        """Share of the measured peak."""
        return round(flops / seconds / self.peak, 4) if self.peak else None


def environment(card: Card) -> dict[str, Any]:
    """Versions, the card, what is there to compile with."""
    started = time.perf_counter()
    import deepspeed

    return {
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "deepspeed_import_s": round(time.perf_counter() - started, 1),
        "gpu": None if card.tiny else torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "nvcc": shutil.which("nvcc") is not None,
        "compiler": shutil.which("g++") is not None,
    }


def limits(card: Card) -> dict[str, Any]:
    """The largest rate of products and copies that this very card reaches."""
    side, count = (256, 1 << 20) if card.tiny else (8192, 1 << 30)
    a, b = (torch.randn(side, side, device=card.device, dtype=torch.bfloat16) for _ in range(2))
    card.peak = 2 * side**3 / card.seconds(lambda: a @ b, turns=10)
    source = torch.zeros(count, device=card.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    card.copied = 2 * 2 * count / card.seconds(lambda: target.copy_(source))
    return {"matmul_tflops": round(card.peak / 1e12, 1), "copy_gb_s": round(card.copied / 1e9)}


def same(card: Card) -> dict[str, Any]:
    """The tests that compare the card with the processor."""
    folder = Path(__file__).parents[1] / "gpu"
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(folder)])
    return {"exit": int(code), "skipped": card.tiny}


def embedding(
    card: Card, name: str, *, windows: int, context: int, parts: tuple[str, ...], compiled: bool = False
) -> dict[str, Any]:
    """Tokens a second that the embedding reads, beside a padded batch of the same windows."""
    model = random_model(card, name).eval()
    row = random_pack(windows * context, context, model.config.vocab_size)
    tokens, count = every_token(row), len(row.input_ids)
    definition = EmbeddingDefinition(parts=parts, dtype="bf16").resolve(
        layer_count=model.config.num_hidden_layers, context=context, dtype="bf16", text_format="", fields=FIELDS
    )
    padded = None if compiled else padded_seconds(card, model, row)  # before states of layers are gathered
    reader = PackReader(model, definition)
    if compiled:
        reader.model.compile(dynamic=True)
    documents, device = len(row.lengths), torch.device(card.device)

    @torch.inference_mode()
    def read() -> None:
        sums = DocumentSums(documents, model.config.hidden_size, parts, definition.recent_half_life, device)
        reader.add(tokens, sums, SurpriseSums(documents, len(FIELDS), definition.surprise_events, device))

    seconds = card.seconds(read)
    return {
        "tokens_s": round(count / seconds),
        "peak_share": card.share(count * flops(model, row, surprise="surprise" in parts), seconds),
        "gb": card.gigabytes(),
        "times_padded": padded and round(padded / seconds, 2),
    }


def padded_seconds(card: Card, model: PreTrainedModel, row: Pack) -> float:
    """The same windows as one padded batch of transformers' own attention, cut so that it fits."""
    model.config._attn_implementation = "sdpa"
    longest = int(row.lengths.max())
    ids = torch.zeros(len(row.lengths), longest, dtype=torch.long)
    known = torch.arange(longest) < torch.from_numpy(row.lengths)[:, None]
    ids[known] = torch.from_numpy(row.input_ids).long()
    batches = [
        (part.to(card.device), mask.to(card.device)) for part, mask in zip(ids.split(8), known.split(8), strict=True)
    ]

    @torch.inference_mode()
    def read() -> None:
        for part, mask in batches:
            model.base_model(input_ids=part, attention_mask=mask.long(), use_cache=False)

    try:
        return card.seconds(read, turns=3, warm=1)
    finally:
        model.config._attn_implementation = register()


def training(
    card: Card,
    name: str,
    *,
    windows: int,
    context: int,
    lora: bool = False,
    recompute: bool = False,
    compiled: bool = False,
    profiled: bool = False,
) -> dict[str, Any]:
    """Tokens a second of a step through the product's own start of DeepSpeed, ZeRO stage 1."""
    model = random_model(card, name, torch.bfloat16 if lora else torch.float32)
    if lora:
        with_lora(model, LoraConf(), seed=0)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    row = random_pack(windows * context, context, model.config.vocab_size)
    count = len(row.input_ids)
    with tempfile.TemporaryDirectory() as folder:
        conf = BackboneRankConf(
            windows=Path(folder),
            tokenizer=Path(folder),
            folder=Path(folder),
            passes={"compact": 1.0},
            training=TrainingConf(learning_rate=1e-5),
            deepspeed={"zero_optimization": {"stage": 1}},
            device="cpu" if card.tiny else "cuda",
        )
        checkpoints = Checkpoints(Path(folder) / "checkpoints", Ranks.current())
        engine = start_deepspeed(model, conf, 1, "fp32" if card.tiny else "bf16", checkpoints)
        if compiled:
            model.base_model.compile(dynamic=True)

        def learn() -> None:
            engine.learn(engine(*loss_inputs(row, card.device)) / count)

        try:
            seconds = card.seconds(learn)
            dearest = _dearest(card, learn) if profiled else {}
        finally:
            engine.close()
    return {
        "tokens_s": round(count / seconds),
        "peak_share": card.share(count * flops(model, row, lora=lora), seconds),
        "gb": card.gigabytes(),
        **dearest,
    }


def _dearest(card: Card, work: Callable[[], None]) -> dict[str, Any]:
    """The twenty kernels that one turn spends most time in, ms each, and the host's share of the turn."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] if card.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    started = time.perf_counter()
    with profile(activities=kinds) as seen:
        work()
        host = time.perf_counter() - started
        card.wait()
    spent = "self_cpu_time_total" if card.tiny else "self_device_time_total"
    lines = sorted(seen.key_averages(), key=lambda one: -float(getattr(one, spent)))[:20]
    return {
        "host_share": round(host / (time.perf_counter() - started), 3),
        "kernels_ms": {one.key[:60]: round(getattr(one, spent) / 1e3, 3) for one in lines},
    }


def random_model(card: Card, name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A Llama of a known shape that reads packs, its weights made on the card."""
    shape = {**_SHAPES[name], **_SMALL} if card.tiny else _SHAPES[name]
    config = LlamaConfig(max_position_embeddings=8192, **shape)
    config._attn_implementation = register()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(card.device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def random_pack(tokens: int, context: int, vocabulary: int) -> Pack:
    """Windows as histories give them: most are full, the last of each is shorter."""
    draw, lengths = np.random.default_rng(0), list[int]()
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(left, context if draw.random() < 0.7 else int(draw.integers(context // 8, context))))
    windows = [draw.integers(0, vocabulary, length).astype(np.int32) for length in lengths]
    return pack(windows, np.arange(len(windows)))


def every_token(row: Pack) -> PackTokens:
    """Each window a document of its own, all tokens but its first pooled and scored."""
    at = np.flatnonzero(row.position_ids > 0)
    owner = np.repeat(row.owners, row.lengths)[at]
    none = np.zeros(len(at), np.int32)
    return PackTokens(
        pack=row,
        pooled=at,
        document=owner,
        age=none,
        last=none.astype(bool),
        weight=np.ones(len(at), np.float32),
        scored=at,
        scored_document=owner,
        scored_field=at % len(FIELDS),
        scored_age=none,
    )


def flops(model: PreTrainedModel, row: Pack, *, surprise: bool = True, lora: bool | None = None) -> float:
    """FLOPs of a token as `ledgerlm plan` counts them; `lora` says how it learns, None that it only reads."""
    config = model.config
    backbone = BackboneConf(
        parameters=parameter_count(model),
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
    )
    span = float((row.lengths.astype(float) ** 2).sum() / len(row.input_ids))
    if lora is not None:
        return learn_flops(backbone, span, lora=lora).value
    return read_flops(backbone, span, surprise=surprise).value


def parts_of(card: Card) -> list[tuple[str, Mapping[str, Any], Callable[..., dict[str, Any]]]]:
    """Name, settings and work of each part, in the order of worth."""
    short, long = (128, 256) if card.tiny else (1024, 2048)
    all_parts = ("mean", "std", "surprise")
    small = {"name": "135m", "context": short}
    large = {"name": "8b", "context": long}
    wanted: list[tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = [
        (environment, {}),
        (limits, {}),
        (same, {}),
        (embedding, {**small, "windows": 64, "parts": all_parts}),
        (training, {**small, "windows": 32, "profiled": True}),
        (embedding, {**large, "windows": 16, "parts": all_parts}),
        (training, {**large, "windows": 4, "lora": True}),
        (embedding, {**small, "windows": 64, "parts": ("mean",)}),
        (embedding, {**small, "windows": 16, "parts": ("mean",)}),
        (training, {**large, "windows": 8, "lora": True, "recompute": True}),
        (training, {**small, "windows": 64}),
        (training, {**small, "windows": 8}),
        (embedding, {**small, "windows": 64, "parts": ("mean",), "compiled": not card.tiny}),
        (training, {**small, "windows": 32, "compiled": not card.tiny}),
        (embedding, {**large, "windows": 8, "parts": ("mean",)}),
    ]
    if card.tiny:  # a compiler is no part of what a processor is to show
        wanted = [
            (work, {**settings, "compiled": False} if "compiled" in settings else settings) for work, settings in wanted
        ]
    if card.tiny:
        wanted = [(work, {**told, "windows": 4} if "windows" in told else told) for work, told in wanted]
    return [(work.__name__, told, partial(work, card, **told)) for work, told in wanted]


def main(arguments: list[str]) -> int:
    """Runs the parts; returns 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    parser.add_argument("out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--tiny", action="store_true", help="on a processor, in small shapes")
    asked = parser.parse_args(arguments)
    card = Card(tiny=asked.tiny)
    if not card.tiny and not torch.cuda.is_available():
        print("no GPU is seen by torch; --tiny runs the parts on a processor")
        return 2
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29577",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    if card.tiny:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.distributed.init_process_group("gloo" if card.tiny else "nccl")
    started, failed = time.perf_counter(), False
    with asked.out.open("a", encoding="utf-8") as lines:
        for name, settings, work in parts_of(card):
            line = {"part": name, **settings, **_done(work, started)}
            failed |= "error" in line or bool(line.get("exit"))
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            print(json.dumps(line), flush=True)
            if not card.tiny:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    torch.distributed.destroy_process_group()
    return int(failed)


def _done(work: Callable[[], dict[str, Any]], started: float) -> dict[str, Any]:
    """What a part found; one that fails is told of and does not keep the others from running."""
    begun = time.perf_counter()
    if begun - started > LAST_START:
        return {"left_out": "no time left"}
    try:
        found = work()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:800]}
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
