"""Where a draft lies, and how it names the files that it is of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ledgerlm.errors import ConfigError
from ledgerlm.events.guesses.words import slug


def refuse_to_overwrite(files: Sequence[Path], *, force: bool) -> None:
    """Stops where a file is there that somebody may have worked on.

    Raises:
        ConfigError: naming it, unless `force`.
    """
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        raise ConfigError(f"{', '.join(there)}: there already; give another folder with --to, or --force to replace it")


def name_for(names: Sequence[str], root: Path) -> str:
    """The name of a data set: that of its one file, or of its folder."""
    given = Path(names[0])
    one = given if len(names) == 1 and given.is_file() else root
    return slug(one.name.partition(".")[0]) or "data"


def path_from(folder: Path, root: Path, names: Sequence[str]) -> str:
    """The folder of the files as a spec in `folder` names it: relative where the user named it so."""
    if any(Path(name).expanduser().is_absolute() or name.startswith("~") for name in names):
        return str(root)
    return os.path.relpath(root, folder.absolute())
