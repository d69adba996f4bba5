"""Says why a client has its scores: what it was scored on, by which head, from which run and versions."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from ledgerlm.errors import DataError
from ledgerlm.evaluation.explanation import as_page, as_text, explained
from ledgerlm.events.clock import instant
from ledgerlm.lake.lake import Lake
from ledgerlm.lake.publications import Publication, publications, published
from ledgerlm.runs.engines import Engines
from ledgerlm.runs.pipeline import load_pipeline

Form = Literal["text", "json", "html"]


def explain(
    file: str,
    overrides: Sequence[str] = (),
    *,
    client: str,
    as_of: dt.datetime | None = None,
    form: Form = "text",
    to: str | None = None,
) -> int:
    """Tells what a publication says of a client.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        client: its id.
        as_of: the newest publication as of this time or before; left out, the one that readers see.
        form: lines, JSON or a page.
        to: file that is written; left out, it is printed.

    Returns:
        Exit code.

    Raises:
        DataError: there is no such publication or client.
    """
    pipeline = load_pipeline(file, overrides)
    engines = Engines(pipeline)
    try:
        lake = Lake(pipeline.home.root, engines.spark)
        seen = published(lake) if as_of is None else _as_of(lake, instant(as_of, pipeline.spec.time.zone))
        found = explained(lake, seen, client)
    finally:
        engines.stop()
    told = {
        "text": lambda: "\n".join(as_text(found)),
        "json": lambda: json.dumps(found, indent=1, default=str, ensure_ascii=False),
        "html": lambda: as_page(found),
    }[form]()
    if to is None:
        Console(highlight=False, markup=False, soft_wrap=True).print(told)
    else:
        Path(to).write_text(told + "\n", encoding="utf-8")
    return 0


def _as_of(lake: Lake, time: dt.datetime) -> Publication:
    seen = [one for one in publications(lake) if one.readable and one.as_of <= time]
    if not seen:
        raise DataError(f"nothing was published as of {time.isoformat(sep=' ')} or before")
    return max(seen, key=lambda one: (one.as_of, one.number))


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["explain", *sys.argv[1:]]))
