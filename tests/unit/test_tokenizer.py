"""The tokenizer: fields stay whole, text cannot make special tokens, and fields and events of tokens are right."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ledgerlm.errors import ArtefactError
from ledgerlm.text.tokenizer import load_tokenizer, token_events, token_fields, train_tokenizer, window_start

HEADER = "days|weekday|department|amount"


def _document(events: int, seed: int) -> str:
    draw = random.Random(seed)
    lines = [
        f"+{draw.randrange(9)}d|{draw.choice(['Sat', 'Sun'])}|{draw.choice(['GROCERY', 'DRUG GM', 'CAFÉ'])}|3.9"
        for _ in range(events)
    ]
    return "\n".join([HEADER, *lines])


TEXTS = [_document(20, seed) for seed in range(60)] + ["The client paid 12.50 on 2020-01-05 - a friend.\n"] * 30


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Trained, saved and opened again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, vocabulary_size=500).save_pretrained(folder)
    return load_tokenizer(folder)


def _pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [text[start:end] for start, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


def test_a_frequent_field_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert _pieces(tokenizer, f"{HEADER}\n+3d|Sat|DRUG GM|3.9\n+1d|Sun|CAFÉ|3.9") == [
        *("days", "|weekday", "|department", "|amount"),
        *("\n+3d", "|Sat", "|DRUG GM", "|3.9"),
        *("\n+1d", "|Sun", "|CAFÉ", "|3.9"),
    ]


def test_merges_of_other_text_stay_inside_words(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = _pieces(tokenizer, "The client paid 12.50 on 2020-01-05 - a friend.\n")
    assert pieces[:3] == ["The", " client", " paid"]
    assert all(len(piece.split()) <= 1 for piece in pieces)


def test_training_is_repeatable() -> None:
    first, second = (train_tokenizer(TEXTS, vocabulary_size=400).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("text", ["<|bos|>", "a|<|eos|>|b\n<|pad|>", "x\n<|bos|>|y"])
def test_text_cannot_make_special_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert not set(ids) & {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["", "naïve ☃ \u202eabc\x00\t", "a|b\r\n|c", "|" * 5 + "x" * 200 + "|", "\n\n\n"])
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_fields_and_events(tokenizer: PreTrainedTokenizerFast) -> None:
    text = f"{HEADER}\n+3d|Sat|zzq ☃|3.9\n+1d|Sun||3.9"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    fields, events = token_fields(text, offsets), token_events(text, offsets)
    for (start, end), field, event in zip(offsets, fields, events, strict=True):
        before = text[:end]
        line = before.count("\n")
        assert event == line - 1
        assert field == (before[before.rfind("\n") + 1 :].count("|") if line else -1), text[start:end]
    assert (fields.dtype, events.dtype) == (np.dtype(np.int16), np.dtype(np.int32))
    assert events.max() == 1 and fields.max() == 3


def test_fields_for_tokens_of_another_make() -> None:
    """A tokenizer that cuts elsewhere and adds tokens without characters."""
    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("|", "merged_with_previous")])
    text = "a|b\nc|d\ne|f"
    offsets = [(0, 0), *(pair for pair in backend.encode(text).offsets)]
    assert [text[start:end] for start, end in offsets] == ["", "a|", "b\nc|", "d\ne|", "f"]
    assert token_fields(text, offsets).tolist() == [-1, -1, 1, 1, 1]
    assert token_events(text, offsets).tolist() == [-1, -1, 0, 1, 1]


def test_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_fields("", []).tolist() == token_events("", []).tolist() == []


def test_window_start(tokenizer: PreTrainedTokenizerFast) -> None:
    assert window_start(tokenizer) == tokenizer.bos_token_id
    backend = Tokenizer(models.BPE())
    without = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert window_start(without) == without.eos_token_id
    with pytest.raises(ArtefactError, match="no BOS"):
        window_start(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_folder_without_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no tokenizer"):
        load_tokenizer(tmp_path)
