"""Trains a backbone on training clients' documents: tokenizer, windows, Ray Train with DeepSpeed, a model folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.backbone.finetune import (
    ENRICHED,
    cut_windows,
    finetune,
    in_order,
    sample_texts,
    split_by_client,
    staged_by_split,
    training_texts,
)
from ledgerlm.backbone.lora import LoraConf
from ledgerlm.backbone.settings import (
    CONTEXT,
    BackboneCard,
    BackboneRankConf,
    LlamaShape,
    TrainingConf,
    backbone_settings,
    base_context,
    base_rate,
)
from ledgerlm.config import FileName, ModelRef, StageName, load_yaml
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.lake.lake import Lake
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.text.rewrites import rewrites_of
from ledgerlm.training.artefacts import aside, finish
from ledgerlm.training.log import curve, read_metrics, speed
from ledgerlm.training.settings import METRICS, WorkersConf, placed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_CHARACTERS_A_FILE = 128_000_000
_WINDOWS_TO_COMPARE = 8  # windows of a pack, at the least, for a contrast


class FinetuneConf(TrainingConf):
    """Settings of the finetune job."""

    HOW = frozenset({"workers"})

    formats: dict[str, float] = Field(
        {"compact": 1.0},
        min_length=1,
        description="what is read how often in an epoch: document formats, and `enriched` for the rewrites; "
        "0.25 reads another quarter each epoch; the first one's held-out loss is the curve",
    )
    enrich: StageName | None = Field(
        None, description="the enrich stage whose rewrites `enriched` stands for; left out, the only one there is"
    )
    variants: int | None = Field(
        None, ge=1, description="how many rewrites of a document `enriched` stands for; left out, all there are"
    )
    enriched_formats: tuple[str, ...] = Field((), description="formats of the rewrites that are read; none: all")
    more: tuple[str, ...] = Field(
        (), description="folders of other pipelines (`out`) or roots of lakes whose training documents are read as well"
    )
    backbone: str | None = Field(
        None, description="file of conf/backbones with base, context and settings as published; keys here win"
    )
    published: str | None = Field(None, description="data set whose published settings are taken from that file")
    base: ModelRef | None = Field(
        None,
        description="folder of a model to fine-tune, or the finetune stage that made it; left out, that of `backbone`, "
        "or else a Llama from scratch",
    )
    lora: LoraConf | None = Field(None, description="train adapters beside the frozen weights of `base`")
    train: bool = Field(True, description="false: publish the first weights untrained, as a control")
    shape: LlamaShape = Field(LlamaShape(), description="shape of the Llama from scratch")
    context: int | None = Field(
        None,
        ge=16,
        description="tokens of a window with its BOS; left out, 768 from scratch, with a base what it was trained "
        "with, or 2048 where it knows more",
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        description="highest learning rate; left out, 3e-3 from scratch, with a base 2e-5, or 2e-4 for adapters",
    )
    vocabulary: int = Field(4096, ge=260, description="most tokens of the tokenizer from scratch")
    tokenizer_documents: int = Field(20_000, ge=1, description="most documents that the tokenizer is trained on")
    tokenizer_characters: int = Field(50_000_000, ge=1, description="most characters that it is trained on")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the training clients kept for the held-out loss")
    seed: int | None = Field(None, description="of the first weights and the order; left out, the pipeline's")
    workers: WorkersConf = Field(WorkersConf(), description="processes that train")
    deepspeed: FileName = Field(
        FileName("deepspeed/zero1.json"), description="DeepSpeed settings (ZeRO stage, offload)"
    )
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")

    @model_validator(mode="before")
    @classmethod
    def _with_backbone(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        known = content.get("backbone")
        complete = {**(backbone_settings(known, content.get("published")) if known is not None else {}), **content}
        if complete.get("base") is not None:
            complete.setdefault("learning_rate", base_rate(adapters=complete.get("lora") is not None))
        return complete

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConf:
        if min(self.formats.values()) < 0 or not any(self.formats.values()):
            raise ValueError(f"formats {self.formats} must be 0 or more, and one above 0")
        if (self.enrich or self.variants or self.enriched_formats) and ENRICHED not in self.formats:
            raise ValueError(
                f"enrich, variants and enriched_formats choose rewrites, but formats {self.formats} read none"
            )
        if self.lora is not None and self.base is None:
            raise ValueError("lora needs a base whose weights are frozen")
        context = self.context or CONTEXT
        if self.contrast and self.packing(self.workers.ranks)[0] < _WINDOWS_TO_COMPARE * context:
            raise ValueError(
                f"contrast compares windows of a pack, and one of {self.packing(self.workers.ranks)[0]} tokens holds "
                f"fewer than {_WINDOWS_TO_COMPARE} of {context}: lower context, or raise batch_tokens"
            )
        if self.published is not None and self.backbone is None:
            raise ValueError("published names settings of a file of conf/backbones; set backbone, too")
        return self


def run(ctx: Context, conf: FinetuneConf) -> StageResult:
    """Prepares the windows, trains, and leaves the backbone under `artefacts/backbones/`."""
    _base_there(ctx, conf)
    worker = _worker(ctx, conf)
    texts = split_by_client(_texts(ctx, conf), held_out=conf.held_out, seed=ctx.seed)
    volume = texts.agg(F.count("*").alias("rows"), F.sum(F.length("text")).alias("characters")).head()
    assert volume is not None
    if not volume["rows"]:
        raise DataError(f"no document of {list(conf.formats)} for training clients; run serialize with that format")
    _tokenizer(ctx, conf, worker, texts)
    ctx.failpoint("after_tokenizer")
    if not conf.train:
        facts = _publish(ctx, conf, worker, _untrained(worker))
        return StageResult(rows_in=volume["rows"], rows_out=0, artefacts=[facts["backbone"]], facts=facts)
    windows = _windows(conf, texts, worker, volume["characters"])
    ctx.failpoint("after_windows")
    found = _trained(ctx, conf, worker)
    ctx.failpoint("after_training")
    facts = _publish(ctx, conf, worker, found)
    return StageResult(rows_in=volume["rows"], rows_out=windows, artefacts=[facts["backbone"]], facts=facts)


def _trained(ctx: Context, conf: FinetuneConf, worker: BackboneRankConf) -> dict[str, Any]:
    """Trains on all ranks; returns what they found."""
    ctx.ray.start()
    with ctx.progress.task("Training the backbone", total=100) as task:

        def show(line: Mapping[str, float]) -> None:
            ctx.failpoint("in_training")
            task.update(done=round(100 * line["share"]), text=f"Training the backbone, loss {line['loss']:.3f}")

        return finetune(worker, conf.workers, on_progress=show)


def _untrained(worker: BackboneRankConf) -> dict[str, Any]:
    """Leaves the first weights as the result."""
    from ledgerlm.backbone.worker import first_model, save_model

    draft = aside(worker.result)
    logging.disable(logging.WARNING)  # saving imports DeepSpeed, which would talk of accelerators
    try:
        save_model(first_model(worker), worker, draft)
    finally:
        logging.disable(logging.NOTSET)
    finish(draft, worker.result)
    return {"tokens_trained": 0, "steps": 0, "held_out": {}}


def _worker(ctx: Context, conf: FinetuneConf) -> BackboneRankConf:
    staging = ctx.staging.absolute()
    base = None if conf.base is None else ctx.backbone(conf.base)
    context = conf.context or (CONTEXT if base is None else base_context(base))
    if base is not None:
        ctx.progress.say(f"    {base.name}: rate {conf.learning_rate:g}, windows of {context} tokens")
    return BackboneRankConf(
        # Another number of ranks shares them out in another way.
        windows=staging / f"windows-{conf.workers.ranks}",
        tokenizer=staging / "tokenizer",
        folder=staging / "train",
        base=base,
        shape=conf.shape,
        lora=conf.lora,
        context=context,
        passes=conf.formats,
        training=TrainingConf(**{name: getattr(conf, name) for name in TrainingConf.model_fields}),
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        recompute=conf.recompute,
        seed=ctx.seed if conf.seed is None else conf.seed,
        **placed(conf.workers),
    )


def _base_there(ctx: Context, conf: FinetuneConf) -> None:
    """Says where a base model comes from when it is not there, before anything is started."""
    if conf.base is None or ((base := ctx.backbone(conf.base)) / "config.json").is_file():
        return
    source = f"download it once (conf/backbones/{conf.backbone}.yaml says how)" if conf.backbone else "download it"
    raise ArtefactError(
        f"no model in {base}, which finetune's base '{conf.base}' names; {source} or give another folder or the "
        "name of a finetune stage before this one"
    )


def _texts(ctx: Context, conf: FinetuneConf) -> DataFrame:
    """`client_id`, `kind`, `text` of training clients of this lake and of those in `more`."""
    readers = [ctx.read, *(Lake(_lake_root(one), ctx.spark).read for one in conf.more)]
    return reduce(lambda left, right: left.unionByName(right), [_texts_of(read, conf) for read in readers])


def _lake_root(folder: str) -> str:
    inner = Path(folder).expanduser() / "lake"
    return str(inner.absolute()) if inner.is_dir() else folder


def _texts_of(read: Callable[[str], DataFrame], conf: FinetuneConf) -> DataFrame:
    return training_texts(
        read("clients"),
        read("documents"),
        rewrites_of(read("enriched_documents"), conf.enrich, key="enrich") if ENRICHED in conf.formats else None,
        formats=list(conf.formats),
        variants=conf.variants,
        enriched_formats=conf.enriched_formats,
    )


def _tokenizer(ctx: Context, conf: FinetuneConf, worker: BackboneRankConf, texts: DataFrame) -> None:
    """The base model's tokenizer, or a new one from a sample of the documents."""
    from ledgerlm.text.tokenizer import load_tokenizer, train_tokenizer

    folder = worker.tokenizer
    if folder.exists():
        return
    if worker.base is not None:
        tokenizer = load_tokenizer(worker.base)
    else:
        ctx.progress.say("    training the tokenizer")
        sample = sample_texts(
            texts, documents=conf.tokenizer_documents, characters=conf.tokenizer_characters, seed=ctx.seed
        )
        tokenizer = train_tokenizer(sample, vocabulary_size=conf.vocabulary)
    draft = aside(folder)
    tokenizer.save_pretrained(draft)
    finish(draft, folder)


def _windows(conf: FinetuneConf, texts: DataFrame, worker: BackboneRankConf, characters: int) -> int:
    """Stages the windows, or finds them staged by an earlier attempt; returns how many."""
    if not (worker.windows / "_SUCCESS").exists():
        # As many files for each rank, and a few for every core of a large cluster.
        files = conf.workers.ranks * -(-characters // (conf.workers.ranks * _CHARACTERS_A_FILE))
        spread = in_order(texts, files, "kind", "text")
        staged_by_split(cut_windows(spread, worker.tokenizer, context=worker.context), str(worker.windows))
    return sum(pq.read_metadata(path).num_rows for path in worker.windows.glob("split=*/*.parquet"))


def _publish(ctx: Context, conf: FinetuneConf, worker: BackboneRankConf, found: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the card and copies the backbone to its place; returns the stage's facts."""
    from ledgerlm.backbone.model import keep_backbone, load_backbone, parameter_count
    from ledgerlm.backbone.worker import held_out_numbers
    from ledgerlm.text.tokenizer import load_tokenizer

    model = load_backbone(worker.result)
    log = read_metrics(worker.folder / METRICS)
    card = BackboneCard(
        model_type=model.config.model_type,
        parameters=parameter_count(model),
        vocabulary=len(load_tokenizer(worker.tokenizer)),
        context=worker.context,
        dtype=str(model.config.dtype).removeprefix("torch."),
        base=conf.backbone or (conf.base and Path(conf.base).name) or "scratch",
        tokens_trained=found["tokens_trained"],
        held_out_loss=next(iter(found["held_out"].values()), None),
        training={
            "conf": conf.model_dump(mode="json"),
            "formats": conf.formats,
            **found,
            "curve": curve(log, points=50),
        },
    )
    folder, card = keep_backbone(worker.result, ctx.artefacts.absolute() / "backbones", card)
    return {
        "backbone": str(folder),
        **card.model_dump(mode="json", exclude={"training"}),
        **held_out_numbers(found),
        **{key: value for key, value in found.items() if not isinstance(value, dict)},
        "tokens_per_second": speed(log),
        "curve": curve(log, points=200),
    }


JOB = Job(
    name="finetune",
    engine="ray train + deepspeed",
    conf=FinetuneConf,
    run=run,
    reads=lambda stage: ("documents", "clients", *(("enriched_documents",) if ENRICHED in stage.conf.formats else ())),
    sources=lambda stage: [_lake_root(one) for one in stage.conf.more],
    uses=("torch", "transformers", "peft", "deepspeed"),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
