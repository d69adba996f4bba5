"""Look at a data set's files: columns, rows before and after, what would be set aside and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape

from ledgerlm.config import load_yaml, shipped
from ledgerlm.engines.settings import SparkConf
from ledgerlm.engines.spark import open_session
from ledgerlm.errors import DataError
from ledgerlm.events.checking import Entry, Reasons, look_at
from ledgerlm.events.spec import DataSetSpec, load_spec

_WIDTH = 200  # signs of a raw row that are shown


def check(file: str, overrides: Sequence[str] = (), *, rows: int = 10_000) -> int:
    """Prints what the head of each entry of files holds.

    Args:
        file: data set spec.
        overrides: `key.sub=value` items that win over the file.
        rows: rows of each entry that are looked at.

    Returns:
        Exit code: that of refused data when rows would be set aside, else 0.
    """
    entries = looked_at(load_spec(file, overrides), rows=rows)
    for entry in entries:
        tell(entry)
    return DataError.exit_code if any(entry.reasons for entry in entries) else 0


def looked_at(spec: DataSetSpec, *, rows: int) -> list[Entry]:
    """What the head of each entry of files holds, looked at by a Spark of its own."""
    with TemporaryDirectory() as folder:
        conf = SparkConf.model_validate(load_yaml(shipped("engines/laptop.yaml"))["spark"])
        session = open_session(conf, log=Path(folder) / "spark.log")
        try:
            return look_at(session.spark, spec, rows=rows)
        finally:
            session.close()


def tell(entry: Entry) -> None:
    """Prints one entry."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(entry.glob)}[/bold]: {entry.rows} rows looked at")
    console.print(escape(f"  columns: {', '.join(entry.columns)}"))
    for name, value in entry.figures.items():
        console.print(escape(f"  {name}: {value}"))
    for payload, event in entry.shown:
        console.print(escape(f"  row   {payload[:_WIDTH]}"))
        console.print(escape("  read  " + ", ".join(f"{name}: {value}" for name, value in event.items())))
    tell_reasons(entry.reasons, console)


def tell_reasons(reasons: Sequence[Reasons], console: Console) -> None:
    """Prints reasons with their counts and examples."""
    for one in reasons:
        by = f" by {one.stage}" if one.stage else ""
        console.print(f"  [yellow]{one.reason}[/yellow]: {one.rows} rows{escape(by)}")
        for example in one.examples:
            row = example.payload[:_WIDTH].replace("\n", "\\n")
            console.print(escape(f"    {example.source_file}: {example.detail or 'row'} | {row}"))


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["check", *sys.argv[1:]]))
