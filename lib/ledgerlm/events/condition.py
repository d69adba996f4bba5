"""SQL conditions in settings. Settings are read before any engine is, so this module imports none at its top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic_core import core_schema

from ledgerlm.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pyspark.sql import DataFrame

_HOLDS, _INSTANTS = "_holds", "_instants"


class Condition(str):
    """A SQL condition that a user gives, over a table's columns; times in it are those of a clock in the data's zone.

    So `as_of < '2024-06-01'` ends at midnight there, and `hour(event_time)` is the hour that a client saw.

    Attributes:
        zone: whose clock; UTC until `in_zone` gives it the data's.
    """

    zone: str

    def __new__(cls, text: str, zone: str = "UTC") -> Self:
        """The condition, for a clock in the zone."""
        made = super().__new__(cls, text)
        made.zone = zone
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """A text in settings, as in what is written of them."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, read: value if isinstance(value, cls) else cls(read(value)),
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    def rows(self, frame: DataFrame) -> DataFrame:
        """The rows for which it holds; as `DataFrame.where`, but for the clock."""
        if self.zone == "UTC":
            return frame.where(str(self))
        return self.marked(frame, _HOLDS).where(_HOLDS).drop(_HOLDS)

    def marked(self, frame: DataFrame, name: str, key: str = "condition") -> DataFrame:
        """All rows, with a column that says whether it holds; null where it cannot be said.

        Args:
            frame: rows.
            name: of the column.
            key: the setting that gives it, for messages.

        Raises:
            ConfigError: it is no condition over the columns.
        """
        from pyspark.errors import AnalysisException

        try:
            found = self._marked(frame, name)
            _ = found.schema  # over Spark Connect nothing is looked at before
        except AnalysisException as error:
            reason = str(error).split("\n", 1)[0]
            raise ConfigError(f"{key}: '{self}' is no condition over {', '.join(frame.columns)}: {reason}") from error
        return found

    def _marked(self, frame: DataFrame, name: str) -> DataFrame:
        from pyspark.sql import functions as F
        from pyspark.sql.types import TimestampType

        from ledgerlm.events.clock import local

        holds = F.expr(str(self)).cast("boolean")
        times = [one.name for one in frame.schema.fields if isinstance(one.dataType, TimestampType)]
        if self.zone == "UTC" or not times:
            return frame.withColumn(name, holds)
        shown = frame.select(
            *(local(F.col(one), self.zone).alias(one) if one in times else F.col(one) for one in frame.columns),
            F.struct(*times).alias(_INSTANTS),
        ).withColumn(name, holds)
        back = (F.col(f"{_INSTANTS}.{one}").alias(one) if one in times else F.col(one) for one in frame.columns)
        return shown.select(*back, name)
