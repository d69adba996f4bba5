"""Many small fits side by side: folds, seeds, representations and tasks as plain Ray tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ledgerlm.files import push
from ledgerlm.heads.boosting import Boosted, LightGBMConf, raw_outputs, train
from ledgerlm.heads.linear import LinearConf, linear_raw
from ledgerlm.heads.tasks import Floats, Ints, Task, counts_by_class, refuse_one_class
from ledgerlm.progress import Progress

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
        conf: settings of LightGBM, or of the linear head.
        seed: of the draws.
    """

    matrix: str
    task: Task
    rows: Ints
    y: Floats
    ask: Ints
    conf: LightGBMConf | LinearConf
    seed: int


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit gave.

    Attributes:
        raw: raw scores of the rows asked about, in their order.
        text: the trees in LightGBM's text format; empty for a linear head, as what follows.
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


class FitStore:
    """Finished fits on disk, each under the hash of all that it depends on: who is killed goes on where it was.

    Args:
        folder: where they lie; it is made as needed.
        settled: called after each fit that was written.
    """

    def __init__(self, folder: Path, settled: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._settled = settled

    def load(self, name: str) -> Fitted | None:
        """A finished fit, or None."""
        file = self._folder / f"{name}.npz"
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as found:
            return Fitted(
                raw=found["raw"],
                text=found["text"].tobytes().decode(),
                scale=found["scale"].tolist(),
                gains=found["gains"],
            )

    def save(self, name: str, fitted: Fitted) -> None:
        """Writes a finished fit; a reader sees all of it or nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{name}.npz"
        text = np.frombuffer(fitted.text.encode(), np.uint8)
        np.savez(draft, raw=fitted.raw, text=text, scale=np.asarray(fitted.scale), gains=fitted.gains)
        push(draft.rename(self._folder / f"{name}.npz"))
        self._settled()


def names_of(fits: Sequence[Fit], matrices: Mapping[str, sparse.csr_matrix]) -> list[str]:
    """The hash of each fit: of the numbers, rows, labels, settings, seed and the library's version."""
    import lightgbm as lgb
    import sklearn

    contents = {name: _hash_of(x) for name, x in matrices.items() if any(fit.matrix == name for fit in fits)}
    found = []
    for fit in fits:
        version = sklearn.__version__ if isinstance(fit.conf, LinearConf) else lgb.__version__
        told = [contents[fit.matrix], fit.task.model_dump_json(), fit.conf.model_dump_json(), fit.seed, version]
        digest = hashlib.sha256(json.dumps(told).encode())
        for part in (fit.rows, fit.y, fit.ask):
            digest.update(f"{len(part)} {part.dtype} ".encode() + part.tobytes())
        found.append(digest.hexdigest())
    return found


def _hash_of(x: sparse.csr_matrix) -> str:
    digest = hashlib.sha256(f"{x.shape} {x.data.dtype}".encode())
    for part in (x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def run_fit(fit: Fit, x: sparse.csr_matrix) -> Fitted:
    """Trains and asks, on one thread."""
    if isinstance(fit.conf, LinearConf):
        raw = linear_raw(x[fit.rows], fit.y, x[fit.ask], fit.task, fit.conf, seed=fit.seed)
        return Fitted(raw=raw, text="", scale=[], gains=np.zeros(0))
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
    stored = {name: ray.put(matrices[name]) for name in dict.fromkeys(fit.matrix for fit in fits)}
    pending = {remote.remote(fit, stored[fit.matrix]): place for place, fit in enumerate(fits)}
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1)
        yield pending.pop(done[0]), ray.get(done[0])


def run_fits(
    fits: Sequence[Fit],
    matrices: Mapping[str, sparse.csr_matrix],
    *,
    store: FitStore | None = None,
    progress: Progress | None = None,
    text: str = "Fitting",
) -> list[Fitted]:
    """Runs the fits on Ray, but for those that an earlier attempt has finished.

    Args:
        fits: heads to train. One whose training rows are all of one class is refused before anything starts.
        matrices: by the fits' names.
        store: where finished fits lie.
        progress: what the user sees.
        text: of the progress bar.

    Returns:
        The results in the order of the fits.

    Raises:
        DataError: the training rows of a fit are all of one class.
    """
    for fit in fits:
        if fit.task.kind != "regression":
            refuse_one_class(fit.task, counts_by_class(fit.task, fit.y))
    shown = progress or Progress()
    names = names_of(fits, matrices) if store is not None else []
    before = {place: store.load(name) for place, name in enumerate(names)} if store is not None else {}
    results = {place: fitted for place, fitted in before.items() if fitted is not None}
    if results:
        shown.say(f"    {len(results):,} of {len(fits):,} fits were finished before")
    open_ones = [place for place in range(len(fits)) if place not in results]
    with shown.task(text, total=len(fits)) as bar:
        bar.advance(len(results))
        for number, fitted in run_on_ray([fits[place] for place in open_ones], matrices) if open_ones else ():
            place = open_ones[number]
            results[place] = fitted
            if store is not None:
                store.save(names[place], fitted)
            bar.advance()
    return [results[place] for place in range(len(fits))]
