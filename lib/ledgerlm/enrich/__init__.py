"""Enrichment: documents rewritten into other formats by an engine, and checked against their source."""
