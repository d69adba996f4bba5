"""The campaign's section of the report, as JSON blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ledgerlm.applications.campaign import ContactList, Economy
from ledgerlm.evaluation.campaign import Curves, CutOff
from ledgerlm.evaluation.contacts import Judged
from ledgerlm.heads.tasks import Floats

DECILES = (
    "decile",
    "clients",
    "probability",
    "answer rate",
    "lift",
    "cumulative gain",
    "expected profit",
    "profit made",
)
FAIRNESS = (
    "group",
    "clients",
    "selection rate",
    "of the highest",
    "true positive rate",
    "probability",
    "answer rate",
    "said less came",
)
QINI = ("score", "Qini coefficient", "low", "high", "uplift of its best third")


def campaign_sections(judged: Judged, listed: ContactList, economy: Economy) -> list[dict[str, Any]]:
    """All sections of a campaign.

    Args:
        judged: from `judge_contacts`.
        listed: from `contact_list`.
        economy: cost and value.
    """
    found = [profit_section("Campaign", judged.curves, judged.deciles, judged.cutoff, economy)]
    if judged.uplifts is not None:
        one = judged.uplifts
        found.append(uplift_section(one.curves, one.rows, one.contacted, one.control))
    if judged.fairness:
        found.append(fairness_section(judged.fairness))
    first = [[row["client_id"], row["probability"], row["expected_profit"], _reasons(row)] for row in listed.first]
    return [*found, contacts_section(list(listed.outcomes.items()), first)]


def _reasons(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{one['feature']} {one['contribution']:+.2f}" for one in row["reasons"])


def profit_section(
    title: str, shown: Mapping[str, Curves], deciles: Sequence[Sequence[Any]], cut: CutOff, economy: Economy
) -> dict[str, Any]:
    """Deciles, curves and cut-off of a campaign.

    Args:
        title: of the section.
        shown: name of a score to its curves; the first is the campaign's own.
        deciles: from `decile_rows`.
        cut: from `best_cutoff`.
        economy: cost and value.
    """
    name, own = next(iter(shown.items()))
    note = (
        f"Held-out clients. A contact costs {economy.cost:g}, an answer is worth {economy.value:g}, so a contact pays "
        f"above a probability of {economy.threshold:.3f}."
    )
    figures = [
        _lines({one: curve.drawn("gain") for one, curve in shown.items()}, "share of answers", "Gain"),
        _lines({one: curve.drawn("lift") for one, curve in shown.items()}, "lift", "Lift"),
        _lines(
            {one: curve.drawn("profit") for one, curve in shown.items()} | {f"{name}, expected": own.drawn("expected")},
            "profit per client",
            "Profit",
        ),
    ]
    cut_rows = [[key.replace("_", " "), value] for key, value in asdict(cut).items()]
    return {
        "title": title,
        "note": note,
        "blocks": [
            {"kind": "figures", "figures": figures},
            {"kind": "table", "heading": f"Deciles of {name}", "columns": list(DECILES), "rows": _plain(deciles)},
            {"kind": "table", "heading": "Best cut-off", "columns": ["figure", "value"], "rows": cut_rows},
        ],
    }


def uplift_section(
    curves: Mapping[str, tuple[Floats, Floats]], rows: Sequence[Sequence[Any]], contacted: int, control: int
) -> dict[str, Any]:
    """Qini curves and coefficients.

    Args:
        curves: name of an uplift score to its Qini curve.
        rows: from `qini_table`.
        contacted: held-out clients that were contacted.
        control: held-out clients of the control group.
    """
    thinned = {}
    for name, (share, gained) in curves.items():
        step = max(1, len(share) // 100)
        thinned[name] = (share[::step].round(4).tolist(), gained[::step].round(5).tolist())
    return {
        "title": "Uplift",
        "note": f"{contacted:,} contacted and {control:,} left alone at random, all held out. 1 would be an order that "
        "knows every answer; nobody can, since answers are drawn.",
        "blocks": [
            {"kind": "figures", "figures": [_lines(thinned, "answers gained per contacted client", "Qini curves")]},
            {"kind": "table", "columns": list(QINI), "rows": _plain(rows)},
        ],
    }


def fairness_section(by_attribute: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, Any]:
    """How each group fares, attribute by attribute."""
    blocks = [
        {"kind": "table", "heading": name, "columns": list(FAIRNESS), "rows": _plain(rows)}
        for name, rows in by_attribute.items()
    ]
    return {
        "title": "Fairness by group",
        "note": "Held-out clients; selected are those whom it pays to contact.",
        "blocks": blocks,
    }


def contacts_section(counts: Sequence[Sequence[Any]], examples: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What the contact policy left, and the first clients of the list with their reasons."""
    return {
        "title": "Contacts",
        "note": "Table contacts: each client with its probability, expected profit, whether to contact, and why.",
        "blocks": [
            {"kind": "table", "columns": ["outcome", "clients"], "rows": _plain(counts)},
            {
                "kind": "table",
                "heading": "First of the list",
                "columns": ["client", "probability", "expected profit", "reasons"],
                "rows": _plain(examples),
            },
        ],
    }


def _lines(series: Mapping[str, tuple[list[float], list[float]]], y: str, caption: str) -> dict[str, Any]:
    return {"kind": "lines", "series": dict(series), "x": "share of clients", "y": y, "caption": caption}


def _plain(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(row) for row in rows]
