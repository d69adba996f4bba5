"""The protocol's folds, what each fold may see, and what the leaderboard makes of it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import sparse
from sklearn.model_selection import StratifiedKFold

from ledgerlm.errors import DataError
from ledgerlm.evaluation.leaderboard import leaderboard, paired_tests
from ledgerlm.evaluation.pictures import calibration_bins, confusion, importances, pooled, projection, roc_points
from ledgerlm.evaluation.protocol import (
    bound_probabilities,
    central_predictions,
    constant_predictions,
    group_predictions,
    majority_predictions,
    split_predictions,
)
from ledgerlm.evaluation.study import EvaluateConf
from ledgerlm.heads.boosting import LightGBMConf
from ledgerlm.heads.parallel import run_local
from ledgerlm.heads.samples import Sample, fold_fits, make_folds, make_sample, ordered
from ledgerlm.heads.tasks import Task
from ledgerlm.heads.vectors import Matrix

TASK = Task(name="rich", kind="binary", classes=(0.0, 1.0), class_names=("no", "yes"))
AGE = Task(name="age", kind="multiclass", classes=(0.0, 1.0, 2.0), class_names=("young", "middle", "old"))
AS_OF = np.datetime64("2020-01-01", "us")
QUICK = LightGBMConf(n_estimators=30, learning_rate=0.1, min_data_in_leaf=5)


def _world(clients: int, *, signal: float = 1.5, test_share: float = 0.1) -> tuple[pd.DataFrame, Matrix]:
    """Labels of two tasks and a matrix whose first feature knows one of them; rows in the order of a shuffled lake."""
    generator = np.random.default_rng(11)
    ids = generator.permutation(np.arange(5, 5 + clients)).astype(str)
    rich = generator.integers(0, 2, clients).astype(float)
    age = generator.integers(0, 3, clients).astype(float)
    x = generator.normal(size=(clients, 6)).astype(np.float32)
    x[:, 0] += signal * rich
    split = np.where(generator.uniform(size=clients) < test_share, "test", "train")
    frames = [
        pd.DataFrame({"client_id": ids, "as_of": AS_OF, "task": name, "label": label, "split": split})
        for name, label in (("rich", rich), ("age", age))
    ]
    names = tuple(f"f{place}" for place in range(6))
    matrix = Matrix(
        client_ids=ids.astype(object),
        as_of=np.full(clients, AS_OF),
        x=sparse.csr_matrix(x),
        names=names,
        groups=("agg",) * 3 + ("mean",) * 3,
        columns=("s0_agg",) * 3 + ("s1_mean",) * 3,
    )
    return pd.concat(frames, ignore_index=True), matrix


def _ids(sample: Sample, matrix: Matrix, places: np.ndarray) -> list[int]:
    return [int(one) for one in matrix.client_ids[sample.rows[places]]]


def test_ids_are_ordered_as_numbers_when_all_are() -> None:
    assert ordered(["10", "9", "-3"]) == ["-3", "9", "10"]
    assert ordered(["10", "9", "a"]) == ["10", "9", "a"]


@pytest.mark.parametrize("seed", [42, 43])
def test_folds_are_the_published_ones(seed: int) -> None:
    labels, matrix = _world(200, test_share=0.0)
    sample = make_sample(TASK, labels, matrix, stratify=("age", "rich"))
    wide = labels.assign(number=labels["client_id"].astype(int)).pivot_table(
        index="number", columns="task", values="label"
    )
    wide = wide.sort_index()
    published = StratifiedKFold(5, shuffle=True, random_state=seed)
    key = (wide["age"] * 2 + wide["rich"]).to_numpy()
    expected = [wide.index[held].tolist() for _, held in published.split(key, key)]
    folds = make_folds(sample, 5, [seed])
    assert [_ids(sample, matrix, fold.held_out) for fold in folds] == expected
    assert all(not set(fold.train) & set(fold.held_out) for fold in folds)


def test_folds_of_all_set_nobody_apart() -> None:
    labels, matrix = _world(300)
    sample = make_sample(TASK, labels, matrix, folds_of="all")
    assert len(sample.test) == 0
    everyone = make_sample(TASK, labels.assign(split="train"), matrix)
    for fold, same in zip(make_folds(sample, 5, [1]), make_folds(everyone, 5, [1]), strict=True):
        np.testing.assert_array_equal(fold.held_out, same.held_out)
    fits = fold_fits(sample, make_folds(sample, 5, [1]), "m", QUICK)
    assert sorted(row for fit in fits for row in fit.ask) == sorted(sample.rows)


def test_test_clients_are_in_no_fold_and_every_other_in_one() -> None:
    labels, matrix = _world(300)
    sample = make_sample(TASK, labels, matrix)
    folds = make_folds(sample, 5, [1, 2])
    test = set(labels[(labels["split"] == "test")]["client_id"].astype(int))
    assert set(_ids(sample, matrix, sample.test)) == test
    for seed in (1, 2):
        held = [one for fold in folds if fold.seed == seed for one in _ids(sample, matrix, fold.held_out)]
        assert sorted(held) == sorted(set(matrix.client_ids.astype(int)) - test)
    for fit in fold_fits(sample, folds, "m", QUICK):
        assert not set(matrix.client_ids[fit.rows].astype(int)) & test
        assert not set(fit.rows) & set(fit.ask)


def test_a_client_with_several_rows_lies_in_one_fold() -> None:
    labels, matrix = _world(60, test_share=0.0)
    later = labels.assign(as_of=AS_OF + np.timedelta64(30, "D"))
    doubled = Matrix(
        client_ids=np.r_[matrix.client_ids, matrix.client_ids],
        as_of=np.r_[matrix.as_of, matrix.as_of + np.timedelta64(30, "D")],
        x=sparse.vstack([matrix.x, matrix.x], format="csr"),
        names=matrix.names,
        groups=matrix.groups,
        columns=matrix.columns,
    )
    sample = make_sample(TASK, pd.concat([labels, later]), doubled)
    for fold in make_folds(sample, 3, [1]):
        held, trained = (set(_ids(sample, doubled, part)) for part in (fold.held_out, fold.train))
        assert not held & trained
        assert len(fold.held_out) == 2 * len(held)


def test_a_class_smaller_than_the_folds_is_refused() -> None:
    labels, matrix = _world(40, test_share=0.0)
    rare = labels[(labels["task"] == "rich") & ((labels["label"] == 0) | (labels["label"].cumsum() <= 3))]
    with pytest.raises(DataError, match=r"class 'yes' has 3 training clients, fewer than the 5 folds"):
        make_folds(make_sample(TASK, rare, matrix), 5, [1])


@pytest.mark.parametrize("few", [[2], [2, 1, 1], [1, 1]])
def test_strata_smaller_than_the_folds_are_spread_without_a_warning(few: list[int]) -> None:
    labels, matrix = _world(60, test_share=0.0)
    sample = make_sample(TASK, labels, matrix)
    large = [20, 40 - sum(few)]
    strata = np.repeat(np.arange(2 + len(few)), [*large, *few])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = make_folds(replace(sample, strata=strata), 3, [1])
    assert sorted(row for fold in folds for row in fold.held_out) == list(range(60))
    largest = [np.isin(fold.held_out, np.flatnonzero(strata == 1)).sum() for fold in folds]
    assert max(largest) - min(largest) <= 1, "those that fill the folds are stratified as they were"


def test_labels_without_vectors_are_named() -> None:
    labels, matrix = _world(20)
    with pytest.raises(DataError, match="as_of of both must be the same"):
        make_sample(TASK, labels.assign(as_of=AS_OF + np.timedelta64(1, "D")), matrix)


def test_signal_is_found_and_permuted_labels_give_chance() -> None:
    labels, matrix = _world(600)
    shuffled = labels.copy()
    shuffled["label"] = np.random.default_rng(2).permutation(shuffled["label"].to_numpy())
    means = {}
    for name, frame in (("true", labels), ("permuted", shuffled[shuffled["task"] == "rich"])):
        own = frame[frame["task"] == "rich"].assign(label=lambda rows: rows["label"].clip(upper=1))
        sample = make_sample(TASK, own, matrix)
        folds = make_folds(sample, 5, [42])
        fitted = [result for _, result in run_local(fold_fits(sample, folds, "m", QUICK), {"m": matrix.x})]
        judged = {"m": split_predictions(sample, folds, fitted)}
        board = leaderboard(sample, judged, baseline="agg", count=100, seed=1)
        means[name] = {entry.split: entry.mean for entry in board if entry.metric == "roc_auc"}
    assert means["true"]["cross_validation"] > 0.75
    assert means["true"]["test"] > 0.65
    assert 0.42 < means["permuted"]["cross_validation"] < 0.58


def test_leaderboard_compares_with_the_baseline_and_knows_its_constant_rows() -> None:
    labels, matrix = _world(400)
    sample = make_sample(TASK, labels, matrix)
    folds = make_folds(sample, 4, [1, 2])
    strong = np.where(sample.y == 1, 0.8, 0.2) + np.random.default_rng(1).normal(0, 0.3, len(sample.y))
    weak = np.random.default_rng(2).uniform(size=len(sample.y))
    judged = {
        name: constant_predictions(sample, folds, np.stack([1 - p, p], axis=1))
        for name, p in (("agg", weak.clip(0.01, 0.99)), ("bayes", strong.clip(0.01, 0.99)))
    }
    judged["majority"] = majority_predictions(sample, folds)
    board = {
        (one.method, one.metric, one.split): one
        for one in leaderboard(sample, judged, baseline="agg", count=200, seed=1)
    }
    best = board["bayes", "roc_auc", "cross_validation"]
    base = board["agg", "roc_auc", "cross_validation"]
    assert (best.folds, best.seeds, best.baseline) == (4, 2, "agg")
    assert best.delta == pytest.approx(best.mean - base.mean)
    assert best.low is not None and best.high is not None and best.low < best.mean < best.high
    assert best.delta_low is not None and best.delta_low > 0
    assert (base.delta, base.baseline) == (None, None)
    assert {one.metric for one in board.values() if one.method == "majority"} == {"accuracy"}
    share = max(np.mean(sample.y[sample.development]), 1 - np.mean(sample.y[sample.development]))
    assert board["majority", "accuracy", "cross_validation"].mean == pytest.approx(share, abs=0.01)
    (test,) = paired_tests(sample, judged, baseline="agg")
    assert (test["method"], test["metric"]) == ("bayes", "roc_auc")
    assert test["p_value"] < 0.05


def test_a_number_has_its_constants_beside_it() -> None:
    labels, matrix = _world(400)
    sample = replace(make_sample(TASK, labels, matrix), task=Task(name="amount", kind="regression"))
    sample = replace(sample, y=np.random.default_rng(1).lognormal(0, 2, len(sample.y)))
    folds = make_folds(sample, 4, [1])
    judged = {
        "mean": central_predictions(sample, folds, lambda y: float(np.mean(y))),
        "median": central_predictions(sample, folds, lambda y: float(np.median(y))),
    }
    board = {
        (one.method, one.metric): one.mean
        for one in leaderboard(sample, judged, baseline="agg", count=100, seed=1)
        if one.split == "cross_validation"
    }
    assert board["median", "mae"] < board["mean", "mae"] and board["mean", "rmse"] < board["median", "rmse"]


def test_what_only_tells_groups_apart_is_worth_nothing_within_them() -> None:
    labels, matrix = _world(400)
    own = labels[labels["task"] == "rich"].copy()
    own["group"] = np.where(np.arange(len(own)) % 2, "north", "south")
    own["label"] = np.where(np.random.default_rng(0).uniform(size=len(own)) < 0.3, 1 - own["label"], own["label"])
    own["label"] = np.where((own["group"] == "south") & (np.arange(len(own)) % 3 > 0), 1.0, own["label"])
    sample = make_sample(TASK, own, matrix)
    assert sample.groups is not None
    folds = make_folds(sample, 4, [1])
    p = np.where(sample.groups == "south", 0.8, 0.2) + np.random.default_rng(1).normal(0, 0.01, len(sample.y))
    predictions = constant_predictions(sample, folds, np.stack([1 - p, p], axis=1))
    judged = {"sample": {**predictions, **group_predictions(sample, predictions["cross_validation"])}}
    board = {
        one.split: one.mean
        for one in leaderboard(sample, judged, baseline="agg", count=100, seed=1)
        if one.metric == "roc_auc"
    }
    assert board["cross_validation"] > 0.6
    assert abs(board["cross_validation within north"] - 0.5) < 0.1
    assert abs(board["cross_validation within south"] - 0.5) < 0.1


def test_bound_probabilities_are_matched_by_client_and_widened() -> None:
    labels, matrix = _world(50)
    sample = make_sample(TASK, labels, matrix)
    known = pd.DataFrame(
        {
            "client_id": matrix.client_ids,
            "as_of": matrix.as_of,
            "task": "rich",
            "probabilities": [[int(one) / 100] for one in matrix.client_ids],
        }
    )
    p = bound_probabilities(sample, matrix, known)
    assert p is not None
    assert p[:, 1] == pytest.approx([int(one) / 100 for one in matrix.client_ids[sample.rows]])
    assert bound_probabilities(sample, matrix, known.iloc[1:]) is None


def test_pictures_are_small_and_true() -> None:
    labels, matrix = _world(300)
    sample = make_sample(AGE, labels, matrix)
    folds = make_folds(sample, 3, [1, 2])
    fitted = [result for _, result in run_local(fold_fits(sample, folds, "m", QUICK), {"m": matrix.x})]
    y, p = pooled(sample, split_predictions(sample, folds, fitted)["cross_validation"])
    assert len(y) == len(sample.development)
    assert [curve["class"] for curve in roc_points(y, p, AGE.class_names)] == ["young", "middle", "old"]
    assert sum(one["rows"] for one in calibration_bins(y, p)) == len(y)
    matrix_of = np.array(confusion(y, p, AGE.class_names)["matrix"])
    assert matrix_of.sum(axis=1).tolist() == np.bincount(y.astype(int)).tolist()
    found = importances([one.gains for one in fitted], matrix)
    assert set(found["groups"]) == {"agg", "mean"}
    assert sum(found["groups"].values()) == pytest.approx(1.0, abs=1e-3)
    flat = projection(matrix, [sample], seed=1, most=100)
    assert len(flat["x"]) == len(flat["labels"]["age"]) == 100
    by_row = dict(zip(sample.rows.tolist(), sample.y.tolist(), strict=True))
    whole = projection(matrix, [sample], seed=1)
    assert whole["labels"]["age"] == [AGE.class_names[int(by_row[row])] for row in range(300)]


def test_each_seed_reads_a_training_of_its_own() -> None:
    llm4es = {"table": "embeddings", "stage": "embed"}
    conf = EvaluateConf.model_validate(
        {
            "representations": {"agg": [{"table": "features"}], "llm4es+agg": [llm4es, {"table": "features"}]},
            "seeds": [42, 43, 44],
            "trainings": {"embed": ["embed_b"]},
        }
    )
    assert [conf.turn("agg", seed) for seed in (42, 43, 44)] == [0, 0, 0]
    assert [conf.turn("llm4es+agg", seed) for seed in (42, 43, 44)] == [0, 1, 2]
    assert [conf.at("llm4es+agg", turn)[0].stage for turn in (0, 1, 2)] == ["embed", "embed_b", "embed"]
    assert conf.at("llm4es+agg", 1)[1] == conf.representations["agg"][0]


@pytest.mark.parametrize(
    ("trainings", "message"),
    [
        ({"embed": ["b", "c"]}, "3 trainings need as many seeds"),
        ({"other": ["b"]}, "no representation names .* 'other'"),
    ],
)
def test_wrong_trainings_are_refused(trainings: dict[str, list[str]], message: str) -> None:
    content = {
        "representations": {"agg": [{"table": "features"}], "llm4es": [{"table": "embeddings", "stage": "embed"}]}
    }
    with pytest.raises(ValidationError, match=message):
        EvaluateConf.model_validate({**content, "seeds": [42, 43], "trainings": trainings})
