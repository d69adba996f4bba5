"""Closed-set prediction: one forward pass over a tree of names against one for each name; one client against many.

Both give the likelihood of every token of every name. Each figure is the ratio of two ways that take turns in this run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyspark.sql import SparkSession
from transformers import AutoModelForCausalLM

from ledgerlm.instruct.prompts import PromptConf
from ledgerlm.instruct.scorer import Scorer
from ledgerlm.instruct.tokens import PromptTokens, encode_bodies, plain_tokenizer, prompt_tokens
from ledgerlm.text.tokenizer import load_tokenizer
from tests.benchmarks.bench_embed import CONTEXT, histories, make_backbone, turns

NAMES = tuple(f"CATEGORY {number}" for number in range(100, 120))
CLIENTS = 40


def run(spark: SparkSession, workdir: Path) -> list[dict[str, Any]]:
    """Measures; returns rows of what, against, ratio, target, better and detail."""
    del spark  # the same scorer runs inside Spark's workers; tests hold both to the same figures
    torch.set_num_threads(1)
    texts = histories(CLIENTS, seed=1)
    folder = make_backbone(workdir / "backbone", histories(200, seed=2))
    tokens = prompt_tokens(load_tokenizer(folder), PromptConf(), NAMES, context=CONTEXT)
    scorer = Scorer.open(str(folder), None, tokens)
    tree, names, alone = turns(
        lambda: scorer.log_likelihoods(texts),
        _name_by_name(folder, tokens, texts),
        lambda: [scorer.log_likelihoods([text]) for text in texts],
    )
    return [
        {
            "what": f"likelihoods of {len(NAMES)} names, clients/s",
            "against": "a whole sequence for each name, padded batches of a client's names",
            "ratio": names / tree,
            "target": 3.0,
            "better": "higher",
            "detail": f"{CLIENTS / tree:,.1f} against {CLIENTS / names:,.1f} clients/s",
        },
        {
            "what": "the same, one client at a time, clients/s",
            "against": "in batches",
            "ratio": tree / alone,
            "target": 0.3,
            "better": "higher",
            "detail": f"{1000 * alone / CLIENTS:.1f} ms a client alone, {1000 * tree / CLIENTS:.1f} ms in batches",
        },
    ]


def _name_by_name(folder: Path, tokens: PromptTokens, texts: list[str]) -> Callable[[], object]:
    """The common way: prompt and name in one sequence, a row for each name, its tokens' log-probabilities added up."""
    backend = plain_tokenizer(tokens.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.inference_mode()
    def loop() -> list[torch.Tensor]:
        found = []
        for ids in encode_bodies(texts, backend, tokens):
            prompt = [*tokens.head, *ids, *tokens.tail]
            rows = [torch.tensor([*prompt, *answer]) for answer in tokens.answers]
            batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            logs = model(input_ids=batch[:, :-1]).logits[:, len(prompt) - 1 :].log_softmax(-1)
            said = logs.gather(2, batch[:, len(prompt) :, None])[..., 0]
            lengths = torch.tensor([len(answer) for answer in tokens.answers])
            found.append((said * (torch.arange(said.shape[1]) < lengths[:, None])).sum(1))
        return found

    return loop
