"""How many events to tell: figures at each length on held-out clients, the best one, and its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ledgerlm.heads.calibration import Calibrator, Method, fit_calibrator
from ledgerlm.heads.metrics import COMPARED, METRICS, value
from ledgerlm.heads.tasks import Floats, Task

if TYPE_CHECKING:
    import pandas as pd

    from ledgerlm.instruct.head import InstructCard
    from ledgerlm.instruct.tokens import PromptTokens

_SHOWN = ("log_loss", "f1_weighted", "f1_macro", "accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """What a number of events is worth.

    Attributes:
        events: how many are told.
        rows: held-out examples.
        figures: metric to value, after calibration.
        log_loss_before: log loss before calibration, nats.
        calibration: fitted on these examples.
    """

    events: int
    rows: int
    figures: dict[str, float]
    log_loss_before: float
    calibration: Calibrator

    def row(self) -> dict[str, Any]:
        """As JSON values, without the calibration."""
        return {key: item for key, item in asdict(self).items() if key != "calibration"}


def sweep(found: pd.DataFrame, card: InstructCard, tokens: PromptTokens, method: Method) -> list[Length]:
    """Judges each length on the same examples.

    Args:
        found: `length`, `answer` (class index) and `log_likelihoods` of held-out examples.
        card: task and normalisation.
        tokens: the answers.
        method: of the calibration, which is fitted on these rows: a few numbers, of many rows.

    Returns:
        One entry a length, rising.
    """
    lengths = []
    for events, rows in found.groupby("length"):
        raw = card.raw(np.stack(rows["log_likelihoods"].to_list()), tokens)
        y = rows["answer"].to_numpy(np.float64)
        calibration = fit_calibrator(method, raw, y, card.task)
        p = calibration.apply(raw, card.task)
        before = _figures(y, Calibrator().apply(raw, card.task), card.task)["log_loss"]
        lengths.append(
            Length(
                events=int(str(events)),
                rows=len(rows),
                figures=_figures(y, p, card.task),
                log_loss_before=before,
                calibration=calibration,
            )
        )
    return lengths


def best(lengths: Sequence[Length]) -> Length:
    """The length of the lowest log loss; the shorter one of equals."""
    return min(lengths, key=lambda one: (one.figures["log_loss"], one.events))


def _figures(y: Floats, p: Floats, task: Task) -> dict[str, float]:
    known = {metric.name: metric for metric in (*METRICS, *COMPARED) if task.kind in metric.kinds}
    return {name: float(value(known[name], y, p)) for name in _SHOWN}
