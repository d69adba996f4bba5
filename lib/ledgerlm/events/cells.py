"""The columns that a spec needs of a file: as text, as ids and codes in one form, and as numbers.

Each step is a projection of its own, so that no expression stands twice in a plan, and texts are cleaned as one array,
so that a plan does not grow with the number of columns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ledgerlm.engines.frames import with_columns
from ledgerlm.events.clock import local
from ledgerlm.events.columns import BLOCK, DAMAGED, FAULT, FILE, FINER, LEFT_OUT, ODD, PATH, PAYLOAD, PLACE, ROW
from ledgerlm.events.csv_files import Part
from ledgerlm.events.file_heads import resolved
from ledgerlm.events.files import partition_value
from ledgerlm.events.identity import in_one_form, odd_texts
from ledgerlm.events.money import currency_of
from ledgerlm.events.numbers import EXACT, exact_double, exact_number, plain_number, real_number
from ledgerlm.events.quality import Reason, recoded
from ledgerlm.events.spec import DataSetSpec, SignSpec
from ledgerlm.events.spec_files import FileSpec
from ledgerlm.events.times import TIMES
from ledgerlm.events.typed_files import as_text

_CONTROLS = r"[\u0000\u0080-\u0084\u0086-\u009f]"  # U+0085 ends a line on mainframes
_CELLS, _STRANGE, _CLEAN = "_cells", "_strange", "_clean"


@dataclass(frozen=True, kw_only=True, slots=True)
class Uses:
    """What columns of a file are read as, beside text.

    Attributes:
        codes: ids and codes, which have one form.
        reals: numbers that are kept as doubles.
        exact: numbers of which every digit counts, and the currency that may stand at them.
        times: stay timestamps or dates if the files have them so.
        currencies: codes or signs of currencies.
        zone: in which instants are told where they become text.
    """

    codes: Collection[str] = ()
    reals: Collection[str] = ()
    exact: Collection[str] = ()
    times: Collection[str] = ()
    currencies: Collection[str] = ()
    zone: str = "UTC"

    def columns(self, name: str) -> list[str]:
        """What `Cells.rows` calls the forms of a column that are used."""
        forms = {"r": True, "i": name in self.codes, "n": name in self.reals, "d": name in self.exact}
        forms |= {"c": name in self.exact or name in self.currencies}
        return [hidden(name, form) for form, used in forms.items() if used]


def event_uses(spec: DataSetSpec) -> Uses:
    """What a spec reads the columns of events as."""
    codes = {spec.client, *spec.event_id.columns, *spec.event_id.deleted, *(join.key for join in spec.joins)}
    codes |= {field.column for field in spec.fields_of("categorical") if not field.flags}
    codes |= {spec.time.zone_column} if spec.time.zone_column else set()
    numbers: set[str] = set()
    if spec.amount is not None:
        numbers = {spec.amount.column, spec.amount.times or spec.amount.column}
        codes |= {spec.amount.sign.column} if isinstance(spec.amount.sign, SignSpec) else set()
        codes |= {spec.amount.currency_column} if spec.amount.currency_column else set()
    reals = {field.column for field in spec.fields_of("numeric")}
    return Uses(
        codes=codes,
        reals=reals,
        exact=numbers,
        times={spec.time.column} - {""},
        currencies={spec.amount.currency_column} if spec.amount and spec.amount.currency_column else (),
        zone=spec.time.zone,
    )


def raw(name: str) -> Column:
    """A column of the data as trimmed text (or a time), whatever its name; null where it is empty."""
    return F.col(hidden(name))


def code(name: str) -> Column:
    """A column of ids or codes, in their one form; null where it holds none."""
    return F.col(hidden(name, "i"))


def real(name: str) -> Column:
    """A number column of the data as a double; null where it holds no number that a float32 can hold."""
    return F.col(hidden(name, "n"))


def exact(name: str) -> Column:
    """A number column of the data as a decimal(38,18); null where it holds no number of so many digits."""
    return F.col(hidden(name, "d"))


def currency_at(name: str) -> Column:
    """The currency that stands in a column of currencies, or at an exact number; null where none does."""
    return F.col(hidden(name, "c"))


def type_of(rows: DataFrame, name: str) -> T.DataType:
    """The type of a column of the data: text, or a time."""
    return rows.schema[hidden(name)].dataType


def hidden(name: str, form: str = "r") -> str:
    """A name for Spark, which knows no capitals and takes dots and quotes for its own."""
    return f"_{form}{name.encode().hex()}"


class Cells:
    """The columns of files that are read together, as a spec names them."""

    def __init__(self, *, part: Part, file: FileSpec, names: Sequence[str], uses: Uses) -> None:
        self.part, self.file, self.names, self.uses = part, file, names, uses
        self.folders = sorted({name for one in part.files for name, _ in one.partitions})
        columns = [self._column(name) for name in names]
        stored = part.rows.select(*(column.alias(str(place)) for place, column in enumerate(columns))).schema
        self.found = {
            name: (column, stored[str(place)].dataType)
            for place, (name, column) in enumerate(zip(names, columns, strict=True))
        }
        self.typed = [name for name in names if isinstance(self._kind(name), _OWN) and name not in file.values]

    def rows(self) -> DataFrame:
        """The columns in the forms in which they are used, and where each row stood."""
        numbers = [name for name in self.names if name in self.uses.reals or name in self.uses.exact]
        rows = self._with_numbers(self._with_texts(self._with_cells()), numbers)
        return rows.select(*(column for name in self.names for column in self.uses.columns(name)), *self._place())

    def _column(self, name: str) -> Column:
        """A column as it stands in the files; a constant, or nulls where they have none."""
        if name in self.file.constants:
            return F.lit(self.file.constants[name])
        wanted, place = self.file.rename.get(name, name), self.part.files[0].path
        stored = resolved(wanted, self.part.columns, place)
        if stored is not None:
            return self.part.columns[stored]
        folder = resolved(wanted, self.folders, place)
        return F.lit(None).cast("string") if folder is None else partition_value(folder, PATH)

    def _kind(self, name: str) -> T.DataType:
        return self.found[name][1]

    def _texts(self) -> tuple[list[str], list[str]]:
        """Columns that are cleaned as codes and as text."""
        texts = [name for name in self.names if name not in self.typed]
        return [name for name in texts if name in self.uses.codes], texts

    def _with_cells(self) -> DataFrame:
        """The texts as one array, cleaned: first the codes, then all of them."""
        codes, texts = self._texts()
        cells = F.array(*(F.trim(as_text(*self.found[name])) for name in (*codes, *texts))).cast("array<string>")
        kept = {hidden(name, "t"): self.found[name][0] for name in self.typed}
        rows = self.part.rows.withColumns({**kept, _CELLS: cells}).withColumn(_STRANGE, odd_texts(F.col(_CELLS)))
        strange = F.col(_STRANGE)
        # A loop over the cells of the few rows that have such a sign, for its column.
        places = F.transform(F.col(_CELLS), lambda text, place: F.when(text.rlike(_CONTROLS), place))
        place = F.element_at(F.filter(places, lambda one: one.isNotNull()), 1)
        names = F.array(*(F.lit(name) for name in (*codes, *texts))).cast("array<string>")
        control = F.concat(F.get(names, place), F.lit(": "), F.get(_CELLS, place))
        controls = strange & F.concat_ws("\n", _CELLS).rlike(_CONTROLS)
        clean = F.when(strange, in_one_form(F.col(_CELLS), len(codes))).otherwise(F.col(_CELLS))
        fault = F.coalesce(FAULT, F.when(controls, Reason.CONTROL_SIGN.value))
        damaged = F.coalesce(DAMAGED, F.when(F.col(FAULT).isNull() & controls, control))
        return rows.withColumns({_CLEAN: clean, FAULT: fault, DAMAGED: damaged})

    def _with_texts(self, rows: DataFrame) -> DataFrame:
        """Each column as text and as a code; a time may keep its type."""
        codes, texts = self._texts()
        values = {}
        for place, (name, form) in enumerate([*((name, "i") for name in codes), *((name, "r") for name in texts)]):
            text = F.nullif(F.get(_CLEAN, F.lit(place)), F.lit(""))
            values[hidden(name, form)] = recoded(text, self.file.values.get(name, {}))
        for name in self.typed:
            column, kind = F.col(hidden(name, "t")), self._kind(name)
            time = name in self.uses.times and isinstance(kind, TIMES)
            shown = local(column, self.uses.zone) if isinstance(kind, T.TimestampType) else column
            text = as_text(shown, kind)
            values[hidden(name, "i")] = text
            if isinstance(kind, T.FractionalType) and (name in self.uses.reals or name in self.uses.exact):
                # As a code NaN is a gap; as a number it is written, and none.
                text = F.coalesce(text, column.cast("string"))
            values[hidden(name)] = column if time else text
        rows = with_columns(rows, values)
        named = [name for name in self.names if name in self.uses.currencies]
        signs = self.file.currency_signs
        return with_columns(rows, {hidden(name, "c"): currency_of(code(name), signs) for name in named})

    def _with_numbers(self, rows: DataFrame, names: Sequence[str]) -> DataFrame:
        written = [name for name in names if name not in self.typed]
        plain = {name: plain_number(raw(name), self.file) for name in written}
        rows = with_columns(rows, {hidden(name, "p"): number for name, (number, _) in plain.items()})
        currencies = {hidden(name, "c"): currency for name, (_, currency) in plain.items()}
        nobody = {hidden(name, "c"): F.lit(None).cast("string") for name in names if name in self.typed}
        reals = {hidden(name, "n"): real_number(self._number(name)) for name in names if name in self.uses.reals}
        exact = {hidden(name, "d"): self._exact(name) for name in names if name in self.uses.exact}
        return with_columns(rows, {**currencies, **nobody, **reals, **exact})

    def _number(self, name: str) -> Column:
        """A number as its type holds it, or in plain form; a float as it prints, which is what was meant."""
        if name not in self.typed:
            return F.col(hidden(name, "p"))
        numeric = isinstance(self._kind(name), T.NumericType) and not isinstance(self._kind(name), T.FloatType)
        return F.col(hidden(name, "t")) if numeric else raw(name)

    def _exact(self, name: str) -> Column:
        if name in self.typed and isinstance(self._kind(name), T.DoubleType):
            return exact_double(F.col(hidden(name, "t")))
        if name in self.typed and isinstance(self._kind(name), T.DecimalType | T.IntegralType):
            return F.col(hidden(name, "t")).try_cast(EXACT)
        return exact_number(self._number(name).cast("string"))

    def _place(self) -> list[Column]:
        """The raw row, its fault and what shows it, and where it stood."""
        own = [F.lit(f"{name}={value}") for name, value in sorted(self.file.constants.items())]
        if self.file.format != "parquet":
            folders = {name: F.coalesce(partition_value(name, PATH), F.lit("")) for name in self.folders}
            own += [F.concat(F.lit(f"{name}="), value) for name, value in folders.items()]
        row = F.concat_ws("\n", self.part.row, *own) if own else self.part.row
        odd = F.col(ODD) if self.file.format == "csv" else F.lit(False)
        finer = F.col(FINER) if self.file.format in ("parquet", "delta") else F.lit(False)
        file = F.substring_index(PATH, "/", -2)
        return [
            F.col(PAYLOAD), F.col(FAULT), F.col(DAMAGED), file.alias(FILE), row.alias(ROW), F.col(PATH), F.col(BLOCK),
            F.col(PLACE), finer.alias(FINER), odd.alias(ODD), F.lit(False).alias(LEFT_OUT),
        ]  # fmt: skip


_OWN = (T.NumericType, TIMES, T.BooleanType)
"""Types whose values need no cleaning."""
