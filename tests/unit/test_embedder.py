"""The engine against a reference that runs every window alone, with all hidden states and all logits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen3Config

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder
from ledgerlm.backbone.layout import NOTHING_TO_POOL
from ledgerlm.backbone.windows import windows
from ledgerlm.errors import ArtefactError
from ledgerlm.text.tokenizer import load_tokenizer, token_events, train_tokenizer

HEADER = "days|category|amount"
FIELDS = ("days", "category", "amount")
ALL = ("mean", "std", "max", "last_token", "last_event", "recent", "surprise")
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}


def document(events: int, seed: int) -> str:
    draw = random.Random(seed)
    lines = [
        f"+{draw.randrange(9)}d|{draw.choice(['GROCERY', 'FUEL', 'CAFÉ', 'rare' + str(seed)])}|{draw.randrange(1, 99)}"
        for _ in range(events)
    ]
    return "\n".join([HEADER, *lines])


TEXTS = [document(events, seed) for seed, events in enumerate([1, 40, 3, 3, 17, 90, 2, 8])]


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("one"), LlamaConfig)


def make_backbone(path: Path, config: type[PretrainedConfig]) -> Path:
    tokenizer = train_tokenizer(TEXTS, vocabulary_size=320)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **SHAPE))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones would hide a norm that is left out or applied twice
                weight.copy_(torch.rand_like(weight) + 0.5)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def resolved(**settings: object) -> EmbeddingDefinition:
    definition = EmbeddingDefinition.model_validate({"context": 48, "dtype": "fp32", "parts": ALL, **settings})
    return definition.resolve(layer_count=3, context=512, dtype="fp32", text_format="compact", fields=FIELDS)


def reference(folder: Path, text: str, definition: EmbeddingDefinition) -> dict[str, np.ndarray]:
    """Every window by itself through the plain model; statistics spelt out."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids = encoding["input_ids"]
    places = [text[:stop] for _, stop in encoding["offset_mapping"]]
    events = [place.count("\n") - 1 for place in places]
    fields = [place.rsplit("\n", 1)[-1].count("|") for place in places]
    ages = [events[-1] - event for event in events]
    assert definition.context is not None
    states: list[torch.Tensor] = []
    scopes: list[bool] = []
    rows: list[tuple[int | None, float | None, int]] = []  # field, surprise and age of a token
    stop = len(ids)
    while stop > 0:  # whole events, the newest first
        start = next(
            (s for s in range(max(stop - definition.context + 1, 0), stop) if s == 0 or events[s] != events[s - 1]),
            max(stop - definition.context + 1, 0),
        )
        window = torch.tensor([[tokenizer.bos_token_id, *ids[start:stop]]])
        with torch.no_grad():
            out = model(window, output_hidden_states=True)
        hidden = torch.stack(out.hidden_states[-definition.last_k :]).mean(0)[0]
        nll = -torch.log_softmax(out.logits[0, :-1], -1).gather(1, window[0, 1:, None])[:, 0]
        states[:0] = hidden
        scopes[:0] = [definition.special_tokens] + [definition.header or e >= 0 for e in events[start:stop]]
        rows[:0] = [
            (None, None, ages[start]),
            *zip(fields[start:stop], nll.tolist(), ages[start:stop], strict=True),
        ]
        stop = start
    x = torch.stack(states)[scopes].numpy().astype(np.float64)
    age = np.array([row[2] for row, scope in zip(rows, scopes, strict=True) if scope])
    weights = 0.5 ** (age / definition.recent_half_life)
    last_event = np.array([row[2] == 0 for row, scope in zip(rows, scopes, strict=True) if scope])
    surprise = []
    for field in range(len(FIELDS)):
        tokens = [(r[1], r[2]) for r, e in zip(rows, scopes, strict=True) if e and r[0] == field and r[1] is not None]
        values = np.array([value for value, _ in tokens])
        recent = np.array([value for value, a in tokens if a < definition.surprise_events])
        surprise += [values.mean(), values.std(), values.max(), recent.mean() - values.mean()]
    return {
        "mean": x.mean(0),
        "std": x.std(0),
        "max": x.max(0),
        "last_token": x[-1],
        "last_event": x[last_event].mean(0),
        "recent": (x * weights[:, None]).sum(0) / weights.sum(),
        "surprise": np.array(surprise),
    }


@pytest.mark.parametrize("settings", [{}, {"special_tokens": True, "last_k": 1}, {"last_k": 2, "context": 512}])
def test_vectors_equal_the_reference_window_by_window(folder: Path, settings: dict[str, object]) -> None:
    definition = resolved(**settings)
    done = Embedder(folder, definition, pack_tokens=200).embed(TEXTS)
    assert done.reasons == [None] * len(TEXTS)
    for row, text in enumerate(TEXTS):
        for part, expected in reference(folder, text, definition).items():
            np.testing.assert_allclose(done.parts[part][row], expected, rtol=1e-4, atol=2e-5, err_msg=f"{row} {part}")


def test_a_client_alone_equals_the_client_in_any_batch_order_and_pack(folder: Path) -> None:
    definition = resolved()
    together = Embedder(folder, definition, pack_tokens=4096).embed(TEXTS)
    small = Embedder(folder, definition, pack_tokens=50)
    turned = small.embed(TEXTS[::-1])
    for row, text in enumerate(TEXTS):
        alone = small.embed([text])
        for part in ALL:
            expected = together.parts[part][row]
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(alone.parts[part][0], expected, rtol=0, atol=tolerance)
            np.testing.assert_allclose(turned.parts[part][-1 - row], expected, rtol=0, atol=tolerance)


def hidden_states(folder: Path, text: str) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """All hidden states of a short text in one window, and the last layer's output before the final norm."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    before: list[torch.Tensor] = []
    model.base_model.layers[-1].register_forward_hook(lambda _module, _args, output: before.append(output))
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states, before[0]


def test_norm_variants(llama: Path) -> None:
    states, before = hidden_states(llama, TEXTS[2])
    raw = torch.stack([*states[1:-1], before])[:, 0, 1:]
    scaled = raw / raw.square().mean(-1, keepdim=True).sqrt()
    expected = {
        "hf": torch.stack(states[1:])[:, 0, 1:].mean((0, 1)),
        "pre": raw.mean((0, 1)),
        "scaled": scaled.mean((0, 1)),
    }
    for norm, vector in expected.items():
        definition = resolved(norm=norm, parts=("mean",), header=True, context=512)
        found = Embedder(llama, definition).embed([TEXTS[2]]).parts["mean"][0]
        np.testing.assert_allclose(found, vector.numpy(), rtol=1e-4, atol=1e-5, err_msg=norm)


def test_k_beyond_the_layers_means_all_layers(llama: Path) -> None:
    many, all_three = resolved(last_k=99), resolved(last_k=3)
    assert many.layers == (1, 2, 3)
    np.testing.assert_array_equal(
        Embedder(llama, many).embed(TEXTS[:2]).parts["mean"], Embedder(llama, all_three).embed(TEXTS[:2]).parts["mean"]
    )


def test_max_tokens_reads_whole_newest_events_only(llama: Path) -> None:
    done = Embedder(llama, resolved(max_tokens=60, context=512)).embed(TEXTS)
    assert done.token_count.max() <= 60
    assert done.events_dropped[0] == 0
    dropped = int(done.events_dropped[5])
    assert dropped > 0
    lines = TEXTS[5].split("\n")
    # What is left starts with a line break, as within the longer text; the header goes with the dropped events.
    rest = Embedder(llama, resolved(context=512, header=True)).embed(["\n" + "\n".join(lines[1 + dropped :])])
    np.testing.assert_allclose(done.parts["mean"][5], rest.parts["mean"][0], atol=1e-5)


def test_windows_may_count_the_same_however_long_they_are(llama: Path) -> None:
    equal = Embedder(llama, resolved(windows="equal"), pack_tokens=100).embed(TEXTS)
    plain = Embedder(llama, resolved(), pack_tokens=100).embed(TEXTS)
    tokenizer = load_tokenizer(llama)
    ids = tokenizer(TEXTS[1], add_special_tokens=False, return_offsets_mapping=True)
    cuts = windows(token_events(TEXTS[1], np.array(ids["offset_mapping"])), 47)
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation="eager").eval()
    of_windows = []
    for cut in cuts:
        window = torch.tensor([[tokenizer.bos_token_id, *ids["input_ids"][cut]]])
        with torch.no_grad():
            states = torch.stack(model(window, output_hidden_states=True).hidden_states[-3:]).mean(0)[0, 1:]
        text = token_events(TEXTS[1], np.array(ids["offset_mapping"]))[cut] >= 0
        of_windows.append(states[torch.from_numpy(text)].mean(0))
    assert len(of_windows) > 2
    np.testing.assert_allclose(equal.parts["mean"][1], torch.stack(of_windows).mean(0), rtol=1e-4, atol=1e-5)
    assert np.abs(equal.parts["mean"][1] - plain.parts["mean"][1]).max() > 1e-4
    for part in ("max", "last_token", "surprise"):
        np.testing.assert_allclose(equal.parts[part], plain.parts[part], rtol=1e-5, atol=1e-6)


def test_odd_documents_survive(llama: Path) -> None:
    endless = HEADER + "\n" + "x" * 3000  # one event, longer than many windows
    texts = ["", HEADER, HEADER + "\n", HEADER + "\n+", TEXTS[0] + "\n\n", endless, "<|bos|><|eos|>"]
    done = Embedder(llama, resolved()).embed(texts)
    assert done.reasons == [NOTHING_TO_POOL] * 3 + [None] * 3 + [NOTHING_TO_POOL]
    assert all(np.isfinite(part).all() for part in done.parts.values())
    plain = Embedder(llama, resolved()).embed([TEXTS[0]])
    np.testing.assert_allclose(done.parts["last_event"][4], plain.parts["last_event"][0], atol=1e-5)


def test_special_tokens_in_a_text_are_letters_to_the_backbone(llama: Path) -> None:
    embedder = Embedder(llama, resolved())
    done = embedder.embed([HEADER + "\n+1d|<|eos|>|3"])
    assert done.token_count[0] > len("+1d|<|eos|>|3") / 2


def test_weights_that_are_not_finite_give_a_reason(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.base_model.norm.weight[0] = torch.nan
    model.save_pretrained(tmp_path)
    load_tokenizer(llama).save_pretrained(tmp_path)
    done = Embedder(tmp_path, resolved()).embed(TEXTS[:2])
    assert done.reasons == ["not_finite", "not_finite"]


def test_bf16_stays_close_to_fp32(folder: Path) -> None:
    exact = Embedder(folder, resolved()).embed(TEXTS)
    rounded = Embedder(folder, resolved(dtype="bf16")).embed(TEXTS)
    for part in ("mean", "std", "surprise"):
        one, other = exact.parts[part], rounded.parts[part]
        cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert cosine.min() > 0.999, part
        assert not np.array_equal(one, other)


def batches(sizes: list[int]) -> Iterator[pa.RecordBatch]:
    start = 0
    for size in sizes:
        rows = range(start, start + size)
        yield pa.RecordBatch.from_pydict(
            {"client_id": [f"c{row}" for row in rows], "text": [TEXTS[row % len(TEXTS)] for row in rows]},
            schema=pa.schema({"client_id": pa.string(), "text": pa.string()}),
        )
        start += size


@pytest.mark.parametrize(("buffer_rows", "buffer_chars"), [(2048, 10**9), (3, 10**9), (2048, 500), (1, 1)])
def test_arrow_batches_keep_their_rows_whatever_the_buffer(llama: Path, buffer_rows: int, buffer_chars: int) -> None:
    embedder = Embedder(llama, resolved(parts=("mean", "surprise")))
    direct = embedder.embed([TEXTS[row % len(TEXTS)] for row in range(12)])
    out = pa.Table.from_batches(
        embedder.embed_batches(batches([5, 0, 1, 6]), buffer_rows=buffer_rows, buffer_chars=buffer_chars)
    )
    assert out.column("client_id").to_pylist() == [f"c{row}" for row in range(12)]
    assert out.column("token_count").to_pylist() == direct.token_count.tolist()
    for row, parts in enumerate(out.column("parts").to_pylist()):
        assert [name for name, _ in parts] == ["mean", "surprise"]
        for name, vector in parts:
            np.testing.assert_allclose(vector, direct.parts[name][row], atol=1e-4)
    largest = max(len(batch) for batch in out.to_batches())
    assert largest <= buffer_rows


def test_an_unresolved_definition_is_refused(llama: Path) -> None:
    with pytest.raises(ArtefactError, match="resolve_definition"):
        Embedder(llama, EmbeddingDefinition())
