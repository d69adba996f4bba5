"""The script that measures a GPU comes to its end, on a processor in small shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.gpu import Card, every_token, flops, parts_of, random_model, random_pack


@pytest.mark.slow  # fifteen parts with DeepSpeed's start in six of them
def test_every_part_runs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", str(out), "--tiny"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["part"] for line in lines] == [name for name, _, _ in parts_of(Card(tiny=True))]
    assert not [line for line in lines if "left_out" in line or "error" in line]
    assert all(line["tokens_s"] > 0 for line in lines if line["part"] in ("embedding", "training"))


def test_tokens_of_a_pack_are_all_but_the_first_of_each_window() -> None:
    row = random_pack(1000, 64, 600)
    assert len(row.input_ids) == 1000 and row.lengths.max() <= 64
    tokens = every_token(row)
    assert len(tokens.pooled) == 1000 - len(row.lengths)
    assert not np.isin(row.cu_seqlens[:-1], tokens.pooled).any()
    assert np.array_equal(np.bincount(tokens.document, minlength=len(row.lengths))[row.owners], row.lengths - 1)


def test_flops_of_a_token_are_two_for_each_weight_that_it_meets() -> None:
    model, row = random_model(Card(tiny=True), "135m"), random_pack(640, 64, 600)
    head = model.config.vocab_size * model.config.hidden_size
    inner = sum(each.numel() for each in model.parameters()) - head
    reads = flops(model, row, surprise=False)
    assert 2 * inner < reads < 2.3 * inner
    assert flops(model, row) == pytest.approx(reads + 2 * head)
    assert flops(model, row, lora=False) == pytest.approx(1.5 * flops(model, row, lora=True)) == 3 * flops(model, row)
