"""Say what this machine has and lacks for ledgerlm, and how to get it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from ledgerlm.engines import archive
from ledgerlm.engines.examination import Finding, examine_machine
from ledgerlm.engines.jars import install_delta
from ledgerlm.engines.java import java_home


def examine(*, fix: bool = False) -> int:
    """Prints a finding a line.

    Args:
        fix: first install the Delta jars and make the archive of Java's classes, where they are missing.

    Returns:
        Exit code: 1 when something needed is missing, else 0.
    """
    console = Console(highlight=False)
    if fix and (copied := install_delta()):
        console.print(f"Delta: {len(copied)} jars installed")
    if fix and (made := archive.make(java_home())):
        console.print(f"class archive: {made}")
    findings = examine_machine()
    console.print(_table(findings))
    return 1 if any(finding.needed and not finding.good for finding in findings) else 0


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "", "found", "what to do"):
        table.add_column(heading)
    for finding in findings:
        mark = "[green]ok[/green]" if finding.good else "[red]missing[/red]" if finding.needed else "[yellow]-[/yellow]"
        table.add_row(finding.what, mark, finding.found, "" if finding.good else finding.remedy)
    return table


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["doctor", *sys.argv[1:]]))
