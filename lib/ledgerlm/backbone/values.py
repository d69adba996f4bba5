"""One token for each frequent value of the data, added to the tokenizer of a pretrained model.

A model that learnt from running text cuts `|GROCERY STORES, SUPERMARKETS` into many tokens, and pays for each of them
in every event. Here a whole cell of compact text becomes one token, whose row starts where the model has what the cell
says: at the mean of its pieces' rows, as long as these are. So a code that is rare, or new, begins near codes of like
meaning. A cell that has no token of its own is cut as before, also where it begins like one that has.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ledgerlm.errors import ConfigError
from ledgerlm.text.tokenizer import CELLS, CHUNKS, load_tokenizer
from ledgerlm.training.artefacts import aside, finish

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_CELLS = re.compile(CELLS)


def frequent_values(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, most: int) -> list[str]:
    """The most frequent cells that are no token yet, most frequent first, each with the sign before it.

    Args:
        texts: compact texts of training clients, read once.
        tokenizer: that of the pretrained model.
        most: how many.
    """
    counted = Counter(cell for text in texts for cell in _CELLS.findall(text))
    # Equal counts in the order of their letters: what is drawn must not depend on the order of the texts.
    ranked = sorted(counted, key=lambda cell: (-counted[cell], cell))
    known = tokenizer.get_vocab()
    return list(islice((cell for cell in ranked if _written(cell) not in known), most))


def with_values(base: Path, values: Sequence[str], folder: Path) -> Path:
    """Writes a model that has a token for each value and is otherwise the base; any transformers opens it.

    Args:
        base: Hugging Face folder of the pretrained model.
        values: from `frequent_values`; one at least.
        folder: where it goes; one that is there is replaced.

    Returns:
        `folder`.

    Raises:
        ConfigError: the tokenizer is no byte-level BPE.
    """
    import torch
    from transformers import AutoModelForCausalLM

    plain = load_tokenizer(base)
    wider = _wider(plain, values, base)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, use_safetensors=True, dtype="auto")
    first = len(plain)
    size = max(model.get_input_embeddings().num_embeddings, first + len(values))
    model.resize_token_embeddings(size, mean_resizing=False)
    pieces = [_pieces(plain, value.lstrip("|\n") or value) for value in values]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    tables = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    with torch.no_grad():
        for table in tables:
            table.weight[first : first + len(values)] = torch.stack([_row(table.weight[one]) for one in pieces])
    draft = aside(folder)
    model.save_pretrained(draft)
    wider.save_pretrained(draft)
    return finish(draft, folder)


def _written(text: str) -> str:
    """The text as a byte-level tokenizer writes it in its vocabulary."""
    from tokenizers import pre_tokenizers

    signs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(part for part, _ in signs.pre_tokenize_str(text))


def _pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _row(pieces: Tensor) -> Tensor:
    """The mean of rows, as long as they are: a mean of several is shorter, and would be read as less sure."""
    mean, length = pieces.float().mean(dim=0), pieces.float().norm(dim=1).mean()
    row: Tensor = mean * (length / mean.norm().clamp_min(1e-12))
    return row.to(pieces.dtype)


def _wider(plain: PreTrainedTokenizerFast, values: Sequence[str], base: Path) -> PreTrainedTokenizerFast:
    """The tokenizer with a token for each value, which alone a whole cell can become.

    A pretrained byte-level BPE has no token that begins in one word and ends in the next, so cutting text into cells
    in place of words leaves every other cell the tokens that it had.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    content = json.loads(plain.backend_tokenizer.to_str())
    signs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if content["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(content["pre_tokenizer"]):
        raise ConfigError(
            f"value_tokens: the tokenizer of {base} is no byte-level BPE ({content['model']['type']}), and takes no "
            "whole values; leave value_tokens out"
        )
    content["model"]["vocab"] |= {_written(value): len(plain) + place for place, value in enumerate(values)}
    content["model"]["ignore_merges"] = True  # a cell that is a token is this token, however merges would go
    backend = Tokenizer.from_str(json.dumps(content))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CHUNKS), behavior="isolated"), signs])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    special = {name: getattr(plain, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: token for name, token in special.items() if token is not None},
        chat_template=plain.chat_template,
        split_special_tokens=True,
    )
