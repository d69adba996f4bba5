"""A pool of Ray actors that works through shards: one shard an actor at a time, dead actors replaced."""

from __future__ import annotations

import os
import sys
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.engine import make_engine
from ledgerlm.enrich.recipes.writer import RecipeConf, RecipeWriter
from ledgerlm.enrich.rewrite import RewriteConf, Rewriter, Writer
from ledgerlm.enrich.shards import Shard, ShardStats, enrich_shard
from ledgerlm.errors import EngineError
from ledgerlm.files import here, share, share_place


class PoolConf(Conf):
    """How many workers there are and what each may use."""

    workers: int = Field(2, ge=1, description="actors; each holds one engine and works on one shard at a time")
    cpus: float = Field(1, ge=0, description="cores that Ray reserves for an actor")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for an actor")
    memory_mb: int | None = Field(None, description="memory that Ray reserves for an actor, MB", ge=1)
    shard_rows: int = Field(512, ge=1, description="documents of a shard, about: what a killed worker has to do again")
    deaths: int = Field(12, ge=1, description="deaths of workers over one shard after which the stage stops")

    def resources(self) -> dict[str, Any]:
        """Options of a Ray actor."""
        reserved = {"memory": self.memory_mb * 2**20} if self.memory_mb else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0, **reserved}


def make_writer(conf: RewriteConf | RecipeConf, seed: int) -> Writer:
    """Loads the engine and puts the writer of these texts around it."""
    engine = make_engine(conf.engine, conf.options)
    return Rewriter(engine, conf, seed) if isinstance(conf, RewriteConf) else RecipeWriter(engine, conf, seed)


class Worker:
    """An actor: one engine, loaded in the constructor."""

    def __init__(self, conf: RewriteConf | RecipeConf, seed: int, session: str) -> None:
        self._writer = make_writer(conf, seed)
        self._batch_size = conf.batch_size
        self._session = session

    def enrich(self, number: int, source: str, target: str) -> ShardStats:
        """Finishes one shard, whose folder and file are told as `files.here` takes them."""
        shard = Shard(number=number, source=here(source), target=here(target))
        return enrich_shard(self._writer, shard, batch_size=self._batch_size, session=self._session)


class Pool:
    """Workers on a Ray that is started already.

    Only paths and counts go through Ray; rows stay in files. So a worker's memory is bounded by its batch, and nothing
    piles up while shards wait: no more are handed out than there are workers.
    """

    def __init__(self, conf: PoolConf, writer: RewriteConf | RecipeConf, seed: int) -> None:
        self._conf = conf
        self._arguments = (writer, seed, uuid.uuid4().hex)

    def run(self, shards: Sequence[Shard], finished: Callable[[ShardStats], None]) -> list[ShardStats]:
        """Finishes all shards.

        Args:
            shards: what to do; those whose statistics stand already are not done again.
            finished: told of each shard as it ends.

        Returns:
            One statistics a shard, in the order of the shards.

        Raises:
            EngineError: when no engine can be built, a shard fails as a whole, or workers keep dying over one.
        """
        found = {shard.number: ShardStats.load(shard.record) for shard in shards}
        done = {number: stats for number, stats in found.items() if stats is not None}
        for stats in done.values():
            finished(stats)
        waiting = deque(shard for shard in shards if shard.number not in done)
        for stats in self._work(waiting):
            done[stats.shard] = stats
            finished(stats)
        return [done[shard.number] for shard in shards]

    def _work(self, waiting: deque[Shard]) -> Iterator[ShardStats]:
        import ray  # not before `RayEngine.start` has set its environment

        busy: dict[Any, tuple[Shard, Any]] = {}
        deaths: Counter[int] = Counter()
        idle = [self._hire() for _ in range(min(self._conf.workers, len(waiting)))]
        try:
            while waiting or busy:
                while waiting and idle:
                    worker, shard = idle.pop(), waiting.popleft()
                    told = (shard.number, share(shard.source), share_place(shard.target))
                    busy[worker.enrich.remote(*told)] = (shard, worker)
                (ended, *_), _ = ray.wait(list(busy), num_returns=1)
                shard, worker = busy.pop(ended)
                stats = self._outcome(ended, shard, deaths)
                if stats is not None:
                    yield stats
                else:
                    waiting.appendleft(shard)
                idle.append(self._hire() if stats is None else worker)
        finally:
            for worker in [*idle, *(worker for _, worker in busy.values())]:
                ray.kill(worker)

    def _outcome(self, ended: Any, shard: Shard, deaths: Counter[int]) -> ShardStats | None:
        """Statistics of a shard; None when its worker died and another may try."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

        try:
            stats: ShardStats = ray.get(ended)
        except (RayActorError, WorkerCrashedError, OutOfMemoryError) as death:
            deaths[shard.number] += 1
            if getattr(death, "actor_init_failed", False) or deaths[shard.number] >= self._conf.deaths:
                *_, cause = str(death).strip().splitlines()
                count = f"{deaths[shard.number]} enrichment workers died over shard {shard.number} ({shard.source})"
                raise EngineError(f"{count}, the last one so: {cause}") from death
            return None
        except RayTaskError as error:
            where = f"shard {shard.number} ({shard.source})"
            raise EngineError(f"{where} cannot be enriched: {error.cause}; mend it and run the same command") from error
        return stats

    def _hire(self) -> Any:
        import ray

        options = self._conf.resources()
        if ":" in self._arguments[0].engine:  # the user's own engine is importable where it is here
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        return ray.remote(**options)(Worker).remote(*self._arguments)
