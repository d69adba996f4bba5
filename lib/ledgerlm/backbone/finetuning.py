"""Trains a backbone on texts: prepared by Spark, trained by Ray Train with DeepSpeed, kept under its hash."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.backbone.finetune import finetune
from ledgerlm.backbone.preparing import FinetuneConf, prepare
from ledgerlm.backbone.settings import BackboneCard, BackboneRankConf
from ledgerlm.lake.made import Made
from ledgerlm.progress import Progress
from ledgerlm.training.artefacts import aside, finish
from ledgerlm.training.log import curve, read_metrics, speed
from ledgerlm.training.settings import METRICS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ledgerlm.engines.ray import RayEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetuned:
    """A trained backbone.

    Attributes:
        folder: in Hugging Face format, under its id.
        card: what it is, and how it was trained.
        texts: texts of training clients.
        windows: what they were cut into; 0 where nothing was trained.
        facts: figures of the training: losses, tokens, speed, curve.
    """

    folder: Path
    card: BackboneCard
    texts: int
    windows: int
    facts: Mapping[str, Any]

    def made(self) -> Made:
        """For the record: the folder, with the card and the figures as facts."""
        card = self.card.model_dump(mode="json", exclude={"training"})
        return Made(
            rows_in=self.texts,
            rows_out=self.windows,
            artefacts=[self.folder],
            facts={"backbone": str(self.folder), **card, **self.facts},
        )


def finetune_backbone(
    texts: DataFrame,
    conf: FinetuneConf,
    *,
    ray: RayEngine,
    base: Path | None,
    deepspeed: Mapping[str, Any],
    staging: Path,
    folder: Path,
    seed: int,
    progress: Progress | None = None,
    failpoint: Callable[[str], None] = lambda _: None,
) -> Finetuned:
    """Trains a backbone from scratch, or further; one that is not to be trained needs no Ray.

    A training that was killed goes on from what it left in `staging`.

    Args:
        texts: client_id, kind, text of training clients, from `preparing.gather_texts`.
        conf: settings.
        ray: started once the windows are staged.
        base: model to fine-tune, from `preparing.find_base`; none: a Llama from scratch.
        deepspeed: DeepSpeed's settings.
        staging: working folder that all ranks reach.
        folder: the artefacts' `backbones` folder.
        seed: of everything that is drawn; `conf.seed` wins in the training.
        progress: what the user sees.
        failpoint: told `after_tokenizer`, `after_windows`, `in_training` and `after_training`.

    Raises:
        DataError: no text of a training client.
        EngineError: training ended without a result.
    """
    told = progress or Progress()
    prepared = prepare(
        texts, conf, base=base, deepspeed=deepspeed, folder=staging, seed=seed, progress=told, failpoint=failpoint
    )
    if conf.train:
        ray.start()
        found = _trained(prepared.worker, conf, told, failpoint)
        failpoint("after_training")
    else:
        found = _untrained(prepared.worker)
    kept, card, facts = _kept(prepared.worker, conf, found, folder.absolute())
    return Finetuned(folder=kept, card=card, texts=prepared.texts, windows=prepared.windows, facts=facts)


def _trained(
    worker: BackboneRankConf, conf: FinetuneConf, progress: Progress, failpoint: Callable[[str], None]
) -> dict[str, Any]:
    """Trains on all ranks; returns what they found."""
    with progress.task("Training the backbone", total=100) as task:

        def show(line: Mapping[str, float]) -> None:
            failpoint("in_training")
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


def _kept(
    worker: BackboneRankConf, conf: FinetuneConf, found: Mapping[str, Any], home: Path
) -> tuple[Path, BackboneCard, dict[str, Any]]:
    """Writes the card and copies the backbone to its place; returns its folder, the card and the figures."""
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
    folder, card = keep_backbone(worker.result, home, card)
    facts = {
        **held_out_numbers(found),
        **{key: value for key, value in found.items() if not isinstance(value, dict)},
        "tokens_per_second": speed(log),
        "curve": curve(log, points=200),
    }
    return folder, card, facts
