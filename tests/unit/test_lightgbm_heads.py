"""LightGBM heads: settings, matrices from Arrow, scores, reasons, and heads on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from scipy import sparse

from ledgerlm.errors import ArtefactError, DataError
from ledgerlm.heads.boosting import Boosted, LightGBMConf, to_probabilities, train
from ledgerlm.heads.calibration import Calibrator, Curve
from ledgerlm.heads.head import CARD, HeadCard, hash_names, load_trees, save_head
from ledgerlm.heads.parallel import Fit, FitStore, names_of, run_fit
from ledgerlm.heads.scoring import score_batch
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import Block, Source, decode_parts, decode_rows, encode_rows, pieces, to_matrix
from ledgerlm.training.artefacts import content_hash

QUICK = LightGBMConf(n_estimators=20, learning_rate=0.1, min_data_in_leaf=5)
TASKS = {
    "binary": Task(name="bad", kind="binary", classes=(0.0, 1.0), class_names=("good", "bad")),
    "multiclass": Task(name="age", kind="multiclass", classes=(1.0, 2.0, 5.0), class_names=("a", "b", "c")),
    "regression": Task(name="spend", kind="regression"),
}
BLOCKS = (
    Block(column="s0_agg", group="agg", sparse=True, names=("count", "dept=A:count", "dept=B:count")),
    Block(column="s1_mean", group="mean", sparse=False, names=("mean:0", "mean:1")),
)
NAMES = tuple(name for block in BLOCKS for name in block.features)


def _batch(rows: int = 300) -> tuple[pa.RecordBatch, np.ndarray]:
    """Rows as Spark hands them to a worker, and the same as a plain array."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(rows, 5)).astype(np.float32)
    x[:, :3][generator.uniform(size=(rows, 3)) < 0.4] = 0
    maps = [
        [(name, float(v)) for name, v in zip(NAMES[:3], row, strict=True) if v] + [("new", 9.0)] for row in x[:, :3]
    ]
    columns = {
        "client_id": pa.array([str(place) for place in range(rows)]),
        "as_of": pa.array([0] * rows, pa.timestamp("us", "UTC")),
        "s0_agg": pa.array(maps, pa.map_(pa.string(), pa.float32())),
        "s1_mean": pa.array(list(x[:, 3:]), pa.list_(pa.float32())),
    }
    return pa.RecordBatch.from_pydict(columns), x


def _head(kind: str, folder: Path) -> tuple[str, HeadCard, Boosted, pa.RecordBatch]:
    batch, x = _batch()
    task = TASKS[kind]
    y = {
        "binary": (x[:, 0] + x[:, 4] > 0).astype(float),
        "multiclass": np.digitize(x[:, 3], [-0.5, 0.5]).astype(float),
        "regression": (x[:, 0] * 3 + x[:, 4]).astype(float),
    }[kind]
    model = train(sparse.csr_matrix(x), y, task, QUICK, seed=1)
    curves = tuple(Curve(slope=0.7, shift=-0.1 * k) for k in range(1 if kind == "binary" else 3))
    card = HeadCard(
        kind="lightgbm",
        task=task,
        representation="llm4es+agg",
        sources=(Source(table="features"), Source(table="embeddings", backbone_id="b", definition_id="d")),
        blocks=BLOCKS,
        features_hash=hash_names(NAMES),
        params=QUICK.model_dump(mode="json"),
        scale=tuple(model.scale.tolist()),
        calibration=Calibrator(method="sigmoid", curves=curves) if kind != "regression" else Calibrator(),
        training_rows=len(x),
        as_of="2020-01-01T00:00:00",
    )
    return save_head(folder, card, model), card, model, batch


def test_presets_are_the_published_settings() -> None:
    rosbank, age, mbd = (LightGBMConf.model_validate({"preset": name}) for name in ("rosbank", "age", "mbd"))
    assert rosbank == LightGBMConf()
    assert (rosbank.n_estimators, rosbank.learning_rate, rosbank.subsample, rosbank.max_depth) == (500, 0.02, 0.5, 6)
    assert (age.n_estimators, age.subsample, age.max_depth, age.num_leaves) == (1000, 0.75, 12, 50)
    assert (mbd.scale, rosbank.scale) == (False, True)
    journey = LightGBMConf.model_validate({"preset": "complete_journey", "n_estimators": 7})
    assert (journey.min_data_in_leaf, journey.n_estimators) == (20, 7)
    with pytest.raises(ValidationError, match="no settings 'rosbnk' in conf/heads; known: age, alfa"):
        LightGBMConf.model_validate({"preset": "rosbnk"})


def test_every_parameter_reaches_lightgbm() -> None:
    model = train(sparse.csr_matrix(_batch()[1]), np.arange(300.0) % 2, TASKS["binary"], QUICK, seed=5)
    said = model.text
    for line in ("[bagging_fraction: 0.5]", "[feature_fraction: 0.75]", "[lambda_l1: 1]", "[min_data_in_leaf: 5]"):
        assert line in said
    assert "[seed: 5]" in said


def test_maps_and_arrays_become_one_matrix() -> None:
    batch, x = _batch()
    found = to_matrix(batch, BLOCKS)
    assert np.array_equal(found.toarray(), x)
    cut = to_matrix(batch.slice(17, 40), BLOCKS)
    assert np.array_equal(cut.toarray(), x[17:57])


def test_missing_blocks_are_zero_and_flagged() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "s0_agg": pa.array([[("count", 2.0)], None], pa.map_(pa.string(), pa.float32())),
            "s1_mean": pa.array([None, [1.0, 2.0]], pa.list_(pa.float32())),
        }
    )
    flagged = [block.model_copy(update={"flag": True}) for block in BLOCKS]
    assert to_matrix(batch, flagged).toarray().tolist() == [[2, 0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 2, 0]]
    assert flagged[1].features == ("mean:0", "mean:1", "mean:missing")


def test_a_vector_of_another_length_is_refused() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "s0_agg": pa.array([[]], pa.map_(pa.string(), pa.float32())),
            "s1_mean": pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32())),
        }
    )
    with pytest.raises(DataError, match="part 'mean'"):
        to_matrix(batch, BLOCKS)


def test_rows_survive_their_way_to_the_trainer() -> None:
    batch, x = _batch()
    (encoded,) = encode_rows(iter([batch]), BLOCKS, ["client_id"])
    assert encoded.schema.names == ["client_id", "places", "values"]
    assert np.array_equal(decode_rows(pa.Table.from_batches([encoded]), 5).toarray(), x)


@pytest.mark.parametrize("kind", TASKS)
def test_contributions_add_up_to_the_raw_score(kind: str) -> None:
    _, x = _batch()
    task = TASKS[kind]
    y = np.arange(300.0) % task.outputs if kind != "regression" else x[:, 0].astype(float)
    model = train(sparse.csr_matrix(x), y, task, QUICK, seed=1)
    raw = model.raw(sparse.csr_matrix(x))
    output = np.arange(300) % model.outputs
    found = model.contributions(sparse.csr_matrix(x), output)
    assert found.shape == (300, 6)
    assert found.sum(axis=1) == pytest.approx(raw[np.arange(300), output], abs=1e-5)
    p = to_probabilities(raw, task)
    assert p.shape == (300, task.outputs)


@pytest.mark.parametrize("kind", TASKS)
def test_a_head_read_back_scores_the_same_and_a_client_alone_too(kind: str, tmp_path: Path) -> None:
    head_id, card, model, batch = _head(kind, tmp_path)
    again, trees = load_trees(tmp_path, head_id)
    assert again == card
    scored = score_batch(batch, card, model)
    assert score_batch(batch, again, trees).equals(scored)
    for place in (0, 7, 299):
        assert score_batch(batch.slice(place, 1), again, trees).to_pylist() == scored.slice(place, 1).to_pylist()


def test_scores_say_class_probability_and_reasons(tmp_path: Path) -> None:
    _, card, model, batch = _head("multiclass", tmp_path)
    rows = score_batch(batch, card, model, reasons=2).to_pylist()
    x = to_matrix(batch, BLOCKS)
    p = card.calibration.apply(model.raw(x), card.task)
    shap = model.contributions(x, p.argmax(axis=1))[:, :-1]
    for place, row in enumerate(rows):
        assert sum(row["probabilities"]) == pytest.approx(1.0, abs=1e-5)
        assert row["prediction"] == card.task.classes[int(p[place].argmax())]
        assert row["reasons"][0]["feature"] == NAMES[int(np.abs(shap[place]).argmax())]
        sizes = [abs(one["contribution"]) for one in row["reasons"]]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) <= 2
    assert all(row["reasons"] == [] for row in score_batch(batch, card, model, reasons=0).to_pylist())


def test_training_again_gives_the_same_head(tmp_path: Path) -> None:
    first, *_ = _head("binary", tmp_path)
    second, *_ = _head("binary", tmp_path)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first]


def test_a_changed_head_is_refused(tmp_path: Path) -> None:
    head_id, *_ = _head("binary", tmp_path)
    trees = tmp_path / head_id / "model.txt"
    trees.write_text(trees.read_text().replace("leaf_value=", "leaf_value=-", 1))
    with pytest.raises(ArtefactError, match="its files hash to"):
        load_trees(tmp_path, head_id)


def test_a_card_with_other_features_is_refused(tmp_path: Path) -> None:
    head_id, *_ = _head("binary", tmp_path)
    card = json.loads((tmp_path / head_id / CARD).read_text())
    card["blocks"][0]["names"][0] = "amount:sum"
    (tmp_path / head_id / CARD).write_text(json.dumps(card))
    forged = content_hash(tmp_path / head_id)
    (tmp_path / head_id).rename(tmp_path / forged)
    with pytest.raises(ArtefactError, match="features_hash"):
        load_trees(tmp_path, forged)


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no 0123.*run the fit stage"):
        load_trees(tmp_path, "0123")


def test_sources_refuse_keys_of_another_table() -> None:
    assert Source.model_validate({"table": "features"}).feature_set == "agg"
    assert Source.model_validate({"table": "embeddings"}).parts == ("mean",)
    with pytest.raises(ValidationError, match="does not belong to table features"):
        Source.model_validate({"table": "features", "parts": ["mean"]})


def test_sources_take_backbone_and_definition_from_their_stage() -> None:
    facts = {"embed_raw": {"backbone_id": "b1", "definition_id": "d1"}}
    source = Source(table="embeddings", stage="embed_raw").pinned(facts.__getitem__)
    assert (source.backbone_id, source.definition_id) == ("b1", "d1")


def test_labels_become_class_numbers() -> None:
    assert TASKS["multiclass"].encode(np.array([5.0, 1.0, 2.0])).tolist() == [2, 0, 1]
    with pytest.raises(DataError, match="label 3 is none of its classes"):
        TASKS["multiclass"].encode(np.array([3.0]))


def test_lists_of_more_than_two_to_the_31_numbers_are_read_chunk_by_chunk() -> None:
    """As many numbers as 932,000 clients of 2,304; the chunks share their memory, one array of them could not be."""
    rows, width = 4_000, 2_304
    places = pa.array(np.tile(np.arange(width, dtype=np.int32), rows))
    values = pa.array(np.ones(rows * width, np.float32))
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    batch = pa.RecordBatch.from_arrays(
        [pa.ListArray.from_arrays(offsets, places), pa.ListArray.from_arrays(offsets, values)], ["places", "values"]
    )
    table = pa.Table.from_batches([batch] * 234)
    assert table.num_rows * width > 2**31
    with pytest.raises(pa.ArrowInvalid):
        table.column("places").combine_chunks()
    read = 0
    for part in decode_parts(table, width):
        read += part.nnz
        assert part.shape == (rows, width)
    assert read == table.num_rows * width


def test_chunks_become_one_matrix_in_their_order() -> None:
    batch, x = _batch()
    encoded = pa.Table.from_batches(encode_rows([batch.slice(0, 100), batch.slice(100)], BLOCKS, ["client_id"]))
    assert encoded.column("places").num_chunks == 2
    assert np.array_equal(decode_rows(encoded, 5).toarray(), x)
    assert np.array_equal(to_matrix(pa.Table.from_batches([batch.slice(0, 7), batch.slice(7)]), BLOCKS).toarray(), x)
    assert decode_rows(encoded.slice(0, 0), 5).shape == (0, 5)


def test_a_wide_batch_is_cut_by_its_numbers() -> None:
    batch, _ = _batch()
    wide = Block(column="s1_mean", group="mean", sparse=False, names=tuple(map(str, range(100_000))))
    parts = list(pieces([batch], [wide]))
    assert [len(part) for part in parts] == [40] * 7 + [20]
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([batch]))


def _fit(**changes: Any) -> tuple[Fit, sparse.csr_matrix]:
    _, x = _batch()
    y = (x[:, 0] + x[:, 4] > 0).astype(float)
    rows = np.arange(200)
    fit = Fit(matrix="m", task=TASKS["binary"], rows=rows, y=y[:200], ask=np.arange(200, 300), conf=QUICK, seed=1)
    return replace(fit, **changes), sparse.csr_matrix(x)


def test_a_finished_fit_is_found_again_as_it_was(tmp_path: Path) -> None:
    fit, x = _fit()
    settled: list[int] = []
    store = FitStore(tmp_path / "fits", lambda: settled.append(1))
    [name] = names_of([fit], {"m": x})
    assert store.load(name) is None
    fitted = run_fit(fit, x)
    store.save(name, fitted)
    again = FitStore(tmp_path / "fits").load(name)
    assert again is not None
    assert np.array_equal(again.raw, fitted.raw) and np.array_equal(again.gains, fitted.gains)
    assert (again.text, again.scale, settled) == (fitted.text, fitted.scale, [1])
    assert [file.name for file in (tmp_path / "fits").iterdir()] == [f"{name}.npz"]


def test_a_fit_is_named_by_all_that_it_depends_on() -> None:
    fit, x = _fit()
    [name] = names_of([fit], {"m": x})
    other = x.copy()
    other.data[0] += 1
    assert names_of([fit], {"m": x.copy()}) == [name]
    assert names_of([fit], {"m": other}) != [name]
    changed: list[dict[str, Any]] = [
        {"seed": 2},
        {"rows": np.arange(1, 201)},
        {"ask": np.arange(201, 300)},
        {"y": 1 - fit.y},
        {"conf": QUICK.model_copy(update={"num_leaves": 7})},
        {"task": fit.task.model_copy(update={"name": "other"})},
    ]
    names = {names_of([_fit(**one)[0]], {"m": x})[0] for one in changed}
    assert len(names | {name}) == len(changed) + 1


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_one_class_is_nothing_to_learn_from(kind: str) -> None:
    _, x = _batch()
    with pytest.raises(DataError, match=rf"task {TASKS[kind].name}: all 300 rows to learn from are of class '(bad|b)'"):
        train(sparse.csr_matrix(x), np.ones(300), TASKS[kind], QUICK, seed=1)
