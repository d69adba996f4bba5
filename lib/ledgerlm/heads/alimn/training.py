"""Training of ALIMN's networks on one rank: DeepSpeed steps, held-out loss after each epoch, the best epoch is kept.

The number of epochs known, a network is trained anew for as long on all clients (Goodfellow, Bengio and Courville,
"Deep Learning", 2016, section 7.8, algorithm 7.2), since answers are few.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ledgerlm.backbone.cpu import keep_freed_memory
from ledgerlm.backbone.ranks import Ranks
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.heads.alimn.batches import Rows
from ledgerlm.heads.alimn.losses import alimn_loss
from ledgerlm.heads.alimn.network import Alimn, Batch
from ledgerlm.heads.alimn.settings import FusionRankConf, FusionTrainingConf, NetworkConf
from ledgerlm.heads.tasks import Ints

Report = Callable[[Mapping[str, Any]], None]
WEIGHTS, FACTS = "network.safetensors", "training.json"
_SCORED_AT_ONCE = 1024  # clients
_OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


class Objective(nn.Module):
    """The network with its loss, which is what DeepSpeed runs."""

    def __init__(self, network: Alimn) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        """The loss of labelled clients."""
        return alimn_loss(self.network(batch), batch.y, self.network.parameters(), self.network.conf)


def train_rank(conf: FusionRankConf, report: Report) -> None:
    """Trains all networks, one after the other, on this rank's clients; the process group exists already.

    Rank 0 leaves `NAME/network.safetensors` and `NAME/training.json` below `conf.folder`, each rank the log-odds of its
    held-out clients. A network that is there already is not trained again.
    """
    quiet()
    torch.set_num_threads(conf.threads)
    keep_freed_memory()
    ranks = Ranks.current()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if conf.device == "cuda" else "cpu"
    tasks = sorted({network.task for network in conf.networks.values() if network.task})
    files = sorted(conf.rows.glob("*.parquet"))[ranks.rank :: ranks.size]
    if ranks.least(len(files)) == 0:
        raise DataError(f"{conf.rows} has fewer files than the {ranks.size} ranks; lower workers.ranks")
    rows = Rows.read(files, conf.blocks, conf.domains, tasks)
    for name, network in conf.networks.items():
        folder = conf.folder / name
        if ranks.least((folder / FACTS).exists()):
            continue
        training = Training(conf, network, rows, ranks, device)
        training.run(partial(_of_network, report, name))
        training.save(folder)


def _of_network(report: Report, name: str, line: Mapping[str, Any]) -> None:
    report({"network": name, **line})


class Training:
    """One network on one rank.

    Attributes:
        network: the network; after `run` the one to publish.
        curve: what each epoch showed: epoch, loss, held_out_loss, seconds.
        raw: after `run`, log-odds of this rank's held-out clients by a network that has not seen them.
        trained: after `run`, places of this rank's clients that the network was trained on.
    """

    def __init__(self, conf: FusionRankConf, settings: NetworkConf, rows: Rows, ranks: Ranks, device: str) -> None:
        self.conf, self.settings, self.rows, self.ranks, self.device = conf, settings, rows, ranks, device
        assert settings.task is not None  # the driver fills it in
        self.y = rows.labels[settings.task]
        self.train, self.held_out = (rows.places(settings.task, held_out=side) for side in (False, True))
        self.trained = self.train
        self.network = self._new_network()
        self.raw: NDArray[np.float64] = np.zeros(0)
        self.curve: list[dict[str, float]] = []
        if not ranks.least(min(len(self.train), len(self.held_out))):
            raise DataError(
                f"task {settings.task}: a rank has {len(self.train)} training and {len(self.held_out)} held-out "
                "clients; lower workers.ranks or give more labelled clients"
            )
        self._share = max(1, min(conf.training.batch // ranks.size, ranks.least(len(self.train))))

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
        epochs = self._until_it_stops_falling(report)
        self.raw = logits(self.network, self.rows, self.held_out, self.device)
        if not self.conf.training.refit:
            return
        self.trained = np.concatenate([self.train, self.held_out])
        self.network = self._new_network()
        engine = self._engine()
        for epoch in range(epochs):
            self._epoch(engine, epoch)
        engine.destroy()

    def _until_it_stops_falling(self, report: Report) -> int:
        """Leaves the network with the weights of its best epoch; returns the epochs that it took."""
        engine = self._engine()
        best, epochs, kept = math.inf, 0, copy.deepcopy(self.network.state_dict())
        for epoch in range(self.conf.training.epochs):
            began = time.monotonic()
            loss = self._epoch(engine, epoch)
            held_out = self.held_out_loss()
            seconds = time.monotonic() - began
            line = {"epoch": float(epoch + 1), "loss": loss, "held_out_loss": held_out, "seconds": seconds}
            self.curve.append(line)
            report(line)
            if held_out < best - 1e-5:
                best, epochs, kept = held_out, epoch + 1, copy.deepcopy(self.network.state_dict())
            if epoch + 1 - epochs >= self.conf.training.patience:
                break
        self.network.load_state_dict(kept)
        engine.destroy()
        return epochs

    def _engine(self) -> Any:
        settings = self.conf.training
        return deepspeed_engine(
            Objective(self.network),
            self.conf.deepspeed,
            self._share,
            clip=settings.clip,
            rate=settings.learning_rate,
        )

    def _epoch(self, engine: Any, epoch: int) -> float:
        """One pass over this rank's clients, in step with the others; returns the mean loss of all ranks."""
        order = np.random.default_rng((self.conf.seed, epoch, self.ranks.rank)).permutation(self.trained)
        torch.manual_seed(self.conf.seed * 1000 + epoch)
        steps = self.ranks.least(len(order) // self._share)
        self.network.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.conf.training, epoch)
        total = 0.0
        for step in range(steps):
            batch = self.rows.clients.batch(order[step * self._share : (step + 1) * self._share], self.y)
            loss = engine(batch.to(self.device))
            engine.backward(loss)
            engine.step()
            total += float(loss.detach())
        return float(self.ranks.total(np.array([total]))[0]) / (steps * self.ranks.size)

    def held_out_loss(self) -> float:
        """Cross-entropy of the held-out clients of all ranks."""
        logit = torch.from_numpy(logits(self.network, self.rows, self.held_out, self.device))
        y = torch.from_numpy(self.y[self.held_out])
        loss = float(functional.binary_cross_entropy_with_logits(logit, y, reduction="sum"))
        total, count = self.ranks.total(np.array([loss, len(y)]))
        return float(total / count)

    def save(self, folder: Path) -> None:
        """Writes the weights and facts (rank 0), and the held-out clients' log-odds (each rank)."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = self.rows.keys.take(pa.array(self.held_out))
        named = {"raw": pa.array(self.raw), "y": pa.array(self.y[self.held_out])}
        table = pa.table({**{name: kept.column(name) for name in kept.column_names}, **named})
        pq.write_table(table, folder / f"held_out-{self.ranks.rank}.parquet")
        trained = int(self.ranks.total(np.array([len(self.trained)]))[0])
        self.ranks.wait()
        if self.ranks.first:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
            save_file(weights, folder / WEIGHTS)
            facts = {
                "shape": self.network.shape.model_dump(),
                "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
                "training_rows": trained,
                "alpha": self.network.branches.alpha.detach().cpu().tolist(),
                "curve": self.curve,
            }
            (folder / f"{FACTS}.aside").write_text(json.dumps(facts))
            (folder / f"{FACTS}.aside").rename(folder / FACTS)
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


def learning_rate(training: FusionTrainingConf, epoch: int) -> float:
    """Learning rate of an epoch, from 0: a cosine down to a tenth."""
    fall = (1 + math.cos(math.pi * epoch / training.epochs)) / 2
    return training.learning_rate * (0.1 + 0.9 * fall)


def deepspeed_engine(module: nn.Module, given: Mapping[str, Any], share: int, *, clip: float, rate: float) -> Any:
    """DeepSpeed engine with Adam around a module that gives its own loss.

    Args:
        module: what is trained.
        given: DeepSpeed settings of a file in `conf/deepspeed`.
        share: rows that a rank reads in one step.
        clip: largest norm of the gradient.
        rate: learning rate.

    Raises:
        ConfigError: the settings set what ledgerlm sets, or split the parameters (ZeRO-3), which models this small are
            not made for.
    """
    import deepspeed

    if clash := sorted(set(_OURS) & set(given)):
        raise ConfigError(f"the DeepSpeed file sets {clash}; take them out, the stage's own settings decide them")
    if given.get("zero_optimization", {}).get("stage", 0) == 3:
        raise ConfigError("this stage trains with ZeRO stage 0 to 2; name another file under 'deepspeed'")
    # Compiling the shared-memory all-reduce takes a C++ compiler and half a minute; gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = {
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "steps_per_print": 1 << 60,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **given,
    }
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]


def quiet() -> None:
    """Leaves to a rank's log what someone can act on."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def read_held_out(folder: Path) -> pa.Table:
    """Held-out clients of a trained network: client_id, as_of, raw (log-odds), y; sorted by client."""
    files: Iterator[Path] = iter(sorted(folder.glob("held_out-*.parquet")))
    table: pa.Table = pa.concat_tables([pq.read_table(path) for path in files])
    return table.sort_by([("client_id", "ascending"), ("as_of", "ascending")])
