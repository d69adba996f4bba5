"""Value tokens: a whole frequent cell is one token of a pretrained model, whose row begins at what the cell says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ledgerlm.backbone.model import new_llama
from ledgerlm.backbone.preparing import FinetuneConf
from ledgerlm.backbone.settings import LlamaShape
from ledgerlm.backbone.values import frequent_values, with_values
from ledgerlm.errors import ConfigError
from ledgerlm.text.tokenizer import load_tokenizer, token_fields

HEADER = "days|category|amount"
EVENTS = ["+1d|soft drinks|120", "+1d|soft drinks|3.9", "+0d|bread|120", "+2d|grocery stores, supermarkets|120"]
TEXT = "\n".join([HEADER, *EVENTS])
VALUES = ["|120", "\n+1d", "|soft drinks", "|category"]


def pretrained(folder: Path, *, tied: bool = True, bytes_: bool = True) -> Path:
    """A model whose tokenizer learnt from running text, as pretrained ones are."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False) if bytes_ else pre_tokenizers.Whitespace()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if bytes_ else sorted(set(TEXT))
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(["soft drinks and bread from grocery stores"] * 9, trainer=trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")
    shape = LlamaShape(width=16, layers=1, heads=2, ffn=32, tie_embeddings=tied)
    new_llama(shape, fast, context=64, seed=1).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def wider(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_values(base, VALUES, tmp_path_factory.mktemp("wider") / "model")


def test_the_most_frequent_cells_of_several_tokens(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    found = frequent_values([TEXT, TEXT], tokenizer, 3)
    assert found == ["|120", "\n+1d", "|soft drinks"], "each with its sign, equal counts by their letters"
    assert len(frequent_values([TEXT], tokenizer, 99)) == 11, "as many as there are"
    assert frequent_values(["a text of words"], tokenizer, 9) == []


def test_a_frequent_cell_is_one_token_and_everything_else_what_it_was(base: Path, wider: Path) -> None:
    before, after = load_tokenizer(base), load_tokenizer(wider)
    assert len(after) == len(before) + len(VALUES)

    def cut(text: str) -> list[str]:
        told = after(text, add_special_tokens=False, return_offsets_mapping=True)
        assert after.decode(told["input_ids"]) == text
        return [text[first:last] for first, last in told["offset_mapping"]]

    pieces = cut(TEXT)
    assert pieces.count("|120") == 3 and pieces.count("\n+1d") == 2 and pieces.count("|soft drinks") == 2
    assert "|120" not in cut("a|b\nc|1205") and "|soft drinks" not in cut("a|b\nc|soft drinks of 7 kinds")
    for text in ("soft drinks, and bread", "a|b\n+7d|rye bread", "\n+12d", "l'été <|end|>"):
        ids = [one(text, add_special_tokens=False)["input_ids"] for one in (before, after)]
        assert ids[0] == ids[1], text
    offsets = after(TEXT, return_offsets_mapping=True)["offset_mapping"]
    fields = token_fields(TEXT, offsets)
    assert [int(fields[place]) for place, piece in enumerate(pieces) if piece in VALUES] == [-1, 0, 1, 2, 0, 1, 2, 2]


@pytest.mark.parametrize("tied", [True, False])
def test_a_row_begins_at_what_the_cell_says(tmp_path: Path, tied: bool) -> None:
    base = pretrained(tmp_path / "base", tied=tied)
    folder = with_values(base, VALUES, tmp_path / "wider")
    plain, tokenizer = load_tokenizer(base), AutoTokenizer.from_pretrained(folder)
    old, new = (AutoModelForCausalLM.from_pretrained(one) for one in (base, folder))
    assert new.get_input_embeddings().num_embeddings == len(plain) + len(VALUES)
    place = tokenizer("a|soft drinks")["input_ids"][-1:]
    assert place == [len(plain) + 2]
    for table in ("get_input_embeddings", "get_output_embeddings"):
        rows, grown = getattr(old, table)().weight, getattr(new, table)().weight
        assert torch.equal(grown[: len(plain)], rows)
        pieces = rows[plain("soft drinks")["input_ids"]]
        row = grown[place[0]]
        assert torch.cosine_similarity(row, pieces.mean(dim=0), dim=0) > 0.9999
        assert torch.isclose(row.norm(), pieces.norm(dim=1).mean())
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) is tied


def test_what_takes_no_values_is_refused(tmp_path: Path) -> None:
    base = pretrained(tmp_path / "base", bytes_=False)
    with pytest.raises(ConfigError, match=r"value_tokens: the tokenizer of .*base is no byte-level BPE"):
        with_values(base, VALUES, tmp_path / "wider")
    with pytest.raises(ValueError, match="value_tokens adds to the tokenizer of a base"):
        FinetuneConf(value_tokens=9)
