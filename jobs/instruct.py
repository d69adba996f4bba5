"""Tunes a language model to answer which class comes next, by instruction, input and answer; loss on the answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pydantic import Field, field_validator
from pyspark.sql import functions as F

from ledgerlm.backbone.finetune import finetune, in_order, split_by_client, staged_by_split
from ledgerlm.backbone.lora import LoraConf
from ledgerlm.backbone.settings import BackboneRankConf, TrainingConf
from ledgerlm.config import FileName, ModelRef, load_yaml
from ledgerlm.engines.frames import tasks_for
from ledgerlm.errors import DataError
from ledgerlm.heads.calibration import Method
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.instruct.blend import blend_adapter, blend_models
from ledgerlm.instruct.head import ADAPTER, InstructCard, save_instructed
from ledgerlm.instruct.predict import Reading, log_likelihoods
from ledgerlm.instruct.prompts import PromptConf, body, tell
from ledgerlm.instruct.sweep import Length, best, sweep
from ledgerlm.instruct.tokens import PromptTokens, competitors, prompt_tokens
from ledgerlm.instruct.windows import KIND, cut_examples
from ledgerlm.runs.context import Context
from ledgerlm.runs.job import Job, StageResult
from ledgerlm.training.log import curve, read_metrics, speed
from ledgerlm.training.settings import METRICS, WorkersConf, placed

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

_EXAMPLES_A_FILE = 200_000


class InstructConf(TrainingConf):
    """Settings of the instruct job; those of the training loop are usual ones for LoRA."""

    HOW = frozenset({"workers"})

    task: str = Field("next_category", description="task whose class names are the answers")
    base: ModelRef | None = Field(
        None, description="finetune stage, or folder of any causal language model; left out, the latest such stage"
    )
    tune: bool = Field(True, description="false: the model as it is (zero-shot), only calibrated")
    lora: LoraConf | None = Field(LoraConf(), description="adapters; null trains all weights")
    merge: bool = Field(False, description="keep a merged model of its own instead of an adapter beside the base")
    tuned_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the way from the base's weights to the tuned ones; below 1 keeps more of what holds for "
        "clients unlike those tuned on",
    )
    prompt: PromptConf = Field(PromptConf(), description="instruction, input and question")
    lengths: tuple[int, ...] = Field(
        (9,),
        min_length=1,
        description="numbers of events told; each training example is told at one of them, drawn by a hash, and the "
        "one with the lowest log loss on held-out training clients is kept for prediction",
    )
    context: int = Field(768, ge=64, description="most tokens of a prompt with its answer")
    where: str = Field(
        "split = 'train'", description="SQL condition over columns of clients and labels: the rows to learn from"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of training clients kept for lengths and calibration")
    calibration_rows: int = Field(3000, ge=50, description="most held-out examples that lengths are judged on")
    calibration: Method = Field("temperature", description="none, sigmoid, isotonic or temperature")
    closed: bool = Field(
        False,
        description="let the answers alone compete in the loss, as they do in prediction: what is learnt is the choice "
        "among them, and not that nothing else is said; for answers of one token each",
    )
    length_normalised: bool = Field(False, description="divide an answer's log-likelihood by its tokens")
    workers: WorkersConf = Field(WorkersConf(), description="processes that train")
    deepspeed: FileName = Field(
        FileName("deepspeed/zero1.json"), description="DeepSpeed settings (ZeRO stage, offload)"
    )
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    batch_tokens: int = Field(8192, ge=64, description="tokens of one optimizer step, over all ranks")
    learning_rate: float = Field(2e-4, gt=0, description="highest learning rate")
    final_rate: float = Field(0.0, ge=0, le=1, description="share of the learning rate that the cosine ends at")
    warm_up: float = Field(0.03, ge=0, lt=1, description="share of the training in which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    epochs: float = Field(2.0, gt=0, description="passes over the examples")

    @field_validator("lengths")
    @classmethod
    def _rising(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if min(lengths) < 1 or len(set(lengths)) < len(lengths):
            raise ValueError(f"lengths {list(lengths)} must be different numbers of one event or more")
        return tuple(sorted(lengths))


def run(ctx: Context, conf: InstructConf) -> StageResult:
    """Builds the examples, tunes, chooses the length, calibrates, and writes the head."""
    from ledgerlm.backbone.model import backbone_id
    from ledgerlm.text.tokenizer import load_tokenizer

    task = _task(ctx, conf)
    base = ctx.backbone(conf.base)
    tokens = prompt_tokens(load_tokenizer(base), conf.prompt, task.class_names, context=conf.context)
    among = competitors(tokens) if conf.closed else ()
    told = ctx.keep(_told(ctx, conf, task))  # for windows and for the lengths
    rows = told.count()
    if not rows:
        raise DataError(f"task '{conf.task}': no label where {conf.where}; run the label stage before")
    found = _tuned(ctx, conf, base, told, tokens, among=among) if conf.tune else {}
    model, adapter = _result(ctx, conf, base) if conf.tune else (None, None)
    reading = Reading(
        model=str(model or base),
        adapter=str(adapter) if adapter else None,
        tokens=tokens,
        device="cuda" if conf.workers.gpu else "cpu",
        threads=int(ctx.spark.conf.get("spark.task.cpus", "1") or 1),
    )
    card = InstructCard(
        task=task,
        prompt=conf.prompt,
        length=max(conf.lengths),
        context=conf.context,
        base="" if model else str(base),
        base_id=backbone_id(Path(reading.model)),
        adapter=adapter is not None,
        length_normalised=conf.length_normalised,
        trained={"conf": conf.model_dump(mode="json"), **found},
    )
    judged = sweep(_held_out(ctx, conf, told, reading), card, tokens, conf.calibration)
    chosen = best(judged)
    example = _example(conf, told, chosen.events, task)
    card = card.model_copy(update={"length": chosen.events, "calibration": chosen.calibration})
    folder = ctx.artefacts.absolute() / "instruct"
    head_id = save_instructed(folder, card, adapter=adapter, model=model)
    return StageResult(
        rows_in=rows,
        rows_out=rows,
        artefacts=[str(folder / head_id)],
        facts={
            "heads": [{"head_id": head_id, "name": ctx.stage, "task": task.name, "classes": list(task.class_names)}],
            "length": chosen.events,
            "lengths": [one.row() for one in judged],
            **found,
            "report": [_section(ctx.stage, judged, chosen, found, example)],
        },
    )


def _task(ctx: Context, conf: InstructConf) -> Task:
    return ctx.task(conf.task)


def _told(ctx: Context, conf: InstructConf, task: Task) -> DataFrame:
    """Examples to learn from: client_id, as_of, answer, split (`train` or `heldout`), preface, lines."""
    clients = ctx.read("clients")
    labels = ctx.read("labels").where(F.col("task") == task.name).drop("run_id")
    chosen = labels.join(clients.drop("run_id"), on="client_id", how="inner").where(conf.where)
    examples = chosen.select("client_id", "as_of", class_index(task).cast("int").alias("answer"))
    told = tell(
        ctx.read("events"),
        clients,
        examples.select("client_id", "as_of"),
        ctx.spec,
        conf.prompt,
        most=max(conf.lengths),
        dictionaries=ctx.maybe("dictionaries"),
    )
    both = examples.join(told, on=["client_id", "as_of"], how="inner")
    return split_by_client(both, held_out=conf.held_out, seed=ctx.seed)


def _tuned(
    ctx: Context, conf: InstructConf, base: Path, told: DataFrame, tokens: PromptTokens, *, among: tuple[int, ...]
) -> dict[str, Any]:
    """Trains on the examples; leaves the model in staging and returns what the ranks found."""
    staging = ctx.staging.absolute()
    worker = BackboneRankConf(
        # Another number of ranks shares them out in another way.
        windows=staging / f"windows-{conf.workers.ranks}",
        tokenizer=base,
        folder=staging / "train",
        base=base,
        lora=conf.lora,
        context=conf.context,
        passes={KIND: 1.0},
        among=among,
        training=TrainingConf(**{name: getattr(conf, name) for name in TrainingConf.model_fields}),
        deepspeed=load_yaml(ctx.file(conf.deepspeed)),
        recompute=conf.recompute,
        seed=ctx.seed,
        **placed(conf.workers),
    )
    examples = _windows(ctx, conf, told, tokens, worker.windows)
    ctx.failpoint("after_windows")
    ctx.ray.start()
    with ctx.progress.task("Tuning the model", total=100) as task:

        def show(line: Mapping[str, float]) -> None:
            task.update(done=round(100 * line["share"]), text=f"Tuning the model, loss {line['loss']:.3f}")

        found = finetune(worker, conf.workers, on_progress=show)
    ctx.failpoint("after_training")
    log = read_metrics(worker.folder / METRICS)
    return {"examples": examples, **found, "tokens_per_second": speed(log), "curve": curve(log, points=50)}


def _result(ctx: Context, conf: InstructConf, base: Path) -> tuple[Path | None, Path | None]:
    """Folder of the tuned model where it stands alone, or of the adapter beside the base."""
    train = ctx.staging.absolute() / "train"
    result, blended = train / "result", train / "blended"
    if conf.lora is not None and not conf.merge:
        adapter = result / ADAPTER
        return None, adapter if conf.tuned_share == 1 else blend_adapter(adapter, conf.tuned_share, blended)
    return (result if conf.tuned_share == 1 else blend_models(base, result, conf.tuned_share, blended)), None


def _windows(ctx: Context, conf: InstructConf, told: DataFrame, tokens: PromptTokens, folder: Path) -> int:
    """Stages the windows, or finds them staged by an earlier attempt; returns how many."""
    if not (folder / "_SUCCESS").exists():
        drawn = F.pmod(F.xxhash64("client_id", "as_of", F.lit(ctx.seed)), F.lit(len(conf.lengths))).cast("int")
        length = F.get(F.array(*(F.lit(one) for one in conf.lengths)), drawn)
        examples = told.select("client_id", "as_of", "split", "answer", body(length).alias("body"))
        # As many files for each rank.
        files = conf.workers.ranks * -(-told.count() // (conf.workers.ranks * _EXAMPLES_A_FILE))
        staged_by_split(cut_examples(in_order(examples, files, "as_of"), tokens), str(folder))
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("split=*/*.parquet"))


def _held_out(ctx: Context, conf: InstructConf, told: DataFrame, reading: Reading) -> pd.DataFrame:
    """`length`, `answer` and `log_likelihoods` of held-out examples at every length."""
    chosen = told.where("split = 'heldout'").orderBy(F.xxhash64("client_id", "as_of")).limit(conf.calibration_rows)
    lengths = F.explode(F.array(*(F.lit(one) for one in conf.lengths)))
    prompts = chosen.withColumn("length", lengths).withColumn("body", body(F.col("length")))
    spread = prompts.select("length", "answer", "body").repartition(
        tasks_for(conf.calibration_rows * len(conf.lengths), 200)
    )
    with ctx.progress.task("Judging lengths"):
        found: pd.DataFrame = log_likelihoods(spread, reading).toArrow().to_pandas()
    if found["answer"].nunique() < 2:
        raise DataError(f"{len(found)} held-out examples of one class; raise instruct's held_out ({conf.held_out})")
    return found


def _example(conf: InstructConf, told: DataFrame, events: int, task: Task) -> str:
    """One prompt with its answer, as text."""
    row = told.orderBy(F.xxhash64("client_id", "as_of")).select("answer", body(events).alias("body")).first()
    assert row is not None
    name = task.class_names[row["answer"]]
    answer = conf.prompt.answers.get(name, name)
    instruction = "" if conf.prompt.instruction is None else f"{conf.prompt.instruction}\n"
    return f"{instruction}{row['body']}\n{conf.prompt.question or ''}{answer}"


def _section(
    stage: str, judged: Sequence[Length], chosen: Length, found: Mapping[str, Any], example: str
) -> dict[str, Any]:
    names = list(chosen.figures)
    table = {
        "kind": "table",
        "heading": "Events told",
        "columns": ["events", "examples", *names, "log loss before calibration"],
        "rows": [[one.events, one.rows, *one.figures.values(), one.log_loss_before] for one in judged],
    }
    events = [one.events for one in judged]
    drawn = [
        {
            "kind": "lines",
            "series": {name: [events, [one.figures[name] for one in judged]]},
            "x": "events told",
            "y": name.replace("_", " "),
        }
        for name in ("log_loss", "f1_weighted")
    ]
    text = {"kind": "text", "heading": "A prompt and its answer", "text": example}
    tuned = f"Tuned on {found['examples']:,} examples. " if found else "The untuned model. "
    return {
        "title": f"Instruction: {stage}",
        "note": f"{tuned}Held-out training clients; {chosen.events} events have the lowest log loss and are told.",
        "blocks": [table, *([{"kind": "figures", "figures": drawn}] if len(judged) > 1 else []), text],
    }


JOB = Job(
    name="instruct",
    engine="ray train + deepspeed",
    conf=InstructConf,
    run=run,
    reads=("events", "clients", "labels", "dictionaries?"),
    uses=("torch", "transformers", "peft", "deepspeed"),
    needs=("finetune",),
)
main = JOB.main

if __name__ == "__main__":
    sys.exit(main())
