"""The part of a data set spec that says how files are written: their dialect, their columns, their numbers."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from ledgerlm.config import Conf

Encoding = Literal[
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "iso-8859-1", "iso-8859-2", "iso-8859-5", "iso-8859-7", "iso-8859-9",
    "iso-8859-15", "windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254", "windows-1257",
    "koi8-r", "ibm437", "ibm850", "ibm852",
]  # fmt: skip
Currency = Annotated[str, AfterValidator(str.upper)]
"""A currency, whose case tells nothing."""
Conflict = Literal["absent", "first", "last"]
_CONFLICTS = (
    "which row holds of a key whose rows differ: none (absent), or the first or last by alphabet of the values; such "
    "keys are counted"
)


class SpecPart(Conf):
    """Base of the parts of a spec. YAML reads unquoted codes as numbers: they become text (quote leading zeros)."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


class UnpivotSpec(SpecPart):
    """Wide to long: a line that holds several periods in columns, such as six months, becomes a row for each.

    So do debit and credit in columns of their own. A period whose columns are all empty is no row; such periods are
    counted.
    """

    name: str = Field(description="column that holds the period afterwards, for time, as_of or a field")
    rows: dict[str, dict[str, str]] = Field(
        min_length=1,
        description='what name holds -> column -> column of the file, such as {"2005-09-30": {bill: BILL_AMT1, paid: '
        'PAY_AMT1}, "2005-08-31": {bill: BILL_AMT2, paid: PAY_AMT2}}',
    )
    nulls: tuple[str, ...] = Field(
        (),
        description="values that are empty as well, such as [0.00] in the column of the other side",
    )

    @model_validator(mode="after")
    def _rows_alike(self) -> Self:
        columns = {tuple(sorted(row)) for row in self.rows.values()}
        if len(columns) > 1 or not all(columns) or self.name in next(iter(columns)):
            raise ValueError(f"unpivot: each of rows names the same columns, at least one, and none is '{self.name}'")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row holds, beside the period."""
        return tuple(next(iter(self.rows.values())))


class FileSpec(SpecPart):
    """One file, or several of one form, below `source.path`."""

    glob: str = Field(
        description="file name or pattern below source.path; an absolute path or a URL stands for itself. Of delta the "
        "folder of a table, or its name in a catalog, `catalog.schema.table`"
    )
    format: Literal["csv", "json", "parquet", "delta"] = Field("csv", description="json: one object a line")
    leave_out: tuple[str, ...] = Field(
        (),
        description="patterns of file names (with a /: of paths) that the glob matches and that are not read, such as "
        "_backup*.csv",
    )
    separator: str = Field(
        ",", min_length=1, description="csv: what stands between columns; a first line `sep=;` wins over it"
    )
    quote: str = Field('"', max_length=1, description="csv: quote character, doubled inside a value; empty for none")
    empty: bool = Field(
        False,
        description="files without a row, or without a byte, are no error; left out, one without a byte is taken for a "
        "delivery that was cut off, and nothing but files without a row for a mistake (new files of "
        "`ingest: {append: true}` may have no row)",
    )
    int96: Literal["instants", "local"] | None = Field(
        None,
        description="parquet: what times of 96 bits mean, which say nothing of a zone: instants, as Spark and Hive "
        "write them, or what a clock in time.zone showed, as Impala does; needed where the zone is not UTC. What they "
        "say beyond the microsecond is cut, and cannot be counted",
    )
    line_breaks: bool | None = Field(
        None,
        description="csv: whether quoted values hold line breaks; such a file is put together by one task. Left out, "
        "the first mebibyte of each file decides, and more than one open quote after it stops the run. false: each "
        "line is a row, and one with an open quote is set aside",
    )
    header: bool = Field(
        True, description="csv: the first line names the columns; the same line further down is skipped"
    )
    skip: int | None = Field(
        None,
        ge=0,
        description="csv: lines before the header (or before the first row); left out, the header is the first line "
        "that names every column that the spec needs",
    )
    columns: tuple[str, ...] = Field(
        (), description="csv: column names in order; needed without a header, or where the header has a name twice"
    )
    encoding: Encoding = Field(
        "utf-8", description="csv, json: encoding of the text; a byte order mark wins. iso-8859-1 is windows-1252"
    )
    decimal: str = Field(".", min_length=1, max_length=1, description="decimal sign of numbers written as text")
    thousands: str = Field(
        "", max_length=1, description="sign between groups of three digits (`,` also as in 2,45,500); empty for none"
    )
    parentheses: bool = Field(False, description="whether (12.50) is −12.50")
    trailing_minus: bool = Field(False, description="whether 12.50- is −12.50")
    marks: dict[str, Literal["+", "-"]] = Field(
        default_factory=dict, description="word before or after a number -> its sign, such as {CR: +, DR: '-'}"
    )
    currency_signs: dict[str, Currency] = Field(
        default_factory=dict,
        description="sign or code before or after a number -> currency, such as {€: EUR, EUR: EUR}; of an amount it is "
        "the currency, and one that differs from amount.currency or currency_column makes the amount bad. They hold in "
        "currency_column, too",
    )
    rename: dict[str, str] = Field(default_factory=dict, description="column name in this spec -> name in the file")
    constants: dict[str, str] = Field(default_factory=dict, description="columns that the file lacks, with their value")
    values: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="column -> value in the file -> value to use; others stay as they are"
    )

    unpivot: UnpivotSpec | None = Field(None, description="turns columns of periods into rows")

    @model_validator(mode="after")
    def _columns_known(self) -> Self:
        if self.format == "csv" and not self.header and not self.columns:
            raise ValueError(f"{self.glob} has no header: name its columns in order under 'columns'")
        twice = sorted({name for name in self.columns if name and self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"{self.glob}: columns {', '.join(twice)} are named twice under 'columns'")
        return self

    @model_validator(mode="after")
    def _numbers_readable(self) -> Self:
        for key, sign in (("decimal", self.decimal), ("thousands", self.thousands)):
            if sign and re.match(r"[\w+\-()]", sign):
                raise ValueError(f"{self.glob}: {key} {sign!r} can be no sign inside a number")
        if self.decimal == self.thousands:
            raise ValueError(f"{self.glob}: decimal and thousands are both {self.decimal!r}")
        if self.separator in (self.quote, "\n", "\r"):
            raise ValueError(f"{self.glob}: the separator {self.separator!r} is the quote or a line break")
        affixes = [affix for affix in (*self.marks, *self.currency_signs) if not affix or re.search(r"[\d\s]", affix)]
        if affixes:
            raise ValueError(f"{self.glob}: marks and currency_signs are words without digits and blanks: {affixes}")
        return self

    @property
    def plain_numbers(self) -> bool:
        """Whether numbers are digits, a decimal sign and a sign before them."""
        return not (self.thousands or self.parentheses or self.trailing_minus or self.marks or self.currency_signs)


class SourceSpec(SpecPart):
    """Where the event files lie."""

    path: str = Field("", description="folder or URL; relative: beside the spec, from here, or in the shipped conf/")
    files: tuple[FileSpec, ...] = Field(min_length=1, description="event files; several are put one after another")
    needs: str = Field("", description="what to tell a user whose path is empty or wrong: where the files come from")


class JoinSpec(SpecPart):
    """An attribute file whose columns are added to every event by a key, such as products by product id."""

    file: FileSpec
    key: str = Field(description="key column, of the same name in the events and in the file")
    columns: tuple[str, ...] = Field(min_length=1, description="columns that the file adds")
    conflicts: Conflict = Field("absent", description=_CONFLICTS)


class DictionarySpec(SpecPart):
    """A file from code to description."""

    file: FileSpec
    code: str = Field(description="column of the code")
    description: str = Field(description="column of the description")
    conflicts: Conflict = Field("absent", description=_CONFLICTS)


class ClientFileSpec(SpecPart):
    """A file with attributes of clients."""

    file: FileSpec
    id: str = Field(description="column of the client id")
    attributes: dict[str, str] = Field(default_factory=dict, description="attribute -> column of the file")
    nulls: tuple[str, ...] = Field((), description="values that mean absent, beside the empty one")
    valid_from: str | None = Field(
        None,
        description="column with the date (2024-05-31, or with a time) from which a row holds; the latest that is "
        "before the spec's as_of is taken, or the latest without as_of",
    )
    conflicts: Conflict = Field("absent", description=_CONFLICTS)

    @field_validator("attributes")
    @classmethod
    def _named(cls, attributes: dict[str, str]) -> dict[str, str]:
        if any(name.lower() in ("client_id", "split", "run_id") for name in attributes):
            raise ValueError("client_id, split and run_id are columns of every client: name the attribute otherwise")
        return attributes
