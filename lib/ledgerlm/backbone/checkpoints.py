"""Checkpoints of a training on disk, and their conversion when the next attempt has another number of ranks."""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path

from ledgerlm.backbone.ranks import Ranks

# DeepSpeed's name for what is in a checkpoint's folder.
TAG = "state"
_RANKS = "ranks"
_UNIVERSAL = "universal"


def newest(checkpoints: Path) -> Path | None:
    """The newest finished checkpoint of a folder."""
    found = sorted(checkpoints.glob("step-*"))
    return found[-1] if found else None


def note_ranks(checkpoint: Path, ranks: Ranks) -> None:
    """Writes beside a checkpoint how many ranks made it."""
    if ranks.first:
        (checkpoint / _RANKS).write_text(str(ranks.size))


def adapted(checkpoints: Path, ranks: Ranks) -> bool:
    """Makes the newest checkpoint readable by this number of ranks, where another number wrote it.

    ZeRO shards weights and moments over the ranks; DeepSpeed's universal form holds them whole.

    Args:
        checkpoints: folder of the checkpoints, shared by all ranks.
        ranks: those that go on; all must call this.

    Returns:
        Whether the newest checkpoint has the universal form, which DeepSpeed must be told when it starts.
    """
    found = newest(checkpoints)
    if found is not None and ranks.first and _sharded_by_others(found, ranks.size):
        _convert(found)
    ranks.wait()
    return found is not None and (found / _UNIVERSAL).exists()


def _sharded_by_others(checkpoint: Path, size: int) -> bool:
    sharded = any((checkpoint / TAG).glob("*_optim_states.pt")) and not (checkpoint / _UNIVERSAL).exists()
    return sharded and int((checkpoint / _RANKS).read_text()) != size


def _convert(checkpoint: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    aside = checkpoint.with_name("aside")
    shutil.rmtree(aside, ignore_errors=True)
    settings = Namespace(
        input_folder=str(checkpoint / TAG),
        output_folder=str(aside / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(settings)
    shutil.copy(checkpoint / _RANKS, aside)
    (aside / _UNIVERSAL).touch()
    shutil.rmtree(checkpoint)
    aside.rename(checkpoint)
