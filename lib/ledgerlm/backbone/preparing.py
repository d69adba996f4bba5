"""What a finetune reads: its settings, texts of training clients, the tokenizer, windows staged for the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pydantic import Field, model_validator
from pyspark.sql import functions as F

from ledgerlm.backbone.finetune import (
    ENRICHED,
    WINDOWED,
    cut_windows,
    in_order,
    sample_texts,
    split_by_client,
    staged_by_split,
    training_texts,
)
from ledgerlm.backbone.lora import LoraConf
from ledgerlm.backbone.settings import (
    CONTEXT,
    BackboneRankConf,
    LlamaShape,
    TrainingConf,
    backbone_settings,
    base_context,
    base_rate,
)
from ledgerlm.config import FileName, ModelRef, StageName
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.files import push
from ledgerlm.progress import Progress
from ledgerlm.text.rewrites import rewrites_of
from ledgerlm.text.windows import before_asked
from ledgerlm.training.artefacts import aside, finish
from ledgerlm.training.settings import WorkersConf, placed

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
        description="what is read how often in an epoch: document formats, `enriched` for the rewrites, and `windows` "
        "for the windows of a serialize stage, of each client those before the newest time that is asked; "
        "0.25 reads another quarter each epoch; the first one's held-out loss is the curve",
    )
    enrich: StageName | None = Field(
        None, description="the enrich stage whose rewrites `enriched` stands for; left out, the only one there is"
    )
    serialize: StageName | None = Field(
        None, description="the serialize stage whose windows `windows` stands for; left out, the latest before this"
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
    value_tokens: int = Field(
        0,
        ge=0,
        description="with a base: the most frequent values of compact texts get a token each in its tokenizer, whose "
        "row starts at the mean of its pieces'; 0: none",
    )
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
        if self.serialize and WINDOWED not in self.formats:
            raise ValueError(f"serialize names whose windows are read, but formats {self.formats} read none")
        if self.more and WINDOWED in self.formats:
            raise ValueError("more reads documents of other pipelines, not their windows; leave out one of the two")
        if self.value_tokens and self.base is None:
            raise ValueError("value_tokens adds to the tokenizer of a base, and from scratch values are tokens anyway")
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

    @property
    def reads(self) -> tuple[str, ...]:
        """The tables that are read."""
        documents = ("documents",) if set(self.formats) - {ENRICHED, WINDOWED} else ()
        rewrites = ("enriched_documents",) if ENRICHED in self.formats else ()
        windows = ("windows", "labels?") if WINDOWED in self.formats else ()
        return ("clients", *documents, *rewrites, *windows)

    @property
    def more_lakes(self) -> list[str]:
        """Roots of the lakes that `more` names."""
        inner = {one: Path(one).expanduser() / "lake" for one in self.more}
        return [str(inner[one].absolute()) if inner[one].is_dir() else one for one in self.more]


def find_base(conf: FinetuneConf, folder_of: Callable[[ModelRef], Path]) -> Path | None:
    """Folder of the model to fine-tune; None where one is trained from scratch.

    Args:
        conf: settings.
        folder_of: gives the folder that a reference means.

    Raises:
        ArtefactError: there is no model in it; says where it comes from.
    """
    if conf.base is None or ((base := folder_of(conf.base)) / "config.json").is_file():
        return None if conf.base is None else base
    source = f"download it once (conf/backbones/{conf.backbone}.yaml says how)" if conf.backbone else "download it"
    raise ArtefactError(
        f"no model in {base}, which finetune's base '{conf.base}' names; {source} or give another folder or the "
        "name of a finetune stage before this one"
    )


def gather_texts(
    lakes: Sequence[Callable[[str], DataFrame]], conf: FinetuneConf, windows: DataFrame | None = None
) -> DataFrame:
    """The texts of training clients that a backbone learns from, of one lake or several.

    Args:
        lakes: each gives a lake's table by its name, of those that `conf.reads` names.
        conf: which formats and rewrites.
        windows: from `windows_to_learn`, of the first lake; None when none are wanted.

    Returns:
        client_id, kind (format, `enriched` or `windows`), text.

    Raises:
        ConfigError: several stages wrote rewrites and none is named.
        DataError: rewrites are asked for and there are none.
    """
    gathered = [
        training_texts(
            read("clients"),
            read("documents") if "documents" in conf.reads else None,
            rewrites_of(read("enriched_documents"), conf.enrich, key="enrich") if ENRICHED in conf.formats else None,
            windows,
            formats=list(conf.formats),
            variants=conf.variants,
            enriched_formats=conf.enriched_formats,
        )
        for read in lakes
    ]
    return reduce(lambda left, right: left.unionByName(right), gathered)


def windows_to_learn(windows: DataFrame, asked: DataFrame) -> DataFrame:
    """The windows that a backbone learns from: of each client what lies before the newest time that is asked.

    So it sees no more than documents would have shown it; and each event once, where a client with ten labels had ten
    documents.

    Args:
        windows: rows of the windows table, of one format and windowing.
        asked: client_id, as_of.
    """
    return before_asked(windows, asked.groupBy("client_id").agg(F.max("as_of").alias("as_of")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What lies ready for the ranks.

    Attributes:
        worker: what each rank is told.
        texts: texts of training clients.
        windows: staged windows; none for a backbone that is not trained.
    """

    worker: BackboneRankConf
    texts: int
    windows: int


def prepare(
    texts: DataFrame,
    conf: FinetuneConf,
    *,
    base: Path | None,
    deepspeed: Mapping[str, Any],
    folder: Path,
    seed: int,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Makes the tokenizer and stages the windows; what an earlier attempt left in the folder is not made again.

    Args:
        texts: from `gather_texts`.
        conf: settings.
        base: from `find_base`.
        deepspeed: DeepSpeed's settings.
        folder: working folder that all ranks reach.
        seed: of the held-out clients and the tokenizer's sample, and of the training where `conf` has none.
        progress: what the user sees.
        failpoint: told `after_tokenizer` and `after_windows`.

    Raises:
        DataError: no text of a training client.
    """
    told = progress or Progress()
    worker = _worker(conf, base, deepspeed, folder.absolute(), seed)
    if base is not None:
        told.say(f"    {base.name}: rate {conf.learning_rate:g}, windows of {worker.context} tokens")
    split = split_by_client(texts, held_out=conf.held_out, seed=seed)
    volume = split.agg(F.count("*").alias("rows"), F.sum(F.length("text")).alias("characters")).head()
    assert volume is not None, "an aggregate of all rows is one row"
    if not volume["rows"]:
        raise DataError(f"no document of {list(conf.formats)} for training clients; run serialize with that format")
    worker = _with_values(conf, worker, split, seed, told)
    _make_tokenizer(conf, worker, split, seed, told)
    failpoint("after_tokenizer")
    windows = 0
    if conf.train:
        windows = _stage_windows(conf, split, worker, volume["characters"])
        failpoint("after_windows")
    return Prepared(worker=worker, texts=volume["rows"], windows=windows)


def _worker(
    conf: FinetuneConf, base: Path | None, deepspeed: Mapping[str, Any], folder: Path, seed: int
) -> BackboneRankConf:
    return BackboneRankConf(
        # Another number of ranks shares them out in another way.
        windows=folder / f"windows-{conf.workers.ranks}",
        tokenizer=folder / "tokenizer",
        folder=folder / "train",
        base=base,
        shape=conf.shape,
        lora=conf.lora,
        context=conf.context or (CONTEXT if base is None else base_context(base)),
        passes=conf.formats,
        training=TrainingConf(**{name: getattr(conf, name) for name in TrainingConf.model_fields}),
        deepspeed=dict(deepspeed),
        recompute=conf.recompute,
        seed=seed if conf.seed is None else conf.seed,
        **placed(conf.workers),
    )


def _with_values(
    conf: FinetuneConf, worker: BackboneRankConf, texts: DataFrame, seed: int, progress: Progress
) -> BackboneRankConf:
    """With a base that has a token for each of the texts' frequent values, where that is asked for."""
    if worker.base is None or not conf.value_tokens:
        return worker
    from ledgerlm.backbone.values import frequent_values, with_values
    from ledgerlm.text.tokenizer import load_tokenizer

    wider = worker.folder.parent / "base"
    if not wider.exists():
        sample = sample_texts(
            texts, documents=conf.tokenizer_documents, characters=conf.tokenizer_characters, seed=seed
        )
        values = frequent_values(sample, load_tokenizer(worker.base), conf.value_tokens)
        progress.say(f"    {worker.base.name}: {len(values):,} values get a token each")
        if not values:
            return worker
        push(with_values(worker.base, values, wider))
    return worker.model_copy(update={"base": wider})


def _make_tokenizer(
    conf: FinetuneConf, worker: BackboneRankConf, texts: DataFrame, seed: int, progress: Progress
) -> None:
    """The base model's tokenizer, or a new one from a sample of the documents."""
    from ledgerlm.text.tokenizer import load_tokenizer, train_tokenizer

    folder = worker.tokenizer
    if folder.exists():
        return
    if worker.base is not None:
        tokenizer = load_tokenizer(worker.base)
    else:
        progress.say("    training the tokenizer")
        sample = sample_texts(
            texts, documents=conf.tokenizer_documents, characters=conf.tokenizer_characters, seed=seed
        )
        tokenizer = train_tokenizer(sample, vocabulary_size=conf.vocabulary)
    draft = aside(folder)
    tokenizer.save_pretrained(draft)
    push(finish(draft, folder))


def _stage_windows(conf: FinetuneConf, texts: DataFrame, worker: BackboneRankConf, characters: int) -> int:
    """Stages the windows, or finds them staged by an earlier attempt; returns how many."""
    if not (worker.windows / "_SUCCESS").exists():
        # As many files for each rank, and a few for every core of a large cluster.
        files = conf.workers.ranks * -(-characters // (conf.workers.ranks * _CHARACTERS_A_FILE))
        spread = in_order(texts, files, "kind", "text")
        staged_by_split(cut_windows(spread, worker.tokenizer, context=worker.context), worker.windows)
    return sum(pq.read_metadata(path).num_rows for path in worker.windows.glob("split=*/*.parquet"))
