"""The file layer against fsspec's memory file system: what is carried, what is fetched, and what is taken for whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ledgerlm import files
from ledgerlm.errors import ArtefactError, EngineError

URL = "memory://bank/out"


@pytest.fixture(autouse=True)
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty file system, and this machine's empty cache; returns the working copy."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "driver"))
    yield files.working_copy(URL).folder
    memory.store.clear()


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> Path:
    """From here on, this process is another machine, whose cache is empty; returns its working copy."""
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / name))
    return files.working_copy(URL).folder


def backbone(folder: Path, weights: str = "weights") -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "inner" / "tokenizer.json").write_text("{}")
    (folder / "empty").touch()
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(one.relative_to(folder)): one.read_text() for one in sorted(folder.rglob("*")) if one.is_file()}


def stored() -> list[str]:
    return sorted(fsspec.filesystem("memory").find("/bank/out"))


def test_a_folder_of_this_machine_is_left_alone(tmp_path: Path) -> None:
    folder = backbone(tmp_path / "out" / "artefacts" / "b")
    for verb in (files.push, files.pull, files.bring, files.restore):
        verb(folder)
    assert files.share(folder) == str(folder) == str(files.here(str(folder)))
    assert files.url_of(folder) == folder.as_uri()
    assert files.url_of(Path("/Volumes/bank/out/x")) == "/Volumes/bank/out/x"
    assert sorted(one.name for one in folder.parent.iterdir()) == ["b"]
    assert stored() == []


def test_another_machine_pulls_what_was_pushed(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = backbone(driver / "artefacts" / "b")
    files.push(folder)
    (driver / "artefacts" / "names.json").write_text("[]")
    files.push(driver / "artefacts" / "names.json")
    other = another_machine(monkeypatch, tmp_path)
    assert other != driver
    assert files.is_there(other / "artefacts" / "b")
    assert not files.is_there(other / "artefacts" / "c")
    assert content(files.pull(other / "artefacts" / "b")) == content(folder)
    assert files.is_there(other / "artefacts" / "names.json")
    assert files.pull(other / "artefacts" / "names.json").read_text() == "[]"
    assert files.url_of(other / "artefacts" / "b") == f"{URL}/artefacts/b"


def test_a_folder_made_anew_is_carried_and_fetched_anew(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = backbone(driver / "artefacts" / "b")
    files.push(folder)
    other = another_machine(monkeypatch, tmp_path)
    files.pull(other / "artefacts" / "b")
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "driver"))
    (folder / "model.safetensors").write_text("changed")  # of the same length
    files.push(folder)
    another_machine(monkeypatch, tmp_path)
    assert content(files.pull(other / "artefacts" / "b"))["model.safetensors"] == "changed"
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "driver"))
    (folder / "empty").unlink()
    files.push(folder)
    another_machine(monkeypatch, tmp_path)
    assert content(files.pull(other / "artefacts" / "b")) == content(folder)


def test_a_half_carried_folder_is_never_taken_for_whole(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = backbone(driver / "staging" / "train" / "step-2")
    backbone(driver / "staging" / "train" / "step-1", "earlier")
    (driver / "staging" / "train" / "facts.json").write_text("[]")
    files.push(driver / "staging" / "train" / "step-1")
    files.push(driver / "staging" / "train" / "facts.json")
    with monkeypatch.context() as patched:
        memory = type(fsspec.filesystem("memory"))
        patched.setattr(memory, "put_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            files.push(folder)
    fsspec.filesystem("memory").pipe("/bank/out/staging/train/step-2/model.safetensors", b"wei")
    other = another_machine(monkeypatch, tmp_path)
    assert not files.is_there(other / "staging" / "train" / "step-2")
    found = content(files.restore(other / "staging"))
    assert sorted(name for name in found if not name.endswith(".lock")) == [
        "train/facts.json",
        "train/step-1.files.json",
        "train/step-1/empty",
        "train/step-1/inner/tokenizer.json",
        "train/step-1/model.safetensors",
    ]


def test_a_node_fetches_a_reference_once_by_its_content(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = backbone(driver / "artefacts" / "b")
    reference = files.share(folder)
    assert files.here(reference) == folder  # where it was made
    another_machine(monkeypatch, tmp_path)
    mine = files.here(reference)
    assert mine.is_relative_to(tmp_path / "other" / "content")
    assert mine.name == "b"
    assert content(mine) == content(folder)
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "get_file", lambda *_, **__: pytest.fail("fetched a second time"))
    assert files.here(reference) == mine


def test_a_part_of_a_sealed_folder_is_fetched_alone(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray workers take a shard each of what Spark has written."""
    memory = fsspec.filesystem("memory")
    for shard in range(3):
        memory.pipe(f"/bank/out/staging/in/shard={shard}/part.parquet", str(shard).encode())
    memory.pipe("/bank/out/staging/in/_SUCCESS", b"")
    staged = files.bring(driver / "staging" / "in")
    assert (staged / "_SUCCESS").exists()
    reference = files.share(staged / "shard=1")
    another_machine(monkeypatch, tmp_path)
    assert content(files.here(reference)) == {"part.parquet": "1"}
    assert [one.name for one in files.here(reference).parent.iterdir()] == ["shard=1"]


def test_what_was_spoilt_on_the_way_is_refused(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = backbone(driver / "artefacts" / "b")
    reference = files.share(folder)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bank/out/artefacts/b/model.safetensors", b"spoiled")
    other = another_machine(monkeypatch, tmp_path)
    with pytest.raises(ArtefactError, match="is not what was pushed there; run the stage"):
        files.here(reference)
    with pytest.raises(ArtefactError, match="is not what was pushed there"):
        files.pull(other / "artefacts" / "b")
    memory.pipe("/bank/out/artefacts/b.files.json", json.dumps({}).encode())
    with pytest.raises(ArtefactError, match="was replaced or taken away"):
        files.here(reference)


def test_a_place_to_write_to_is_the_same_place_elsewhere(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = files.share_place(driver / "staging" / "train")
    assert files.here(reference) == driver / "staging" / "train"
    other = another_machine(monkeypatch, tmp_path)
    mine = files.here(reference)
    assert mine == other / "staging" / "train"
    backbone(mine / "result")
    files.push(mine / "result")
    monkeypatch.setenv("LEDGERLM_CACHE", str(tmp_path / "driver"))
    assert (files.restore(driver / "staging" / "train") / "result" / "empty").exists()
    files.remove(driver / "staging")
    assert stored() == []


def test_what_a_driver_of_fsspec_raises_is_said_in_a_line(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.unreadable(URL) is None
    assert "fsspec has no driver for nowhere here" in str(files.unreadable("nowhere://x"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied\nmore")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(EngineError, match=r"memory://bank/out cannot be read or written: Access Denied; are its"):
        files.push(backbone(driver / "b"))
