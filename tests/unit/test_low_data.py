"""The low-data study on vectors whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ledgerlm.evaluation.low_data import draw, entries, predictions
from ledgerlm.evaluation.report.low_data import low_data_section
from ledgerlm.evaluation.report.page import _block
from ledgerlm.heads.samples import Sample, make_folds
from ledgerlm.heads.tasks import Kind, Task

CLIENTS = 400


def sample(kind: Kind) -> tuple[Sample, dict[str, sparse.csr_matrix]]:
    """`telling` knows the label with some noise, `noise` does not."""
    random = np.random.default_rng(1)
    value = random.normal(size=CLIENTS)
    classes = {"binary": 2, "multiclass": 3, "regression": 0}[kind]
    y = value if kind == "regression" else np.digitize(value, [0.8] if kind == "binary" else [-0.5, 0.5]).astype(float)
    telling = np.stack([value + random.normal(size=CLIENTS) * 0.5 + 100, *random.normal(size=(4, CLIENTS))], axis=1)
    task = Task(name="t", kind=kind, classes=tuple(map(float, range(classes))), class_names=tuple("abc"[:classes]))
    everyone = np.arange(CLIENTS)
    found = Sample(
        task=task,
        rows=everyone,
        y=y,
        clients=everyone,
        development=everyone[:360],
        test=everyone[360:],
        strata=np.zeros(CLIENTS, np.int64) if kind == "regression" else y.astype(np.int64),
    )
    noise = random.normal(size=(CLIENTS, 5))
    return found, {name: sparse.csr_matrix(x.astype(np.float32)) for name, x in (("agg", noise), ("telling", telling))}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_a_representation_that_tells_gets_better_with_labels(kind: Kind) -> None:
    one, x = sample(kind)
    draws = draw(one, make_folds(one, 5, (42,)), (1, 10, 100, 5000), repeats=3)
    said = {name: list(predictions(one, matrix, draws, 0.1)) for name, matrix in x.items()}
    found = {(entry.method, entry.labelled): entry for entry in entries(one, draws, said, "agg")}
    assert all(entry.draws == 15 for entry in found.values())
    sign = -1 if kind == "regression" else 1
    many, few = found["telling", 100], found["telling", 1]
    assert sign * (many.mean - few.mean) > 0.02
    assert many.delta is not None and sign * many.delta > 0.1 and many.baseline == "agg"
    assert found["agg", 100].delta is None
    if kind == "binary":
        assert abs(found["agg", 100].mean - 0.5) < 0.1 and many.mean > 0.85
    section = low_data_section(list(found.values()))
    blocks = [_block(block) for block in section["blocks"]]
    assert [block.kind for block in blocks] == ["figures", "table"]
    assert "<svg" in blocks[0].figures[0].svg


def test_draws_are_nested_and_have_every_class_and_no_held_out_client() -> None:
    one, _ = sample("multiclass")
    draws = draw(one, make_folds(one, 5, (42, 43)), (1, 10, 100_000), repeats=2)
    assert len(draws) == 2 * 5 * 2 * 3
    for single, ten, everyone in zip(draws[::3], draws[1::3], draws[2::3], strict=True):
        assert len(single.rows) == 3 and len(ten.rows) == 10, "one of each class at least"
        assert set(one.y[single.rows]) == {0.0, 1.0, 2.0}
        assert set(single.rows) < set(ten.rows) < set(everyone.rows)
        assert sorted(everyone.rows) == sorted(everyone.fold.train)
        assert not set(everyone.rows) & set(everyone.fold.held_out)
    assert set(draws[0].rows) != set(draws[3].rows)
