"""Draft a data set spec and a pipeline for files of one's own, and take a first look through them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ledgerlm.events.guesses.draft import Draft, draft
from ledgerlm.events.guesses.pages import pipeline_page, spec_page
from ledgerlm.events.guesses.places import name_for, path_from, refuse_to_overwrite
from ledgerlm.events.guesses.roles import Hints
from ledgerlm.events.guesses.tables import tables_at
from ledgerlm.events.guesses.words import slug
from ledgerlm.events.spec import load_spec
from ledgerlm.jobs.check import looked_at, tell

_STYLES = {"sure": "green", "unsure": "yellow", "open": "red"}
_PASSED = 10  # files that are not used and named
_WORDS = {"sure": "sure  ", "unsure": "unsure", "open": "choose"}


def init(names: Sequence[str], *, to: str, name: str | None, force: bool, rows: int, embed: bool, hints: Hints) -> int:
    """Writes `spec.yaml` and `pipeline.yaml`, and says what is in them and in the files.

    Args:
        names: files, patterns or folders of one data set.
        to: folder of what is written.
        name: of the data set; None for that of the files.
        force: whether files that are there are replaced.
        rows: rows of each entry of files that the first look reads; 0 for none.
        embed: whether the pipeline trains and reads a language model.
        hints: what is known beforehand.

    Returns:
        Exit code: 0.
    """
    folder = Path(to)
    spec, pipeline = folder / "spec.yaml", folder / "pipeline.yaml"
    refuse_to_overwrite([spec, pipeline], force=force)
    here = tables_at(names)
    called = name_for(names, here.root) if name is None else slug(name)
    made = draft(here, path_from(folder, here.root, names), called, hints)
    console = Console(highlight=False, soft_wrap=True)
    _tell_guesses(made, console)
    folder.mkdir(parents=True, exist_ok=True)
    spec.write_text(spec_page(made, ", ".join(names)), encoding="utf-8")
    pipeline.write_text(pipeline_page(made, called, file=str(pipeline), embed=embed), encoding="utf-8")
    console.print(escape(f"written: {spec}, {pipeline}"))
    if made.open:
        keys = ", ".join(guess.key for guess in made.open)
        console.print(escape(f"first choose in {spec} what stands as ???: {keys}; nothing runs before"))
    elif rows:
        for entry in looked_at(load_spec(spec), rows=rows):
            tell(entry)
            if entry.bad > max(made.bearable, 0.05):
                console.print(f"  [red]{entry.bad:.0%} of these rows are bad[/red]: mend the spec before a run")
    console.print(escape(f"next:\n  ledgerlm check {spec}\n  ledgerlm run {pipeline}"))
    return 0


def _tell_guesses(made: Draft, console: Console) -> None:
    for guess in made.guesses:
        mark = f"[{_STYLES[guess.sure]}]{_WORDS[guess.sure]}[/]"
        console.print(f"{mark}  [bold]{escape(guess.key)}[/bold]: {escape(guess.value)}")
        console.print(escape(f"        {guess.why}" + (f"; such as {guess.ids}" if guess.ids else "")))
    for file, why in list(made.passed.items())[:_PASSED]:
        console.print(escape(f"        not used: {file}: {why}"))
    if len(made.passed) > _PASSED:
        console.print(f"        not used: {len(made.passed) - _PASSED} more, which the end of the spec names")


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["init", *sys.argv[1:]]))
