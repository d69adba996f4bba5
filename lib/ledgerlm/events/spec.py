"""Data set specs: YAML that says how files become events, clients and labels, without code."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ledgerlm.config import Conf, find_file, load_yaml, nearest, parse
from ledgerlm.errors import ConfigError, SpecError
from ledgerlm.lake.schemas import EVENTS

Kind = Literal["categorical", "numeric", "text"]
TaskKind = Literal["binary", "multiclass", "regression"]
Show = Literal["text", "day", "log_int", "log_2", "rank"]
Mask = Literal["iban", "card", "email", "phone", "name"]


class SpecPart(Conf):
    """Base of the parts of a spec. YAML reads unquoted codes as numbers: they become text (quote leading zeros)."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


class FileSpec(SpecPart):
    """One file, or several of one form, below `source.path`."""

    glob: str = Field(description="file name or pattern below source.path; an absolute path or a URL stands for itself")
    format: Literal["csv", "json", "parquet", "delta"] = Field("csv", description="json: one object a line")
    separator: str = Field(",", min_length=1, description="csv: what stands between columns")
    quote: str = Field('"', max_length=1, description="csv: quote character, doubled inside a value; empty for none")
    header: bool = Field(
        True, description="csv: the first line names the columns; the same line further down is skipped"
    )
    columns: tuple[str, ...] = Field((), description="csv: column names in order; needed without a header")
    encoding: Literal["utf-8", "iso-8859-1"] = Field("utf-8", description="csv, json: encoding of the text")
    decimal: str = Field(".", min_length=1, max_length=1, description="decimal sign of numbers written as text")
    thousands: str = Field("", max_length=1, description="sign between groups of three digits; empty for none")
    rename: dict[str, str] = Field(default_factory=dict, description="column name in this spec -> name in the file")
    constants: dict[str, str] = Field(default_factory=dict, description="columns that the file lacks, with their value")
    values: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="column -> value in the file -> value to use; others stay as they are"
    )

    @model_validator(mode="after")
    def _columns_known(self) -> Self:
        if self.format == "csv" and not self.header and not self.columns:
            raise ValueError(f"{self.glob} has no header: name its columns in order under 'columns'")
        return self


class JoinSpec(SpecPart):
    """An attribute file whose columns are added to every event by a key, such as products by product id."""

    file: FileSpec
    key: str = Field(description="key column, of the same name in the events and in the file")
    columns: tuple[str, ...] = Field(min_length=1, description="columns that the file adds")


class SourceSpec(SpecPart):
    """Where the event files lie."""

    path: str = Field("", description="folder or URL; relative: beside the spec, in the shipped conf/, or from here")
    files: tuple[FileSpec, ...] = Field(min_length=1, description="event files; several are put one after another")
    needs: str = Field("", description="what to tell a user whose path is empty or wrong: where the files come from")


class TimeSpec(SpecPart):
    """The time of an event, and how it is written. Times without a zone are taken in `zone`."""

    column: str
    format: str = Field(
        "timestamp",
        description="timestamp (typed, or ISO 8601 text), epoch or epoch_ms (seconds or milliseconds since 1970), "
        "days (since origin, fractions allowed), days_clock (day number and hh:mm:ss), days_before (whole days back "
        "from origin), or a Spark pattern such as yyMMdd. Month names may be in any case; second 60 is read as 59",
    )
    origin: dt.date | None = Field(None, description="day 0 of the formats days, days_clock and days_before")
    hour: str | None = Field(
        None, description="column with the hour of the day, 0 to 23, added to a time of whole days"
    )
    calendar: bool = Field(
        True,
        description="whether weekdays and dates mean something; false where each client's days are counted from an "
        "unknown day: then texts show gaps in days and no weekday or date unless asked",
    )
    zone: str = Field("UTC", description="time zone of times that carry none")
    pivot: int = Field(1970, description="first year that a two-digit year can mean")
    earliest: dt.date = Field(dt.date(1900, 1, 1), description="events before it go to quarantine")
    far_future: dt.date = Field(dt.date(2100, 1, 1), description="events at or after it go to quarantine")
    order: str | None = Field(None, description="numeric column that orders events of the same instant; else event id")
    clock: bool | None = Field(None, description="whether there is a time of day; left out, the format decides")

    @model_validator(mode="after")
    def _origin_given(self) -> Self:
        if self.format in ("days", "days_clock", "days_before") and self.origin is None:
            raise ValueError(f"format {self.format} counts from a day: give 'origin', such as 2015-01-01")
        return self

    @property
    def has_clock(self) -> bool:
        """Whether the data have a time of day."""
        if self.clock is not None:
            return self.clock
        if self.format in ("timestamp", "epoch", "epoch_ms", "days_clock"):
            return True
        if self.hour or self.format in ("days", "days_before"):
            return self.hour is not None
        return any(letter in self.format for letter in "HhKk")


class EventIdSpec(SpecPart):
    """What identifies an event of a client: columns, or else a hash of the whole row as it was delivered."""

    columns: tuple[str, ...] = Field((), description="columns joined to the id; empty: SHA-256 of the raw row")
    repeats: Literal["keep", "drop"] = Field(
        "keep",
        description="without columns: an equal row again is an event of its own (the id carries its occurrence "
        "number), or a duplicate",
    )


class SignSpec(SpecPart):
    """The sign of amounts that are written without one, by a column such as the transaction type."""

    column: str
    negative: tuple[str, ...] = Field(min_length=1, description="values (after the file's `values`) of money going out")


class AmountSpec(SpecPart):
    """The amount of an event; money going out is negative when the data say so."""

    column: str
    times: str | None = Field(None, description="numeric column that multiplies it, such as a quantity beside a price")
    sign: SignSpec | Literal["as_is", "negative"] = Field("as_is", description="as_is, negative (all), or by a column")
    currency: str | None = Field(None, description="currency of all amounts")
    currency_column: str | None = Field(None, description="column that holds the currency")

    @model_validator(mode="after")
    def _one_currency(self) -> Self:
        if self.currency and self.currency_column:
            raise ValueError("give 'currency' or 'currency_column', not both")
        return self


class DictionarySpec(SpecPart):
    """A file from code to description."""

    file: FileSpec
    code: str = Field(description="column of the code")
    description: str = Field(description="column of the description")


class FieldSpec(SpecPart):
    """One attribute of an event, in the order in which texts show them."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="column in the events table")
    column: str = Field("", description="column in the files; left out, the name")
    kind: Kind = "categorical"
    title: str = Field("", description="human name used in headers; left out, the name")
    short: str = Field("", pattern=r"^[^\s|]*$", description="prefix of the value in compact text")
    dictionary: DictionarySpec | dict[str, str] | None = Field(
        None, description="code -> description, inline or a file"
    )
    extract: str = Field("", description="regular expression: its first group is the value, no match is absent")
    flags: dict[str, str] = Field(
        default_factory=dict, description="column of 0 and 1 -> word; the words of the ones, joined by |, are the value"
    )
    values: dict[str, str] = Field(default_factory=dict, description="value -> value to use; others stay as they are")
    nulls: tuple[str, ...] = Field((), description="values that mean absent, beside the empty one")
    optional: bool = Field(False, description="files may lack the column")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "name" in content:
            name = str(content["name"])
            return {"column": name, "title": name.replace("_", " "), **content}
        return content

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the files that the field is made of."""
        return tuple(self.flags) or (self.column,)


class PublishedField(SpecPart):
    """One column of the text form that LLM4ES published (arXiv 2508.05688 and its public code), in order."""

    of: str = Field(description="field of the data set, or day or amount")
    title: str = Field(description="name in the header")
    show: Show = Field(
        "text",
        description="text (description or value), day (whole days since the time's origin, else since 1970), log_int "
        "and log_2 (sign(x) ln(1 + |x|), cut to a whole number or rounded to two decimals), or rank (place of the code "
        "by frequency among training clients, from 2; 1 for a code unseen there or beyond the 10,000th)",
    )


class ClientFileSpec(SpecPart):
    """A file with attributes of clients."""

    file: FileSpec
    id: str = Field(description="column of the client id")
    attributes: dict[str, str] = Field(default_factory=dict, description="attribute -> column of the file")
    nulls: tuple[str, ...] = Field((), description="values that mean absent, beside the empty one")


class AsOfSpec(SpecPart):
    """Instant of a label that stands in a column; only events before it belong to the history."""

    column: str
    format: str = Field("timestamp", description="as time.format")
    origin: dt.date | None = None
    pivot: int = 1970
    zone: str = "UTC"
    start_of: Literal["month"] | None = Field(None, description="month: the first day of the month that is named")
    hours: float = Field(0.0, description="hours added to the instant, such as the first day of a stay in hospital")


class FutureSpec(SpecPart):
    """A label computed from events: what a client does from `as_of` on. Clients without an event before have none."""

    value: Literal["amount", "events"] = Field("amount", description="sum of the amounts, or number of the events")
    days: int = Field(ge=1, description="days from as_of that are looked at")


class LabelSpec(SpecPart):
    """One task, and the file that holds its labels or the rule that computes them."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the task")
    kind: TaskKind
    title: str = Field("", description="human name; left out, the task's name")
    file: FileSpec | None = Field(None, description="file of the labels; left out with `future`")
    id: str = Field("", description="column of the client id")
    column: str = Field("", description="column of the label")
    future: FutureSpec | None = Field(None, description="rule that computes the labels from events, instead of a file")
    between: tuple[float, float] | None = Field(None, description="least and most; rows beyond are no labels")
    values: dict[str, int] = Field(default_factory=dict, description="value in the file -> class number")
    thresholds: tuple[float, ...] = Field((), description="class = how many of these the number reaches")
    classes: tuple[str, ...] = Field((), description="names of the classes, from class 0")
    as_of: dt.datetime | AsOfSpec | None = Field(None, description="instant, or the column of it; left out, spec as_of")
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="column -> values of the rows to use")

    @model_validator(mode="after")
    def _labels_found(self) -> Self:
        if self.future:
            if self.file or isinstance(self.as_of, AsOfSpec):
                raise ValueError(f"task {self.name}: 'future' goes with one fixed as_of and without a file")
        elif not (self.file and self.id and self.column):
            raise ValueError(f"task {self.name}: give 'file', 'id' and 'column', or 'future'")
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        if self.values and self.thresholds:
            raise ValueError(f"task {self.name}: give 'values' or 'thresholds', not both")
        if list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"task {self.name}: thresholds must grow")
        if self.kind == "regression":
            if self.classes or self.values or self.thresholds:
                raise ValueError(f"task {self.name}: a regression has no classes, values or thresholds")
            return self
        if self.kind == "binary" and self.classes and len(self.classes) != 2:
            raise ValueError(f"task {self.name}: a binary task has two classes, not {len(self.classes)}")
        if not self.classes and self.kind == "multiclass":
            raise ValueError(f"task {self.name}: name the classes of a multiclass task")
        known = range(len(self.class_names))
        wrong = sorted(set(self.values.values()) - set(known))
        if wrong or len(self.thresholds) >= len(known):
            raise ValueError(f"task {self.name}: class numbers must be 0 to {len(known) - 1}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in order; none for a regression."""
        if self.kind == "regression":
            return ()
        return self.classes or ("0", "1")


class PseudonymSpec(SpecPart):
    """Replaces client ids by a keyed HMAC-SHA256. Quarantine keeps raw rows unless told otherwise."""

    key_env: str = Field("LEDGERLM_PSEUDONYM_KEY", description="environment variable that holds the secret key")
    fields: tuple[str, ...] = Field((), description="categorical fields (account numbers) to replace as well")
    keep_payload: bool = Field(True, description="whether quarantine keeps raw rows, which hold the real ids")


class SplitSpec(SpecPart):
    """Which labelled clients are the test clients. Clients without a label are training clients."""

    rule: Literal["auto", "shuffle", "hash"] = Field(
        "auto",
        description="shuffle: the published rule, labelled ids as strings sorted, random.Random(seed).shuffle, the "
        "last int(n * share) are test; it changes when a client is added and needs the ids on the driver. hash: by a "
        "hash of each id alone. auto: shuffle up to `limit` labelled clients, hash above",
    )
    share: float = Field(0.1, ge=0.0, lt=1.0, description="share of labelled clients in the test split")
    seed: int = Field(42, description="seed of the shuffle or the hash")
    limit: int = Field(1_000_000, ge=1, description="most labelled clients that the shuffle rule takes")
    unseen: str | None = Field(
        None, description="SQL condition on client attributes; who meets it is a test client (an unseen bank)"
    )


class DataSetSpec(SpecPart):
    """A data set: where its files lie and what their columns mean."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str = Field("", description="human name; left out, the name")
    about: str = Field("", description="one sentence: origin and licence")
    source: SourceSpec | None = Field(None, description="event files; left out when the simulate job makes the events")
    joins: tuple[JoinSpec, ...] = ()
    client: str = Field("client_id", description="column of the client id")
    time: TimeSpec = TimeSpec(column="event_time")
    event_id: EventIdSpec = EventIdSpec()
    amount: AmountSpec | None = None
    fields: tuple[FieldSpec, ...] = Field(min_length=1)
    clients: tuple[ClientFileSpec, ...] = Field((), description="attribute files; the first that has a value wins")
    labels: tuple[LabelSpec, ...] = ()
    as_of: dt.datetime | None = Field(None, description="instant of labels and documents that have none of their own")
    mask: tuple[Mask, ...] = Field(
        ("iban", "card", "email", "phone", "name"), description="what is masked in fields of kind text"
    )
    mask_words: tuple[str, ...] = Field(
        (), description="names that are masked in fields of kind text wherever they stand; some hundred at most"
    )
    pseudonymise: PseudonymSpec | None = Field(None, description="left out: client ids stay as they are")
    split: SplitSpec = SplitSpec()
    published: tuple[PublishedField, ...] = Field(
        (), description="columns of the format `published`; left out: day, log amount, then the fields"
    )
    protocol: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        exclude=True,  # settings of stages: they decide about a stage by the stage's own configuration
        description="stage -> settings that win over conf/protocol.yaml when this file is run as a pipeline",
    )

    @field_validator("fields")
    @classmethod
    def _fields_distinct(cls, fields: tuple[FieldSpec, ...]) -> tuple[FieldSpec, ...]:
        names = [field.name.lower() for field in fields]
        taken = {column.name for column in EVENTS.columns} | {"run_id"}
        wrong = sorted({name for name in names if names.count(name) > 1 or name in taken})
        if wrong:
            raise ValueError(f"field names {', '.join(wrong)} are used twice or belong to every event")
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tasks = [label.name for label in self.labels]
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"task names must differ: {', '.join(tasks)}")
        if any(label.as_of is None for label in self.labels) and self.as_of is None:
            raise ValueError("give 'as_of', or each label its own")
        named = {field.name for field in self.fields}
        for name in self.pseudonymise.fields if self.pseudonymise else ():
            if name not in named:
                raise ValueError(f"pseudonymise.fields: no field '{name}': {nearest(name, named)}")
        shown = named | {"day"} | ({"amount"} if self.amount else set())
        for one in self.published:
            if one.of not in shown:
                raise ValueError(f"published: no field '{one.of}': {nearest(one.of, shown)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_title(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "name" in content:
            return {"title": str(content["name"]).replace("_", " "), **content}
        return content

    def field(self, name: str) -> FieldSpec:
        """The field of that name.

        Raises:
            SpecError: naming the nearest field.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise SpecError(f"data set {self.name}: no field '{name}': {nearest(name, [one.name for one in self.fields])}")

    def task(self, name: str) -> LabelSpec:
        """The task of that name.

        Raises:
            SpecError: naming the nearest task.
        """
        for label in self.labels:
            if label.name == name:
                return label
        raise SpecError(f"data set {self.name}: no task '{name}': {nearest(name, [one.name for one in self.labels])}")

    def fields_of(self, *kinds: Kind) -> tuple[FieldSpec, ...]:
        """The fields of these kinds, in order."""
        return tuple(field for field in self.fields if field.kind in kinds)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of all client attributes, in order."""
        return tuple(dict.fromkeys(name for file in self.clients for name in file.attributes))


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> DataSetSpec:
    """Reads a data set spec.

    Args:
        path: YAML file; a relative one is also looked for in the shipped `conf/`.
        overrides: `key.sub=value` items that win over the file, such as `source.path=/data/bank`.

    Returns:
        The spec; a relative `source.path` and dictionary files beside the spec are absolute in it when they exist.

    Raises:
        SpecError: naming the file, the key, the value and the nearest valid key.
    """
    try:
        file = find_file(path)
        content = load_yaml(file, overrides)
    except ConfigError as error:
        raise SpecError(str(error)) from error
    _place_dictionaries(content, file.parent)
    source = content.get("source")
    if isinstance(source, dict) and source.get("path"):
        source["path"] = located(str(source["path"]), file.parent)
    return parse(DataSetSpec, content, source=str(file), error=SpecError)


def is_url(path: str) -> bool:
    """Whether Spark, not this machine's file system, knows where `path` is."""
    return "://" in path or path.startswith(("dbfs:/", "file:/"))


def located(path: str, beside: Path) -> str:
    """The absolute form of a path that exists beside a spec, in the shipped `conf/` or here; any other as it is."""
    if is_url(path):
        return path
    try:
        return str(find_file(path, beside=beside))
    except ConfigError:
        return path


def _place_dictionaries(content: Mapping[str, Any], beside: Path) -> None:
    fields = content.get("fields")
    for field in fields if isinstance(fields, list) else []:
        dictionary = field.get("dictionary") if isinstance(field, dict) else None
        file = dictionary.get("file") if isinstance(dictionary, dict) else None
        if isinstance(file, dict) and "glob" in file:
            file["glob"] = located(str(file["glob"]), beside)
