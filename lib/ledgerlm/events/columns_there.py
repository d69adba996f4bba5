"""Whether the files of a data set have the columns that its spec names, seen in their heads before a run starts."""

from __future__ import annotations

from collections.abc import Iterator

from ledgerlm.errors import SpecError
from ledgerlm.events.attributes import needed_of_clients, needed_of_dictionary, needed_of_join
from ledgerlm.events.judging import needed_of_events
from ledgerlm.events.sources import Needed, look_for_columns
from ledgerlm.events.spec import DataSetSpec
from ledgerlm.events.spec_files import SourceSpec
from ledgerlm.events.spec_times import AsOfSpec


def column_faults(spec: DataSetSpec) -> list[str]:
    """A line for each entry whose files on this machine cannot be read as the spec says, or lack a column.

    Nothing is told of a spec without a source, of files at a URL and of Delta tables: Spark would have to look.
    """
    found: dict[str, None] = {}
    for needed in _needed(spec) if spec.source else ():
        try:
            look_for_columns(needed, spec.source or SourceSpec(files=(needed.file,)))
        except SpecError as error:
            found[str(error)] = None
    return list(found)


def _needed(spec: DataSetSpec) -> Iterator[Needed]:
    """What the spec needs of each entry."""
    yield from (needed_of_events(spec, place) for place in range(len(spec.source.files if spec.source else ())))
    yield from (needed_of_join(spec, place) for place in range(len(spec.joins)))
    yield from (needed_of_clients(spec, place) for place in range(len(spec.clients)))
    books = (needed_of_dictionary(spec, place) for place in range(len(spec.fields)))
    yield from (book for book in books if book is not None)
    yield from (one for place in range(len(spec.labels)) if (one := needed_of_labels(spec, place)) is not None)


def needed_of_labels(spec: DataSetSpec, place: int) -> Needed | None:
    """What the spec needs of the file of a task's labels; None where they are computed from events."""
    label, key = spec.labels[place], f"labels.{place}"
    if label.file is None:
        return None
    keys = {label.id: f"{key}.id", label.column: f"{key}.column"} | dict.fromkeys(label.only, f"{key}.only")
    as_of = label.as_of if label.as_of is not None else spec.as_of
    return Needed(
        file=label.file, keys=keys | ({as_of.column: f"{key}.as_of.column"} if isinstance(as_of, AsOfSpec) else {})
    )
