"""What the notebooks share: a parameter's value by widget, by environment or by default, and how a board is told."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest

from ledgerlm.notebook import draw_board, parameter


class Widgets:
    """Stands for those of Databricks, which keep what a job or a person has set."""

    def __init__(self, **given: str) -> None:
        self.values = dict(given)
        self.labels: dict[str, str] = {}

    def text(self, name: str, default: str, label: str) -> None:
        self.values.setdefault(name, default)
        self.labels[name] = label

    def get(self, name: str) -> str:
        return self.values[name]


def notebook_with(monkeypatch: pytest.MonkeyPatch, **names: object) -> None:
    shell = SimpleNamespace(user_ns=names)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_a_widget_is_made_and_asked_where_there_are_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    widgets = Widgets(clients="7")
    notebook_with(monkeypatch, dbutils=SimpleNamespace(widgets=widgets))
    monkeypatch.setenv("LEDGERLM_CLIENTS", "9")
    assert parameter("clients", "40", "Clients of the shop") == "7"
    assert parameter("out", "build/x", "Folder") == "build/x"
    assert widgets.labels == {"clients": "Clients of the shop", "out": "Folder"}


@pytest.mark.parametrize("place", ["jupyter", "script"])
def test_elsewhere_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "jupyter":
        notebook_with(monkeypatch, clients=1)
    else:
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert parameter("clients", "40", "Clients") == "40"
    monkeypatch.setenv("LEDGERLM_CLIENTS", "9")
    assert parameter("clients", "40", "Clients") == "9"


def test_a_board_shows_the_best_first_with_intervals_and_differences() -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [
        {"method": "agg", "mean": 0.7, "low": 0.6, "high": 0.8},
        {
            "method": "both",
            "mean": 0.75,
            "low": 0.7,
            "high": 0.8,
            "delta": 0.05,
            "delta_low": -0.01,
            "delta_high": 0.11,
        },
        {"method": "majority", "mean": 0.5},
    ]
    figure, axes = plt.subplots()
    draw_board(axes, pd.DataFrame(rows), "ROC-AUC")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["majority", "agg", "both  +.050 [-.010, +.110]"]
    [container] = axes.containers
    spans = [segment[:, 0].round(6).tolist() for segment in container.lines[2][0].get_segments()]
    assert spans == [[0.5, 0.5], [0.6, 0.8], [0.7, 0.8]]
    draw_board(axes, pd.DataFrame(rows).iloc[[0, 2]], "log loss", lower_is_better=True)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["agg", "majority"]
    plt.close(figure)
