"""ALIMN's networks as tasks of the training loop: the best epoch is kept, then a network is trained anew on everyone.

The number of epochs known, a network is trained anew for as long on all clients (Goodfellow, Bengio and Courville,
"Deep Learning", 2016, section 7.8, algorithm 7.2), since answers are few.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.alimn.batches import Rows
from ledgerlm.heads.alimn.losses import alimn_loss
from ledgerlm.heads.alimn.network import Alimn, Batch
from ledgerlm.heads.alimn.settings import FusionRankConf
from ledgerlm.heads.tasks import Ints
from ledgerlm.training.checkpoints import BestWeights, Checkpoints
from ledgerlm.training.engine import DeepSpeedEngine, Engine, zero_stage
from ledgerlm.training.launch import finished, started
from ledgerlm.training.loop import (
    HELD_OUT,
    EpochTask,
    Line,
    Outcome,
    Pace,
    Progress,
    Report,
    Training,
    in_batches,
)
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.settings import FACTS, cosine
from ledgerlm.training.store import files_of

WEIGHTS = "network.safetensors"
_SCORED_AT_ONCE = 1024  # clients
_FINAL_RATE = 0.1


class Objective(nn.Module):
    """The network with its loss, which is what DeepSpeed runs."""

    def __init__(self, network: Alimn) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        """The loss of labelled clients."""
        return alimn_loss(self.network(batch), batch.y, self.network.parameters(), self.network.conf)


def train_rank(conf: FusionRankConf, report: Report) -> None:
    """Trains all networks, one after the other, on this rank's clients.

    Rank 0 leaves `NAME/network.safetensors` and `NAME/training.json` below `conf.folder`, each rank the log-odds of its
    held-out clients. A network that is there already is not trained again.
    """
    refuse_sharded(conf.deepspeed)
    ranks, device = started(conf)
    tasks = sorted({network.task for network in conf.networks.values() if network.task})
    files = files_of(conf.rows, ranks)
    if ranks.least(len(files)) == 0:
        raise DataError(f"{conf.rows} has fewer files than the {ranks.size} ranks; lower workers.ranks")
    rows = Rows.read(files, conf.blocks, conf.domains, tasks)
    for name in conf.networks:
        if not ranks.least((conf.folder / name / FACTS).exists()):
            one = NetworkTraining(conf, name, rows, ranks, device=device)
            one.run(report)
            one.save()
    if ranks.first:
        finished(conf, {"networks": list(conf.networks)})


def refuse_sharded(deepspeed: Mapping[str, object]) -> None:
    """Refuses ZeRO-3, which splits the parameters: models this small are not made for it.

    Raises:
        ConfigError: it is asked for.
    """
    if zero_stage(deepspeed) == 3:
        raise ConfigError("this stage trains with ZeRO stage 0 to 2; name another file under 'deepspeed'")


class Fusing(EpochTask):
    """Labelled clients and ALIMN's loss; the engine's module is an `Objective`."""

    def __init__(
        self, one: NetworkTraining, places: Ints, *, epochs: int, size: int, held_out: Ints | None = None
    ) -> None:
        """Prepares the task.

        Args:
            one: the network with its rows.
            places: this rank's clients to learn from.
            epochs: passes over them.
            size: clients of a batch on each rank.
            held_out: this rank's clients that choose the epoch.
        """
        super().__init__(one.ranks, epochs=epochs, seed=one.conf.seed, size=size)
        self._one, self._places, self._held_out = one, places, held_out

    def order(self) -> Iterable[NDArray[np.int64]]:
        """This rank's clients, shuffled."""
        return in_batches(self.random.permutation(self._places), self.size)

    def batch(self, members: NDArray[np.int64]) -> Batch:
        """Some clients with their labels."""
        return self._one.rows.clients.batch(members, self._one.y).to(self._one.device)

    def loss(self, engine: Engine, batch: Batch) -> Outcome:
        """The loss, a mean over the batch."""
        loss = engine(batch)
        return Outcome(loss, loss.detach())

    def rate(self, done: Progress) -> float:
        """That of the epoch: a cosine down to a tenth, over as many epochs as there might be."""
        training = self._one.conf.training
        return training.learning_rate * cosine(done.place.epoch / training.epochs, final=_FINAL_RATE)

    def held_out(self, engine: Engine) -> Line:
        """Cross-entropy of the held-out clients of all ranks."""
        if self._held_out is None:
            return {}
        assert isinstance(engine.module, Objective)
        logit = torch.from_numpy(logits(engine.module.network, self._one.rows, self._held_out, self._one.device))
        y = torch.from_numpy(self._one.y[self._held_out])
        loss = float(functional.binary_cross_entropy_with_logits(logit, y, reduction="sum"))
        total, count = self.ranks.total(np.array([loss, len(y)]))
        return {HELD_OUT: float(total / count)}


class NetworkTraining:
    """One network on one rank.

    Attributes:
        network: the network; after `run` the one to publish.
        curve: what each epoch showed: epoch, loss, held_out_loss, seconds.
        raw: after `run`, log-odds of this rank's held-out clients by a network that has not seen them.
        trained: after `run`, places of this rank's clients that the network was trained on.
    """

    def __init__(self, conf: FusionRankConf, name: str, rows: Rows, ranks: Ranks, *, device: str = "cpu") -> None:
        self.conf, self.rows, self.ranks, self.device = conf, rows, ranks, device
        self.settings, self.folder = conf.networks[name], conf.folder / name
        settings = self.settings
        assert settings.task is not None  # the driver fills it in
        self.y = rows.labels[settings.task]
        self.train, self.held_out = (rows.places(settings.task, held_out=side) for side in (False, True))
        self.trained = self.train
        self.network = self._new_network()
        self.raw: NDArray[np.float64] = np.zeros(0)
        self.curve: list[Line] = []
        if not ranks.least(min(len(self.train), len(self.held_out))):
            raise DataError(
                f"task {settings.task}: a rank has {len(self.train)} training and {len(self.held_out)} held-out "
                "clients; lower workers.ranks or give more labelled clients"
            )
        self._size = max(1, min(conf.training.batch // ranks.size, ranks.least(len(self.train))))

    def _new_network(self) -> Alimn:
        """A network with the first weights that the seed gives; all ranks must call it together."""
        torch.manual_seed(self.conf.seed)
        network = Alimn(self.settings, self.rows.clients.shape(self.conf.domains)).to(self.device)
        clients = self.rows.clients
        if self.settings.structured:
            mean, scale = self._spread(clients.x[self.train])
            network.feature_mean.copy_(mean)
            network.feature_scale.copy_(scale)
        if self.settings.text:
            mean, scale = self._spread(clients.states[np.isin(clients.owners, self.train)])
            network.state_mean.copy_(mean)
            network.state_scale.copy_(scale)
        return network

    def _spread(self, numbers: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the columns of all ranks' rows; the deviation of a constant column is 1."""
        squares = np.einsum("ij,ij->j", numbers, numbers, dtype=np.float64)
        sums = self.ranks.total(np.concatenate([[len(numbers)], numbers.sum(0, dtype=np.float64), squares]))
        count, width = max(sums[0], 1.0), numbers.shape[1]
        mean = sums[1 : 1 + width] / count
        scale = np.sqrt(np.maximum(sums[1 + width :] / count - mean**2, 0))
        return torch.from_numpy(mean), torch.from_numpy(np.where(scale > 1e-6, scale, 1.0))

    def run(self, report: Report) -> None:
        """Trains until the held-out loss stops falling, then, unless told not to, once more on all clients."""
        training = self.conf.training
        task = Fusing(self, self.train, epochs=training.epochs, size=self._size, held_out=self.held_out)
        best = BestWeights(self.folder, self.network, self.ranks)
        done = self._loop(task, self.folder, Pace(patience=training.patience), report, best)
        best.restore()
        self.curve = done.curve
        self.raw = logits(self.network, self.rows, self.held_out, self.device)
        if not training.refit:
            return
        self.trained = np.concatenate([self.train, self.held_out])
        self.network = self._new_network()
        epochs = int(min(self.curve, key=lambda line: line[HELD_OUT])["epoch"])
        self._loop(Fusing(self, self.trained, epochs=epochs, size=self._size), self.folder / "refit", Pace(), report)

    def _loop(
        self, task: Fusing, folder: Path, pace: Pace, report: Report, best: BestWeights | None = None
    ) -> Progress:
        settings, checkpoints = self.conf.training, Checkpoints(folder / "checkpoints", self.ranks)
        objective = Objective(self.network)
        optimizer = torch.optim.Adam(objective.parameters(), lr=settings.learning_rate)
        engine = DeepSpeedEngine(objective, optimizer, checkpoints, self.conf.deepspeed, clip=settings.clip)
        done = Training(engine, task, checkpoints, pace, report=report, keep=best.keep if best else None).run()
        engine.close()
        return done

    def save(self) -> None:
        """Writes the weights and facts (rank 0), and the held-out clients' log-odds (each rank)."""
        kept = self.rows.keys.take(pa.array(self.held_out))
        named = {"raw": pa.array(self.raw), "y": pa.array(self.y[self.held_out])}
        table = pa.table({**{name: kept.column(name) for name in kept.column_names}, **named})
        pq.write_table(table, self.folder / f"held_out-{self.ranks.rank}.parquet")
        trained = int(self.ranks.total(np.array([len(self.trained)]))[0])
        self.ranks.wait()
        if self.ranks.first:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
            save_file(weights, self.folder / WEIGHTS)
            facts = {
                "shape": self.network.shape.model_dump(),
                "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
                "training_rows": trained,
                "alpha": self.network.branches.alpha.detach().cpu().tolist(),
                "curve": self.curve,
            }
            (self.folder / f"{FACTS}.aside").write_text(json.dumps(facts))
            (self.folder / f"{FACTS}.aside").rename(self.folder / FACTS)
        self.ranks.wait()


@torch.no_grad()
def logits(network: Alimn, rows: Rows, places: Ints, device: str) -> NDArray[np.float64]:
    """Log-odds of some clients, without dropout."""
    network.eval()
    parts = [
        network(rows.clients.batch(places[start : start + _SCORED_AT_ONCE]).to(device)).logit.cpu().double().numpy()
        for start in range(0, len(places), _SCORED_AT_ONCE)
    ]
    return np.concatenate([np.zeros(0), *parts])


def read_held_out(folder: Path) -> pa.Table:
    """Held-out clients of a trained network: client_id, as_of, raw (log-odds), y; sorted by client."""
    files: Iterator[Path] = iter(sorted(folder.glob("held_out-*.parquet")))
    table: pa.Table = pa.concat_tables([pq.read_table(path) for path in files])
    return table.sort_by([("client_id", "ascending"), ("as_of", "ascending")])
