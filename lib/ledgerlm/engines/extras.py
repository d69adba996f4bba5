"""The parts that ledgerlm is installed in: which extra brings a package, which are here, and how to get one."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

# Each extra that a stage can need -> the packages that its work imports.
EXTRAS = {
    "spark": ("pyspark",),
    "ray": ("ray",),
    "embed": ("torch", "transformers", "peft"),
    "train": ("ray", "torch", "transformers", "peft", "deepspeed"),
    "endpoint": ("openai",),
    "mlflow": ("mlflow",),
    "smollm2": ("gguf", "torch", "transformers"),
}

# What the packages of extras bring with them, and ledgerlm imports.
_BROUGHT = {"tokenizers": "transformers", "safetensors": "transformers"}


def lacking(extras: Iterable[str]) -> list[str]:
    """Packages of some extras that are not installed here; nothing is imported."""
    packages = dict.fromkeys(package for extra in extras for package in EXTRAS[extra])
    return [package for package in packages if find_spec(package) is None]


def extra_of(package: str) -> str | None:
    """The smallest extra that brings a package."""
    wanted = _BROUGHT.get(package, package)
    holding = [extra for extra, packages in EXTRAS.items() if wanted in packages]
    return min(holding, key=lambda extra: len(EXTRAS[extra]), default=None)


def install(extras: Iterable[str]) -> str:
    """The command that installs some extras."""
    return f"pip install 'ledgerlm[{','.join(extras)}]'"
