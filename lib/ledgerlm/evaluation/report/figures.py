"""Figures of the report as inline SVG; matplotlib draws, one style for all, and is imported when there is one."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a3",
    "axes.labelcolor": "#394150",
    "xtick.color": "#394150",
    "ytick.color": "#394150",
    "axes.grid": True,
    "grid.color": "#e7eaef",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "ledgerlm",
}


def _canvas(width: float = 5.4, height: float = 3.9) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Not by pyplot: its backend is the program's that calls us, and a notebook's shows the notebook's own plots.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    dots: bool = False,
    logarithmic: bool = False,
) -> str:
    """One line for each named series of (x values, y values); with a logarithmic x axis, ticks at the values."""
    figure, axes = _canvas()
    for place, (name, (across, up)) in enumerate(series.items()):
        axes.plot(across, up, color=_colour(place), label=name, lw=1.8, marker="o" if dots else None, ms=4)
    if logarithmic:
        values = sorted({value for across, _ in series.values() for value in across})
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def roc(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """ROC curve of each method."""
    figure, axes = _canvas(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color="#b8bfca", lw=1, ls="--")
    for place, (name, curve) in enumerate(curves.items()):
        axes.plot(curve["fpr"], curve["tpr"], color=_colour(place), label=name, lw=1.8)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    return _svg(figure)


def calibration(
    bins: Mapping[str, Sequence[Mapping[str, float]]], said: str = "probability said", *, small: bool = False
) -> str:
    """What was said against what came, for each method; a `small` one leaves the names to its caption."""
    figure, axes = _canvas(3.4, 3.1) if small else _canvas(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color="#b8bfca", lw=1, ls="--")
    for place, (name, points) in enumerate(bins.items()):
        across, up = [p["predicted"] for p in points], [p["observed"] for p in points]
        axes.plot(across, up, color=_colour(place), label=name, lw=1.4, marker="o", ms=4)
    axes.set_xlabel(said)
    axes.set_ylabel("share that came")
    if not small:
        axes.legend(loc="upper left", frameon=False)
    return _svg(figure)


def forest(
    rows: Sequence[Mapping[str, Any]], *, value: str, low: str, high: str, label: str, zero: float | None
) -> str:
    """A dot with its interval for each method; `zero` draws the line of no difference."""
    figure, axes = _canvas(5.4, 0.9 + 0.34 * len(rows))
    for place, row in enumerate(reversed(rows)):
        if row.get(low) is not None:
            axes.plot([row[low], row[high]], [place, place], color="#8a94a3", lw=2)
        axes.plot([row[value]], [place], "o", color=COLOURS[0], ms=6)
    axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=5)  # small differences have long numbers
    if zero is not None:
        axes.axvline(zero, color=COLOURS[1], lw=1, ls="--")
    return _svg(figure)


def scatter(x: Sequence[float], y: Sequence[float], labels: Sequence[Any]) -> str:
    """Points on a plane, coloured by class or, for numbers, by value."""
    figure, axes = _canvas(5.2, 4.4)
    known = [place for place, label in enumerate(labels) if label is not None]
    rest = [place for place, label in enumerate(labels) if label is None]
    axes.scatter([x[p] for p in rest], [y[p] for p in rest], s=8, color="#d5dae2", linewidths=0)
    if known and isinstance(labels[known[0]], int | float):
        values = [labels[p] for p in known]
        shown = axes.scatter([x[p] for p in known], [y[p] for p in known], s=10, c=values, cmap="viridis", linewidths=0)
        figure.colorbar(shown)
    else:
        for place, name in enumerate(sorted({str(labels[p]) for p in known})):
            of_class = [p for p in known if str(labels[p]) == name]
            across, up = [x[p] for p in of_class], [y[p] for p in of_class]
            axes.scatter(across, up, s=11, color=_colour(place), alpha=0.75, linewidths=0, label=name)
        axes.legend(markerscale=1.6, frameon=False)
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")
    return _svg(figure)


def bars(values: Mapping[str, float], label: str) -> str:
    """Horizontal bars, the first on top."""
    figure, axes = _canvas(5.4, 0.9 + 0.24 * len(values))
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color=COLOURS[0], height=0.68)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=4)  # long names leave little room beside them
    axes.grid(axis="y", visible=False)
    return _svg(figure)


def heatmap(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A matrix with its numbers, rows true and columns predicted."""
    size = 1.6 + 0.62 * len(columns)
    figure, axes = _canvas(max(size, 3.4), max(1.2 + 0.5 * len(rows), 2.8))
    sums = [max(sum(row), 1e-12) for row in values]
    shares = [[value / total for value in row] for row, total in zip(values, sums, strict=True)]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(visible=False)
    for across in range(len(columns)):
        for down in range(len(rows)):
            ink = "white" if shares[down][across] > 0.55 else "#1d2430"
            axes.text(across, down, f"{values[down][across]:g}", ha="center", va="center", color=ink)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _svg(figure)
