"""Sequence baselines on data whose answer is known: what each loss learns, and what never changes a vector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ledgerlm.baselines.sequence.batches import Histories, draw_slices, drop_events, pad, whole
from ledgerlm.baselines.sequence.coles import contrastive_loss, recall
from ledgerlm.baselines.sequence.detpp import matching_loss
from ledgerlm.baselines.sequence.encoder import Encoder
from ledgerlm.baselines.sequence.inference import encode_histories
from ledgerlm.baselines.sequence.nsp import cut
from ledgerlm.baselines.sequence.objective import Events, Objective, ranking_auc
from ledgerlm.baselines.sequence.rtd import replace_events
from ledgerlm.baselines.sequence.settings import (
    ENCODER_FILES,
    EncoderConf,
    EncoderRankConf,
    Fields,
    ObjectiveConf,
    SlicesConf,
    TrainingConf,
)
from ledgerlm.baselines.sequence.store import load_encoder
from ledgerlm.baselines.sequence.training import Encoding, engine_of, export, learning_rate, train_rank
from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.training.artefacts import keep_copy
from ledgerlm.training.checkpoints import Checkpoints
from ledgerlm.training.loop import Line, Pace, Training
from ledgerlm.training.ranks import Ranks

CODES = 6
FIELDS = Fields(
    codes={"mcc": tuple("abcdef"), "channel": ("x", "y")},
    embeddings={"mcc": 4, "channel": 4},
    numbers=("amount", "log_days"),
    mean=(1.0, 0.7),
    std=(1.0, 0.4),
    max_events=100,
)


def population(clients: int, seed: int = 0) -> tuple[Histories, NDArray[np.int64]]:
    """Two kinds of clients: one walks up through the codes, the other down; both use every code equally often."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 2, clients)
    lengths = random.integers(20, 50, clients)
    starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    codes = np.zeros((starts[-1], 2), np.int32)
    for client in range(clients):
        steps = np.where(random.uniform(size=lengths[client]) < 0.9, 1, random.integers(0, CODES, lengths[client]))
        walk = (random.integers(CODES) + np.cumsum(steps * (1 if kind[client] else -1))) % CODES
        codes[starts[client] : starts[client + 1], 0] = walk + 2
    codes[:, 1] = random.integers(2, 4, len(codes))
    numbers = np.column_stack([random.normal(1.0, 1.0, len(codes)), np.abs(random.normal(0.7, 0.4, len(codes)))])
    return Histories(codes, numbers.astype(np.float32), starts), kind


def objective(method: str, **settings: object) -> ObjectiveConf:
    adapter: TypeAdapter[ObjectiveConf] = TypeAdapter(ObjectiveConf)
    return adapter.validate_python({"method": method, "shortest": 8, "longest": 20, **settings})


def rank_conf(
    folder: Path, conf: ObjectiveConf, *, epochs: int = 4, kind: str = "gru", pooling: str = "last", **training: object
) -> EncoderRankConf:
    settings = {"epochs": epochs, "batch": 16, "learning_rate": 0.01, "min_events": 10, "held_out": 0.1, **training}
    return EncoderRankConf(
        histories=folder / "histories",
        folder=folder / "work",
        fields=FIELDS,
        encoder=EncoderConf(kind=kind, width=24, heads=2, pooling=pooling),
        objective=conf,
        training=TrainingConf.model_validate(settings),
        seed=3,
    )


def trained(conf: EncoderRankConf, clients: int = 240) -> tuple[Encoder, list[Line]]:
    """The encoder of a training in this process, and its curve."""
    torch.set_num_threads(1)
    engine, task = engine_of(conf, Ranks()), Encoding(conf, population(clients)[0], Ranks())
    done = Training(engine, task, Checkpoints(conf.folder / "checkpoints", Ranks()), Pace()).run()
    assert isinstance(engine.module, Objective)
    return engine.module.encoder, done.curve


def probe(encoder: Encoder) -> float:
    """ROC-AUC of a linear probe on clients that the encoder has not seen.

    The vectors are standardised: the direction that tells the populations may be a narrow one beside that of a client's
    place in its walk, and a penalised fit on the raw vectors would miss it with some weights and find it with others.
    """
    histories, kind = population(300, seed=1)
    vectors = encode_histories(encoder, histories)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(vectors[:150], kind[:150])
    return float(roc_auc_score(kind[150:], model.decision_function(vectors[150:])))


def test_coles_separates_populations_while_its_loss_falls_and_recall_rises(tmp_path: Path) -> None:
    encoder, curve = trained(rank_conf(tmp_path, objective("coles", slices=4), epochs=10))
    first, last = curve[0], curve[-1]
    assert last["loss"] < 0.9 * first["loss"]
    assert last["recall"] > 1.2 * first["recall"]
    assert probe(encoder) > 0.9


@pytest.mark.parametrize(
    ("method", "metric", "above", "kind", "epochs"),
    [
        # Of 41 candidates, chance finds 1 in 41; the true code alone leaves about seven.
        ("cpc", "accuracy", 0.08, "gru", 6),
        ("nsp", "auc", 0.6, "gru", 12),
        # Each of six codes is as frequent as the others, so the unconditional rate is one in six.
        ("iftpp", "accuracy", 0.7, "gru", 6),
        ("iftpp_t", "accuracy", 0.7, "transformer", 8),
        ("nppr", "accuracy", 0.7, "gru", 6),
        ("detpp", "hits", 0.8, "gru", 8),
    ],
)
def test_each_method_beats_chance_and_knows_the_populations(
    tmp_path: Path, method: str, metric: str, above: float, kind: str, epochs: int
) -> None:
    extra = {"detpp": {"positions": 3, "queries": 4}, "nsp": {"slices": 3}}.get(method, {})
    conf = rank_conf(tmp_path, objective(method, **extra), epochs=epochs, kind=kind, pooling="mean")
    encoder, curve = trained(conf, clients=600)
    assert curve[-1][f"held_out_{metric}"] > above
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert probe(encoder) > 0.9


def test_rtd_finds_replaced_events(tmp_path: Path) -> None:
    _, curve = trained(rank_conf(tmp_path, objective("rtd"), epochs=15), clients=600)
    assert curve[-1]["held_out_auc"] > 0.65
    assert curve[-1]["held_out_loss"] < curve[0]["held_out_loss"]


@pytest.mark.parametrize("kind", ["gru", "lstm", "transformer"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_does_not_depend_on_batch_padding_or_order(kind: str, pooling: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(FIELDS, EncoderConf(kind=kind, width=24, heads=2, layers=2, pooling=pooling)).eval()
    histories, _ = population(12)
    together = encode_histories(encoder, histories)
    alone = np.concatenate([encode_histories(encoder, _only(histories, n)) for n in range(12)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    small = encode_histories(encoder, histories, events_at_once=60)
    np.testing.assert_allclose(together, small, atol=1e-5)
    batch = whole(histories, np.array([3]))
    codes, numbers = (torch.nn.functional.pad(each, (0, 0, 0, 9)) for each in (batch.codes, batch.numbers))
    longer = replace(batch, codes=codes, numbers=numbers)
    np.testing.assert_allclose(encoder.embed(longer).detach().numpy()[0], together[3], atol=1e-5)


def test_training_normalises_without_padding() -> None:
    torch.manual_seed(0)
    histories, _ = population(2)
    runs = np.array([30, 2])
    runs = np.minimum(runs, histories.lengths)
    batch = pad(histories, histories.starts[:2], runs, np.arange(2))
    embedding = Encoder(FIELDS, EncoderConf(noise=0.0)).events.train()
    numbers = embedding(batch)[..., -2:][batch.mask]
    np.testing.assert_allclose(numbers.mean(0).detach(), [0, 0], atol=1e-5)
    np.testing.assert_allclose(numbers.var(0, unbiased=False).detach(), [1, 1], atol=1e-3)


def _only(histories: Histories, member: int) -> Histories:
    start, end = histories.starts[member : member + 2]
    return Histories(histories.codes[start:end], histories.numbers[start:end], np.array([0, end - start]))


def test_slices_are_runs_of_their_own_client() -> None:
    histories, _ = population(6)
    histories.numbers[:, 0] = np.arange(len(histories.numbers))
    conf = SlicesConf(slices=7, shortest=5, longest=25)
    members = np.array([4, 1, 2])
    batch = draw_slices(histories, members, conf, np.random.default_rng(0))
    assert batch.clients.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    for row, length in enumerate(batch.lengths.tolist()):
        places = batch.numbers[row, :length, 0].numpy()
        member = members[batch.clients[row]]
        assert (np.diff(places) == 1).all()
        assert 5 <= length <= 25
        assert histories.starts[member] <= places[0]
        assert places[-1] < histories.starts[member + 1]
    assert len(set(batch.lengths.tolist())) > 5
    short = draw_slices(histories, members, SlicesConf(shortest=80, longest=90), np.random.default_rng(0))
    assert short.lengths.tolist() == histories.lengths[members].tolist()


def test_dropped_events_leave_the_others_in_order() -> None:
    torch.manual_seed(1)
    histories, _ = population(4)
    histories.numbers[:, 0] = np.arange(len(histories.numbers))
    batch = whole(histories, np.arange(4))
    thin = drop_events(batch, 0.5)
    assert (thin.lengths < batch.lengths).all()
    for row, length in enumerate(thin.lengths.tolist()):
        assert (thin.numbers[row, :length, 0].diff() > 0).all()
        assert not thin.codes[row, length:].any()
    assert drop_events(batch, 0.9999).lengths.min() == 1


def test_contrastive_loss_by_hand() -> None:
    distances = torch.tensor([[0.0, 0.2, 0.3], [0.2, 0.0, 0.9], [0.3, 0.9, 0.0]])
    clients = torch.tensor([0, 0, 1])
    # One pair of a client, 0.2²; the hardest of the others: 0.3, 0.9 (beyond the margin) and 0.3.
    expected = (0.2**2 + 2 * (0.5 - 0.3) ** 2) / 4
    assert contrastive_loss(distances, clients, margin=0.5, negatives=1).item() == pytest.approx(expected, rel=1e-5)
    assert recall(distances, clients, 1) == pytest.approx(2 / 3)


def test_replaced_events_are_those_that_changed() -> None:
    torch.manual_seed(0)
    batch = whole(population(20)[0], np.arange(20))
    changed, replaced = replace_events(batch, 0.15)
    assert not replaced[:, 0].any()
    assert not replaced[~batch.mask].any()
    assert torch.equal((changed.numbers != batch.numbers).any(-1) | (changed.codes != batch.codes).any(-1), replaced)
    assert 0.1 < replaced.sum() / batch.mask.sum() < 0.2


def test_cut_parts_make_the_whole() -> None:
    torch.manual_seed(0)
    batch = whole(population(5)[0], np.arange(5))
    left, right = cut(batch)
    assert torch.equal(left.lengths + right.lengths, batch.lengths)
    for row in range(5):
        parts = [left.codes[row, : left.lengths[row]], right.codes[row, : right.lengths[row]]]
        assert torch.equal(torch.cat(parts), batch.codes[row, : batch.lengths[row]])


def test_matching_loss_ignores_order_and_finds_the_cheapest_pairs() -> None:
    torch.manual_seed(0)
    logits, numbers, presence = torch.randn(5, 4, 8), torch.randn(5, 4, 2), torch.randn(5, 4)
    true = Events(torch.randint(2, 8, (5, 3, 1)), torch.randn(5, 3, 2))
    there = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]]).bool()
    losses = matching_loss([logits], numbers, presence, true, there)
    some, other = torch.tensor([2, 0, 3, 1]), torch.tensor([2, 0, 1])
    mixed = matching_loss(
        [logits[:, some]],
        numbers[:, some],
        presence[:, some],
        Events(true.codes[:, other], true.numbers[:, other]),
        there[:, other],
    )
    for one, two in zip(losses, mixed, strict=True):
        assert one.item() == pytest.approx(two.item(), rel=1e-5)
    sure = torch.full((1, 2, 8), -20.0)
    sure[0, 0, 5] = sure[0, 1, 3] = 20.0
    exact = Events(torch.tensor([[[3], [5]]]), torch.zeros(1, 2, 2))
    event, _ = matching_loss([sure], torch.zeros(1, 2, 2), torch.zeros(1, 2), exact, torch.ones(1, 2).bool())
    assert event.item() == pytest.approx(0.0, abs=1e-5)


def test_ranking_auc_is_sklearns() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.normal(size=50), random.integers(0, 2, 50)
    found = ranking_auc(torch.from_numpy(scores), torch.from_numpy(labels))
    assert found == pytest.approx(roc_auc_score(labels, scores))


def stage(folder: Path, histories: Histories, files: int = 3) -> None:
    folder.mkdir()
    rows = [slice(*histories.starts[n : n + 2]) for n in range(len(histories))]
    for file in range(files):
        mine = rows[file::files]
        columns = {
            "codes": pa.array([histories.codes[row].reshape(-1).tolist() for row in mine], pa.list_(pa.int32())),
            "numbers": pa.array([histories.numbers[row].reshape(-1).tolist() for row in mine], pa.list_(pa.float32())),
        }
        pq.write_table(pa.table(columns), folder / f"part-{file}.parquet")


def test_a_killed_training_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    histories, _ = population(80)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        stage(tmp_path / name / "histories", histories)
    conf = objective("coles", slices=3)
    train_rank(rank_conf(tmp_path / "straight", conf, epochs=3), lambda line: None)

    class Killed(Exception):
        """Stands for a kill."""

    def kill(line: object) -> None:
        raise Killed

    seen: list[float] = []
    with pytest.raises(Killed):
        train_rank(rank_conf(tmp_path / "killed", conf, epochs=3), kill)
    assert not (tmp_path / "killed" / "work" / "result").exists()
    train_rank(rank_conf(tmp_path / "killed", conf, epochs=3), lambda line: seen.append(line["epoch"]))
    assert seen == [2, 3]
    homes = [tmp_path / name for name in ("straight", "killed")]
    one, other = (load_encoder(home / keep_copy(home / "work" / "result", home)) for home in homes)
    np.testing.assert_array_equal(encode_histories(one, histories), encode_histories(other, histories))


def test_histories_from_files_are_those_written(tmp_path: Path) -> None:
    histories, _ = population(7)
    stage(tmp_path / "rows", histories, files=1)
    found = Histories.from_files(sorted((tmp_path / "rows").glob("*")), FIELDS, tmp_path / "flat")
    np.testing.assert_array_equal(found.starts, histories.starts)
    np.testing.assert_array_equal(found.codes, histories.codes)
    np.testing.assert_array_equal(found.numbers, histories.numbers)
    rows = pq.read_table(tmp_path / "rows").to_batches()[0].slice(2, 3)
    part = Histories.from_arrow(rows, FIELDS)
    np.testing.assert_array_equal(part.codes, histories.codes[histories.starts[2] : histories.starts[5]])


def test_a_changed_encoder_is_refused(tmp_path: Path) -> None:
    conf = rank_conf(tmp_path, objective("rtd"))
    export(engine_of(conf, Ranks()).module, conf)
    folder = tmp_path / keep_copy(conf.result, tmp_path)
    card, encoder = ENCODER_FILES.read_card(folder), load_encoder(folder)
    assert card.parameters == sum(each.numel() for each in encoder.parameters())
    ENCODER_FILES.write(folder, encoder, card.model_copy(update={"seed": 4}))
    with pytest.raises(ArtefactError, match="files hash to"):
        load_encoder(folder)


def test_too_few_clients_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a step takes 16"):
        Encoding(rank_conf(tmp_path, objective("rtd"), min_events=49), population(40)[0], Ranks())


def test_a_plateau_divides_the_learning_rate(tmp_path: Path) -> None:
    conf = rank_conf(tmp_path, objective("rtd"), plateau_epochs=2, step_factor=1.0)
    curve = [{"loss": 9.0, "held_out_loss": loss} for loss in (1.0, 0.5, 0.5, 0.6, 0.55)]
    assert learning_rate(conf.training, 4, curve) == pytest.approx(0.001)
    assert learning_rate(conf.training, 4, curve[:4]) == pytest.approx(0.01)
