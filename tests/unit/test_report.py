"""The page: complete, self-contained, and safe against text from outside."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from ledgerlm.evaluation.compare import Compared, entries_of, figures_of
from ledgerlm.evaluation.report.blocks import shown, table
from ledgerlm.evaluation.report.comparison import section
from ledgerlm.evaluation.report.figures import lines
from ledgerlm.evaluation.report.page import render
from ledgerlm.heads.tasks import Task


def row(task: str, method: str, metric: str, mean: float, **more: Any) -> dict[str, Any]:
    common = {"split": "cross_validation", "std": 0.01, "folds": 5, "seeds": 2, "low": mean - 0.1, "high": mean + 0.1}
    delta = {"baseline": None, "delta": None, "delta_low": None, "delta_high": None}
    return {"task": task, "method": method, "metric": metric, "mean": mean, **common, **delta, **more}


@pytest.fixture
def facts() -> dict[str, Any]:
    stage = {
        "rows_in": 10,
        "rows_out": 9,
        "quarantined": 1,
        "duplicates": 0,
        "seconds": 1.5,
        "skipped": False,
        "finds": False,
    }
    compared = {"baseline": "agg", "delta": 0.05, "delta_low": 0.01, "delta_high": 0.09}
    board = [
        row("income", "agg", "roc_auc", 0.65),
        row("income", "llm4es+agg", "roc_auc", 0.70, **compared),
        row("income", "bayes", "roc_auc", 0.9),
    ]
    curve = {"class": "high", "fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.8, 1.0]}
    bins = [{"predicted": 0.2, "observed": 0.3, "rows": 5}, {"predicted": 0.8, "observed": 0.7, "rows": 5}]
    importance = {"features": [{"feature": "amount <sum>", "group": "agg", "share": 0.4}], "groups": {"agg": 1.0}}
    task = {
        "kind": "binary",
        "classes": ["low", "high"],
        "development_rows": 90,
        "test_rows": 10,
        "columns": {"agg": 1209, "llm4es+agg": 80},
        "heads": {
            "agg": {"means": {"lightgbm": 0.6, "linear": 0.65, "stack": 0.64}, "chosen": {"linear": 4, "stack": 1}}
        },
        "importance": {"agg": importance},
        "roc": {"agg": [curve]},
        "calibration": {"agg": bins},
        "confusion": {"agg": {"classes": ["low", "high"], "matrix": [[3, 1], [2, 4]]}},
    }
    mapped = {"method": "llm4es", "x": [0.0, 1.0], "y": [1.0, 0.0], "explained": [0.4, 0.1]}
    return {
        "run_id": "r1",
        "pipeline": "demo",
        "title": "Purchases & <people>",
        "finished_at": "2026-01-01T00:00:00+00:00",
        "commit": None,
        "stages": [
            {"name": "ingest", "job": "ingest", "engine": "spark", **stage},
            {"name": "serialize", "job": "serialize", "engine": "spark", **stage},
            {"name": "finetune", "job": "finetune", "engine": "ray train", **stage},
            {"name": "evaluate", "job": "evaluate", "engine": "ray", **stage},
        ],
        "leaderboard": board,
        "leaderboard_test": [row("income", "agg", "roc_auc", 0.6, split="test")],
        "published": {
            "rows": [
                {
                    "task": "income",
                    "method": "CoLES <x>",
                    "metric": "roc_auc",
                    "split": "test",
                    "mean": 0.7,
                    "std": None,
                }
                | {"source": "A paper", "origin": "published"}
            ],
            "source": "A paper",
            "caveats": ["Not the same folds."],
        },
        "tables": {"events": {"path": "lake/events", "version": 1, "rows": 75000}},
        "backbone": {"parameters": 600_000, "tokens_trained": 2_200_000},
        "versions": {"pyspark": "4.2.0"},
        "configuration": {"seed": 42},
        "details": {
            "ingest": {"quarantined": {"bad_time": 1}},
            "serialize": {"format": "compact", "example": "days|amount\n+0d|<script>alert(1)</script>"},
            "finetune": {"curve": {"tokens": [1, 2], "loss": [5.0, 4.0]}, "parameters": 600_000},
            "evaluate": {
                "baseline": "agg",
                "tasks": {"income": task},
                "map": {**mapped, "labels": {"income": ["low", None]}},
                "report": [
                    {
                        "title": "Length sweep",
                        "blocks": [
                            {
                                "kind": "figures",
                                "figures": [
                                    {"kind": "lines", "series": {"f1": [[1, 2], [0.1, 0.2]]}, "x": "n", "y": "f1"}
                                ],
                            },
                            {"kind": "table", "columns": ["n", "f1"], "rows": [[1, 0.1]]},
                        ],
                    }
                ],
            },
        },
    }


class Page(HTMLParser):
    """Collects anchors, links, tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id" and value:
                self.ids.add(value)
            if tag == "a" and key == "href" and value:
                self.links.append(value)
            if key == "src" or (tag == "link" and key == "href"):
                self.loads.append(str(value))


def test_page_is_complete_and_loads_nothing(facts: dict[str, Any]) -> None:
    text = render(facts)
    page = Page()
    page.feed(text)
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") >= 7
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    for heading in ("Task income", "A map of clients", "Length sweep", "Stages", "A history as text", "Tables"):
        assert f"<h2>{heading}</h2>" in text


def test_heads_and_too_many_columns_are_told(facts: dict[str, Any]) -> None:
    text = render(facts)
    assert "More columns than clients: agg (1,209)." in text
    assert "linear 4, stack 1" in text and "roc_auc with stack" in text


def test_text_from_outside_is_shown_as_text(facts: dict[str, Any]) -> None:
    text = render(facts)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Purchases &amp; &lt;people&gt;" in text


def test_best_method_is_marked_and_the_bound_is_not(facts: dict[str, Any]) -> None:
    text = render(facts)
    best = text[text.index('<tr class="best">') :]
    assert best.index("llm4es+agg") < best.index("</tr>")
    assert "roc_auc of income, llm4es+agg" in text
    assert "share of the way" not in text


@pytest.mark.parametrize(("bound", "why"), [("reachable", "other simulated clients"), ("bayes", "hidden traits")])
def test_the_board_says_to_which_bound_the_way_goes(facts: dict[str, Any], bound: str, why: str) -> None:
    way = {"bound": bound, "metric": "roc_auc", "shares": {"agg": 0.375, "llm4es+agg": 0.5}}
    facts["details"]["evaluate"]["tasks"]["income"]["way"] = way
    facts["leaderboard"].append(row("income", "reachable", "roc_auc", 0.95))
    text = render(facts)
    assert f"share of the way to {bound}" in text and why in text
    best = text[text.index('<tr class="best">') :]
    assert best.index("llm4es+agg") < best.index("50%") < best.index("</tr>")


@pytest.fixture
def compared() -> dict[str, Any]:
    """The compare job's section: `good` says more than `poor`, `bayes` more than both."""
    y = np.tile([0.0, 1.0], 60)
    p = {
        method: np.where(y == 1, right, 1 - right) for method, right in {"poor": 0.6, "good": 0.7, "bayes": 0.9}.items()
    }
    rows = Compared(
        task=Task(name="answer", kind="binary", classes=(0.0, 1.0), class_names=("no", "yes")),
        slice="test",
        y=y,
        clients=np.arange(len(y)),
        p={method: np.stack([1 - yes, yes], axis=1) for method, yes in p.items()},
        left_out=0,
    )
    figures = {method: figures_of(rows, said, count=5, seed=0) for method, said in rows.p.items()}
    return section(rows, entries_of(rows, figures, split="test", baseline="poor"), {}, baseline="poor")


def test_compared_methods_stand_side_by_side_and_the_best_is_marked(compared: dict[str, Any]) -> None:
    blocks = {block["heading"]: block for block in compared["blocks"]}
    methods = [row[0] for row in blocks["Methods"]["rows"]]
    assert [methods[place] for place in blocks["Methods"]["best"]] == ["good"]
    assert [figure["caption"] for figure in blocks["Calibration"]["figures"]] == methods
    assert [figure["caption"] for figure in blocks["Confusion matrices"]["figures"]] == ["poor", "good"]
    assert blocks["Calibration"]["small"] and blocks["Confusion matrices"]["small"]


def test_what_was_found_comes_before_how_it_went(facts: dict[str, Any], compared: dict[str, Any]) -> None:
    stage = facts["stages"][0]
    learnt = {"title": "Training of lstm", "blocks": [{"kind": "table", "columns": ["epoch"], "rows": [[1]]}]}
    facts["stages"] += [
        {**stage, "name": "lstm", "job": "learn"},
        {**stage, "name": "judge", "job": "compare", "finds": True},
    ]
    facts["details"] |= {"lstm": {"report": [learnt]}, "judge": {"report": [compared]}}
    text = render(facts)
    assert (
        text.index("<h2>answer on test</h2>") < text.index("<h2>Training of lstm</h2>") < text.index("<h2>Stages</h2>")
    )
    found = text[text.index("<h2>answer on test</h2>") : text.index("<h2>Length sweep</h2>")]
    assert found.count('<div class="figures small">') == 2
    assert found.count("<svg") == 5


def test_pipeline_without_evaluation_still_has_a_page(facts: dict[str, Any]) -> None:
    facts = {**facts, "stages": facts["stages"][:1], "leaderboard": [], "leaderboard_test": [], "backbone": {}}
    assert "<h2>Stages</h2>" in render(facts)


def test_cells_and_alignment() -> None:
    assert [shown(value) for value in (None, True, 12345, 0.12345, 12345.6, "x")] == [
        "–",
        "yes",
        "12,345",
        "0.123",
        "12,346",
        "x",
    ]
    assert list(table(["a", "b"], [["x", 1], ["y", None]]).classes) == ["", "n"]


def test_figures_leave_the_callers_plots_alone() -> None:
    """In a notebook pyplot shows the notebook's plots; a report that is written in between must not end that."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    plt.switch_backend("pdf")
    before = plt.get_fignums()
    assert lines({"a": ([1, 2], [3, 4])}, "x", "y").startswith("<svg")
    assert (mpl.get_backend(), plt.get_fignums()) == ("pdf", before)
