"""ledgerlm: transaction histories as text, embeddings and scores for every client."""

__version__ = "0.1.0"
