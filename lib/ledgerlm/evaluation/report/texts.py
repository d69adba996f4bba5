"""The section of the report on texts that a pool of workers wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = ["engine", "prompt", "format", "kept", "set aside", "share kept"]


def texts_section(stage: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The share kept by format, and why the others were not.

    Args:
        stage: who wrote.
        facts: of `enrich.writing.Texts`.
    """
    rows = [
        [facts["engine"], facts["prompt"], name, f"{kept:,}", f"{refused:,}", f"{kept / (kept + refused):.1%}"]
        for name, (kept, refused) in facts["formats"].items()
    ]
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in facts["refused"].items()) or "none"
    note = (
        f"Texts that passed the faithfulness check and texts set aside (reasons: {reasons}). {facts['again']:,} "
        f"attempts beyond the first; {facts['input_tokens']:,} tokens read and {facts['output_tokens']:,} written, as "
        "far as the engine counts them."
    )
    return {
        "title": f"Texts of stage {stage}",
        "note": note,
        "blocks": [{"kind": "table", "columns": _COLUMNS, "rows": rows}],
    }
