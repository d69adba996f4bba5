"""What the notebooks share: parameters by widgets where there are widgets, a Spark, and how a leaderboard is drawn.

On Databricks a parameter is a widget above the notebook, which a job can set; elsewhere it is a variable of the
environment. Nothing else differs, so one source runs in both places.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from pyspark.sql import SparkSession

PREFIX = "LEDGERLM_"


def parameter(name: str, default: str, label: str) -> str:
    """The value of a notebook's parameter.

    Args:
        name: of the widget; elsewhere the variable is `LEDGERLM_` and the name in capitals.
        default: where nobody gave a value.
        label: what stands beside the widget.

    Returns:
        What was given, else the default.
    """
    widgets = _widgets()
    if widgets is None:
        return os.environ.get(f"{PREFIX}{name.upper()}", default)
    widgets.text(name, default, label)
    return str(widgets.get(name))


def session() -> SparkSession:
    """The platform's Spark, or one of this machine, which the pipelines that the notebook runs use as well.

    Without ipywidgets the bars of other libraries have no place in a notebook; that they miss it is not told.

    Raises:
        EngineError: Java or the Delta jars are missing, or the session that is there knows no Delta.
    """
    from ledgerlm.engines.spark import open_here

    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    return open_here().spark


def draw_board(axes: Axes, board: pd.DataFrame, title: str, *, lower_is_better: bool = False) -> None:
    """Draws methods one below the other, the best first, with intervals and differences to the baseline.

    Args:
        axes: where.
        board: rows of one task, metric and split: method, mean, low, high, delta, delta_low, delta_high; figures that
            were not taken are null.
        title: what the figure is.
        lower_is_better: which end is the best.
    """
    rows = board.sort_values("mean", ascending=not lower_is_better, ignore_index=True)
    arms = [(rows["mean"] - rows["low"]).fillna(0), (rows["high"] - rows["mean"]).fillna(0)]
    axes.errorbar(rows["mean"], rows.index, xerr=arms, fmt="o", capsize=3, color="tab:blue")
    axes.set_yticks(rows.index, [_told(row) for row in rows.to_dict("records")])
    axes.margins(y=0.15)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize="medium", loc="right")


def _told(row: Mapping[Hashable, Any]) -> str:
    """A method, and where it was set against another: `both  +.02 [-.01, .05]`."""
    deltas = [row[name] for name in ("delta", "delta_low", "delta_high")]
    if any(one is None or math.isnan(one) for one in deltas):
        return str(row["method"])
    delta, low, high = (f"{one:+.3f}".replace("0.", ".") for one in deltas)
    return f"{row['method']}  {delta} [{low}, {high}]"


def _widgets() -> Any:
    """Those of `dbutils`, which Databricks puts among a notebook's own names; None elsewhere."""
    ipython = sys.modules.get("IPython")  # loaded wherever a notebook runs
    shell = ipython.get_ipython() if ipython is not None else None
    dbutils = shell.user_ns.get("dbutils") if shell is not None else None
    return getattr(dbutils, "widgets", None)
