"""Empty environments that the wheel is installed into, as on a machine that has never seen the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment that holds the wheel and what it asked for, and nothing else."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def variables(self, **further: str) -> dict[str, str]:
        """What a process of the environment is started with: nothing that leads to the source tree."""
        of_this = ("PYTHON", "PYSPARK", "SPARK", "VIRTUAL_ENV", "LEDGERLM")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(of_this)}
        return {**inherited, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **further}

    def run(self, *command: str, at: Path, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the environment in a folder, where nothing leads to the source tree."""
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=at,
            env=self.variables(**environment),
            capture_output=True,
            text=True,
            timeout=1400,
            check=False,
        )
        assert done.returncode == expect, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
        assert "Traceback" not in done.stderr
        return done


def uv(*arguments: str) -> None:
    done = subprocess.run([str(UV), *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"uv {arguments}: {done.stderr[-6000:]}"


def interpreter(version: str) -> Path:
    """A Python of this machine, by its own name or as pyenv keeps it; the test is skipped where there is none."""
    named = [Path(one) for one in (shutil.which(f"python{version}"),) if one]
    kept = sorted((Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob(f"{version}.*"))
    for found in [*(one / "bin" / "python" for one in kept), *named]:
        # pyenv leaves a command for each version on the path that then says that it is not chosen.
        if subprocess.run([str(found), "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip(f"no Python {version} on this machine")


def environment(
    folder: Path, python: Path, wheel: Path, *, extras: str, lowest: bool = False, **pins: str
) -> Environment:
    """Makes an environment.

    Args:
        folder: where.
        python: its interpreter.
        wheel: what is installed.
        extras: of the wheel, joined by commas.
        lowest: the oldest versions that the package allows, and not the newest.
        pins: versions of packages; `_` stands for `-`.
    """
    allowed = folder.with_suffix(".in")
    allowed.write_text("\n".join(f"{name.replace('_', '-')}=={version}" for name, version in pins.items()))
    if lowest:
        asked = ("pyproject.toml", "--constraint", str(allowed), *(f"--extra={one}" for one in extras.split(",")))
        allowed = folder.with_suffix(".txt")
        within = ("--resolution=lowest-direct", "--python", str(python), "--output-file", str(allowed))
        uv("pip", "compile", "--quiet", *asked, *within)
    uv("venv", "--quiet", "--python", str(python), str(folder))
    into = ("--quiet", "--python", str(folder / "bin" / "python"), "--constraint", str(allowed))
    uv("pip", "install", *into, f"{wheel}[{extras}]")
    return Environment(folder=folder)
