"""Sections on how good the results are: leaderboards, curves, the map of clients, what the models look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledgerlm.evaluation.report.blocks import Block, Card, Drawing, Section, figures, shown, table
from ledgerlm.evaluation.report.figures import bars, calibration, forest, heatmap, roc, scatter

Facts = Mapping[str, Any]

# The metric that a task's methods are ordered by.
_MAIN = {"binary": "roc_auc", "multiclass": "roc_auc_ovr", "regression": "mae"}
# Rows that are no method of ours: bounds, and what says the same to everybody.
_BOUNDS = ("reachable", "bayes")
_REFERENCES = (*_BOUNDS, "majority", "constant_mean", "constant_median")


_WAY = {
    "reachable": "The way begins where everybody is told the same, and ends with reachable: what a fit on many other "
    "simulated clients gets out of the same events.",
    "bayes": "The way begins where everybody is told the same, and ends with bayes, which knows the hidden traits: "
    "nobody who sees events alone gets there.",
}


def sections(facts: Facts) -> list[Section]:
    """A section for each task of each evaluate stage, and the map."""
    stages = [facts["details"][stage["name"]] for stage in facts["stages"] if stage["job"] == "evaluate"]
    found = []
    for stage in stages:
        found += [_task(name, task, stage, facts) for name, task in stage["tasks"].items()]
        found.append(_map(stage))
    return found


def cards(facts: Facts) -> list[Card]:
    """The best method's main figure for each task."""
    found = []
    for stage in facts["stages"]:
        if stage["job"] != "evaluate":
            continue
        for name, task in facts["details"][stage["name"]]["tasks"].items():
            rows = _ordered(_cross_validated(facts), name, _MAIN[task["kind"]])
            methods = [row for row in rows if row["method"] not in _REFERENCES]
            if methods:
                label = f"{_MAIN[task['kind']]} of {name}, {methods[0]['method']}"
                found.append(Card(value=shown(methods[0]["mean"]), label=label))
    return found


def _ordered(board: Sequence[Mapping[str, Any]], task: str, metric: str) -> list[Mapping[str, Any]]:
    rows = [row for row in board if row["task"] == task and row["metric"] == metric]
    sign = 1 if metric in ("mae", "rmse", "log_loss", "brier") else -1
    return sorted(rows, key=lambda row: sign * row["mean"])


def _task(name: str, task: Facts, stage: Facts, facts: Facts) -> Section:
    metric = _MAIN[task["kind"]]
    rows = _ordered(_cross_validated(facts), name, metric)
    note = (
        f"{task['development_rows']:,} clients in cross-validation, {task['test_rows']:,} test clients set apart. "
        "Mean and deviation over folds and seeds; brackets are 95 % bootstrap intervals over clients; the difference "
        f"to {stage['baseline']} is paired: the same clients, folds and resamples."
    ) + _many_columns(task)
    blocks = [
        _board(rows, metric, task.get("way") or {}),
        _forests(rows, metric, stage["baseline"]),
        _heads(task, metric),
    ]
    blocks += [_test_board(_ordered(facts["leaderboard_test"], name, metric), metric), _published(name, facts)]
    blocks.append(_within(_ordered(facts["leaderboard"], name, metric), metric))
    blocks += [*_curves(task), _all_metrics(_cross_validated(facts), name), *_importance(task)]
    return Section(title=f"Task {name}", note=note, blocks=[block for block in blocks if block is not None])


def _span(row: Mapping[str, Any], low: str, high: str) -> str:
    return "" if row.get(low) is None else f"[{row[low]:.3f}, {row[high]:.3f}]"


def _board(rows: Sequence[Mapping[str, Any]], metric: str, way: Facts) -> Block:
    cells = [
        [
            row["method"],
            row["mean"],
            row["std"],
            _span(row, "low", "high"),
            "" if row.get("delta") is None else f"{row['delta']:+.3f}",
            _span(row, "delta_low", "delta_high"),
            row["folds"] * row["seeds"],
        ]
        for row in rows
    ]
    best = next((place for place, row in enumerate(rows) if row["method"] not in _REFERENCES), None)
    columns = ["method", metric, "deviation", "interval", "difference", "interval of the difference", "fits"]
    note = ""
    if way:
        columns.append(f"share of the way to {way['bound']}")
        for row, cell in zip(rows, cells, strict=True):
            cell.append("" if (share := way["shares"].get(row["method"])) is None else f"{share:.0%}")
        note = _WAY[way["bound"]]
    return table(columns, cells, heading="Leaderboard", note=note, best=[] if best is None else [best])


def _heads(task: Facts, metric: str) -> Block | None:
    """Each method with each of its heads, and how often its training rows chose which."""
    heads = {name: one for name, one in task.get("heads", {}).items() if len(one["means"]) > 1}
    if not heads:
        return None
    names = list(next(iter(heads.values()))["means"])
    cells = [
        [name, *(one["means"][head] for head in names), ", ".join(f"{head} {n}" for head, n in one["chosen"].items())]
        for name, one in heads.items()
    ]
    return table(
        ["method", *(f"{metric} with {head}" for head in names), "chosen in so many folds"],
        cells,
        heading="Heads",
        note="Every method has the same heads. The one that a fold is judged with was chosen by inner folds of its "
        "training rows; stack is the weighted mean of both.",
    )


def _many_columns(task: Facts) -> str:
    """A warning where a method has more columns than there are clients to learn from."""
    rows = task["development_rows"]
    wide = [f"{name} ({count:,})" for name, count in task.get("columns", {}).items() if count > rows]
    return f" More columns than clients: {', '.join(wide)}." if wide else ""


def _test_board(rows: Sequence[Mapping[str, Any]], metric: str) -> Block | None:
    if not rows:
        return None
    cells = [[row["method"], row["mean"], row["std"], _span(row, "low", "high")] for row in rows]
    return table(
        ["method", metric, "deviation", "interval"],
        cells,
        heading="The fixed test clients",
        note="No tokenizer, backbone or dictionary has seen them. Few clients: mind the width of the intervals.",
    )


def _within(rows: Sequence[Mapping[str, Any]], metric: str) -> Block | None:
    """Each method within each group of clients, where the evaluate job was told to look there."""
    mark = "cross_validation within "
    found = [row for row in rows if str(row.get("split")).startswith(mark)]
    if not found:
        return None
    cells = [
        [
            row["split"].removeprefix(mark),
            row["method"],
            row["mean"],
            _span(row, "low", "high"),
            "" if row.get("delta") is None else f"{row['delta']:+.3f}",
            _span(row, "delta_low", "delta_high"),
        ]
        for row in sorted(found, key=lambda row: str(row["split"]))
    ]
    columns = ["group", "method", metric, "interval", "difference", "interval of the difference"]
    return table(columns, cells, heading="Within groups", note="The same models and folds, judged within each group.")


def _published(task: str, facts: Facts) -> Block | None:
    """What others reached, best first, marked as theirs."""
    rows = [row for row in facts["published"].get("rows", []) if row["task"] == task]
    if not rows:
        return None
    metric, split = rows[0]["metric"], {"test": "the fixed test clients", "cross_validation": "cross-validation"}
    cells = [[row["method"], row["mean"], row["std"], row["origin"]] for row in _ordered(rows, task, metric)]
    return table(
        ["method", metric, "deviation", "origin"],
        cells,
        heading="Reached elsewhere",
        note=f"Not from this run: {facts['published']['source']}; to be set beside {split[rows[0]['split']]}. "
        + " ".join(facts["published"]["caveats"]),
    )


def _forests(rows: Sequence[Mapping[str, Any]], metric: str, baseline: str) -> Block | None:
    compared = [row for row in rows if row.get("delta") is not None]
    drawings = [
        Drawing(
            svg=forest(rows, value="mean", low="low", high="high", label=metric, zero=None),
            caption="Mean with 95 % interval",
        )
    ]
    if compared:
        label = f"difference to {baseline} in {metric}"
        svg = forest(compared, value="delta", low="delta_low", high="delta_high", label=label, zero=0.0)
        drawings.append(Drawing(svg=svg, caption=f"Paired difference to {baseline} with 95 % interval"))
    return figures(drawings) if rows else None


def _curves(task: Facts) -> list[Block | None]:
    if "roc" not in task:
        return []
    binary = task["kind"] == "binary"
    curves = {name: one[0] for name, one in task["roc"].items() if one} if binary else {}
    drawings = [Drawing(svg=roc(curves), caption="ROC of held-out predictions")] if curves else []
    drawings.append(Drawing(svg=calibration(task["calibration"]), caption="Calibration of held-out predictions"))
    matrices = [(name, one) for name, one in task["confusion"].items() if name not in _BOUNDS]
    if matrices and not binary:
        name, one = matrices[-1]
        drawing = heatmap(one["classes"], one["classes"], one["matrix"])
        drawings.append(Drawing(svg=drawing, caption=f"Confusion matrix of {name}"))
    return [figures(drawings, heading="Curves")]


def _all_metrics(board: Sequence[Mapping[str, Any]], task: str) -> Block:
    rows = [row for row in board if row["task"] == task]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    values = {(row["method"], row["metric"]): row["mean"] for row in rows}
    cells = [[method, *[values.get((method, metric)) for metric in metrics]] for method in methods]
    return table(["method", *metrics], cells, heading="All metrics, cross-validation means")


def _importance(task: Facts) -> list[Block | None]:
    drawings = []
    for method, importance in task["importance"].items():
        top = {one["feature"]: one["share"] for one in importance["features"][:15]}
        if top:
            drawings.append(Drawing(svg=bars(top, "share of the loss saved"), caption=f"What {method} looks at"))
    return [figures(drawings[-2:], heading="Most important features")] if drawings else []


def _map(stage: Facts) -> Section:
    points = stage.get("map") or {}
    drawings = [
        Drawing(svg=scatter(points["x"], points["y"], labels), caption=f"coloured by {task}")
        for task, labels in points.get("labels", {}).items()
    ]
    explained = sum(points.get("explained", []))
    note = f"Clients by the two main directions of {points.get('method')}, {explained:.0%} of its variance."
    return Section(title="A map of clients", note=note, blocks=[figures(drawings)] if drawings else [])


def _cross_validated(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the evaluate job; those of compare have sections of their own."""
    return [row for row in facts["leaderboard"] if row.get("split") == "cross_validation"]
