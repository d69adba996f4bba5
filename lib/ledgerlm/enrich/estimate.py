"""How much an enrichment will be, before it starts: rewrites, tokens, hours and cost."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from ledgerlm.enrich.pool import PoolConf
from ledgerlm.enrich.rewrite import RewriteConf
from ledgerlm.errors import ConfigError
from ledgerlm.runs.config import Conf


class CostConf(Conf):
    """What the estimate takes for granted. Prices are in one currency of the user's choice."""

    characters_per_token: float = Field(3.5, gt=0, description="characters of a token")
    growth: float = Field(1.5, gt=0, description="length of a rewrite against the text that it tells")
    tokens_per_second: float = Field(300_000, gt=0, description="tokens that one worker writes in a second")
    worker_hour: float = Field(0, ge=0, description="price of one worker for an hour")
    input_million: float = Field(0, ge=0, description="price of a million tokens read, for endpoints")
    output_million: float = Field(0, ge=0, description="price of a million tokens written, for endpoints")
    at_most: float | None = Field(None, description="estimated cost above which the stage does not start", ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Sums over the documents to enrich.

    Attributes:
        documents: rows.
        characters: of the events that rewrites will tell.
    """

    documents: int
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an enrichment will take.

    Attributes:
        documents: rows to be read.
        rewrites: rows to be made.
        shards: pieces of work.
        input_tokens, output_tokens: read and written by the engine.
        hours: wall time with the configured workers.
        cost: in the currency of the configured prices.
    """

    documents: int
    rewrites: int
    shards: int
    input_tokens: int
    output_tokens: int
    hours: float
    cost: float

    def __str__(self) -> str:
        time = f"{self.hours:.1f} h" if self.hours >= 1 else f"{self.hours * 3600:.0f} s"
        cost = f", cost {self.cost:,.2f}" if self.cost else ""
        return f"{self.rewrites:,} rewrites, {self.output_tokens:,} tokens, about {time}{cost}"


def estimate(volume: Volume, rewrite: RewriteConf, pool: PoolConf, cost: CostConf) -> Estimate:
    """Estimates an enrichment from the size of its documents.

    Raises:
        ConfigError: when the cost is above `cost.at_most`.
    """
    read = volume.characters / cost.characters_per_token * rewrite.variants
    written = read * cost.growth
    hours = written / cost.tokens_per_second / pool.workers / 3600
    price = hours * pool.workers * cost.worker_hour
    price += (read * cost.input_million + written * cost.output_million) / 1e6
    if cost.at_most is not None and price > cost.at_most:
        raise ConfigError(
            f"the enrichment is estimated at {price:,.2f}, more than cost.at_most = {cost.at_most:,.2f}; "
            "write fewer variants or max_events, choose fewer clients, or raise cost.at_most"
        )
    return Estimate(
        documents=volume.documents,
        rewrites=volume.documents * rewrite.variants,
        shards=-(-volume.documents // pool.shard_rows),
        input_tokens=round(read),
        output_tokens=round(written),
        hours=hours,
        cost=round(price, 2),
    )
