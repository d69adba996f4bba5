"""Tunes a language model to answer: examples told by Spark, tuned by Ray Train, judged at each length, calibrated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pydantic import Field, field_validator
from pyspark.sql import functions as F

from ledgerlm.backbone.finetune import finetune, in_order, split_by_client, staged_by_split
from ledgerlm.backbone.lora import LoraConf
from ledgerlm.backbone.settings import BackboneRankConf, TrainingConf
from ledgerlm.config import FileName, ModelRef
from ledgerlm.engines.frames import Keep, tasks_for
from ledgerlm.engines.gpus import DEVICE, WorkerDevice
from ledgerlm.engines.session import setting
from ledgerlm.errors import DataError
from ledgerlm.events.condition import Condition
from ledgerlm.heads.calibration import Method
from ledgerlm.heads.tasks import Task, class_index
from ledgerlm.instruct.blend import blend_adapter, blend_models
from ledgerlm.instruct.head import ADAPTER, InstructCard
from ledgerlm.instruct.model import InstructedHead, Tuning
from ledgerlm.instruct.predict import Reading, log_likelihoods
from ledgerlm.instruct.prompts import PromptConf, body, tell
from ledgerlm.instruct.sweep import best, sweep
from ledgerlm.instruct.tokens import PromptTokens, prompt_tokens
from ledgerlm.instruct.windows import KIND, cut_examples
from ledgerlm.progress import Progress
from ledgerlm.training.log import curve, read_metrics, speed
from ledgerlm.training.settings import METRICS, WorkersConf, placed

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

    from ledgerlm.engines.ray import RayEngine
    from ledgerlm.events.spec import DataSetSpec

_EXAMPLES_A_FILE = 200_000
_PROMPTS_A_TASK = 200


class InstructConf(TrainingConf):
    """Settings of the instruct job; those of the training loop are usual ones for LoRA."""

    HOW = frozenset({"workers", "device"})

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
    where: Condition = Field(
        Condition("split = 'train'"),
        description="SQL condition over columns of clients and labels: the rows to learn from",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of training clients kept for lengths and calibration")
    calibration_rows: int = Field(3000, ge=50, description="most held-out examples that lengths are judged on")
    calibration: Method = Field("temperature", description="none, sigmoid, isotonic or temperature")
    closed: bool = Field(
        False,
        description="let the answers alone compete, in the loss and in prediction: at each token those that some "
        "answer goes on with. What is learnt is the choice among whole answers, and not that nothing else is said",
    )
    length_normalised: bool = Field(False, description="divide an answer's log-likelihood by its tokens")
    workers: WorkersConf = Field(WorkersConf(), description="processes that train")
    device: str | None = Field(
        None,
        pattern=DEVICE,
        description="where Spark's workers judge the lengths: cpu, or cuda, the GPU that Spark gave the task; left "
        "out, cuda if the ranks have GPUs",
    )
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


def tell_examples(
    events: DataFrame,
    clients: DataFrame,
    labels: DataFrame,
    task: Task,
    conf: InstructConf,
    *,
    spec: DataSetSpec,
    dictionaries: DataFrame | None,
    seed: int,
) -> DataFrame:
    """Examples to learn from.

    Args:
        events: the `events` table.
        clients: the `clients` table.
        labels: the `labels` table.
        task: whose class names are the answers.
        conf: which rows are learnt from, and how they are told.
        spec: the data set.
        dictionaries: the `dictionaries` table, if there is one.
        seed: of the clients that are held out.

    Returns:
        client_id, as_of, answer (place of the class), split (`train` or `heldout`), and what `instruct.prompts.tell`
        gives.
    """
    own = labels.where(F.col("task") == task.name).drop("run_id")
    chosen = conf.where.rows(own.join(clients.drop("run_id"), on="client_id", how="inner"))
    examples = chosen.select("client_id", "as_of", class_index(task).cast("int").alias("answer"))
    told = tell(
        events,
        clients,
        examples.select("client_id", "as_of"),
        spec,
        conf.prompt,
        most=max(conf.lengths),
        dictionaries=dictionaries,
    )
    both = examples.join(told, on=["client_id", "as_of"], how="inner")
    return split_by_client(both, held_out=conf.held_out, seed=seed)


def instruct(
    examples: DataFrame,
    task: Task,
    conf: InstructConf,
    *,
    ray: RayEngine,
    base: Path,
    deepspeed: Mapping[str, Any],
    staging: Path,
    seed: int,
    keep: Keep,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> tuple[InstructedHead, Tuning]:
    """Tunes a model on examples, chooses how many events are told, and calibrates.

    A tuning that was killed goes on from what it left in `staging`.

    Args:
        examples: from `tell_examples`.
        task: what is asked.
        conf: settings.
        ray: started once the windows are staged; not for a model as it is.
        base: folder of the model.
        deepspeed: DeepSpeed's settings.
        staging: working folder that all ranks reach.
        seed: of the order, and of the length at which each example is told.
        keep: computes a frame once.
        progress: what the user sees.
        failpoint: told `after_windows` and `after_training`.

    Returns:
        The head, not yet saved, and how it came to be.

    Raises:
        ConfigError: Spark's workers would share a GPU.
        DataError: no example, or held-out ones of one class.
        EngineError: training ended without a result.
    """
    from ledgerlm.text.tokenizer import load_tokenizer

    names = task.class_names
    tokens = prompt_tokens(load_tokenizer(base), conf.prompt, names, context=conf.context, closed=conf.closed)
    worker = _worker(conf, base, deepspeed, staging.absolute(), seed, among=tokens.answers if conf.closed else ())
    # Found before the training, which may take days.
    device = WorkerDevice.of(examples.sparkSession, conf.device or ("cuda" if conf.workers.gpu else "cpu"))
    told = keep(examples)  # for windows and for the lengths
    rows, bars = told.count(), progress or Progress()
    if not rows:
        raise DataError(f"task '{task.name}': no label where {conf.where}; run the label stage before")
    trained: dict[str, Any] = {}
    if conf.tune:
        windows = _stage_windows(conf, told, rows, tokens, worker)
        failpoint("after_windows")
        ray.start()
        trained = {"examples": windows, **_trained(worker, conf, bars)}
        failpoint("after_training")
    model, adapter = _result(worker, conf, base) if conf.tune else (None, None)
    reading = Reading(
        model=str(model or base),
        adapter=str(adapter) if adapter else None,
        tokens=tokens,
        device=device,
        threads=int(setting(told.sparkSession, "spark.task.cpus", "1")),
    )
    card = _card(task, conf, base if model is None else None, reading, trained)
    judged = sweep(_judge_held_out(conf, told, reading, bars), card, tokens, conf.calibration)
    chosen = best(judged)
    card = card.model_copy(update={"length": chosen.events, "calibration": chosen.calibration})
    tuning = Tuning(
        examples=rows,
        judged=judged,
        chosen=chosen,
        trained=trained,
        example=_example(conf, told, chosen.events, task),
    )
    return InstructedHead(card=card, adapter=adapter, model=model), tuning


def _worker(
    conf: InstructConf,
    base: Path,
    deepspeed: Mapping[str, Any],
    staging: Path,
    seed: int,
    *,
    among: tuple[tuple[int, ...], ...],
) -> BackboneRankConf:
    return BackboneRankConf(
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
        deepspeed=dict(deepspeed),
        recompute=conf.recompute,
        seed=seed,
        **placed(conf.workers),
    )


def _stage_windows(
    conf: InstructConf, told: DataFrame, rows: int, tokens: PromptTokens, worker: BackboneRankConf
) -> int:
    """Stages the windows, or finds them staged by an earlier attempt; returns how many."""
    folder = worker.windows
    if not (folder / "_SUCCESS").exists():
        drawn = F.pmod(F.xxhash64("client_id", "as_of", F.lit(worker.seed)), F.lit(len(conf.lengths))).cast("int")
        length = F.get(F.array(*(F.lit(one) for one in conf.lengths)), drawn)
        examples = told.select("client_id", "as_of", "split", "answer", body(length).alias("body"))
        # As many files for each rank.
        files = conf.workers.ranks * -(-rows // (conf.workers.ranks * _EXAMPLES_A_FILE))
        staged_by_split(cut_examples(in_order(examples, files, "as_of"), tokens), folder)
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("split=*/*.parquet"))


def _trained(worker: BackboneRankConf, conf: InstructConf, progress: Progress) -> dict[str, Any]:
    """Trains on all ranks; leaves the model in the working folder and returns what the ranks found."""
    with progress.task("Tuning the model", total=100) as task:

        def show(line: Mapping[str, float]) -> None:
            task.update(done=round(100 * line["share"]), text=f"Tuning the model, loss {line['loss']:.3f}")

        found = finetune(worker, conf.workers, on_progress=show)
    log = read_metrics(worker.folder / METRICS)
    return {**found, "tokens_per_second": speed(log), "curve": curve(log, points=50)}


def _result(worker: BackboneRankConf, conf: InstructConf, base: Path) -> tuple[Path | None, Path | None]:
    """Folder of the tuned model where it stands alone, or of the adapter beside the base."""
    result, blended = worker.result, worker.folder / "blended"
    if conf.lora is not None and not conf.merge:
        adapter = result / ADAPTER
        return None, adapter if conf.tuned_share == 1 else blend_adapter(adapter, conf.tuned_share, blended)
    return (result if conf.tuned_share == 1 else blend_models(base, result, conf.tuned_share, blended)), None


def _card(
    task: Task, conf: InstructConf, base: Path | None, reading: Reading, trained: Mapping[str, Any]
) -> InstructCard:
    """The card before a length is chosen; `base` is the model beside which an adapter stands, if it does."""
    from ledgerlm.backbone.model import backbone_id

    return InstructCard(
        task=task,
        prompt=conf.prompt,
        length=max(conf.lengths),
        context=conf.context,
        base="" if base is None else str(base),
        base_id=backbone_id(Path(reading.model)),
        adapter=reading.adapter is not None,
        closed=conf.closed,
        length_normalised=conf.length_normalised,
        trained={"conf": conf.model_dump(mode="json"), **trained},
    )


def _judge_held_out(conf: InstructConf, told: DataFrame, reading: Reading, progress: Progress) -> pd.DataFrame:
    """`length`, `answer` and `log_likelihoods` of held-out examples at every length."""
    chosen = told.where("split = 'heldout'").orderBy(F.xxhash64("client_id", "as_of")).limit(conf.calibration_rows)
    lengths = F.explode(F.array(*(F.lit(one) for one in conf.lengths)))
    prompts = chosen.withColumn("length", lengths).withColumn("body", body(F.col("length")))
    spread = prompts.select("length", "answer", "body").repartition(
        tasks_for(conf.calibration_rows * len(conf.lengths), _PROMPTS_A_TASK)
    )
    with progress.task("Judging lengths"):
        found: pd.DataFrame = log_likelihoods(spread, reading).toArrow().to_pandas()
    if found["answer"].nunique() < 2:
        raise DataError(f"{len(found)} held-out examples of one class; raise instruct's held_out ({conf.held_out})")
    return found


def _example(conf: InstructConf, told: DataFrame, events: int, task: Task) -> str:
    """One prompt with its answer, as text."""
    row = told.orderBy(F.xxhash64("client_id", "as_of")).select("answer", body(events).alias("body")).first()
    assert row is not None, "there are examples"
    name = task.class_names[row["answer"]]
    answer = conf.prompt.answers.get(name, name)
    instruction = "" if conf.prompt.instruction is None else f"{conf.prompt.instruction}\n"
    return f"{instruction}{row['body']}\n{conf.prompt.question or ''}{answer}"
