"""ledgerlm: transaction histories as text, embeddings and scores for every client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerlm.verbs import Bank, aggregate, embed, example, fit, ingest, score, serialize

__version__ = "0.1.0"
__all__ = ["Bank", "aggregate", "embed", "example", "fit", "ingest", "score", "serialize"]


def __getattr__(name: str) -> Any:
    """The verbs, when the first is asked for: the command line does not wait for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ledgerlm import verbs

    return getattr(verbs, name)
