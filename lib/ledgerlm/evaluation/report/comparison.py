"""The report's sections on compared heads, as JSON blocks that the compare job puts into its facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledgerlm.evaluation.compare import Compared, bound_of, metrics_compared
from ledgerlm.evaluation.leaderboard import BOUNDS, Entry
from ledgerlm.evaluation.pictures import calibration_bins, confusion

# The figures that a reader looks at first; the others stand in the table `leaderboard`.
_SHOWN = ("log_loss", "roc_auc", "roc_auc_ovr", "accuracy", "f1_weighted", "f1_macro", "f1_minority")
_SMALL_MATRIX = 4  # classes whose matrix can still be read at a quarter of the page's width
_SMALL = ("average_precision", "f1", "precision_macro", "recall_macro", "top_3", "brier", "calibration_error")


def section(
    compared: Compared,
    entries: Sequence[Entry],
    shares: Mapping[str, Mapping[str, float]],
    *,
    baseline: str,
    stage: str = "compare",
    details: bool = True,
) -> dict[str, Any]:
    """One section: a task on a slice.

    Args:
        compared: the rows.
        entries: their leaderboard rows.
        shares: from `compare.reached`.
        baseline: method that the others are set against.
        stage: names the section where a pipeline compares more than once.
        details: further figures, each class, calibration and confusion too.
    """
    by = {(entry.method, entry.metric): entry for entry in entries}
    clients = len(set(compared.clients.tolist()))
    note = (
        f"{len(compared.y):,} labelled rows of {clients:,} clients that every method scored"
        + (f"; {compared.left_out:,} rows that some method lacks are left out" if compared.left_out else "")
        + ". Brackets are 95 % bootstrap intervals over clients."
    )
    blocks = [_board(compared, by), _differences(compared, by, baseline), _reached(shares, bound_of(compared))]
    if details:
        blocks += [_small(compared, by), _classes(compared, by), _curves(compared), _matrices(compared)]
    return {
        "title": f"{'' if stage == 'compare' else f'{stage}: '}{compared.task.name} on {compared.slice}",
        "note": note,
        "blocks": [block for block in blocks if block is not None],
    }


def _board(compared: Compared, by: Mapping[tuple[str, str], Entry]) -> dict[str, Any]:
    metrics = _there(_SHOWN, compared, by)
    rows = [[method, *(_span(by.get((method, name))) for name in metrics)] for method in compared.p]
    names = ", ".join(compared.task.class_names[k] for k in compared.minority)
    note = f"f1_minority: mean over the classes with fewer rows than an even share ({names}). " if names else ""
    return {
        "kind": "table",
        "heading": "Methods",
        "note": note + "Marked: the lowest log loss.",
        "columns": ["method", *metrics],
        "rows": rows,
        "best": _lowest_loss(compared, by),
    }


def _lowest_loss(compared: Compared, by: Mapping[tuple[str, str], Entry]) -> list[int]:
    """Place of the method with the lowest log loss; a bound is not a method."""
    losses = {
        place: by[method, "log_loss"].mean
        for place, method in enumerate(compared.p)
        if method not in BOUNDS and (method, "log_loss") in by
    }
    return [min(losses, key=losses.__getitem__)] if losses else []


def _differences(compared: Compared, by: Mapping[tuple[str, str], Entry], baseline: str) -> dict[str, Any] | None:
    others = [method for method in compared.p if method not in (baseline, *BOUNDS)]
    if baseline not in compared.p or not others:
        return None
    metrics = _there(_SHOWN, compared, by)
    rows = [[method, *(_difference(by.get((method, name))) for name in metrics)] for method in others]
    return {
        "kind": "table",
        "heading": f"Difference to {baseline}",
        "note": "Paired: the same rows and the same resampled clients.",
        "columns": ["method", *metrics],
        "rows": rows,
    }


_MEANS = {
    "bayes": "bayes, which knows the hidden traits: nobody who sees events alone gets there",
    "reachable": "reachable, what a fit on many other simulated clients gets out of the same events",
}


def _reached(shares: Mapping[str, Mapping[str, float]], bound: str | None) -> dict[str, Any] | None:
    if not shares or bound is None:
        return None
    metrics = [name for name in (*_SHOWN, *_SMALL) if any(name in one for one in shares.values())]
    return {
        "kind": "table",
        "heading": "Share of the reachable",
        "note": f"Gain over knowing only how frequent each class is, as a share of the gain of {_MEANS[bound]}.",
        "columns": ["method", *metrics],
        "rows": [[method, *(one.get(name) for name in metrics)] for method, one in shares.items()],
    }


def _small(compared: Compared, by: Mapping[tuple[str, str], Entry]) -> dict[str, Any]:
    metrics = _there(_SMALL, compared, by)
    return {
        "kind": "table",
        "heading": "Further figures",
        "columns": ["method", *metrics],
        "rows": [[method, *(_mean(by.get((method, name))) for name in metrics)] for method in compared.p],
    }


def _classes(compared: Compared, by: Mapping[tuple[str, str], Entry]) -> dict[str, Any]:
    methods = [method for method in compared.p if method not in BOUNDS]
    rows: list[list[Any]] = []
    for k, name in enumerate(compared.task.class_names):
        mark = f"{name} (minority)" if k in compared.minority else name
        cells = [
            " / ".join(f"{by[method, f'{part}: {name}'].mean:.2f}" for part in ("precision", "recall", "f1"))
            for method in methods
        ]
        rows.append([mark, round(float(compared.shares[k]), 4), *cells])
    return {
        "kind": "table",
        "heading": "By class: precision / recall / F1",
        "columns": ["class", "share of rows", *methods],
        "rows": rows,
    }


def _curves(compared: Compared) -> dict[str, Any]:
    said = "probability said" if compared.task.kind == "binary" else "probability of the predicted class"
    drawings = [
        {"kind": "calibration", "said": said, "bins": {method: calibration_bins(compared.y, p)}, "caption": method}
        for method, p in compared.p.items()
    ]
    return {"kind": "figures", "heading": "Calibration", "figures": drawings, "small": True}


def _matrices(compared: Compared) -> dict[str, Any]:
    names = compared.task.class_names
    drawings = [
        {
            "kind": "heatmap",
            "rows": list(names),
            "columns": list(names),
            "values": confusion(compared.y, p, names)["matrix"],
            "caption": method,
        }
        for method, p in compared.p.items()
        if method not in BOUNDS
    ]
    small = len(names) <= _SMALL_MATRIX
    return {"kind": "figures", "heading": "Confusion matrices", "figures": drawings, "small": small}


def _there(wanted: Sequence[str], compared: Compared, by: Mapping[tuple[str, str], Entry]) -> list[str]:
    known = {metric.name for metric in metrics_compared(compared.task.kind)} | {"f1_minority"}
    return [name for name in wanted if name in known and any((method, name) in by for method in compared.p)]


def _mean(entry: Entry | None) -> float | None:
    return None if entry is None else round(entry.mean, 4)


def _span(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    return f"{entry.mean:.3f}" + ("" if entry.low is None else f" [{entry.low:.3f}, {entry.high:.3f}]")


def _difference(entry: Entry | None) -> str:
    if entry is None or entry.delta is None:
        return "–"
    reach = "" if entry.delta_low is None else f" [{entry.delta_low:+.3f}, {entry.delta_high:+.3f}]"
    return f"{entry.delta:+.3f}{reach}"
