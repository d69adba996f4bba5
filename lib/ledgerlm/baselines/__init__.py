"""Representations that need no language model."""
