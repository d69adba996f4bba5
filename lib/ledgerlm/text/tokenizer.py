"""The byte-level BPE tokenizer of ledgerlm's own backbones, and what field and event a token belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ledgerlm.errors import ArtefactError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

# A compact line is cut before each `|` and before its line break, and nowhere else: a field is one chunk, so a frequent
# value becomes one token. Fields longer than this many characters (free text) and all other text are cut GPT-2 style.
LONGEST_FIELD = 48
CELLS = rf"(?:\A|\n)[^|\n]{{0,{LONGEST_FIELD}}}(?=\|)|\|[^|\n]{{0,{LONGEST_FIELD}}}(?=[|\n]|\Z)"
"""A field of a compact line with the sign before it, as Python's `re` finds it."""
CHUNKS = "|".join(
    (
        CELLS.replace(r"\Z", r"\z"),  # the end, as the tokenizers' regular expressions write it
        r"'(?:[sdmt]|ll|ve|re)",
        r" ?\p{L}+",
        r" ?\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+?(?=[|\n])",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+(?!\S)",
        r"\s",
    )
)


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer: every text has tokens, and merges stay inside a field or a word.

    Args:
        texts: documents of training clients, read once.
        vocabulary_size: most tokens, the 256 bytes and three special tokens included; small samples give fewer.

    Returns:
        A tokenizer whose special tokens (BOS, EOS, padding) no text can produce; it adds none by itself.
    """
    from transformers import PreTrainedTokenizerFast  # seconds to import, and Spark's workers need only the offsets

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CHUNKS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Offsets must hold the leading line break of an event, which trimming would cut off.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, split_special_tokens=True
    )


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerFast:
    """Opens the tokenizer of a backbone folder so that text cannot produce special tokens.

    Raises:
        ArtefactError: the folder has no tokenizer, or none of the fast kind, which alone tells offsets.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, use_fast=True, split_special_tokens=True
        )
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: no tokenizer can be read here ({error}); give a Hugging Face folder") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ArtefactError(f"{path}: {type(tokenizer).__name__} has no offsets; convert it to tokenizer.json")
    return tokenizer


def window_start(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token that starts each window: BOS, or EOS for tokenizers without one (Qwen).

    Raises:
        ArtefactError: it has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if isinstance(token, int):
            return token
    raise ArtefactError(f"{tokenizer.name_or_path}: the tokenizer has no BOS, EOS or padding token to start a window")


def token_fields(text: str, offsets: Sequence[tuple[int, int]] | NDArray[np.integer]) -> NDArray[np.int16]:
    """Field of each token of a compact document: the number of `|` since the last line break, at its last character.

    Args:
        text: the document.
        offsets: first and past-the-last character of each token, as a fast tokenizer tells them.

    Returns:
        Field index per token; -1 for tokens of the header line and for tokens without characters.
    """
    characters, last = _characters(text), _last_characters(offsets)
    breaks = np.cumsum(characters == ord("\n"))
    bars = np.cumsum(characters == ord("|"))
    line_start = np.maximum.accumulate(np.where(characters == ord("\n"), bars, 0))
    fields = (bars - line_start)[last]
    return np.where((last >= 0) & (breaks[last] > 0), fields, -1).astype(np.int16)


def token_events(text: str, offsets: Sequence[tuple[int, int]] | NDArray[np.integer]) -> NDArray[np.int32]:
    """Event of each token: the number of its line, counted from the first line after the header.

    Args:
        text: the document; line breaks end events.
        offsets: as for `token_fields`.

    Returns:
        Event index per token, oldest first, from 0; -1 for the header line.
    """
    breaks = np.cumsum(_characters(text) == ord("\n"))
    last = _last_characters(offsets)
    return np.where(last >= 0, breaks[last] - 1, -1).astype(np.int32)


def _characters(text: str) -> NDArray[np.uint32]:
    """Code points; one more at the end, so that an empty text or token has a place to look at."""
    return np.frombuffer(f"{text}\0".encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _last_characters(offsets: Sequence[tuple[int, int]] | NDArray[np.integer]) -> NDArray[np.int64]:
    pairs = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    return np.where(pairs[:, 1] > pairs[:, 0], pairs[:, 1] - 1, -1)
