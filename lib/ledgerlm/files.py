"""One file layer: what a run leaves outside its tables, in a folder of this machine or at a URL that all reach.

Code works in local folders. Below an `out` that is a URL such a folder is the *working copy* of this machine, and the
verbs here carry what is finished to the URL (`push`), fetch it (`pull`, `restore`, what Spark wrote: `bring`), and give
other machines a reference (`share`) that they open (`here`), once a node, into a cache by content. Below a folder of
this machine all of them do nothing: there it is the same file that everybody opens.

A folder at a URL counts once it is *sealed*: a list of its files with their hashes lies beside it, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ledgerlm.errors import ArtefactError, EngineError, LedgerError

if TYPE_CHECKING:
    from upath import UPath

_MARK = ".ledgerlm-place.json"  # in a working copy: which URL it stands for
_SEAL = ".files.json"
_UNFINISHED = "unfinished\n"  # a seal while its folder is being written
_JOINT = "!/"  # of a reference: URL!/sealed folder!/place inside of it#identity


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A URL and the folder of this machine that stands for it.

    Attributes:
        url: without a slash at its end.
        folder: the working copy.
        copy: identity of this working copy, a UUID.
    """

    url: str
    folder: Path
    copy: str

    def name_of(self, path: Path) -> str:
        """A path of the working copy, relative to it."""
        return path.relative_to(self.folder).as_posix()

    def at(self, path: Path | str) -> UPath:
        """Where a path of the working copy, or a name below it, lies at the URL."""
        name = self.name_of(path) if isinstance(path, Path) else path
        return _upath(self.url if name == "." else f"{self.url}/{name}")


def cache_root() -> Path:
    """Folder of working copies and fetched content: LEDGERLM_CACHE, or `~/.cache/ledgerlm`."""
    return Path(os.environ.get("LEDGERLM_CACHE") or "~/.cache/ledgerlm").expanduser().resolve()


def working_copy(url: str) -> Place:
    """The folder of this machine that stands for a URL; it is made as needed."""
    url = url.rstrip("/")
    folder = cache_root() / "places" / hashlib.sha256(url.encode()).hexdigest()[:16]
    mark = folder / _MARK
    if not mark.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not mark.exists():
                _written(mark, json.dumps({"url": url, "copy": uuid.uuid4().hex}))
    return _place_at(folder)


def unreadable(url: str) -> str | None:
    """Why nothing can be read or written at a URL of this kind; None where fsspec has a driver that is installed."""
    import fsspec

    protocol = url.partition(":")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        return f"fsspec has no driver for {protocol} here: {error}"
    return None


def place_of(path: Path) -> Place | None:
    """The place that a path lies in; None for what is just a path of this machine."""
    for one in (path, *path.parents):
        if (one / _MARK).is_file():
            return _place_at(one)
    return None


def url_of(path: Path) -> str:
    """A path as Spark is to be told of it."""
    place = place_of(path.absolute())
    if place is not None:
        return f"{place.url}/{place.name_of(path.absolute())}"
    # Databricks' volumes are one place for Python and Spark, and only without a scheme.
    return str(path) if path.parts[:2] == ("/", "Volumes") else path.absolute().as_uri()


def push(path: Path) -> None:
    """Carries a finished file or folder to its URL, unless the same is there; a folder is sealed last of all."""
    place = place_of(path)
    if place is None:
        return
    with _reaching(place.url):
        if path.is_file():
            _put(place, [path])
            return
        seal, there = _seal_of(path), place.at(_seal_file(path))
        if _text(there) == seal:
            return
        _write(there, _UNFINISHED)
        _put(place, [path / name for name in json.loads(seal)])
        _write(there, seal)


def pull(path: Path) -> Path:
    """Fetches what was pushed, unless the same is here; where the URL has nothing, what is here stays."""
    place = place_of(path)
    if place is not None:
        with _reaching(place.url):
            seal = _text(place.at(_seal_file(path)))
            if seal is not None and seal != _UNFINISHED:
                _fetched(place.at(path), path, seal)
            elif not path.exists() and place.at(path).is_file():
                _get(place.at(path.parent), path.parent, [path.name])
    return path


def is_there(path: Path) -> bool:
    """Whether a file or finished folder is where it belongs: at its URL, or on this machine."""
    place = place_of(path)
    if place is None:
        return path.exists()
    with _reaching(place.url):
        return (_text(place.at(_seal_file(path))) or _UNFINISHED) != _UNFINISHED or place.at(path).is_file()


def bring(folder: Path) -> Path:
    """Fetches what Spark wrote to `url_of(folder)`, and seals it; returns the folder."""
    place = place_of(folder)
    if place is not None:
        with _reaching(place.url):
            shutil.rmtree(folder, ignore_errors=True)
            _get(place.at(folder), folder, _listed(place.at(folder)))
            _write(place.at(_seal_file(folder)), _seal_of(folder))
    return folder


def restore(folder: Path, *, without: Iterable[str] = ()) -> Path:
    """Fetches all that was pushed below a folder and is not the same here, but for what is half written.

    Args:
        folder: of a working copy; elsewhere there is nothing to do.
        without: names below it that are left where they are.

    Returns:
        The folder.
    """
    place = place_of(folder)
    if place is None:
        return folder
    # One process of a node at a time: the ranks of a training ask together.
    with _reaching(place.url), FileLock(cache_root() / "restore.lock"):
        root, left = place.at(folder), tuple(f"{name}/" for name in without)
        sizes = {name: size for name, size in _listed(root).items() if not name.startswith(left)}
        seals = {name.removesuffix(_SEAL): _text(root / name) for name in sizes if name.endswith(_SEAL)}
        for name, seal in seals.items():
            if seal is not None and seal != _UNFINISHED:
                _fetched(root / name, folder / name, seal)
        inside = tuple(f"{name}/" for name in seals)
        single = {
            name: size for name, size in sizes.items() if not name.startswith(inside) and not name.endswith(_SEAL)
        }
        _get(root, folder, [name for name, size in single.items() if _size(folder / name) != size])
    return folder


def remove(folder: Path) -> None:
    """Takes a folder away, here and at its URL."""
    shutil.rmtree(folder, ignore_errors=True)
    place = place_of(folder)
    if place is not None:
        _seal_file(folder).unlink(missing_ok=True)
        drop(place, place.name_of(_seal_file(folder)))  # first: what is left of it is no folder then
        with _reaching(place.url):
            there = place.at(folder)
            if _listed(there):
                there.fs.rm(there.path, recursive=True)


def create(place: Place, name: str, text: str) -> str:
    """Writes a file at a URL unless one is there; returns what it holds then, whoever wrote it.

    It is made by one alone where the file system can do that (S3, GCS, Azure, memory); elsewhere two that come at the
    same instant may both believe that they made it.
    """
    there = place.at(name)
    with _reaching(place.url):
        if _text(there) is None:
            with suppress(FileExistsError):
                there.fs.pipe_file(there.path, text.encode(), mode="create")
        return _text(there) or text


def drop(place: Place, name: str) -> None:
    """Takes a file at a URL away, if it is there."""
    there = place.at(name)
    with _reaching(place.url):
        if there.fs.exists(there.path):
            there.fs.rm_file(there.path)


def share(path: Path) -> str:
    """A finished file or folder as another machine may be told of it: a reference for `here`, once it is pushed.

    What lies inside a sealed folder is told as a part of it, and only that part is fetched. A path that has no URL is
    told as it is: it must be the same on every machine.
    """
    place = place_of(path)
    if place is None:
        return str(path)
    inside = (one for one in (path, *path.parents) if one.is_relative_to(place.folder) and one != place.folder)
    sealed = next((one for one in inside if _seal_file(one).is_file()), path)
    push(sealed)
    return _reference(place, sealed, path, hashlib.sha256(_seal_of(sealed).encode()).hexdigest()[:16])


def share_place(path: Path) -> str:
    """A path to write to, as another machine may be told of it: `here` gives the same place in its own working copy."""
    place = place_of(path)
    return str(path) if place is None else _reference(place, path, path, "")


def here(reference: str) -> Path:
    """The path of this machine that a reference means; its content is fetched unless this node has it.

    Raises:
        ArtefactError: what is at the URL is not what the reference was made of.
    """
    if _JOINT not in reference:
        return Path(reference)
    address, _, identity = reference.rpartition("#")
    url, outer, inner = address.split(_JOINT)
    place = working_copy(url)
    own = place.folder / outer
    if not identity or _identity(own) == identity:
        return own / inner
    # By content, so that the same backbone under another name or at another URL is not fetched again; its own name is
    # kept, which for many is their hash.
    kept = cache_root() / "content" / identity / own.name
    with _reaching(place.url):
        seal = _text(place.at(_seal_file(own))) or ""
        if hashlib.sha256(seal.encode()).hexdigest()[:16] != identity:
            raise ArtefactError(f"{place.at(own)} was replaced or taken away while it was needed; run the stage again")
        _fetched(place.at(own), kept, seal, inner)
    return kept / inner


def _place_at(folder: Path) -> Place:
    return Place(folder=folder, **json.loads((folder / _MARK).read_text(encoding="utf-8")))


def _reference(place: Place, outer: Path, path: Path, identity: str) -> str:
    inner = path.relative_to(outer).as_posix()
    return f"{place.url}{_JOINT}{place.name_of(outer)}{_JOINT}{inner}#{identity}"


def _seal_file(folder: Path) -> Path:
    return folder.with_name(folder.name + _SEAL)


def _seal_of(folder: Path) -> str:
    """The list of a folder's files, read anew when one was added, taken away or changed since it was written."""
    sizes = {path.relative_to(folder).as_posix(): path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    file = _seal_file(folder)
    if file.is_file():
        known: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        written = file.stat().st_mtime_ns
        same = {name: entry["size"] for name, entry in known.items()} == {n: s.st_size for n, s in sizes.items()}
        if same and all(stat.st_mtime_ns <= written for stat in sizes.values()):
            return file.read_text(encoding="utf-8")
    content = {name: {"size": stat.st_size, "sha256": _sha256(folder / name)} for name, stat in sizes.items()}
    text = json.dumps(content, indent=1) + "\n"
    _written(file, text)
    return text


def _identity(folder: Path) -> str | None:
    """What a reference to a sealed folder of this machine would bear."""
    known = folder.is_dir() and _seal_file(folder).is_file()
    return hashlib.sha256(_seal_of(folder).encode()).hexdigest()[:16] if known else None


def _fetched(source: UPath, folder: Path, seal: str, inner: str = ".") -> None:
    """Makes a sealed folder, or a part of it, whole on this machine; one process of a node does it."""
    content: Mapping[str, Any] = json.loads(seal)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        part = {name: one for name, one in content.items() if inner in (".", name) or name.startswith(f"{inner}/")}
        known = _seal_file(folder).is_file() and _seal_file(folder).read_text(encoding="utf-8") == seal
        if not known:
            shutil.rmtree(folder, ignore_errors=True)  # of another content
        missing = {name: one["sha256"] for name, one in part.items() if not (folder / name).is_file()}
        if missing:
            draft = folder.with_name(f".{folder.name}.aside")
            shutil.rmtree(draft, ignore_errors=True)
            _get(source, draft, missing)
            for name, sha in missing.items():
                if _sha256(draft / name) != sha:
                    raise ArtefactError(f"{source}/{name} is not what was pushed there; run the stage that made it")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).replace(folder / name)
            shutil.rmtree(draft)
        folder.mkdir(exist_ok=True)
        _written(_seal_file(folder), seal)


def _put(place: Place, files: Iterable[Path]) -> None:
    pairs = [(str(file), place.at(file).path) for file in files]
    if pairs:
        place.at(place.folder).fs.put([one for one, _ in pairs], [other for _, other in pairs])


def _get(source: UPath, folder: Path, names: Iterable[str]) -> None:
    """Fetches files, each whole or not at all."""
    pairs = [((source / name).path, folder / name) for name in names]
    for _, path in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
    if pairs:
        source.fs.get([one for one, _ in pairs], [f"{path}.aside" for _, path in pairs])
    for _, path in pairs:
        Path(f"{path}.aside").replace(path)


def _listed(folder: UPath) -> dict[str, int]:
    """Names and sizes of all files below a folder; none where there is no folder."""
    root = folder.path.rstrip("/") + "/"
    found = folder.fs.find(folder.path, detail=True)
    return {name.removeprefix(root): one["size"] for name, one in found.items() if name.startswith(root)}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _text(file: UPath) -> str | None:
    try:
        return str(file.fs.cat_file(file.path).decode())
    except FileNotFoundError:
        return None


def _write(file: UPath, text: str) -> None:
    file.fs.pipe_file(file.path, text.encode())


def _upath(url: str) -> UPath:
    from upath import UPath

    return UPath(url, use_listings_cache=False)  # Spark and other machines write beside us


def _written(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Says in one line what a driver of fsspec raises; each has errors of its own, and no root is common to them."""
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise  # of this machine's own disk
        text = str(error).strip() or type(error).__name__
        raise EngineError(
            f"{url} cannot be read or written: {text.splitlines()[0]}; are its address and the credentials in the "
            "environment right?"
        ) from error
