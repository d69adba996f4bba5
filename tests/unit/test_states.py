"""States: what is added up of a window's tokens folds to the vectors of the whole history, whatever is asked of it."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import LlamaConfig

from ledgerlm.backbone.definition import EmbeddingDefinition
from ledgerlm.backbone.embedder import Embedder, States
from ledgerlm.backbone.layout import NOTHING_TO_POOL, StateLayout, vectors_array
from ledgerlm.backbone.states import NO_STATE, Folding
from ledgerlm.backbone.windows import windows
from ledgerlm.errors import ConfigError, DataError
from ledgerlm.text.tokenizer import load_tokenizer, token_events
from tests.unit.test_embedder import ALL, document, make_backbone, resolved

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
STREAM = pa.schema(
    [
        ("client_id", pa.string()),
        ("moment", pa.timestamp("us", "UTC")),
        ("kind", pa.int32()),
        ("first_event_time", pa.timestamp("us", "UTC")),
        ("text_hash", pa.string()),
        ("event_count", pa.int32()),
        ("token_count", pa.int32()),
        ("sums", pa.list_(pa.float32())),
        ("reason", pa.string()),
    ]
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("one"), LlamaConfig)


def history(events: int, seed: int) -> str:
    """A document without names of fields: any run of its lines is read as it is read within it."""
    return "\n" + document(events, seed).split("\n", 1)[1]


def cut(text: str, folder: Path, context: int) -> list[str]:
    """The text cut into the windows that the embedder makes of it."""
    encoding = load_tokenizer(folder)(text, return_offsets_mapping=True, add_special_tokens=False)
    events = token_events(text, encoding["offset_mapping"])
    lines = text.split("\n")[1:]
    cuts = windows(events, context - 1)
    bounds = [(int(events[one][0]), int(events[one][-1]) + 1) for one in cuts]
    assert [first for first, _ in bounds[1:]] == [last for _, last in bounds[:-1]], "no event is cut inside"
    return ["\n" + "\n".join(lines[first:last]) for first, last in bounds]


class Stream:
    """Rows for a fold; one event a day, from the beginning of 2024."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._days: dict[str, int] = {}

    def windows(self, client: str, states: States, at: list[int] | None = None) -> None:
        for place in range(len(states.sums)) if at is None else at:
            count = int(states.event_count[place])
            first = self._days.get(client, 0)
            self._days[client] = first + count
            own = self.state(states, place)
            self.row(client, first + count - 1, 1, first_event_time=START + dt.timedelta(days=first), **own)

    def ask(self, client: str, **cut: Any) -> None:
        self.row(client, self._days.get(client, 0), 0, **cut)

    def state(self, states: States, place: int) -> dict[str, Any]:
        there = states.reasons[place] is None
        return {
            "text_hash": f"hash {place}",
            "event_count": int(states.event_count[place]),
            "token_count": int(states.token_count[place]),
            "sums": states.sums[place].tolist() if there else None,
            "reason": states.reasons[place],
        }

    def row(self, client: str, day: int, kind: int, **given: Any) -> None:
        empty = dict.fromkeys(STREAM.names)
        moment = START + dt.timedelta(days=day)
        self.rows.append({**empty, "client_id": client, "moment": moment, "kind": kind, **given})

    def fold(self, definition: EmbeddingDefinition, rows_a_batch: int = 1000) -> list[dict[str, Any]]:
        folding, found = Folding(definition), []
        for start in range(0, len(self.rows), rows_a_batch):
            batch = pa.RecordBatch.from_pylist(self.rows[start : start + rows_a_batch], STREAM)
            for answers in folding.add(batch):
                found += answers.to_pylist(maps_as_pydicts="strict")
        return found


@pytest.mark.parametrize(
    "settings", [{}, {"windows": "equal"}, {"special_tokens": True, "last_k": 1}, {"surprise_events": 30}]
)
def test_the_fold_of_windows_is_the_vector_of_the_document(llama: Path, settings: dict[str, Any]) -> None:
    definition = resolved(header=True, **settings)
    embedder = Embedder(llama, definition, pack_tokens=200)
    stream, texts = Stream(), [history(events, seed) for seed, events in enumerate([1, 40, 3, 17, 90])]
    for place, text in enumerate(texts):
        stream.windows(f"c{place}", embedder.states(cut(text, llama, 48)))
        stream.ask(f"c{place}")
    direct = embedder.embed(texts)
    found = stream.fold(definition)
    assert [row["client_id"] for row in found] == [f"c{place}" for place in range(len(texts))]
    for place, row in enumerate(found):
        assert row["reason"] is None
        assert row["event_count"] == texts[place].count("\n")
        assert row["token_count"] == direct.token_count[place]
        assert list(row["parts"]) == list(ALL)
        for part, vector in row["parts"].items():
            expected = direct.parts[part][place]
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(vector, expected, rtol=0, atol=tolerance, err_msg=f"{part} of {place}")


def test_surprise_of_the_last_events_reaches_over_windows(llama: Path) -> None:
    """Windows of two events: the newest five stand in three of them."""
    definition = resolved(header=True, context=512, parts=("surprise",), surprise_events=5)
    embedder = Embedder(llama, definition)
    lines = history(6, 3).split("\n")[1:]
    states = embedder.states(["\n" + "\n".join(lines[first : first + 2]) for first in (0, 2, 4)])
    stream = Stream()
    stream.windows("c", states)
    stream.ask("c")
    (row,) = stream.fold(definition)
    layout = StateLayout(definition, 32)
    last = states.sums[:, layout.blocks["recent_surprise"]].reshape(3, 5, 3, 2)
    whole = states.sums[:, layout.blocks["surprise"]].reshape(3, 3, 4)
    assert not last[:, 2:].any(), "a window of two events says nothing of a third"
    newest = last[2, :2].sum(0) + last[1, :2].sum(0) + last[0, 0]
    expected = newest[:, 1] / newest[:, 0] - whole[..., 1].sum(0) / whole[..., 0].sum(0)
    np.testing.assert_allclose(np.array(row["parts"]["surprise"]).reshape(3, 4)[:, 3], expected, rtol=1e-5)


def test_deviations_survive_a_mean_that_is_much_larger(llama: Path) -> None:
    layout = StateLayout(resolved(parts=("mean", "std")), 4)
    draw = np.random.default_rng(1)
    tokens = 1e4 + draw.normal(size=(60, 4))
    sums = []
    for part in np.split(tokens, [10, 25]):
        spread = ((part - part.mean(0)) ** 2).sum(0)
        blocks = {"weight": np.array([float(len(part))]), "sum": part.sum(0)[None], "spread": spread[None]}
        sums.append(layout.packed(blocks).astype(np.float32).astype(np.float64))
    folded = layout.nothing(1)
    for one in sums:
        folded = layout.together(folded, one, np.array([1]))
    np.testing.assert_allclose(layout.parts(folded)["std"][0], tokens.std(0), rtol=1e-3)


def asked_twelve_times(states: States) -> tuple[Stream, list[Stream]]:
    """One client of 24 windows that is asked after every second one; and each question alone."""
    together, alone = Stream(), []
    for month in range(12):
        together.windows("c", states, [2 * month, 2 * month + 1])
        single = Stream()
        single.windows("c", states, list(range(2 * month + 2)))
        for stream in (together, single):
            stream.ask("c")
        alone.append(single)
    return together, alone


def test_twelve_times_are_answered_in_one_pass(llama: Path) -> None:
    definition = resolved(context=512)
    states = Embedder(llama, definition).states([document(3, seed) for seed in range(24)])
    together, alone = asked_twelve_times(states)
    found = together.fold(definition)
    assert [row["event_count"] for row in found] == [6 * month for month in range(1, 13)]
    for row, single in zip(found, alone, strict=True):
        assert single.fold(definition) == [row], "to the last bit"
    hashes = "".join(f"hash {place}\n" for place in range(4))
    assert found[1]["input_hash"] == hashlib.sha256(hashes.encode()).hexdigest()


@pytest.mark.parametrize("rows_a_batch", [1, 2, 7, 1000])
def test_the_same_states_give_the_same_bytes_however_they_come(
    llama: Path, rows_a_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = resolved(context=512)
    states = Embedder(llama, definition).states([document(1 + seed % 5, seed) for seed in range(40)])
    stream = Stream()
    for client in range(9):
        at = list(range(client, 40, 1 + client))
        stream.windows(f"c{client}", states, at)
        stream.ask(f"c{client}", **stream.state(states, client))
        stream.windows(f"c{client}", states, at[:2])
        stream.ask(f"c{client}")
    expected = stream.fold(definition)
    assert len(expected) == 18
    assert stream.fold(definition, rows_a_batch) == expected
    monkeypatch.setattr("ledgerlm.backbone.states._NUMBERS_AT_ONCE", 5000)
    assert stream.fold(definition) == expected


def test_a_window_that_is_cut_counts_at_its_time_alone(llama: Path) -> None:
    definition = resolved(context=512)
    states = Embedder(llama, definition).states([document(4, 1), document(2, 2), document(5, 2)])
    stream, plain, whole = Stream(), Stream(), Stream()
    stream.windows("c", states, [0])
    stream.ask("c", **stream.state(states, 1))
    stream.windows("c", states, [2])
    stream.ask("c")
    plain.windows("c", states, [0, 1])
    plain.ask("c")
    whole.windows("c", states, [0, 2])
    whole.ask("c")
    cut_there, later = stream.fold(definition)
    (expected,) = plain.fold(definition)
    assert whole.fold(definition) == [later]
    assert cut_there["parts"] == expected["parts"] and cut_there["input_hash"] == expected["input_hash"]
    assert (cut_there["event_count"], later["event_count"]) == (6, 9)


def test_nothing_is_told_of_a_client_before_its_first_event(llama: Path) -> None:
    states = Embedder(llama, resolved()).states([document(4, 1)])
    stream = Stream()
    stream.ask("early")
    stream.windows("early", states)
    stream.ask("none")
    assert stream.fold(resolved()) == []


def test_a_text_without_a_state_leaves_no_vector_from_its_time_on(llama: Path) -> None:
    states = Embedder(llama, resolved()).states([document(4, 1), "", document(2, 1)])
    assert states.reasons == [None, NOTHING_TO_POOL, None]
    assert not states.sums[1].any()
    stream = Stream()
    for place in range(3):
        stream.windows("c", states, [place])
        stream.ask("c")
    stream.windows("d", states, [0])
    stream.ask("d")
    reasons = [(row["client_id"], row["reason"]) for row in stream.fold(resolved())]
    assert reasons == [("c", None), ("c", NOTHING_TO_POOL), ("c", NOTHING_TO_POOL), ("d", None)]
    unknown = Stream()
    unknown.row("c", 3, 1, first_event_time=START, text_hash="hash of nothing")
    unknown.row("c", 5, 0)
    (row,) = unknown.fold(resolved())
    assert (row["reason"], row["parts"]) == (NO_STATE, None)


def test_a_time_inside_a_window_that_is_not_cut_there_is_an_error(llama: Path) -> None:
    states = Embedder(llama, resolved()).states([document(4, 1), document(4, 2)])
    stream = Stream()
    stream.windows("c", states, [0])
    stream.row("c", 5, 0)  # the next window holds the events of days 4 to 7
    stream.windows("c", states, [1])
    with pytest.raises(DataError, match=r"client c: a window holds events before and after 2024-01-06.*not cut there"):
        stream.fold(resolved())


def test_a_layout_names_its_numbers_and_is_known_by_their_count() -> None:
    for parts in (ALL, ("mean",), ("std", "surprise"), ("surprise",), ("recent", "max")):
        layout = StateLayout(resolved(parts=parts), 32)
        assert len(layout.names) == len(set(layout.names)) == layout.size
        known = StateLayout.of_size(layout.definition, layout.size)
        assert known.size == layout.size and known.width == (0 if parts == ("surprise",) else 32)
        assert vectors_array(np.zeros((2, layout.size), np.float32)).type == pa.list_(pa.float32())
    with pytest.raises(ConfigError, match="has 30 numbers"):
        StateLayout.of_size(resolved(parts=("mean", "std")), 30)


def test_a_definition_of_the_newest_tokens_alone_is_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match="max_tokens 60 reads the newest tokens"):
        Embedder(llama, resolved(max_tokens=60)).states([document(4, 1)])
