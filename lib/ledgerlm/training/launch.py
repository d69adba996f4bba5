"""A training from both sides: the driver, which starts ranks on Ray Train and follows them, and a rank's own start."""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledgerlm.engines.ray import run_workers
from ledgerlm.errors import EngineError
from ledgerlm.files import here, push, restore, share, share_place
from ledgerlm.training.log import read_metrics
from ledgerlm.training.settings import FACTS, METRICS, RankConf, WorkersConf

if TYPE_CHECKING:
    from ledgerlm.training.ranks import Ranks

_POLL_SECONDS = 0.5
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "DEEPSPEED_LOG_LEVEL": "error"}
_ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def train(
    work: str,
    conf: RankConf,
    workers: WorkersConf,
    *,
    on_progress: Callable[[Mapping[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Trains on Ray Train; Ray must have been started.

    A training that was killed goes on from its newest checkpoint; one that had finished is not started again.

    Args:
        work: what each rank does, `module:function`; it is given `conf` and a `Report`, and rank 0 calls `finished`.
        conf: what each rank is told; its folder must be reached by driver and ranks, or have a URL.
        workers: processes.
        on_progress: given each new line of the metrics (`step`, `seen`, `share`, `loss` ...), from another thread.

    Returns:
        The facts that rank 0 left.

    Raises:
        EngineError: training ended without a result.
    """
    facts = conf.folder / FACTS
    if not facts.exists():
        told = {"work": work, "kind": f"{type(conf).__module__}:{type(conf).__qualname__}"}
        with _followed(conf.folder / METRICS, on_progress or _unheard):
            run_workers(
                _rank,
                {**told, "conf": _told(conf)},
                conf.folder,
                ranks=workers.ranks,
                threads=workers.threads,
                gpu=workers.gpu,
                retries=workers.retries,
                environment=_QUIET if workers.gpu else {**_QUIET, **_ON_CPU},
            )
        if not facts.exists():  # the ranks were elsewhere
            restore(conf.folder, without=("checkpoints",))
    if not facts.exists():
        raise EngineError(f"Ray Train ended without {facts}; look at Ray's worker logs")
    found: dict[str, Any] = json.loads(facts.read_text())
    return found


def started(conf: RankConf) -> tuple[Ranks, str]:
    """Sets a rank's process up: threads, memory, quiet logs. The process group exists already.

    Returns:
        The ranks, and the device of this one.
    """
    import torch

    from ledgerlm.training.cpu import bound_kernel_caches, keep_freed_memory
    from ledgerlm.training.ranks import Ranks

    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("DeepSpeed", "deepspeed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(conf.threads)
    keep_freed_memory()
    bound_kernel_caches()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if conf.device == "cuda" else "cpu"
    return Ranks.current(), device


def finished(conf: RankConf, facts: Mapping[str, Any]) -> None:
    """Writes the facts of a training, by rank 0 and last of all: what has them has ended."""
    from ledgerlm.training.checkpoints import carry  # it imports torch, which a driver need not

    carry(conf.folder)
    draft = conf.folder / f"{FACTS}.aside"
    draft.write_text(json.dumps(facts))
    push(draft.rename(conf.folder / FACTS))


def _rank(told: dict[str, Any]) -> None:
    """Training function of one Ray Train worker."""
    import ray.train

    def report(line: Mapping[str, float]) -> None:
        # Ray is told of no checkpoint: it would copy or delete what the ranks find by themselves.
        ray.train.report(dict(line))

    kind = _named(told["kind"])
    places = {name: str(here(told["conf"][name])) for name in _folders(kind) if told["conf"][name] is not None}
    conf = kind.model_validate({**told["conf"], **places})
    restore(conf.folder)
    _named(told["work"])(conf, report)


def _told(conf: RankConf) -> dict[str, Any]:
    """A configuration as ranks on any node are told of it: what they read is fetched there, what they write pushed."""
    read = {name: getattr(conf, name) for name in _folders(type(conf)) if name != "folder"}
    shared = {name: share(path) for name, path in read.items() if path is not None}
    return {**conf.model_dump(mode="json"), **shared, "folder": share_place(conf.folder)}


def _folders(kind: type[RankConf]) -> list[str]:
    """The settings that are paths."""
    return [name for name, field in kind.model_fields.items() if field.annotation in (Path, Path | None)]


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@contextmanager
def _followed(log: Path, on_progress: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Hands each line that rank 0 adds to the metrics to `on_progress` while the block runs."""
    done = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = done.wait(_POLL_SECONDS)
            lines = read_metrics(log)
            for line in lines[seen:]:
                on_progress(line)
            seen = len(lines)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _unheard(_line: Mapping[str, float]) -> None:
    pass
