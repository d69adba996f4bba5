"""What an engine profile says of Spark; read without starting or importing it."""

from __future__ import annotations

from pydantic import Field

from ledgerlm.config import Conf


class SparkConf(Conf):
    """Spark part of an engine profile."""

    master: str | None = Field(None, description="Spark master; left out, spark-submit or the platform decides")
    remote: str | None = Field(
        None,
        description="Spark Connect server (`sc://host:port`), or `local[N]` for one of its own; not with master",
    )
    app_name: str = Field("ledgerlm", description="application name")
    conf: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Spark settings by their full names"
    )
