"""Many small LightGBM fits side by side: folds, seeds, representations and tasks as plain Ray tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledgerlm.heads.boosting import Boosted, LightGBMConf, raw_outputs, train
from ledgerlm.heads.tasks import Floats, Ints, Task

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One head to train, and the rows that it is then asked about.

    Attributes:
        matrix: name of the matrix.
        task: what is predicted.
        rows: training rows of the matrix.
        y: class index or value of each training row.
        ask: rows to score.
        conf: settings of LightGBM.
        seed: of the draws.
    """

    matrix: str
    task: Task
    rows: Ints
    y: Floats
    ask: Ints
    conf: LightGBMConf
    seed: int


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit gave.

    Attributes:
        raw: raw scores of the rows asked about, in their order.
        text: the trees in LightGBM's text format.
        scale: divisor of each feature.
        gains: loss saved by each feature.
    """

    raw: Floats
    text: str
    scale: list[float]
    gains: Floats

    def model(self, task: Task) -> Boosted:
        """The trees, to score with."""
        return Boosted.from_text(self.text, self.scale, raw_outputs(task))


def run_fit(fit: Fit, x: sparse.csr_matrix) -> Fitted:
    """Trains and asks, on one thread."""
    model = train(x[fit.rows], fit.y, fit.task, fit.conf, seed=fit.seed)
    raw = model.raw(x[fit.ask])
    return Fitted(raw=raw, text=model.text, scale=model.scale.tolist(), gains=model.gains)


def run_local(fits: Sequence[Fit], matrices: Mapping[str, sparse.csr_matrix]) -> Iterator[tuple[int, Fitted]]:
    """Runs the fits one after the other in this process; yields the place of each fit and its result."""
    for place, fit in enumerate(fits):
        yield place, run_fit(fit, matrices[fit.matrix])


def run_on_ray(fits: Sequence[Fit], matrices: Mapping[str, sparse.csr_matrix]) -> Iterator[tuple[int, Fitted]]:
    """Runs the fits on all cores of the running Ray, one thread each; yields them as they end.

    The matrices lie once in the object store; tasks read them there without a copy. Ray must have been started.
    """
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(run_fit)
    stored = {name: ray.put(x) for name, x in matrices.items()}
    pending = {remote.remote(fit, stored[fit.matrix]): place for place, fit in enumerate(fits)}
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1)
        yield pending.pop(done[0]), ray.get(done[0])
