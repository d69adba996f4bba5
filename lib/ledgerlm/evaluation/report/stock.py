"""The section of the report on a stock forecast."""

from __future__ import annotations

from typing import Any

from ledgerlm.applications.stock import StockForecast

_COLUMNS = ["region", "category", "expected", "low", "high", "before", "observed"]


def stock_section(stage: str, forecast: StockForecast) -> dict[str, Any]:
    """The largest expectations, and the backtest where the days are over.

    Args:
        stage: who forecast.
        forecast: from `forecast_stock`.
    """
    rows = [[row[name] for name in _COLUMNS] for row in forecast.largest]
    blocks: list[dict[str, Any]] = [{"kind": "table", "heading": "Largest", "columns": _COLUMNS, "rows": rows}]
    if forecast.tried["cells"]:
        blocks.append(_backtest(forecast))
    note = f"Purchases of each category and region in {forecast.conf.horizon} days; learnt at earlier dates only."
    return {"title": f"Stock ({stage})", "note": note, "blocks": blocks}


def _backtest(forecast: StockForecast) -> dict[str, Any]:
    tried = forecast.tried
    wape, gain = tried["wape"], tried["gain"]
    return {
        "kind": "table",
        "heading": "Backtest",
        "columns": ["forecast", "absolute error / purchases", "error that the scores save"],
        "rows": [
            ["scores", wape["scores"], ""],
            ["frequency (the days before go on)", wape["frequency"], f"{gain['frequency']:+.1%}"],
            ["random (all categories alike)", wape["random"], f"{gain['random']:+.1%}"],
        ],
        "note": f"{tried['cells']:,} cells with {tried['purchases']:,} purchases; {tried['coverage']:.0%} of them lie "
        "within the 90 % interval.",
    }
