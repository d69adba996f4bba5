"""Says where a lake stands: what readers see, what is new, whose scores wait, what upkeep is due."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from ledgerlm.runs.engines import at_lake
from ledgerlm.runs.hashes import Hashes
from ledgerlm.runs.pipeline import load_pipeline
from ledgerlm.runs.standing import Standing, standing


def tell_status(file: str, overrides: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Prints the state of a pipeline's lake.

    Args:
        file: pipeline file.
        overrides: `key.sub=value` items that win over the file.
        as_json: for programs.

    Returns:
        Exit code.
    """
    pipeline = load_pipeline(file, overrides)
    with at_lake(pipeline) as (_, records, lake):
        hashes = Hashes(pipeline.out / "runs" / "hashes.json", lambda: lake.spark)
        found = standing(pipeline, records, lake, hashes.found)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if as_json:
        console.print_json(json.dumps(found.facts(), default=str))
    else:
        _tell(found, console)
    return 0


def _tell(found: Standing, console: Console) -> None:
    for line in found.lines():
        console.print(line)


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["status", *sys.argv[1:]]))
