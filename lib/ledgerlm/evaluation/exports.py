"""The leaderboard as files that other tools read: CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

_OURS = {"source": "this run", "origin": "ours"}
_KEY = ["task", "metric", "split", "method"]
_COLUMNS = [
    *_KEY,
    "mean",
    "std",
    "low",
    "high",
    "baseline",
    "delta",
    "delta_low",
    "delta_high",
    "folds",
    "seeds",
    "origin",
    "source",
]
_SHOWN = ["task", "metric", "split", "method", "mean ± std", "95 % interval", "difference to the baseline", "origin"]


def leaderboard_table(rows: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Our rows and reference rows in one table.

    Args:
        rows: as in the `leaderboard` table.
        references: from `Published.rows`.

    Returns:
        task, metric, split, method, mean, std, low, high, baseline, delta, delta_low, delta_high, folds, seeds,
        origin (`ours`, `published`, `measured`), source (who says so); ours first, as they come.
    """
    ours = pd.DataFrame([{**row, **_OURS} for row in rows], columns=_COLUMNS)
    theirs = pd.DataFrame(list(references), columns=_COLUMNS)
    known = ours[["task", "metric"]].drop_duplicates()
    theirs = theirs.merge(known, on=["task", "metric"], how="inner")
    filled = [frame for frame in (ours, theirs) if not frame.empty]
    return pd.concat(filled, ignore_index=True) if filled else ours


def write_leaderboard(table: pd.DataFrame, folder: Path, name: str = "leaderboard") -> list[Path]:
    """Writes `NAME.csv`, `.json` (all columns, full precision), `.md` and `.tex` (three digits, for reading)."""
    files = {suffix: folder / f"{name}.{suffix}" for suffix in ("csv", "json", "md", "tex")}
    table.to_csv(files["csv"], index=False)
    records = json.loads(table.to_json(orient="records", double_precision=12))
    files["json"].write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = _shown(table)
    files["md"].write_text(_markdown(shown), encoding="utf-8")
    files["tex"].write_text(shown.to_latex(index=False, escape=True), encoding="utf-8")
    return list(files.values())


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    cells = [
        [
            *(row[name] for name in _KEY),
            _figure(row["mean"], row["std"]),
            _span(row["low"], row["high"]),
            ""
            if pd.isna(row["delta"])
            else f"{row['delta']:+.3f} {_span(row['delta_low'], row['delta_high'])}".strip(),
            row["origin"],
        ]
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(cells, columns=_SHOWN)


def _figure(mean: float, std: float) -> str:
    return f"{mean:.3f}" if pd.isna(std) else f"{mean:.3f} ± {std:.3f}"


def _span(low: float, high: float) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"[{low:.3f}, {high:.3f}]"


def _markdown(shown: pd.DataFrame) -> str:
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)
