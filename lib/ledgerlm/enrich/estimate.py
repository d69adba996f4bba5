"""How much an enrichment will be, before it starts: texts, tokens, hours and cost."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from ledgerlm.config import Conf
from ledgerlm.enrich.pool import PoolConf
from ledgerlm.enrich.rewrite import WriterConf
from ledgerlm.errors import ConfigError

_TEMPLATE_SPEED = 300_000  # tokens a second that the template engine writes on one slow core


class CostConf(Conf):
    """What the estimate takes for granted. Prices are in one currency of the user's choice."""

    characters_per_token: float = Field(3.5, gt=0, description="characters of a token")
    growth: float = Field(1.5, gt=0, description="length of a written text against the events that it tells")
    again: float = Field(0.0, ge=0, description="share of texts that are refused and tried again")
    tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="tokens that one worker writes in a second; left out, what the template engine does, and for other "
        "engines no time is told",
    )
    worker_hour: float = Field(0, ge=0, description="price of one worker for an hour")
    input_million: float = Field(0, ge=0, description="price of a million tokens read, for endpoints")
    output_million: float = Field(0, ge=0, description="price of a million tokens written, for endpoints")
    at_most: float | None = Field(None, description="estimated cost above which the stage does not start", ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Sums over the documents to enrich.

    Attributes:
        documents: rows.
        characters: of the events that are told.
        events: that are told.
    """

    documents: int
    characters: int
    events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an enrichment will take.

    Attributes:
        documents: rows to be read.
        rewrites: rows to be made.
        shards: pieces of work.
        input_tokens, output_tokens: read (prompts included) and written by the engine.
        hours: wall time with the configured workers; None where nobody said how fast the engine is.
        cost: in the currency of the configured prices.
    """

    documents: int
    rewrites: int
    shards: int
    input_tokens: int
    output_tokens: int
    hours: float | None
    cost: float

    @property
    def cost_a_client(self) -> float:
        """Cost of one document's texts."""
        return self.cost / max(1, self.documents)

    def __str__(self) -> str:
        parts = [f"{self.rewrites:,} texts", f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"]
        if self.hours is None:
            parts.append("time unknown (set cost.tokens_per_second)")
        else:
            parts.append(f"about {self.hours:.1f} h" if self.hours >= 1 else f"about {self.hours * 3600:.0f} s")
        parts += [f"cost {self.cost:,.2f}, {self.cost_a_client:.3g} a client"] if self.cost else []
        return ", ".join(parts)


def estimate(volume: Volume, writer: WriterConf, pool: PoolConf, cost: CostConf) -> Estimate:
    """Estimates an enrichment from the size of its documents.

    Raises:
        ConfigError: when the cost is above `cost.at_most`, or has a worker's price but no speed.
    """
    texts = volume.documents * writer.texts
    tried = (1 + cost.again) / cost.characters_per_token
    prompts = writer.prompt_characters(volume.events / max(1, volume.documents)) * texts
    read = (volume.characters * writer.texts + prompts) * tried
    written = volume.characters * writer.texts * cost.growth * tried
    speed = cost.tokens_per_second or (_TEMPLATE_SPEED if writer.engine == "template" else None)
    if speed is None and cost.worker_hour:
        raise ConfigError(
            "cost.worker_hour needs cost.tokens_per_second: without a speed an hour's price gives no cost; "
            "measure it on a few clients"
        )
    hours = written / speed / pool.workers / 3600 if speed else None
    price = (hours or 0.0) * pool.workers * cost.worker_hour
    price += (read * cost.input_million + written * cost.output_million) / 1e6
    if cost.at_most is not None and price > cost.at_most:
        raise ConfigError(
            f"the enrichment is estimated at {price:,.2f}, more than cost.at_most = {cost.at_most:,.2f}; "
            "write fewer variants or max_events, choose fewer clients, or raise cost.at_most"
        )
    return Estimate(
        documents=volume.documents,
        rewrites=texts,
        shards=-(-volume.documents // pool.shard_rows),
        input_tokens=round(read),
        output_tokens=round(written),
        hours=hours,
        cost=round(price, 2),
    )
