"""What makes torch fast on CPUs: freed memory that is kept, threads set once, and the faster precision, measured."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Precision = Literal["fp32", "bf16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_KEPT_BYTES = 1 << 30
_KERNELS_KEPT = "32"
_BF16_GAIN = 1.3  # below it the casts eat what the products win


def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of freed memory instead of handing it back to the kernel after each operation.

    By default each large activation is mapped, zeroed page by page and unmapped again: measured on two cores with a
    0.9 M parameter Llama and packs of 4,096 tokens, that was a third of the time in fp32 and half of it in bf16.
    Does nothing without glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def bound_kernel_caches() -> None:
    """Keeps oneDNN from holding more than a few compiled kernels; call it before the first matrix product.

    Products in bf16 are compiled for each shape, and packs come in ever new ones. By default 1,024 kernels are kept:
    measured on two cores with a 0.7 M parameter Llama, a rank grew to 1.8 GB in 200 steps, where fp32, which needs no
    such kernels, stayed below 1 GB; with 32 it keeps to 1.0 GB at the same speed. What the environment says stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's around it
        os.environ.setdefault(name, _KERNELS_KEPT)


def faster_precision(device: str) -> tuple[Precision, str]:
    """The faster type of matrix products: bf16 on a GPU; measured on a CPU, where it may as well be far slower.

    Returns:
        The type, and why it was chosen.
    """
    if device != "cpu":
        return "bf16", "auto: on a GPU bf16 is the faster one"
    rows, weight = torch.ones(512, 256), torch.ones(1024, 256)
    gain = _seconds(rows, weight) / _seconds(rows.bfloat16(), weight.bfloat16())
    chosen: Precision = "bf16" if gain >= _BF16_GAIN else "fp32"
    return chosen, f"auto: a trial product was {gain:.2f} times as fast in bf16 (bf16 from {_BF16_GAIN} on)"


def _seconds(rows: Tensor, weight: Tensor) -> float:
    """Best of several turns, so that a busy machine does not decide."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        functional.linear(rows, weight)
        times.append(time.perf_counter() - start)
    return min(times)
