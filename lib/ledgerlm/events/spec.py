"""Data set specs: YAML that says how files become events, clients and labels, without code."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ledgerlm.config import find_file, load_yaml, nearest, parse
from ledgerlm.errors import ConfigError, SpecError
from ledgerlm.events.clock import aware
from ledgerlm.events.files import is_url
from ledgerlm.events.spec_files import (
    ClientFileSpec,
    Currency,
    DictionarySpec,
    FileSpec,
    JoinSpec,
    SourceSpec,
    SpecPart,
)
from ledgerlm.events.spec_times import FILE_ORDER, UTC_TIME, AsOf, AsOfSpec, GridSpec, TimeSpec
from ledgerlm.events.spec_yaml import check_words
from ledgerlm.lake.schemas import EVENT_ORDER, EVENTS, FINEST

Kind = Literal["categorical", "numeric", "text"]
TaskKind = Literal["binary", "multiclass", "regression"]
Show = Literal["text", "day", "log_int", "log_2", "rank"]
Mask = Literal["iban", "card", "email", "phone", "name"]


class EventIdSpec(SpecPart):
    """What identifies an event of a client: columns, or else a hash of the whole row as it was delivered."""

    columns: tuple[str, ...] = Field(
        (), description="columns joined to the id; empty: SHA-256 of the row, its values by their names"
    )
    repeats: Literal["keep", "drop"] = Field(
        "keep",
        description="without columns: an equal row again is an event of its own (the id carries its occurrence "
        "number; rows that several files repeat count once), or a duplicate",
    )
    conflicts: Literal["refuse", "last"] = Field(
        "refuse",
        description="rows of one id that differ: set all of them aside, or keep the last by time.order, then batch, "
        "file and line (the others count as duplicates)",
    )
    deleted: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="column -> values of the rows that take the event of their id away again, such as {op: [D]}; rows "
        "of the id that come before it, by time.order, then batch, file and line, go with it, also in later batches",
    )
    kept: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="the same columns -> values of rows that are events, such as {op: [I, U]}; an empty value is one "
        "always, and a row with any other is set aside",
    )

    @model_validator(mode="after")
    def _deleted_by_id(self) -> Self:
        if self.deleted and not self.columns:
            raise ValueError("event_id.deleted needs event_id.columns: a row can only take away what it can name")
        for column, values in self.kept.items():
            if column not in self.deleted:
                raise ValueError(
                    f"event_id.kept: {column} is no column of event_id.deleted, beside which it says what is"
                )
            if both := sorted(set(values) & set(self.deleted[column])):
                raise ValueError(f"event_id: {', '.join(both)} of {column} cannot be both deleted and kept")
        return self


class SignSpec(SpecPart):
    """The sign of amounts that are written without one, by a column such as the transaction type."""

    column: str = Field(description="column of the code")
    negative: tuple[str, ...] = Field(min_length=1, description="values (after the file's `values`) of money going out")
    positive: tuple[str, ...] = Field(min_length=1, description="values of money coming in; others make a bad amount")
    signed: Literal["refuse", "column", "both"] = Field(
        "refuse",
        description="amounts that carry a minus themselves: a bad amount, the column alone decides, or both (a minus "
        "turns the column's sign over); they are counted",
    )

    @model_validator(mode="after")
    def _codes_distinct(self) -> Self:
        both = sorted(set(self.negative) & set(self.positive))
        if both:
            raise ValueError(f"amount.sign: {', '.join(both)} cannot be both negative and positive")
        return self


class ConvertSpec(SpecPart):
    """Turns amounts of several currencies into one when they are read; what is turned is rounded and counted."""

    into: Currency = Field(description="the currency of all amounts afterwards")
    rates: dict[Currency, Decimal] = Field(
        description="currency -> its worth in `into`, such as {USD: 0.92, JPY: 0.0061}; an amount of another currency, "
        "or of none, is bad"
    )

    @model_validator(mode="after")
    def _rates_sound(self) -> Self:
        wrong = sorted(name for name, rate in self.rates.items() if rate <= 0 or rate.as_tuple().exponent < -9)  # type: ignore[operator]
        if wrong or self.rates.get(self.into, 1) != 1:
            raise ValueError(
                f"convert: rates of {', '.join(wrong) or self.into}: above zero with at most nine decimal places, and "
                f"that of {self.into} is 1"
            )
        return self


class AmountSpec(SpecPart):
    """The amount of an event; money going out is negative when the data say so."""

    column: str = Field(description="column of the amount")
    nulls: tuple[str, ...] = Field((), description="values that mean absent, beside the empty one")
    scale: int = Field(
        4,
        ge=0,
        le=FINEST,
        description="decimal places that are kept; what has more is a bad amount. Up to 4 amounts are decimal(18,4), "
        "of more they are decimal(38,scale)",
    )
    round: bool = Field(
        False, description="whether amounts with more decimal places are rounded (half up) and counted instead"
    )
    times: str | None = Field(None, description="numeric column that multiplies it, such as a quantity beside a price")
    sign: SignSpec | Literal["as_is", "negative"] = Field("as_is", description="as_is, negative (all), or by a column")
    currency: Currency | None = Field(None, description="currency of all amounts")
    currency_column: str | None = Field(
        None, description="column that holds the currency, in any case, or a sign of the file's currency_signs"
    )
    convert: ConvertSpec | None = Field(
        None,
        description="rates that turn all amounts into one currency; left out, amounts of several are told with theirs, "
        "summed by currency in features, and never added up",
    )

    @model_validator(mode="after")
    def _one_currency(self) -> Self:
        if self.currency and self.convert:
            raise ValueError("'convert' turns amounts of several currencies into one: leave 'currency' out")
        if self.currency and self.currency_column:
            raise ValueError("give 'currency' or 'currency_column', not both")
        return self


class FieldSpec(SpecPart):
    """One attribute of an event, in the order in which texts show them."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="column in the events table")
    column: str = Field("", description="column in the files; left out, the name")
    kind: Kind = Field("categorical", description="a code or category, a number, or free text (which is masked)")
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


class FutureSpec(SpecPart):
    """A label computed from events: what a client does from `as_of` on.

    Clients without an event before `as_of` have none, and nobody has one whose days reach beyond the end of the data
    (`time.end`): those are counted.
    """

    value: Literal["amount", "events"] = Field("amount", description="sum of the amounts, or number of the events")
    days: int = Field(ge=1, description="days from as_of that are looked at, on the clock of time.zone")


class LabelSpec(SpecPart):
    """One task, and the file that holds its labels or the rule that computes them."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the task")
    kind: TaskKind = Field(description="two classes, several, or a number")
    title: str = Field("", description="human name; left out, the task's name")
    file: FileSpec | None = Field(None, description="file of the labels; left out with `future`")
    id: str = Field("", description="column of the client id")
    column: str = Field("", description="column of the label")
    future: FutureSpec | None = Field(None, description="rule that computes the labels from events, instead of a file")
    between: tuple[float, float] | None = Field(None, description="least and most; labels beyond are set aside")
    values: dict[str, int] = Field(default_factory=dict, description="value in the file -> class number")
    thresholds: tuple[float, ...] = Field(
        (), description="class = how many of these the number reaches; needed for the classes of `future`"
    )
    classes: tuple[str, ...] = Field((), description="names of the classes, from class 0")
    as_of: AsOf | None = Field(
        None, description="instant, the column of it, or (with `future`) a grid; left out, spec as_of"
    )
    only: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="column -> values of the rows to use; with `future`, field (or currency) -> values of the events "
        "that count",
    )
    conflicts: Literal["absent", "least", "most"] = Field(
        "absent",
        description="labels of one client and as_of that differ: none is kept, or the least or most (class number or "
        "value); the others are set aside",
    )

    @field_validator("only")
    @classmethod
    def _currencies(cls, only: dict[str, tuple[str, ...]], info: ValidationInfo) -> dict[str, tuple[str, ...]]:
        """Of `future`, those of the events table, which are in upper case."""
        if not info.data.get("future") or "currency" not in only:
            return only
        return only | {"currency": tuple(one.upper() for one in only["currency"])}

    @model_validator(mode="after")
    def _labels_found(self) -> Self:
        if self.future:
            if self.file or self.id or self.column or isinstance(self.as_of, AsOfSpec):
                raise ValueError(
                    f"task {self.name}: 'future' goes with a fixed as_of or a grid, and without file, id and column"
                )
            if self.values:
                raise ValueError(f"task {self.name}: 'values' are texts of a file; 'future' takes 'thresholds'")
            if self.kind != "regression" and len(self.thresholds) != len(self.class_names) - 1:
                raise ValueError(
                    f"task {self.name}: {len(self.class_names)} classes of 'future' need "
                    f"{len(self.class_names) - 1} in 'thresholds', not {len(self.thresholds)}: class = how many of "
                    "these the number reaches, such as [1]"
                )
        elif not (self.file and self.id and self.column):
            raise ValueError(f"task {self.name}: give 'file', 'id' and 'column', or 'future'")
        elif isinstance(self.as_of, GridSpec):
            raise ValueError(f"task {self.name}: a grid of as_of goes with 'future'; name the column of a file's as_of")
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
    """Replaces client ids by a keyed HMAC-SHA256, and in texts of a client its own id by `[client]`.

    Ids of fewer than four signs stay in texts. Quarantine has the same hash of a raw row in its place, unless told
    otherwise.
    """

    key_env: str = Field("LEDGERLM_PSEUDONYM_KEY", description="environment variable that holds the secret key")
    fields: tuple[str, ...] = Field((), description="categorical fields (account numbers) to replace as well")
    keep_payload: bool = Field(
        False,
        description="whether quarantine keeps raw rows and what is wrong with them, which hold the real ids; without, "
        "it has each row's keyed hash, its file and the reason",
    )


class SplitSpec(SpecPart):
    """Which labelled clients are the test clients. Clients without a label are training clients."""

    rule: Literal["auto", "shuffle", "hash"] = Field(
        "hash",
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

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="small letters, digits and _")
    title: str = Field("", description="human name; left out, the name")
    about: str = Field("", description="one sentence: origin and licence")
    source: SourceSpec | None = Field(None, description="event files; left out when the simulate job makes the events")
    joins: tuple[JoinSpec, ...] = ()
    client: str = Field("client_id", description="column of the client id")
    time: TimeSpec = UTC_TIME
    event_id: EventIdSpec = EventIdSpec()
    amount: AmountSpec | None = None
    fields: tuple[FieldSpec, ...] = Field(min_length=1)
    clients: tuple[ClientFileSpec, ...] = Field((), description="attribute files; the first that has a value wins")
    labels: tuple[LabelSpec, ...] = ()
    as_of: dt.datetime | None = Field(
        None,
        description="instant of labels and documents that have none of their own; without a zone it is in time.zone",
    )
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
        description="stage -> settings of the stages of that name in each pipeline over these data, but for the keys "
        "that the pipeline gives itself; they win over conf/protocol.yaml when this file is run as a pipeline",
    )

    @field_validator("fields")
    @classmethod
    def _fields_distinct(cls, fields: tuple[FieldSpec, ...]) -> tuple[FieldSpec, ...]:
        names = [field.name.lower() for field in fields]
        taken = {column.name for column in EVENTS.columns} | {"run_id", EVENT_ORDER}
        wrong = sorted({name for name in names if names.count(name) > 1 or name in taken})
        if wrong:
            raise ValueError(f"field names {', '.join(wrong)} are used twice or belong to every event")
        return fields

    @field_validator("as_of")
    @classmethod
    def _in_zone(cls, as_of: dt.datetime | None, info: ValidationInfo) -> dt.datetime | None:
        time = info.data.get("time")
        return aware(as_of, time.zone) if as_of is not None and isinstance(time, TimeSpec) else as_of

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tasks = [label.name for label in self.labels]
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"task names must differ: {', '.join(tasks)}")
        if any(label.as_of is None for label in self.labels) and self.as_of is None:
            raise ValueError("give 'as_of', or each label its own")
        self._check_future()
        files = self.source.files if self.source else ()
        if self.time.order == FILE_ORDER and any(file.format == "delta" for file in files):
            raise ValueError("time.order: file: rows of a Delta table have no order; name a column, or leave it out")
        named = {field.name for field in self.fields}
        for name in self.pseudonymise.fields if self.pseudonymise else ():
            if name not in named:
                raise ValueError(f"pseudonymise.fields: no field '{name}': {nearest(name, named)}")
        shown = named | {"day"} | ({"amount"} if self.amount else set())
        for one in self.published:
            if one.of not in shown:
                raise ValueError(f"published: no field '{one.of}': {nearest(one.of, shown)}")
        return self

    def _check_future(self) -> None:
        known = {field.name for field in self.fields_of("categorical")} | {"currency"}
        for label in self.labels:
            if label.future is None:
                continue
            if label.future.value == "amount" and self.amount is None:
                raise ValueError(
                    f"task {label.name}: the data set has no 'amount' to be summed; give it, or 'value: events'"
                )
            for name in label.only:
                if name not in known:
                    raise ValueError(f"task {label.name}: only: no categorical field '{name}': {nearest(name, known)}")

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
    def several_currencies(self) -> bool:
        """Whether amounts may be of several currencies."""
        if self.amount is None or self.amount.currency or self.amount.convert:
            return False
        files = self.source.files if self.source else ()
        return self.amount.currency_column is not None or any(file.currency_signs for file in files)

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
    check_words(file)
    _place_dictionaries(content, file.parent)
    source = content.get("source")
    if isinstance(source, dict) and source.get("path"):
        source["path"] = located(str(source["path"]), file.parent)
    return parse(DataSetSpec, content, source=str(file), error=SpecError)


def source_of(spec: DataSetSpec) -> SourceSpec:
    """The source of a data set that is read from files.

    Raises:
        SpecError: when the spec has none.
    """
    if spec.source is None:
        raise SpecError(f"data set {spec.name} has no 'source': the simulate job makes its events, or add source.path")
    return spec.source


def located(path: str, beside: Path) -> str:
    """The absolute form of a path that exists beside a spec, here or in the shipped `conf/`; any other as it is."""
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
