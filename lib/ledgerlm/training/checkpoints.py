"""Checkpoints of a training on disk, and their conversion when the next attempt has another number of ranks."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from ledgerlm.files import push, remove
from ledgerlm.training.ranks import Ranks

# DeepSpeed's name for what is in a checkpoint's folder.
TAG = "state"
_PROGRESS, _UNIVERSAL = "progress.json", "universal"
_BEST = "best.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training, on storage that all ranks share; each method is called by all of them.

    Attributes:
        folder: `step-N` folders, each with `progress.json` and what the engine wrote.
        ranks: those that train now.
    """

    folder: Path
    ranks: Ranks

    def newest(self) -> Path | None:
        """The newest finished checkpoint."""
        found = self._finished()
        self.ranks.wait()
        return found[-1] if found else None

    def progress(self, checkpoint: Path) -> tuple[dict[str, Any], int]:
        """What was stored with a checkpoint, and how many ranks wrote it."""
        content: dict[str, Any] = json.loads((checkpoint / _PROGRESS).read_text())
        return content["progress"], content["ranks"]

    def write(self, step: int, progress: Mapping[str, Any], save: Callable[[Path], None]) -> None:
        """Writes a checkpoint: every rank its part, aside, then one rename.

        Args:
            step: optimizer steps done; names the folder.
            progress: JSON values that are stored with it.
            save: writes this rank's part into the folder that it is given.
        """
        draft, target = self.folder / "aside", self.folder / f"step-{step:09d}"
        if self.ranks.first:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            (draft / _PROGRESS).write_text(json.dumps({"progress": progress, "ranks": self.ranks.size}))
        self.ranks.wait()
        save(draft)
        self.ranks.wait()
        if self.ranks.first:
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
            carry(self.folder.parent)
            push(target)
            for older in self._finished()[:-1]:
                remove(older)
        self.ranks.wait()

    def _finished(self) -> list[Path]:
        return sorted(one for one in self.folder.glob("step-*") if one.is_dir())

    def adapted(self) -> bool:
        """Makes the newest checkpoint of DeepSpeed readable by this number of ranks, where another number wrote it.

        ZeRO shards weights and moments over the ranks; DeepSpeed's universal form holds them whole.

        Returns:
            Whether the newest checkpoint has the universal form, which DeepSpeed must be told when it starts.
        """
        found = self.newest()
        if found is not None and self.ranks.first and self._sharded_by_others(found):
            _convert(found)
            push(found)
        self.ranks.wait()
        return found is not None and (found / _UNIVERSAL).exists()

    def _sharded_by_others(self, checkpoint: Path) -> bool:
        sharded = any((checkpoint / TAG).glob("*_optim_states.pt")) and not (checkpoint / _UNIVERSAL).exists()
        return sharded and self.progress(checkpoint)[1] != self.ranks.size


def carry(folder: Path) -> None:
    """Pushes what a training has left so far, but for its checkpoints and what each rank makes anew."""
    for one in sorted(folder.iterdir()):
        if not one.name.startswith((".", "checkpoints", "tokens", "arrays")) and one.suffix not in (".aside", ".lock"):
            push(one)


class BestWeights:
    """The weights of a small network at its lowest held-out loss, in a file; each method is called by all ranks."""

    def __init__(self, folder: Path, network: nn.Module, ranks: Ranks) -> None:
        self._file, self._network, self._ranks = folder / _BEST, network, ranks

    def keep(self) -> None:
        """Writes the weights as they are now, by rank 0."""
        if self._ranks.first:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_name(f"{_BEST}.aside")
            state = self._network.state_dict()
            save_file({name: value.detach().cpu().clone() for name, value in state.items()}, draft)
            draft.rename(self._file)

    def restore(self) -> None:
        """Takes them back."""
        self._ranks.wait()
        self._network.load_state_dict(load_file(self._file))


def _convert(checkpoint: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    draft = checkpoint.with_name("aside")
    shutil.rmtree(draft, ignore_errors=True)
    settings = Namespace(
        input_folder=str(checkpoint / TAG),
        output_folder=str(draft / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(settings)
    shutil.copy(checkpoint / _PROGRESS, draft)
    (draft / _UNIVERSAL).touch()
    shutil.rmtree(checkpoint)
    draft.rename(checkpoint)
