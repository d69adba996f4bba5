"""Heads that read events, on data whose answer is known: what they learn, and what never changes a score."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from ledgerlm.baselines.sequence.batches import Histories
from ledgerlm.baselines.sequence.settings import Fields
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.events.goals import CutsConf
from ledgerlm.heads.calibration import Calibrator, fit_calibrator
from ledgerlm.heads.recurrent.model import Network
from ledgerlm.heads.recurrent.rows import Rows, batches_alike, batches_in_order
from ledgerlm.heads.recurrent.scoring import probabilities
from ledgerlm.heads.recurrent.settings import (
    ContextFields,
    HeadRankConf,
    InputsConf,
    LearningConf,
    NetworkConf,
    RowsShape,
)
from ledgerlm.heads.recurrent.store import load_recurrent
from ledgerlm.heads.recurrent.training import Classifying, as_raw, engine_of, export, raw_scores, train_rank
from ledgerlm.heads.recurrent.training import trained as train_until_best
from ledgerlm.heads.tasks import Task
from ledgerlm.training.artefacts import keep_copy
from ledgerlm.training.loop import Line, Report
from ledgerlm.training.ranks import Ranks

CODES = 6
SHAPE = RowsShape(
    fields=Fields(
        codes={"mcc": tuple("abcdef")},
        embeddings={"mcc": 4},
        numbers=("amount", "log_days"),
        mean=(1.0, 0.7),
        std=(1.0, 0.4),
        max_events=60,
    ),
    context=ContextFields(codes={"region": ("n", "s")}, numbers=("tenure",), mean=(0.0,), std=(1.0,)),
)
TASK = Task(name="walk", kind="multiclass", classes=(0.0, 1.0, 2.0), class_names=("down", "still", "up"))


def population(count: int, seed: int = 0, share: float = 0.5) -> Rows:
    """Clients that walk up, down or nowhere in particular through the codes; each uses every code equally often."""
    random = np.random.default_rng(seed)
    label = random.choice(3, count, p=[share, (1 - share) / 2, (1 - share) / 2])
    lengths = random.integers(5, 40, count)
    starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    codes = np.zeros((starts[-1], 1), np.int32)
    for row in range(count):
        steps = random.integers(0, CODES, lengths[row]) if label[row] == 1 else np.full(lengths[row], label[row] - 1)
        codes[starts[row] : starts[row + 1], 0] = (random.integers(CODES) + np.cumsum(steps)) % CODES + 2
    numbers = np.column_stack([random.normal(1.0, 1.0, len(codes)), np.abs(random.normal(0.7, 0.4, len(codes)))])
    return Rows(
        Histories(codes, numbers.astype(np.float32), starts),
        random.integers(2, 4, (count, 1)).astype(np.int32),
        random.normal(size=(count, 1)).astype(np.float32),
        label.astype(np.int64),
    )


def worker(folder: Path, network: NetworkConf, learning: LearningConf | None = None) -> HeadRankConf:
    return HeadRankConf(
        rows=folder / "rows", folder=folder / "work", inputs=InputsConf(), shape=SHAPE,
        network=network, learning=learning or LearningConf(epochs=6, batch=32), task=TASK, as_of="2025-01-01", seed=3,
    )  # fmt: skip


def unheard(line: object) -> None:
    """Hears nothing."""


def trained(
    conf: HeadRankConf, rows: Rows | None = None, stop: Rows | None = None, report: Report = unheard
) -> tuple[Network, list[Line]]:
    """The network of a training in this process with the weights of its best epoch, and its curve."""
    engine = engine_of(conf, Ranks())
    task = Classifying(conf, rows or population(400), stop or population(120, seed=1), Ranks())
    done = train_until_best(conf, engine, task, report)
    assert isinstance(engine.module, Network)
    return engine.module, done.curve


def held_out_loss(network: Network, rows: Rows) -> float:
    """Cross-entropy of rows."""
    raw = torch.from_numpy(raw_scores(network, rows))
    return float(torch.nn.functional.cross_entropy(raw, torch.from_numpy(rows.labels)))


NETWORKS = [
    NetworkConf(kind="lstm", width=16, dense=16),
    NetworkConf(kind="gru", width=16, dense=16, layers=2, pooling="last"),
    NetworkConf(kind="cnn", width=16, dense=16, layers=2, kernel=5),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.kind)
def test_neither_padding_nor_company_changes_a_score(network: NetworkConf) -> None:
    torch.manual_seed(0)
    rows = population(12)
    net = Network(SHAPE, network, 3).eval()
    alone = np.concatenate([net(rows.batch(np.array([row]))).detach().numpy() for row in range(len(rows))])
    np.testing.assert_allclose(raw_scores(net, rows), alone, atol=1e-5)
    batch = rows.batch(np.arange(12))
    # What stands in the padding must not matter, only the mask.
    noise = torch.where(batch.events.mask[..., None], batch.events.numbers, torch.full_like(batch.events.numbers, 9.0))
    codes = torch.where(batch.events.mask[..., None], batch.events.codes, torch.full_like(batch.events.codes, 3))
    soiled = dataclasses.replace(batch, events=dataclasses.replace(batch.events, numbers=noise, codes=codes))
    np.testing.assert_allclose(net(soiled).detach().numpy(), alone, atol=1e-5)


@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[2]], ids=lambda one: one.kind)
def test_order_is_learnt_and_the_best_epoch_kept(network: NetworkConf, tmp_path: Path) -> None:
    quick = LearningConf(epochs=25, patience=8, batch=32, learning_rate=0.01, event_dropout=0.0)
    conf = worker(tmp_path, network, quick)
    found, curve = trained(conf)
    fresh = population(300, seed=2)
    right = float((raw_scores(found, fresh).argmax(axis=1) == fresh.labels).mean())
    assert right > 0.85  # counting codes tells nothing: guessing is right in half of the cases
    best = min(line["held_out_loss"] for line in curve)
    assert held_out_loss(found, population(120, seed=1)) == pytest.approx(best, abs=1e-6)


def test_training_stops_early_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    noise = population(200)
    noise = dataclasses.replace(noise, labels=np.random.default_rng(5).integers(0, 3, len(noise)))
    conf = worker(tmp_path, NETWORKS[0], LearningConf(epochs=40, patience=2, batch=32, learning_rate=0.02))
    stop = population(60, seed=9)
    whole, curve = trained(conf, noise, stop)
    assert len(curve) < 40

    class Killed(Exception):
        pass

    def kill(line: object) -> None:
        raise Killed

    other = worker(tmp_path / "killed", NETWORKS[0], conf.learning)
    with pytest.raises(Killed):
        trained(other, noise, stop, kill)
    resumed, again = trained(other, noise, stop)
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in curve], rel=1e-5)
    np.testing.assert_allclose(raw_scores(resumed, noise), raw_scores(whole, noise), atol=1e-5)


def test_class_weights_lift_the_rare_class(tmp_path: Path) -> None:
    hits = {}
    for weights in ("none", "balanced"):
        conf = worker(tmp_path / weights, NETWORKS[0], LearningConf(epochs=2, batch=32, class_weights=weights))
        rows, stop = population(400, share=0.9), population(60, seed=1, share=0.9)
        of_classes = Classifying(conf, rows, stop, Ranks()).weights
        assert of_classes[0] == pytest.approx(1.0 if weights == "none" else 1 / (3 * 0.9), rel=0.1)
        network, _ = trained(conf, rows, stop)
        fresh = population(300, seed=2, share=0.9)
        hits[weights] = int((raw_scores(network, fresh).argmax(axis=1) != 0).sum())
    assert hits["balanced"] > hits["none"]


def write(folder: Path, rows: Rows, files: int) -> None:
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        spans = [slice(rows.histories.starts[row], rows.histories.starts[row + 1]) for row in part]
        columns: dict[str, list[NDArray[np.generic]]] = {
            "codes": [rows.histories.codes[span].reshape(-1) for span in spans],
            "numbers": [rows.histories.numbers[span].reshape(-1) for span in spans],
            "metadata": [rows.metadata[row] for row in part],
            "context": [rows.context[row] for row in part],
        }
        table = pa.table({**columns, "label": rows.labels[part]})
        pq.write_table(table, folder / f"part-{number}.parquet")


def test_a_trained_head_is_calibrated_kept_under_its_hash_and_guarded(tmp_path: Path) -> None:
    conf = worker(tmp_path, NETWORKS[0], LearningConf(epochs=2, batch=32))
    calibrate = population(90, seed=6)
    for part, rows in (("train", population(300)), ("stop", population(80, seed=1)), ("calibrate", calibrate)):
        write(tmp_path / "rows" / f"part={part}", rows, 2)
    train_rank(conf, unheard)
    heads = tmp_path / "heads"
    head_id = keep_copy(conf.result, heads)
    network, card = load_recurrent(heads / head_id)
    assert (card.training_rows, card.held_out_rows, card.calibration_rows) == (300, 80, 90)
    raw = as_raw(raw_scores(network, calibrate), TASK)
    assert card.calibration == fit_calibrator("temperature", raw, calibrate.labels.astype(np.float64), TASK)
    assert {path.stat().st_mode & 0o777 for path in (heads / head_id).iterdir()} == {0o644}, "executors read them"
    p = probabilities(network, card, population(50, seed=4))
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    (heads / head_id / "head.json").write_text((heads / head_id / "head.json").read_text() + " ")
    with pytest.raises(ArtefactError, match="hash"):
        load_recurrent(heads / head_id)


def test_a_head_starts_from_another_whose_classes_stand_in_another_order(tmp_path: Path) -> None:
    conf = worker(tmp_path / "one", NETWORKS[0], LearningConf(epochs=3, batch=32))
    known, _ = trained(conf)
    export(conf, known, Calibrator(), [400, 120, 0])
    heads = tmp_path / "heads"
    base = heads / keep_copy(conf.result, heads)
    names = ("up", "elsewhere", "down")
    other = worker(tmp_path / "two", NETWORKS[0]).model_copy(
        update={"task": TASK.model_copy(update={"class_names": names}), "base": base}
    )
    rows = population(50, seed=5)
    before = raw_scores(known, rows)
    network = engine_of(other, Ranks()).module
    assert isinstance(network, Network)
    started = raw_scores(network, rows)
    np.testing.assert_allclose(started[:, [2, 0]], before[:, [0, 2]], atol=1e-6)
    assert np.abs(started[:, 1] - before[:, 1]).max() > 0.01


def test_a_class_that_nobody_shows_is_an_error(tmp_path: Path) -> None:
    rows = population(100)
    two = dataclasses.replace(rows, labels=rows.labels % 2)
    with pytest.raises(DataError, match="no training client of class 'up'"):
        Classifying(worker(tmp_path, NETWORKS[0]), two, rows, Ranks())


def test_batches_hold_every_row_once_and_pad_little() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    drawn = list(batches_alike(lengths, 20, np.random.default_rng(1)))
    assert len(set(np.concatenate(drawn).tolist())) == sum(len(one) for one in drawn) == 1000
    padded = sum(lengths[one].max() * len(one) for one in drawn)
    assert padded < 1.2 * lengths.sum()
    in_order = list(batches_in_order(lengths, 500))
    assert sorted(np.concatenate(in_order).tolist()) == list(range(1000))
    assert all(lengths[one].max() * len(one) <= 500 for one in in_order)


def test_cuts_are_dates_or_sliding() -> None:
    with pytest.raises(ValidationError, match="either dates, or first and last"):
        CutsConf()
