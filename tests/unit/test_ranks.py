"""Two real ranks of torch against one: what they exchange, what they hold out, and the gradient that they agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from transformers import LlamaConfig, LlamaForCausalLM

from ledgerlm.backbone.attention import register
from ledgerlm.backbone.causal import Causal
from ledgerlm.backbone.loss import CausalLoss, loss_inputs
from ledgerlm.backbone.packs import Pack
from ledgerlm.backbone.settings import TrainingConf
from ledgerlm.backbone.store import Reader, WindowStore, held_out_packs
from ledgerlm.training.engine import PlainEngine
from ledgerlm.training.loop import Place
from ledgerlm.training.ranks import Ranks
from ledgerlm.training.store import files_of

VOCABULARY, CLIENTS, FILES = 40, 90, 4


def model() -> CausalLoss:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config._attn_implementation = register()
    return CausalLoss(LlamaForCausalLM(config))


def stage(folder: Path) -> None:
    """Prompts of any length with answers of one to three tokens, one to four of a client, each client in one file."""
    folder.mkdir()
    draw = np.random.default_rng(2)
    rows = [(client, draw.integers(5, 40)) for client in range(CLIENTS) for _ in range(draw.integers(1, 5))]
    for number in range(FILES):
        mine = [(client, length) for client, length in rows if client % FILES == number]
        columns = {
            "kind": ["compact"] * len(mine),
            "client": pa.array([client * 7919 - 300_000 for client, _ in mine], pa.int64()),
            "input_ids": pa.array([draw.integers(VOCABULARY, size=n).tolist() for _, n in mine], pa.list_(pa.int32())),
            "targets": pa.array(draw.integers(1, 4, len(mine)).tolist(), pa.int32()),
        }
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")


def store_of(folder: Path, ranks: Ranks) -> WindowStore:
    return WindowStore.build(files_of(folder, ranks), ["compact"], folder / f"tokens-{ranks.size}-{ranks.rank}")


def held_out(folder: Path, ranks: Ranks, most_tokens: int) -> list[tuple[int, tuple[int, ...]]]:
    """Client and tokens of each window that is held out on a rank."""
    packs = held_out_packs(store_of(folder, ranks), "compact", ranks, most_tokens=most_tokens, pack_tokens=200)
    return [window for pack in packs for window in windows(pack)]


def windows(pack: Pack) -> list[tuple[int, tuple[int, ...]]]:
    rows = np.split(pack.input_ids, pack.cu_seqlens[1:-1])
    return [(int(client), tuple(row.tolist())) for client, row in zip(pack.owners, rows, strict=True)]


def first_step(folder: Path, ranks: Ranks, packs: int) -> tuple[list[Pack], list[torch.Tensor]]:
    """The packs of this rank's first step, and how far the step moved each weight at rate 1: the gradient."""
    loss = model()
    before = [each.detach().clone() for each in loss.parameters()]
    engine = PlainEngine(loss, torch.optim.SGD(loss.parameters(), lr=1.0), ranks, clip=None, batches_per_step=packs)
    reader = Reader(store_of(folder, ranks), {"compact": 1.0}, 200, packs, 5, ranks)
    task = Causal(reader, {}, TrainingConf())
    step = next(task.steps(Place()))
    for batch in step.batches:
        engine.learn(task.loss(engine, batch).loss * step.weight)
    return list(step.batches), [old - new.detach() for old, new in zip(before, loss.parameters(), strict=True)]


def rank_work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks.current()
    found = {
        "together": ranks.together(np.full((2 - rank, 3), (1 << 62) + rank, np.int64)),
        "nothing": ranks.together(np.zeros(rank)),
        "held_out": {most: held_out(folder / "rows", ranks, most) for most in (1, 2500, 100_000)},
        "steps": {packs: first_step(folder / "rows", ranks, packs) for packs in (1, 3)},
    }
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    stage(folder / "rows")
    spawn(rank_work, (folder,), nprocs=2)
    return folder


def test_rows_of_all_ranks_come_together_whole(folder: Path) -> None:
    for rank in range(2):
        found = torch.load(folder / f"found-{rank}.pt", weights_only=False)
        assert found["together"].tolist() == [[(1 << 62) + one] * 3 for one in (0, 0, 1)], "no digit is lost"
        assert found["nothing"].tolist() == [0.0]


@pytest.mark.parametrize(("most_tokens", "expected"), [(1, 64), (2500, None), (100_000, -1)])
def test_any_number_of_ranks_holds_the_same_windows_out(folder: Path, most_tokens: int, expected: int | None) -> None:
    parts = [torch.load(folder / f"found-{rank}.pt", weights_only=False)["held_out"][most_tokens] for rank in (0, 1)]
    both, alone = parts[0] + parts[1], held_out(folder / "rows", Ranks(), most_tokens)
    assert parts[0] and parts[1] and sorted(both) == sorted(alone)
    clients = [client for client, _ in alone]
    if expected == 64:
        assert len(alone) == len(set(clients)) == 64, "few tokens are wanted, but 64 clients are read"
    elif expected is None:
        assert set(np.unique(clients, return_counts=True)[1].tolist()) == {1, 2} and len(set(clients)) == CLIENTS
        assert 2400 < sum(len(tokens) for _, tokens in alone) <= 2500
    else:
        assert len(alone) == len(store_of(folder / "rows", Ranks()).kinds), "all there are"


@pytest.mark.parametrize("packs", [1, 3])
def test_a_gradient_is_the_mean_over_all_tokens_that_the_step_learns(folder: Path, packs: int) -> None:
    """Of all ranks and packs: what is not learnt, such as a prompt, does not make the gradient smaller."""
    steps = [torch.load(folder / f"found-{rank}.pt", weights_only=False)["steps"][packs] for rank in (0, 1)]
    loss, learnt = model(), 0
    for batches, _ in steps:
        assert len(batches) == packs
        for batch in batches:
            inputs, places, targets = loss_inputs(batch)
            loss(inputs, places, targets).backward()
            learnt += len(targets)
    assert learnt < 0.2 * sum(len(batch.input_ids) for batches, _ in steps for batch in batches)
    expected = [each.grad / learnt for each in loss.parameters() if each.grad is not None]
    for _, moved in steps:
        for one, other in zip(moved, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
